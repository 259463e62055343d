//! Residuals to the nearest of whole-map prototypes against the CPU's.

use inspectd::cuda::prototype_residual::{Sizes, prototype_residual};
use inspectd::cuda::{DeviceMemory, Gpu};
use inspectd::ops::feature_map::{Buffer, Shape};
use inspectd::ops::prototype_residual::Prototypes;
use inspectd::ops::simd::Isa;
use inspectd::ops::team::Team;

use crate::data::noise;
use crate::interpreter::Interpreter;

fn run(maps: &[f32], prototypes: &[f32], sizes: Sizes) -> Vec<f32> {
    let mut gpu = Interpreter::default();
    let (maps, prototypes) = (gpu.floats(maps), gpu.floats(prototypes));
    let parts = gpu.alloc(sizes.part_bytes()).unwrap();
    let to = gpu.alloc(maps.region().bytes).unwrap();
    let regions = [&maps, &prototypes, &parts, &to].map(|buffer| buffer.region());
    let [maps, prototypes, parts, residuals] = regions;
    for launch in prototype_residual(sizes, maps, prototypes, parts, residuals) {
        gpu.launch(&launch).unwrap();
    }
    gpu.read_floats(to.region()).unwrap()
}

#[test]
fn residuals_equal_the_cpus() {
    // Maps, prototypes, (C, H, W): rows of fours and others, less and more than a block has.
    let cases = [
        (1, 1, (1, 1, 1)),
        (5, 3, (3, 4, 7)),
        (2, 34, (1, 31, 33)),
        (4, 9, (2, 32, 33)),
        (3, 33, (1, 1, 31)),
    ];
    for (images, count, (c, h, w)) in cases {
        let length = c * h * w;
        let mut prototypes = noise(count * length, 4);
        if count > 2 {
            // The last two are one: what is nearest to both is nearest to the first of them.
            prototypes
                .copy_within((count - 2) * length..(count - 1) * length, (count - 1) * length);
        }
        // Near one of the prototypes, the last two among them.
        let near = |b: usize| count - 1 - b % count;
        let maps: Vec<f32> = noise(images * length, 5)
            .iter()
            .enumerate()
            .map(|(i, x)| prototypes[near(i / length) * length + i % length] + 0.3 * x)
            .collect();
        let shape = Shape::new(images, c, h, w);
        let [x, y] = [0, 1].map(|_| Buffer::zeroed(shape.len()));
        x.map(shape, 0).write(&maps);
        let cpu = Prototypes::new(&prototypes, count, (c, h, w));
        let scratch = Buffer::zeroed(cpu.scratch_len(images));
        let (from, to) = (x.map(shape, 0), y.map(shape, 0));
        cpu.residual(&Team::alone(), Isa::Portable, &from, &scratch, &to);
        let got = run(&maps, &prototypes, Sizes { images, prototypes: count, length });
        // A subtraction: the same numbers.
        assert_eq!(got, to.read(), "{images} {count} {length}");
    }
}

#[test]
fn of_two_equal_prototypes_the_first_is_taken() {
    // At the same distance from 0, to either side: |x − p| tells which by its sign before.
    let sizes = Sizes { images: 1, prototypes: 10, length: 2 };
    let prototypes: Vec<f32> = (0..10)
        .flat_map(|p| if p < 2 { [9.0, 9.0] } else { [3.0, 4.0 - (p % 2) as f32 * 8.0] })
        .collect();
    assert_eq!(run(&[0.0, 1.0], &prototypes, sizes), [3.0, 3.0]);
    assert_eq!(run(&[0.0, 0.0], &prototypes, sizes), [3.0, 4.0]);
}

#[test]
fn nan_is_seen_in_the_residual() {
    let maps = [1.0, f32::NAN, 1.0, 2.0, 2.0, 2.0];
    let prototypes = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0];
    let got = run(&maps, &prototypes, Sizes { images: 2, prototypes: 2, length: 3 });
    assert!(got[1].is_nan());
    assert_eq!([got[0], got[2], got[3], got[4], got[5]], [0.0; 5]);
}
