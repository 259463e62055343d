//! Cosines of several levels at once against the CPU's.

use inspectd::cuda::cosine_map::{Level, cosine_distances, cosine_products};
use inspectd::cuda::{DeviceMemory, Gpu, Number, Region};
use inspectd::ops::cosine_map::{self as cpu, Distance};
use inspectd::ops::feature_map::{Buffer, Shape};
use inspectd::ops::simd::Isa;
use inspectd::ops::team::Team;

use crate::data::{assert_close, bf16_bytes, noise};
use crate::interpreter::Interpreter;

/// Of one launch: pictures, then channels and places of each level.
const CASES: [(usize, &[(usize, usize)]); 5] = [
    (1, &[(3, 64), (40, 32), (33, 8)]),
    (2, &[(1, 1), (31, 33)]),
    (1, &[(2, 1025)]),
    (3, &[(65, 68), (5, 7), (1, 31), (32, 128)]),
    (1, &[(70, 36)]),
];

/// Maps a and b of a level, some of their places zero vectors.
fn maps(images: usize, channels: usize, places: usize, seed: u32) -> [Vec<f32>; 2] {
    let mut maps = [0, 1].map(|i| noise(images * channels * places, 2 * seed + i));
    for (i, map) in maps.iter_mut().enumerate() {
        for c in 0..channels {
            // One of both is zero at place 0, only a at place 1, only b at place 2.
            for place in [0, 1 + i].into_iter().filter(|place| *place < places) {
                map[c * places + place] = 0.0;
            }
        }
    }
    maps
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect()
}

/// What the CPU makes of a level: distances by both rules, and products.
fn wanted(images: usize, channels: usize, places: usize, maps: &[Vec<f32>; 2]) -> [Vec<f32>; 3] {
    let shape = Shape::new(images, channels, 1, places);
    let one = Shape::new(images, 1, 1, places);
    let [a, b, product] = [0, 1, 2].map(|_| Buffer::zeroed(shape.len()));
    let to = Buffer::zeroed(one.len());
    a.map(shape, 0).write(&maps[0]);
    b.map(shape, 0).write(&maps[1]);
    let [one_minus, half] = [Distance::OneMinusCosine, Distance::HalfSquared].map(|rule| {
        let level = cpu::Level { a: a.map(shape, 0), b: b.map(shape, 0), to: to.map(one, 0) };
        cpu::cosine_distances(&Team::alone(), Isa::Portable, rule, &[level]);
        to.map(one, 0).read()
    });
    let (from_a, from_b, to) = (a.map(shape, 0), b.map(shape, 0), product.map(shape, 0));
    cpu::cosine_product(&Team::alone(), Isa::Portable, from_a, from_b, to);
    [one_minus, half, to.read()]
}

#[test]
fn cosines_equal_the_cpus() {
    for numbers in [Number::F32, Number::Bf16] {
        for (case, (images, sizes)) in CASES.into_iter().enumerate() {
            let mut gpu = Interpreter::default();
            let mut kept = Vec::new();
            let mut levels = [Vec::new(), Vec::new()];
            let mut wants = Vec::new();
            for (i, &(channels, places)) in sizes.iter().enumerate() {
                let mut maps = maps(images, channels, places, (10 * case + i) as u32);
                let [a, b] = maps.each_mut().map(|map| {
                    if numbers == Number::Bf16 {
                        *map = rounded(map);
                        gpu.buffer(&bf16_bytes(map))
                    } else {
                        gpu.floats(map)
                    }
                });
                let lens = [places, channels * places].map(|len| 4 * images * len);
                let to = lens.map(|len| gpu.alloc(len).unwrap());
                for (levels, to) in levels.iter_mut().zip(&to) {
                    let [a, b, to] = [a.region(), b.region(), to.region()];
                    levels.push(Level { a, b, to, channels, places });
                }
                wants.push(wanted(images, channels, places, &maps));
                kept.push((a, b, to));
            }
            let [distances, products] = levels;
            let check = |gpu: &mut Interpreter, levels: &[Level], index: usize, what: &str| {
                for (level, want) in levels.iter().zip(&wants) {
                    let got = gpu.read_floats(level.to).unwrap();
                    // Sums of at most 70 products of numbers below 1, in another order.
                    assert_close(&got, &want[index], 2e-6, &format!("{what} {numbers:?} {case}"));
                }
            };
            let rules = [Distance::OneMinusCosine, Distance::HalfSquared];
            for (index, rule) in rules.into_iter().enumerate() {
                gpu.launch(&cosine_distances(rule, numbers, images, &distances)).unwrap();
                check(&mut gpu, &distances, index, "distance");
            }
            gpu.launch(&cosine_products(numbers, images, &products)).unwrap();
            check(&mut gpu, &products, 2, "product");
        }
    }
}

/// Where 16 bytes at a time can't be read, it is done number by number.
#[test]
fn maps_that_begin_anywhere_are_read() {
    let mut gpu = Interpreter::default();
    let maps = maps(1, 5, 64, 7);
    let [a, b] = maps.each_ref().map(|map| gpu.floats(&[&[9.0], map.as_slice()].concat()));
    let to = gpu.alloc(4 * 64).unwrap();
    let [a, b] = [&a, &b].map(|map| map.region().part(4, 4 * 5 * 64));
    let level = Level { a, b, to: to.region(), channels: 5, places: 64 };
    gpu.launch(&cosine_distances(Distance::OneMinusCosine, Number::F32, 1, &[level])).unwrap();
    let got = gpu.read_floats(to.region()).unwrap();
    assert_close(&got, &wanted(1, 5, 64, &maps)[0], 2e-6, "not aligned");
}

#[test]
fn nan_is_seen_in_a_distance() {
    let mut gpu = Interpreter::default();
    let mut a = noise(3 * 8, 1);
    a[8 + 5] = f32::NAN;
    let (a, b) = (gpu.floats(&a), gpu.floats(&noise(3 * 8, 2)));
    let to = gpu.alloc(4 * 8).unwrap();
    for rule in [Distance::OneMinusCosine, Distance::HalfSquared] {
        let level = Level { a: a.region(), b: b.region(), to: to.region(), channels: 3, places: 8 };
        gpu.launch(&cosine_distances(rule, Number::F32, 1, &[level])).unwrap();
        let got = gpu.read_floats(to.region()).unwrap();
        let nans: Vec<usize> = (0..8).filter(|place| got[*place].is_nan()).collect();
        assert_eq!(nans, [5]);
    }
}

#[test]
#[should_panic(expected = "bytes of a level")]
fn a_map_of_another_size_is_refused() {
    let region = |bytes| Region { address: 256, bytes };
    let level = Level { a: region(64), b: region(60), to: region(16), channels: 4, places: 4 };
    cosine_distances(Distance::OneMinusCosine, Number::F32, 1, &[level]);
}
