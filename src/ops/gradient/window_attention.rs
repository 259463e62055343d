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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, pattern, used};
    use crate::ops::feature_map::{Buffer, Shape};
    use crate::ops::window_attention::logit_source;

    /// Place o of the window around place i: its place on the map, if it is there.
    fn neighbour(i: usize, o: usize, shape: Shape) -> Option<usize> {
        let (row, column) = (i / shape.width + o / 3, i % shape.width + o % 3);
        let inside = (1..=shape.height).contains(&row) && (1..=shape.width).contains(&column);
        inside.then(|| (row - 1) * shape.width + column - 1)
    }

    /// Logits [B, 9·G, H, W] with channel 9g + o, values and dy [B, C, H, W] → their gradients, f64.
    fn plain(
        [logits, values, dy]: [&[f32]; 3],
        groups: usize,
        shape: Shape,
    ) -> (Vec<f32>, Vec<f32>) {
        let places = shape.places();
        let (mut d_logits, mut d_values) = (vec![0.0; logits.len()], vec![0.0; values.len()]);
        for (b, c) in (0..shape.images).flat_map(|b| (0..shape.channels).map(move |c| (b, c))) {
            let plane = (b * shape.channels + c) * places;
            for i in 0..places {
                let logit = |o: usize| (b * groups * WINDOW + c % groups * WINDOW + o) * places + i;
                let sum: f64 = (0..WINDOW).map(|o| f64::from(logits[logit(o)]).exp()).sum();
                let weight = |o: usize| f64::from(logits[logit(o)]).exp() / sum;
                let dy = f64::from(dy[plane + i]);
                let part = |o: usize| {
                    neighbour(i, o, shape).map_or(0.0, |at| dy * f64::from(values[plane + at]))
                };
                let mean: f64 = (0..WINDOW).map(|o| weight(o) * part(o)).sum();
                for o in 0..WINDOW {
                    d_logits[logit(o)] += weight(o) * (part(o) - mean);
                    if let Some(at) = neighbour(i, o, shape) {
                        d_values[plane + at] += weight(o) * dy;
                    }
                }
            }
        }
        let f32s = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect();
        (f32s(d_logits), f32s(d_values))
    }

    /// The engine's gradients on logits in the definition's order; copies of a group are added up.
    fn engine(
        (team, isa): (&Team, Isa),
        [logits, values, dy]: [&[f32]; 3],
        groups: usize,
        shape: Shape,
        into: Accumulate,
    ) -> (Vec<f32>, Buffer) {
        let source = logit_source(groups);
        let wide = Shape { channels: source.len(), ..shape };
        let [a, v, g] = [wide, shape, shape].map(|shape| Buffer::zeroed(shape.len()));
        let (a, v, g) = (a.map(wide, 0), v.map(shape, 0), g.map(shape, 0));
        let places = shape.places();
        let plane = |b: usize, c: usize| (b * groups * WINDOW + c) * places;
        let ordered: Vec<f32> = (0..shape.images)
            .flat_map(|b| source.iter().map(move |&c| plane(b, c)))
            .flat_map(|from| logits[from..from + places].iter().copied())
            .collect();
        a.write(&ordered);
        v.write(values);
        g.write(dy);
        let (d_logits, d_values) = match into {
            Accumulate::Set => (used(wide), used(shape)),
            Accumulate::Add => (Buffer::zeroed(wide.len()), Buffer::zeroed(shape.len())),
        };
        let (da, dv) = (d_logits.map(wide, 0), d_values.map(shape, 0));
        window_attention(team, isa, [a, v, g], (into, da), (into, dv));
        let mut sums = vec![0.0; logits.len()];
        let channels = (0..shape.images).flat_map(|b| source.iter().map(move |&c| plane(b, c)));
        for (to, own) in channels.zip(da.read().chunks(places)) {
            sums[to..to + places].iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        (sums, d_values)
    }

    #[test]
    fn equals_its_scalar_twin() {
        let cases = [
            (1, (1, 5, 1, 1)),
            (2, (2, 16, 5, 5)),
            (8, (1, 64, 3, 7)),
            (16, (2, 48, 4, 2)),
            (32, (1, 96, 3, 3)),
            (8, (3, 17, 2, 1)),
        ];
        for (groups, (b, c, h, w)) in cases {
            let shape = Shape::new(b, c, h, w);
            let logits = pattern(b * groups * WINDOW * h * w, 21);
            let (values, dy) = (pattern(b * c * h * w, 22), pattern(b * c * h * w, 23));
            let maps = [&logits[..], &values[..], &dy[..]];
            let (want_logits, want_values) = plain(maps, groups, shape);
            everywhere(|team, isa| {
                for into in [Accumulate::Set, Accumulate::Add] {
                    let (d_logits, d_values) = engine((team, isa), maps, groups, shape, into);
                    // Up to 12 channels and nine places of products below 1.
                    assert_holds(d_values.map(shape, 0), &want_values, (1e-6, 1e-6), "values");
                    for (got, want) in d_logits.iter().zip(&want_logits) {
                        assert!((got - want).abs() < 2e-6, "{} {got} {want}", isa.word());
                    }
                }
            });
        }
    }

    /* s = lambda n, a, m, q: torch.arange(n).mul(a).remainder(m) / q
    a = s(72, 7, 11, 4.).view(1, 2, 9, 2, 2).requires_grad_()
    v = s(16, 5, 13, 4.).view(1, 4, 2, 2).requires_grad_()
    u = F.unfold(v, 3, padding=1).view(1, 4, 9, 2, 2)
    y = (a.softmax(2)[:, torch.arange(4) % 2] * u).sum(2)
    y.backward(s(16, 3, 7, 4.).view_as(y)); print(a.grad.flatten()[:12], v.grad.flatten()) */
    #[test]
    fn torch_says_the_same() {
        let numbers = |n: usize, a: usize, m: usize| -> Vec<f32> {
            (0..n).map(|i| (i * a % m) as f32 / 4.0).collect()
        };
        let (logits, values, dy) = (numbers(72, 7, 11), numbers(16, 5, 13), numbers(16, 3, 7));
        let want_logits = [
            -0.023_084, -0.300_187, -0.032_013, -0.179_161, -0.103_454, -0.086_005, -0.115_577,
            0.142_711, -0.029_64, -0.385_448, 0.126_725, -0.022_648,
        ];
        let want_values = [
            0.524_215, 0.295_662, 0.379_637, 0.108_768, 0.215_538, 0.269_619, 0.346_197, 0.355_362,
            0.602_404, 0.608_111, 0.780_83, 0.223_711, 0.212_421, 0.242_049, 0.310_797, 0.089_045,
        ];
        let shape = Shape::new(1, 4, 2, 2);
        everywhere(|team, isa| {
            let maps = [&logits[..], &values[..], &dy[..]];
            let (d_logits, d_values) = engine((team, isa), maps, 2, shape, Accumulate::Set);
            // Six printed digits.
            assert_holds(d_values.map(shape, 0), &want_values, (1.5e-6, 0.0), "values");
            for (got, want) in d_logits.iter().zip(want_logits) {
                assert!((got - want).abs() < 1.5e-6, "{got} {want}");
            }
        });
    }

    #[test]
    fn a_nan_logit_shows() {
        let shape = Shape::new(1, 16, 1, 2);
        let mut logits = pattern(2 * WINDOW * 2, 24);
        logits[WINDOW * 2 + 1] = f32::NAN;
        let values = pattern(32, 25);
        everywhere(|team, isa| {
            let maps = [&logits[..], &values[..], &values[..]];
            let (d_logits, d_values) = engine((team, isa), maps, 2, shape, Accumulate::Set);
            for (i, d) in d_logits.iter().enumerate() {
                assert_eq!(d.is_nan(), i / 18 == 1 && i % 2 == 1, "logit {i}");
            }
            let d_values = d_values.map(shape, 0).read();
            assert!(d_values.iter().enumerate().all(|(i, d)| d.is_nan() == (i / 2 % 2 == 1)));
        });
    }
}
