//! Gradients of the attention between patches ([`crate::ops::patch_attention`]). With A the softmax of
//! the rows of s·QKᵀ and D = dY·Vᵀ, dS_ij = s·A_ij·(D_ij − Σ_j A_ij D_ij) and
//! dQ = dS·K, dK = dSᵀ·Q, dV = Aᵀ·dY.
//!
//! A is computed anew: beside the convolutions around it that is little, and N × N numbers a picture
//! need not be kept. Of a single token A is 1 whatever q and k are.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::patch_attention::{Cut, Weights, blend, claim, products, softmax};
use crate::ops::rows::{Rows, helping};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Numbers of scratch memory for maps of `shape` in patches of `patch`; the way forward needs less.
pub fn scratch_len(shape: Shape, patch: usize) -> usize {
    let cut = Cut::new(shape, patch);
    shape.images * cut.logits() * (2 * cut.slices + 2)
}

/// q, k, v and dy [B, C, H, W] of the way forward → the gradients of q, k and v that are wanted;
/// `scratch` of [`scratch_len`].
///
/// # Panics
/// If shapes do not fit, `patch` does not divide H and W, or a gradient or `scratch` shares memory with
/// another map.
pub fn patch_attention(
    team: &Team,
    isa: Isa,
    [q, k, v, dy]: [FeatureMap<'_>; 4],
    (patch, scale): (usize, f32),
    wanted: [Option<(Accumulate, FeatureMap<'_>)>; 3],
    scratch: &Buffer,
) {
    let shape = q.shape();
    let from = [q, k, v, dy];
    assert!(from.iter().all(|map| map.shape() == shape), "patch attention");
    let gradients = || wanted.iter().flatten().map(|(_, map)| map);
    for (i, map) in gradients().enumerate() {
        assert_eq!(map.shape(), shape, "a gradient of patch attention");
        let others = from.iter().chain(gradients().skip(i + 1));
        assert!(others.into_iter().all(|other| !map.overlaps(other)), "a gradient in place");
    }
    let cut = Cut::new(shape, patch);
    let maps = [Some(&q), Some(&k), Some(&v), Some(&dy)]
        .into_iter()
        .chain(wanted.iter().map(|wanted| wanted.as_ref().map(|(_, map)| map)));
    let mut weights = scratch.as_ptr();
    for map in maps.flatten() {
        weights = claim(scratch, scratch_len(shape, patch), &[map]);
    }
    let [d_q, d_k, d_v] = wanted;
    if cut.tokens == 1 {
        for (into, map) in [d_q, d_k].into_iter().flatten() {
            if into == Accumulate::Set {
                zero(team, isa, map);
            }
        }
    }
    let (images, stride) = (shape.images, cut.slices * cut.logits());
    // A in each picture's first slice, D or dS in that of the second part, and both turned behind.
    let changes = weights.wrapping_add(images * stride);
    let turned = changes.wrapping_add(images * stride);
    let turned_changes = turned.wrapping_add(images * cut.logits());
    let of = |first: *mut f32, stride| Weights { first, stride };
    // SAFETY: the four parts lie in the scratch memory that was claimed; all maps have the shape that
    // `cut` is of, and what is written is apart from what is read.
    unsafe {
        products(team, isa, cut, [q, k], weights);
        softmax(team, isa, cut, images, scale, weights);
        products(team, isa, cut, [dy, v], changes);
        if cut.tokens > 1 {
            let shared = Shared((weights.cast_const(), changes, turned, turned_changes));
            team.chunks(images * cut.tokens, 8, |_, from, to| {
                let parts = shared.get();
                isa.run(Changes { cut, scale, parts, from, to });
            });
            if let Some((into, map)) = d_q {
                blend(team, isa, cut, of(changes, stride), k, into, map);
            }
            if let Some((into, map)) = d_k {
                blend(team, isa, cut, of(turned_changes, cut.logits()), q, into, map);
            }
        }
        if let Some((into, map)) = d_v {
            blend(team, isa, cut, of(turned, cut.logits()), dy, into, map);
        }
    }
}

/// Rows `from`..`to` of all pictures' dS, and columns of what is turned.
struct Changes {
    cut: Cut,
    scale: f32,
    /// A and D in slices, of which dS overwrites the first; Aᵀ and dSᵀ.
    parts: (*const f32, *mut f32, *mut f32, *mut f32),
    from: usize,
    to: usize,
}

impl Kernel for Changes {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (cut, (weights, changes, turned, turned_changes)) = (self.cut, self.parts);
        let (tokens, row_len, scale) = (cut.tokens, cut.logit_row(), s.splat(self.scale));
        for row in self.from..self.to {
            let (b, i) = (row / tokens, row % tokens);
            let at = b * cut.slices * cut.logits() + i * row_len;
            // SAFETY: row i of picture b's first slices; this job alone has row i of the changes.
            let (weights, changes) = unsafe { (weights.add(at), changes.add(at)) };
            let mut mean = s.zero();
            for column in (0..tokens).step_by(LANES) {
                let mut sum = s.zero();
                for slice in 0..cut.slices {
                    // SAFETY: rows are multiples of 16 long, and `column` lies in one.
                    let part = unsafe { s.load(changes.add(slice * cut.logits() + column)) };
                    sum = s.add(sum, part);
                }
                // SAFETY: as above. Past the last token the weights are zero, but a sum may be anything.
                unsafe {
                    sum = s.select(own_lanes(tokens - column), sum, s.zero());
                    s.store(changes.add(column), sum);
                    mean = s.mul_add(s.load(weights.add(column)), sum, mean);
                }
            }
            let mean = s.splat(s.sum(mean));
            for column in (0..tokens).step_by(LANES) {
                // SAFETY: as above.
                let (weight, change) = unsafe {
                    let weight = s.load(weights.add(column));
                    let change = s.sub(s.load(changes.add(column)), mean);
                    let change = s.mul(scale, s.mul(weight, change));
                    s.store(changes.add(column), change);
                    (s.to_array(weight), s.to_array(change))
                };
                for lane in 0..(tokens - column).min(LANES) {
                    let at = b * cut.logits() + (column + lane) * row_len + i;
                    // SAFETY: column i of row `column + lane` of picture b; this job alone has
                    // column i.
                    unsafe {
                        *turned.add(at) = weight[lane];
                        *turned_changes.add(at) = change[lane];
                    }
                }
            }
        }
    }
}

/// A mask of the first `count` lanes.
#[inline(always)]
fn own_lanes(count: usize) -> u16 {
    u16::MAX >> (LANES - count.min(LANES))
}

/// Zero at every place of a map.
fn zero(team: &Team, isa: Isa, map: FeatureMap<'_>) {
    let rows = Rows::of(map.shape());
    let shared = Shared(map);
    let len = map.shape().width * LANES;
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        isa.run(Zero { map: shared.get(), rows, first, end });
    });
}

struct Zero<'a> {
    map: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for Zero<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            let to = self.map.place(image, block, y as isize, 0);
            for x in 0..self.map.shape().width {
                // SAFETY: place x of a row that no other thread has.
                unsafe { s.store(to.add(x * LANES), s.zero()) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, used};

    /// q, k, v, dy [B, C, H, W] → the gradients of q, k and v, f64 from the definitions above.
    fn plain([q, k, v, dy]: [&[f32]; 4], shape: Shape, patch: usize, scale: f64) -> [Vec<f32>; 3] {
        let Shape { images, channels, height, width } = shape;
        let columns = width / patch;
        let tokens = height / patch * columns;
        let size = channels * patch * patch;
        let at = |b: usize, token: usize, n: usize| {
            let (c, dy, dx) = (n / patch / patch, n / patch % patch, n % patch);
            let (y, x) = (token / columns * patch + dy, token % columns * patch + dx);
            ((b * channels + c) * height + y) * width + x
        };
        let mut out = [const { Vec::new() }; 3].map(|_: Vec<f64>| vec![0.0; q.len()]);
        for (b, i) in (0..images).flat_map(|b| (0..tokens).map(move |i| (b, i))) {
            let dot = |a: &[f32], j: usize, other: &[f32]| -> f64 {
                let product = |n| f64::from(a[at(b, i, n)]) * f64::from(other[at(b, j, n)]);
                (0..size).map(product).sum()
            };
            let powers: Vec<f64> = (0..tokens).map(|j| (scale * dot(q, j, k)).exp()).collect();
            let sum: f64 = powers.iter().sum();
            let weights: Vec<f64> = powers.iter().map(|power| power / sum).collect();
            let given: Vec<f64> = (0..tokens).map(|j| dot(dy, j, v)).collect();
            let mean: f64 = weights.iter().zip(&given).map(|(a, d)| a * d).sum();
            for j in 0..tokens {
                let change = scale * weights[j] * (given[j] - mean);
                for n in 0..size {
                    let (own, other) = (at(b, i, n), at(b, j, n));
                    out[0][own] += change * f64::from(k[other]);
                    out[1][other] += change * f64::from(q[own]);
                    out[2][other] += weights[j] * f64::from(dy[own]);
                }
            }
        }
        out.map(|values| values.into_iter().map(|value| value as f32).collect())
    }

    #[test]
    fn every_path_is_the_definition() {
        struct Case {
            shape: Shape,
            patch: usize,
            scale: f32,
        }
        let cases = [
            Case { shape: Shape::new(2, 2, 8, 8), patch: 8, scale: 0.3 },
            Case { shape: Shape::new(2, 2, 8, 8), patch: 4, scale: 0.3 },
            Case { shape: Shape::new(1, 33, 4, 4), patch: 2, scale: 0.1 },
            Case { shape: Shape::new(1, 17, 6, 9), patch: 3, scale: 0.1 },
            Case { shape: Shape::new(2, 20, 3, 7), patch: 1, scale: 0.5 },
            Case { shape: Shape::new(1, 512, 4, 4), patch: 2, scale: 0.02 },
            Case { shape: Shape::new(1, 16, 1, 37), patch: 1, scale: 1.0 },
        ];
        for Case { shape, patch, scale } in cases {
            let filled = [1, 2, 3, 4].map(|seed| filled(shape, seed));
            let values = filled.each_ref().map(|(_, values)| &values[..]);
            let maps = filled.each_ref().map(|(buffer, _)| buffer.map(shape, 0));
            let want = plain(values, shape, patch, f64::from(scale));
            everywhere(|team, isa| {
                let scratch = used(Shape::new(1, 16, 1, scratch_len(shape, patch).div_ceil(16)));
                let (wide, out) = (Shape { channels: 3 * shape.blocks() * LANES, ..shape }, shape);
                let buffer = used(wide);
                let to = [0, 1, 2].map(|i| {
                    buffer.map(wide, 0).channels(i * shape.blocks() * LANES, out.channels)
                });
                for (into, times) in [(Accumulate::Set, 1.0), (Accumulate::Add, 2.0)] {
                    let wanted = to.map(|map| Some((into, map)));
                    patch_attention(team, isa, maps, (patch, scale), wanted, &scratch);
                    for ((map, want), name) in to.iter().zip(&want).zip(["q", "k", "v"]) {
                        let want: Vec<f32> = want.iter().map(|x| times * x).collect();
                        // Sums of up to 2048 products below 1, in f32; gradients below 3.
                        assert_holds(*map, &want, (1e-5, 1e-5), name);
                    }
                }
                // One alone.
                let own = used(shape);
                let own = own.map(shape, 0);
                let wanted = [None, Some((Accumulate::Set, own)), None];
                patch_attention(team, isa, maps, (patch, scale), wanted, &scratch);
                assert_holds(own, &want[1], (1e-5, 1e-5), "k alone");
            });
        }
    }

    #[test]
    fn a_nan_shows() {
        let shape = Shape::new(1, 16, 2, 2);
        let filled = [1, 2, 3, 4].map(|seed| filled(shape, seed));
        let maps = filled.each_ref().map(|(buffer, _)| buffer.map(shape, 0));
        maps[0].set(0, 3, 1, 1, f32::NAN);
        everywhere(|team, isa| {
            let scratch = Buffer::zeroed(scratch_len(shape, 1));
            let to = [(); 3].map(|()| used(shape));
            let to = to.each_ref().map(|buffer| buffer.map(shape, 0));
            let wanted = to.map(|map| Some((Accumulate::Set, map)));
            patch_attention(team, isa, maps, (1, 0.1), wanted, &scratch);
            // The query's own gradient, and what it gives to every key and value.
            assert!(to[0].get(0, 0, 1, 1).is_nan() && !to[0].get(0, 0, 0, 0).is_nan());
            assert!([to[1], to[2]].iter().all(|map| map.read().iter().all(|x| x.is_nan())));
        });
    }
}
