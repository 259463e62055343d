//! Rows of patch features against the CPU's.

use inspectd::cuda::nearest_prototype::code_dims;
use inspectd::cuda::patch_features::{Level, RowCodes, patch_features};
use inspectd::cuda::{DeviceMemory, Gpu};
use inspectd::ops::feature_map::{Buffer, Shape};
use inspectd::ops::patch_features::PatchFeatures;
use inspectd::ops::simd::Isa;
use inspectd::ops::team::Team;

use crate::data::{assert_close, noise};
use crate::interpreter::Interpreter;

#[test]
fn rows_equal_the_cpus() {
    let cases = [
        (1, 16, 32, (4, 4), (2, 2)),
        (2, 21, 5, (6, 8), (3, 4)),
        (1, 33, 31, (5, 7), (3, 4)),
        (1, 1, 1, (1, 33), (1, 1)),
        (1, 2, 3, (3, 11), (5, 7)),
        (1, 4, 60, (4, 4), (4, 4)),
    ];
    for (images, c2, c3, (h, w), (h3, w3)) in cases {
        let shapes = [Shape::new(images, c2, h, w), Shape::new(images, c3, h3, w3)];
        let values = shapes.map(|s| noise(images * s.channels * s.places(), s.channels as u32));
        let buffers = shapes.map(|shape| Buffer::zeroed(shape.len()));
        for ((buffer, shape), values) in buffers.iter().zip(shapes).zip(&values) {
            buffer.map(shape, 0).write(values);
        }
        let dims = c2 + c3;
        let mut want = vec![0.0; images * h * w * dims];
        PatchFeatures::new((h, w), (h3, w3), 1).run(
            &Team::alone(),
            Isa::Portable,
            [buffers[0].map(shapes[0], 0), buffers[1].map(shapes[1], 0)],
            &mut want,
        );

        let mut gpu = Interpreter::default();
        let maps = values.each_ref().map(|values| gpu.floats(values));
        let level = |i: usize| Level {
            at: maps[i].region(),
            channels: shapes[i].channels,
            height: shapes[i].height,
            width: shapes[i].width,
        };
        let rows = gpu.alloc(4 * want.len()).unwrap();
        let launch = patch_features(images, level(0), level(1), rows.region(), None);
        gpu.launch(&launch).unwrap();
        let alone = gpu.read_floats(rows.region()).unwrap();
        // Averages of nine numbers below 1, summed in another order.
        assert_close(&alone, &want, 5e-7, "rows");

        let centre = noise(dims, 9);
        let wide = code_dims(dims);
        let at = gpu.floats(&centre);
        let to = gpu.alloc(2 * images * h * w * wide).unwrap();
        let codes = RowCodes { centre: at.region(), to: to.region() };
        let launch = patch_features(images, level(0), level(1), rows.region(), Some(codes));
        gpu.launch(&launch).unwrap();
        assert_eq!(gpu.read_floats(rows.region()).unwrap(), alone);
        let mut bytes = vec![0; to.region().bytes];
        gpu.download(to.region(), &mut bytes).unwrap();
        let codes: Vec<f32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|&code| half::bf16::from_le_bytes(code).to_f32())
            .collect();
        for (codes, row) in codes.chunks(wide).zip(alone.chunks(dims)) {
            for (i, code) in codes.iter().enumerate() {
                let want = if i < dims { row[i] - centre[i] } else { 0.0 };
                assert_eq!(*code, half::bf16::from_f32(want).to_f32(), "{i} of {dims}");
            }
        }
    }
}

#[test]
fn nan_is_seen_around_it() {
    let mut gpu = Interpreter::default();
    let mut upper = vec![1.0; 25];
    upper[12] = f32::NAN;
    let (upper, deeper) = (gpu.floats(&upper), gpu.floats(&[f32::NAN, 1.0, 1.0, 1.0]));
    let level = |at, side| Level { at, channels: 1, height: side, width: side };
    let rows = gpu.alloc(4 * 50).unwrap();
    let [upper, deeper] = [level(upper.region(), 5), level(deeper.region(), 2)];
    gpu.launch(&patch_features(1, upper, deeper, rows.region(), None)).unwrap();
    let rows = gpu.read_floats(rows.region()).unwrap();
    let nans = rows.iter().step_by(2).filter(|value| value.is_nan()).count();
    assert_eq!(nans, 9);
    assert!(rows[1].is_nan());
}
