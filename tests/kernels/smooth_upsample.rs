//! Anomaly maps of several levels against upsampling, smoothing and fusing them one after the other.

use inspectd::cuda::smooth_upsample::{Fused, Level, SmoothUpsample, fuse_levels};
use inspectd::cuda::{DeviceMemory, Gpu};
use inspectd::ops::gaussian::Gaussian;
use inspectd::ops::interpolate::{Align, bilinear_planes};

use crate::data::{assert_close, noise};
use crate::interpreter::Interpreter;

/// How a level gets to the map.
#[derive(Clone, Copy)]
enum Way {
    SmoothLast(f32),
    SmoothFirst(f32),
    Resize(Align),
}

impl Way {
    fn prepared(self, from: (usize, usize), to: (usize, usize)) -> SmoothUpsample {
        match self {
            Self::SmoothLast(sigma) => SmoothUpsample::new(from, to, sigma),
            Self::SmoothFirst(sigma) => SmoothUpsample::smooth_first(from, to, sigma),
            Self::Resize(align) => SmoothUpsample::resize(from, to, align),
        }
    }

    /// On the CPU, of one picture.
    fn run(self, places: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
        match self {
            Self::SmoothLast(sigma) => {
                let mut map = bilinear_planes(places, from, to, Align::HalfPixel);
                Gaussian::new(sigma).blur(&mut map, to.1);
                map
            }
            Self::SmoothFirst(sigma) => {
                let mut places = places.to_vec();
                Gaussian::new(sigma).blur(&mut places, from.1);
                bilinear_planes(&places, from, to, Align::HalfPixel)
            }
            Self::Resize(align) => bilinear_planes(places, from, to, align),
        }
    }
}

struct Case {
    images: usize,
    to: (usize, usize),
    levels: &'static [((usize, usize), Way, f32)],
}

const CASES: [Case; 6] = [
    Case { images: 1, to: (64, 64), levels: &[((8, 8), Way::SmoothLast(4.0), 1.0)] },
    Case {
        images: 2,
        to: (33, 131),
        levels: &[
            ((5, 17), Way::SmoothLast(2.0), 1.0),
            ((3, 1), Way::SmoothFirst(1.0), 0.5),
            ((33, 131), Way::SmoothLast(1.5), 2.0),
        ],
    },
    Case {
        images: 1,
        to: (1, 1025),
        levels: &[((1, 31), Way::Resize(Align::Corners), 1.0), ((7, 2), Way::SmoothLast(0.0), 1.0)],
    },
    Case { images: 1, to: (31, 1), levels: &[((1, 1), Way::SmoothLast(4.0), 1.0)] },
    Case {
        images: 3,
        to: (6, 5),
        levels: &[
            ((12, 33), Way::Resize(Align::HalfPixel), 1.0),
            ((6, 5), Way::Resize(Align::HalfPixel), 1.0),
            ((2, 3), Way::Resize(Align::Corners), 3.0),
            ((9, 9), Way::SmoothFirst(2.0), 1.0),
        ],
    },
    Case { images: 1, to: (17, 130), levels: &[((17, 130), Way::SmoothLast(1.0), 1.0)] },
];

#[test]
fn maps_are_the_levels_smoothed_upsampled_and_fused() {
    for (number, Case { images, to, levels }) in CASES.into_iter().enumerate() {
        let mut gpu = Interpreter::default();
        let ways: Vec<SmoothUpsample> = levels
            .iter()
            .map(|&(from, way, weight)| way.prepared(from, to).weighted(weight))
            .collect();
        let values: Vec<Vec<f32>> = levels
            .iter()
            .enumerate()
            .map(|(i, &((h, w), ..))| {
                noise(images * h * w, i as u32).into_iter().map(|x| 1.0 + x).collect()
            })
            .collect();
        let buffers: Vec<_> = ways
            .iter()
            .zip(&values)
            .map(|(way, values)| (gpu.buffer(&way.table()), gpu.floats(values)))
            .collect();
        let prepared: Vec<Level<'_>> = ways
            .iter()
            .zip(&buffers)
            .map(|(way, (table, from))| Level { way, table: table.region(), from: from.region() })
            .collect();
        let map = gpu.alloc(4 * images * to.0 * to.1).unwrap();
        for fused in [Fused::Added, Fused::Multiplied] {
            gpu.launch(&fuse_levels(fused, images, &prepared, map.region())).unwrap();
            let got = gpu.read_floats(map.region()).unwrap();
            for image in 0..images {
                let begin = if fused == Fused::Added { 0.0 } else { 1.0 };
                let mut want = vec![begin; to.0 * to.1];
                for (&(from, way, weight), values) in levels.iter().zip(&values) {
                    let places = &values[image * from.0 * from.1..][..from.0 * from.1];
                    for (sum, value) in want.iter_mut().zip(way.run(places, from, to)) {
                        match fused {
                            Fused::Added => *sum += weight * value,
                            Fused::Multiplied => *sum *= weight * value,
                        }
                    }
                }
                let got = &got[image * to.0 * to.1..][..to.0 * to.1];
                // Weighted means of numbers up to 2, times weights up to 3, in another order.
                assert_close(got, &want, 3e-5, &format!("case {number} {fused:?}"));
            }
        }
    }
}

#[test]
fn nan_is_seen_in_the_map() {
    let mut gpu = Interpreter::default();
    let way = SmoothUpsample::new((8, 8), (64, 64), 4.0);
    let mut places = vec![1.0; 64];
    places[10] = f32::NAN;
    let (table, from) = (gpu.buffer(&way.table()), gpu.floats(&places));
    let map = gpu.alloc(4 * 64 * 64).unwrap();
    let level = Level { way: &way, table: table.region(), from: from.region() };
    gpu.launch(&fuse_levels(Fused::Added, 1, &[level], map.region())).unwrap();
    let map = gpu.read_floats(map.region()).unwrap();
    assert!(map[10 * 64 + 18].is_nan());
    // Weights sum up to 1 but for rounding.
    assert!((map[60 * 64 + 60] - 1.0).abs() < 1e-6);
}
