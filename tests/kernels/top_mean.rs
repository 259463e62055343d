//! Means of the largest values against the CPU's.

use inspectd::cuda::top_mean::top_mean;
use inspectd::cuda::{DeviceMemory, Gpu};
use inspectd::detector::network;

use crate::data::noise;
use crate::interpreter::Interpreter;

fn means(gpu: &mut Interpreter, maps: &[f32], count: usize, top: usize) -> Vec<f32> {
    let images = maps.len() / count;
    let (maps, means) = (gpu.floats(maps), gpu.alloc(4 * images).unwrap());
    gpu.launch(&top_mean(images, count, top, maps.region(), means.region())).unwrap();
    gpu.read_floats(means.region()).unwrap()
}

#[test]
fn means_equal_the_cpus() {
    let mut gpu = Interpreter::default();
    for count in [1, 31, 33, 1025, 2000] {
        // Noise, few different values, one value, values of all sizes and signs.
        let noise = noise(count, 3);
        let maps: [Vec<f32>; 4] = [
            noise.clone(),
            noise.iter().map(|x| (x * 4.0).round() / 4.0).collect(),
            vec![0.25; count],
            noise.iter().map(|x| x.powi(21) * 1e6).collect(),
        ];
        for top in [1, 2, 100, count] {
            let got = means(&mut gpu, &maps.concat(), count, top);
            for (map, got) in maps.iter().zip(got) {
                let want = network::top_mean(map, top, &mut Vec::new()).unwrap();
                // Both are f64 sums, rounded once.
                assert!((got - want).abs() <= 1e-6 * want.abs(), "{count} {top}: {got} {want}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_gives_no_mean() {
    let mut gpu = Interpreter::default();
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut maps = vec![0.5; 200];
        maps[137] = bad;
        let got = means(&mut gpu, &maps, 100, 3);
        assert_eq!(got[0], 0.5);
        assert!(got[1].is_nan(), "{bad}: {}", got[1]);
    }
}
