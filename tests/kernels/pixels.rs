//! Pixels in against the CPU's own path: the same numbers.

use inspectd::cuda::pixels::PixelsIn;
use inspectd::cuda::{DeviceMemory, Gpu};
use inspectd::detector::input::{MEAN, STD};
use inspectd::ops::feature_map::Buffer;
use inspectd::ops::pixels::{self as cpu, Pixels};
use inspectd::ops::simd::Isa;
use inspectd::ops::stem_conv::Planes;
use inspectd::ops::team::Team;

use crate::interpreter::Interpreter;

#[test]
fn planes_are_the_cpus() {
    // (h, w) of pictures, (H, W) of planes: smaller, larger, the same, one side kept, rows that begin
    // at multiples of four and others.
    let cases = [
        (1, (77, 101), (32, 64)),
        (2, (20, 25), (33, 31)),
        (1, (31, 64), (31, 64)),
        (1, (31, 500), (31, 33)),
        (3, (1, 1), (5, 3)),
        (1, (40, 7), (40, 9)),
        (1, (96, 1025), (1, 1)),
    ];
    for (images, from, to) in cases {
        for depth in [1, 3] {
            let len = from.0 * from.1 * depth;
            let samples: Vec<u8> = (0..images * len)
                .map(|i| ((i as u32 ^ 77).wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            let planes = Planes { height: to.0, width: to.1, pad: 0 };
            let mut want = Buffer::zeroed(planes.len(images));
            let pictures: Vec<Pixels<'_>> =
                samples.chunks(len).map(|samples| Pixels::new(samples, from, depth)).collect();
            cpu::PixelsIn::new(planes, MEAN, STD).run(
                &Team::alone(),
                Isa::Portable,
                &pictures,
                &want,
            );

            let mut gpu = Interpreter::default();
            let resize = PixelsIn::new(from, depth, to, MEAN, STD);
            let (table, pictures) = (gpu.buffer(&resize.table()), gpu.buffer(&samples));
            let got = gpu.alloc(4 * images * 3 * to.0 * to.1).unwrap();
            let launch = resize.run(images, table.region(), pictures.region(), got.region());
            gpu.launch(&launch).unwrap();
            let got = gpu.read_floats(got.region()).unwrap();
            assert_eq!(got.len(), images * 3 * to.0 * to.1);
            let mut want = want.as_mut_slice().chunks(planes.plane()).flat_map(|plane| {
                plane.chunks(planes.row()).take(to.0).flat_map(|row| &row[..to.1]).copied()
            });
            for (i, got) in got.into_iter().enumerate() {
                assert_eq!(Some(got), want.next(), "{from:?} {depth} {to:?} {i}");
            }
        }
    }
}
