//! Bilinear resize of feature planes, no antialias, in both of PyTorch's conventions.
//! Letters: P planes (pictures × channels), H rows, W columns.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Where an output place looks in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Align {
    /// `align_corners=False`: (i + ½)·in/out − ½, not below 0.
    HalfPixel,
    /// `align_corners=True`: i·(in − 1)/(out − 1), corners on corners.
    Corners,
}

/// `planes` [P, H, W] with (H, W) = `from` → [P, `to.0`, `to.1`]. No side may be 0.
pub fn bilinear_planes(
    planes: &[f32],
    from: (usize, usize),
    to: (usize, usize),
    align: Align,
) -> Vec<f32> {
    assert!(from.0 * from.1 * to.0 * to.1 > 0, "resize from {from:?} to {to:?} has an empty side");
    let rows = taps(from.0, to.0, align);
    let columns = taps(from.1, to.1, align);
    let mut out = vec![0.0; planes.len() / (from.0 * from.1) * to.0 * to.1];
    let planes = planes.par_chunks(from.0 * from.1);
    out.par_chunks_mut(to.0 * to.1).zip(planes).for_each_init(
        || vec![0.0; from.1],
        |mixed, (out, plane)| {
            let row = |y: usize| &plane[y * from.1..][..from.1];
            for (out, tap) in out.chunks_mut(to.1).zip(&rows) {
                for ((m, a), b) in mixed.iter_mut().zip(row(tap.low)).zip(row(tap.high)) {
                    *m = a * (1.0 - tap.weight) + b * tap.weight;
                }
                for (o, tap) in out.iter_mut().zip(&columns) {
                    *o = mixed[tap.low] * (1.0 - tap.weight) + mixed[tap.high] * tap.weight;
                }
            }
        },
    );
    out
}

/// Two neighbours and the weight of the higher one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub low: usize,
    pub high: usize,
    pub weight: f32,
}

/// For each of `to` places. `from` and `to` are above 0.
pub(super) fn taps(from: usize, to: usize, align: Align) -> Vec<Tap> {
    let last = from - 1;
    let tap = |i: usize| {
        let at = match align {
            Align::HalfPixel => ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0),
            Align::Corners if to == 1 => 0.0,
            Align::Corners => i as f64 * last as f64 / (to - 1) as f64,
        };
        let low = (at as usize).min(last);
        Tap { low, high: (low + 1).min(last), weight: (at - low as f64) as f32 }
    };
    (0..to).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shared::shared;

    /// One place, by the formula, f64.
    fn plain(plane: &[f32], from: (usize, usize), to: (usize, usize), align: Align) -> Vec<f32> {
        let place = |i: usize, from: usize, to: usize| match align {
            Align::HalfPixel => {
                ((i as f64 + 0.5) * (from as f64 / to as f64) - 0.5).clamp(0.0, from as f64 - 1.0)
            }
            Align::Corners => i as f64 * (from as f64 - 1.0) / (to as f64 - 1.0).max(1.0),
        };
        let mut out = Vec::new();
        for (y, x) in (0..to.0).flat_map(|y| (0..to.1).map(move |x| (y, x))) {
            let (sy, sx) = (place(y, from.0, to.0), place(x, from.1, to.1));
            let mut sum = 0.0;
            for (i, value) in plane.iter().enumerate() {
                let (dy, dx) = (sy - (i / from.1) as f64, sx - (i % from.1) as f64);
                sum += f64::from(*value) * (1.0 - dy.abs()).max(0.0) * (1.0 - dx.abs()).max(0.0);
            }
            out.push(sum as f32);
        }
        out
    }

    #[test]
    fn equals_the_vectors() {
        let Some(path) = shared("spec/vectors/interpolate.json") else { return };
        let file: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let list = |value: &serde_json::Value| -> Vec<f32> {
            serde_json::from_value(value["data"].clone()).unwrap()
        };
        let xs = list(&file["inputs"]["x"]); // [2, 3, 5, 7]
        let cases = [
            ("up_ac0", (10, 14), Align::HalfPixel),
            ("up_ac1", (10, 14), Align::Corners),
            ("down_ac0", (3, 4), Align::HalfPixel),
            ("down_ac1", (3, 4), Align::Corners),
        ];
        for (name, to, align) in cases {
            let want = list(&file["expected"][name]);
            let got = bilinear_planes(&xs, (5, 7), to, align);
            assert_eq!(got.len(), want.len(), "{name}");
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-6 + 1e-6 * want.abs(), "{name}: {got} {want}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn equals_the_formula(
            h in prop::sample::select(vec![1usize, 2, 31, 33]),
            w in 1usize..9,
            th in prop::sample::select(vec![1usize, 2, 31, 33]),
            tw in 1usize..9,
            corners in any::<bool>(),
            seed in any::<u32>(),
        ) {
            let align = if corners { Align::Corners } else { Align::HalfPixel };
            let plane: Vec<f32> = (0..h * w)
                .map(|i| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 / 1e7)
                .collect();
            let got = bilinear_planes(&plane, (h, w), (th, tw), align);
            for (got, want) in got.iter().zip(plain(&plane, (h, w), (th, tw), align)) {
                // A weight rounded to f32 and six operations on numbers below 2.
                prop_assert!((got - want).abs() <= 16.0 * 2f32.powi(-24), "{} {}", got, want);
            }
        }
    }
}
