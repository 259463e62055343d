//! Gradients of the attention over 3 × 3 windows ([`crate::ops::window_attention`]), to its logits and
//! its values. With a the softmax over a window's places o and e_o = Σ_c dy_c · (value of c at o) over
//! the channels that share the group: dlogit_o = a_o·(e_o − Σ a·e), and each value gets a_o · dy of
//! every window that it stands in.
//!
//! The logits are in the order of [`crate::ops::window_attention::logit_source`], where a group may be
//! there more than once: each copy gets the part of the channels that it served.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{FeatureMap, Shared};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;
use crate::ops::window_attention::{WINDOW, softmax};

/// Logits [B, 9·L, H, W] and values [B, C, H, W] of the way forward, and dy [B, C, H, W] → their
/// gradients, each of its argument's shape.
///
/// # Panics
/// If shapes do not fit, or a gradient shares memory with another map.
pub fn window_attention(
    team: &Team,
    isa: Isa,
    [logits, values, dy]: [FeatureMap<'_>; 3],
    (into_logits, d_logits): (Accumulate, FeatureMap<'_>),
    (into_values, d_values): (Accumulate, FeatureMap<'_>),
) {
    let (a, v) = (logits.shape(), values.shape());
    assert_eq!((dy.shape(), d_values.shape()), (v, v), "window attention's values");
    assert_eq!(d_logits.shape(), a, "window attention's logits");
    assert_eq!((a.images, a.height, a.width), (v.images, v.height, v.width), "window logits");
    assert!(a.channels.is_multiple_of(WINDOW * LANES) && a.channels > 0, "{a:?} as window logits");
    for to in [d_logits, d_values] {
        let apart = [logits, values, dy].iter().all(|map| !to.overlaps(map));
        assert!(apart, "a gradient of window attention in place");
    }
    assert!(!d_logits.overlaps(&d_values), "both gradients in one place");
    let groups = a.blocks() / WINDOW;
    let maps = Shared([logits, values, dy, d_logits, d_values]);
    // Windows share places, so that the planes of a picture that share logits are one thread's.
    team.chunks(v.images * groups, 1, |_, from, to| {
        for job in from..to {
            let (image, group) = (job / groups, job % groups);
            let maps = maps.get();
            isa.run(Planes { maps, into_logits, into_values, image, group, groups });
        }
    });
}

/// All planes of values of one picture that a block of logits serves.
struct Planes<'a> {
    /// Logits, values, dy, and the gradients of logits and values.
    maps: [FeatureMap<'a>; 5],
    into_logits: Accumulate,
    into_values: Accumulate,
    image: usize,
    group: usize,
    groups: usize,
}

impl Kernel for Planes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [_, values, _, _, d_values] = self.maps;
        let shape = values.shape();
        if self.into_values == Accumulate::Set {
            for block in (self.group..shape.blocks()).step_by(self.groups) {
                for y in 0..shape.height {
                    let row = d_values.place(self.image, block, y as isize, 0);
                    for x in 0..shape.width {
                        // SAFETY: place x < W of a row of this job's planes.
                        unsafe { s.store(row.add(x * LANES), s.zero()) };
                    }
                }
            }
        }
        for y in 0..shape.height {
            let inner = y > 0 && y + 1 < shape.height;
            for x in 0..shape.width {
                if inner && x > 0 && x + 1 < shape.width {
                    self.place::<S, true>(s, y, x);
                } else {
                    self.place::<S, false>(s, y, x);
                }
            }
        }
    }
}

impl Planes<'_> {
    /// The window around (y, x). `INNER`: all of it is on the map.
    #[inline(always)]
    fn place<S: Simd, const INNER: bool>(&self, s: S, y: usize, x: usize) {
        let [logits, values, dy, d_logits, d_values] = self.maps;
        let shape = values.shape();
        let at = |map: &FeatureMap<'_>, block| map.place(self.image, block, y as isize, x as isize);
        let from = at(&logits, self.group);
        let stride = self.groups * logits.plane_len();
        // SAFETY: this place of the nine blocks group + o·groups.
        let (mut weights, inverse) = unsafe { softmax(s, from, stride) };
        for weight in &mut weights {
            *weight = s.mul(*weight, inverse);
        }
        let mut parts = [s.zero(); WINDOW];
        for block in (self.group..shape.blocks()).step_by(self.groups) {
            // SAFETY: a place of dy.
            let dy = unsafe { s.load(at(&dy, block)) };
            let corner = (y as isize - 1, x as isize - 1);
            let value = values.place(self.image, block, corner.0, corner.1);
            let d_value = d_values.place(self.image, block, corner.0, corner.1);
            for o in 0..WINDOW {
                let (row, column) = (y + o / 3, x + o % 3);
                let on_map =
                    (1..=shape.height).contains(&row) && (1..=shape.width).contains(&column);
                if !INNER && !on_map {
                    continue;
                }
                let offset = o / 3 * shape.row() + o % 3 * LANES;
                // SAFETY: a place on the map, of planes that this job alone writes.
                unsafe {
                    parts[o] = s.mul_add(dy, s.load(value.add(offset)), parts[o]);
                    let to = d_value.add(offset);
                    s.store(to, s.mul_add(weights[o], dy, s.load(to)));
                }
            }
        }
        let mut mean = s.zero();
        for (weight, part) in weights.iter().zip(&parts) {
            mean = s.mul_add(*weight, *part, mean);
        }
        let to = at(&d_logits, self.group);
        for (o, (weight, part)) in weights.iter().zip(&parts).enumerate() {
            let value = s.mul(*weight, s.sub(*part, mean));
            // SAFETY: this place of block group + o·groups, which this job alone writes.
            unsafe { self.into_logits.put(s, to.add(o * stride), value) };
        }
    }
}
