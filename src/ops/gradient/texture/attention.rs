//! Of the attention between levels: with A the softmax of the rows of kᵀq and y_i = Σ_j A_ij v_j, v_j
//! gets Σ_i A_ij dy_i, the logits D_ij = A_ij (dy_i·v_j − Σ_j A_ij dy_i·v_j), k_i gets Σ_j D_ij q_j and
//! q_j gets Σ_i D_ij k_i.

use super::Wanted;
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::patch_attention::{claim, first_lanes};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::simd_math::exp;
use crate::ops::team::Team;
use crate::ops::texture::{own, padded};

/// Numbers of scratch memory for [`level_attention`] of `levels`.
pub fn level_attention_scratch(threads: usize, levels: usize) -> usize {
    threads * 2 * levels * padded(levels)
}

/// Of [`crate::ops::texture::level_attention`]: k, q [B, C, 1, N], v [B, Cv, 1, N] and dy of v's shape →
/// the gradients of k, q and v, where they are wanted, written in that order.
///
/// # Panics
/// If shapes do not fit, or a gradient or `scratch` shares memory with an argument.
pub fn level_attention(
    team: &Team,
    isa: Isa,
    maps: [FeatureMap<'_>; 4],
    scratch: &Buffer,
    gradients: [Option<Wanted<'_>>; 3],
) {
    let [k, q, v, dy] = maps;
    let (shape, wide) = (k.shape(), v.shape());
    let (images, count) = (shape.images, shape.width);
    assert_eq!((shape, shape.height), (q.shape(), 1), "attention between levels");
    assert_eq!(wide, Shape::new(images, wide.channels, 1, count), "values of levels");
    assert_eq!(dy.shape(), wide, "attention between levels");
    let len = level_attention_scratch(team.threads(), count);
    for (gradient, of) in gradients.iter().zip([k, q, v]) {
        let Some((_, to)) = gradient else { continue };
        assert_eq!(to.shape(), of.shape(), "a gradient of attention");
        assert!(maps.iter().all(|map| !to.overlaps(map)), "a gradient of attention in place");
        claim(scratch, len, &[to]);
    }
    let start = claim(scratch, len, &[&k, &q, &v, &dy]);
    let shared = Shared((maps, gradients, start));
    team.chunks(images, 1, |thread, from, to| {
        let (maps, gradients, start) = shared.get();
        let square = count * padded(count);
        let weights = start.wrapping_add(thread * 2 * square);
        let logits = weights.wrapping_add(square);
        for image in from..to {
            isa.run(Picture { maps, gradients, weights, logits, image });
        }
    });
}

struct Picture<'a> {
    /// k, q, v and dy.
    maps: [FeatureMap<'a>; 4],
    /// Of k, q and v.
    gradients: [Option<Wanted<'a>>; 3],
    /// A and D, [N, N up to a multiple of 16], this thread's.
    weights: *mut f32,
    logits: *mut f32,
    image: usize,
}

impl Kernel for Picture<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [k, q, v, dy] = self.maps;
        // SAFETY: both squares are this thread's part of the scratch memory.
        unsafe {
            self.products(s, [&k, &q], self.weights);
            self.products(s, [&dy, &v], self.logits);
            self.rows(s);
        }
        let row = padded(k.shape().width);
        let [by_k, by_q, by_v] = self.gradients;
        let ways = [
            (by_k, self.logits, q, (row, 1)),
            (by_q, self.logits, k, (1, row)),
            (by_v, self.weights, dy, (1, row)),
        ];
        for (gradient, weights, from, steps) in ways {
            if let Some(gradient) = gradient {
                // SAFETY: filled above.
                unsafe { self.mix(s, weights, steps, &from, gradient) };
            }
        }
    }
}

impl Picture<'_> {
    fn count(&self) -> usize {
        self.maps[0].shape().width
    }

    /// Σ_c a_ci b_cj of all pairs, at `[i][j]`.
    ///
    /// # Safety
    /// `to` is one of the squares.
    #[inline(always)]
    unsafe fn products<S: Simd>(&self, s: S, maps: [&FeatureMap<'_>; 2], to: *mut f32) {
        // Sums, and operands beside them, fill the registers.
        // SAFETY: as the caller promises.
        unsafe {
            if S::PANEL > 1 {
                self.tiles::<S, 4>(s, maps, to);
            } else {
                self.tiles::<S, 2>(s, maps, to);
            }
        }
    }

    /// # Safety
    /// As [`Self::products`].
    #[inline(always)]
    unsafe fn tiles<S: Simd, const T: usize>(
        &self,
        s: S,
        maps: [&FeatureMap<'_>; 2],
        to: *mut f32,
    ) {
        let (count, row) = (self.count(), padded(self.count()));
        for i in (0..count).step_by(T) {
            for j in (0..count).step_by(T) {
                let sums = self.tile::<S, T>(s, maps, (i, j));
                for (m, sums) in sums.iter().enumerate().take(count - i) {
                    for (n, sum) in sums.iter().enumerate().take(count - j) {
                        // SAFETY: row i + m, column j + n of the square.
                        unsafe { *to.add((i + m) * row + j + n) = s.sum(*sum) };
                    }
                }
            }
        }
    }

    /// Products of levels i.. of a and j.. of b, lane by lane. Past the last level it is taken again,
    /// and the caller drops it.
    #[inline(always)]
    fn tile<S: Simd, const T: usize>(
        &self,
        s: S,
        [a, b]: [&FeatureMap<'_>; 2],
        (i, j): (usize, usize),
    ) -> [[S::F; T]; T] {
        let last = self.count() - 1;
        let (a_at, b_at) = (a.place(self.image, 0, 0, 0), b.place(self.image, 0, 0, 0));
        let channels = a.shape().channels;
        let mut sums = [[s.zero(); T]; T];
        for block in 0..a.shape().blocks() {
            let mask = own(channels, block);
            let (mut xs, mut ys) = ([s.zero(); T], [s.zero(); T]);
            for t in 0..T {
                // SAFETY: one of the levels in one of the planes.
                unsafe {
                    xs[t] = s.load(a_at.add(block * a.plane_len() + (i + t).min(last) * LANES));
                    ys[t] = s.load(b_at.add(block * b.plane_len() + (j + t).min(last) * LANES));
                }
                if mask != u16::MAX {
                    xs[t] = s.select(mask, xs[t], s.zero());
                }
            }
            for m in 0..T {
                for n in 0..T {
                    sums[m][n] = s.mul_add(xs[m], ys[n], sums[m][n]);
                }
            }
        }
        sums
    }

    /// From kᵀq to A, and from dy·v to D; zero behind the last column.
    ///
    /// # Safety
    /// Both squares are filled.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self, s: S) {
        let (count, row) = (self.count(), padded(self.count()));
        let own = |column: usize| first_lanes((count - column).min(LANES));
        for i in 0..count {
            let weights = self.weights.wrapping_add(i * row);
            let logits = self.logits.wrapping_add(i * row);
            let mut largest = s.splat(f32::NEG_INFINITY);
            for column in (0..row).step_by(LANES) {
                // SAFETY: sixteen numbers of row i, here and below.
                let logit = unsafe { s.load(weights.add(column)) };
                let logit = s.select(own(column), logit, s.splat(f32::NEG_INFINITY));
                largest = s.max(largest, logit);
            }
            let most = s.to_array(largest).into_iter().fold(f32::NEG_INFINITY, f32::max);
            let (mut total, mut mean) = (s.zero(), s.zero());
            for column in (0..row).step_by(LANES) {
                // SAFETY: as above.
                unsafe {
                    // A NaN that the maxima let go is still here.
                    let weight = exp(s, s.sub(s.load(weights.add(column)), s.splat(most)));
                    let weight = s.select(own(column), weight, s.zero());
                    let given = s.select(own(column), s.load(logits.add(column)), s.zero());
                    total = s.add(total, weight);
                    mean = s.mul_add(weight, given, mean);
                    s.store(weights.add(column), weight);
                    s.store(logits.add(column), given);
                }
            }
            let inverse = 1.0 / s.sum(total);
            let (mean, inverse) = (s.splat(s.sum(mean) * inverse), s.splat(inverse));
            for column in (0..row).step_by(LANES) {
                // SAFETY: as above.
                unsafe {
                    let weight = s.mul(s.load(weights.add(column)), inverse);
                    s.store(weights.add(column), weight);
                    let given = s.sub(s.load(logits.add(column)), mean);
                    s.store(logits.add(column), s.mul(weight, given));
                }
            }
        }
    }

    /// to_i (+)= Σ_j w_ij from_j, w_ij lying `steps.0`·i + `steps.1`·j behind `weights`.
    ///
    /// # Safety
    /// `weights` is one of the squares, filled.
    #[inline(always)]
    unsafe fn mix<S: Simd>(
        &self,
        s: S,
        weights: *const f32,
        steps: (usize, usize),
        from: &FeatureMap<'_>,
        (into, to): Wanted<'_>,
    ) {
        /// Levels whose sums grow together.
        const TOGETHER: usize = 8;
        let count = self.count();
        for block in 0..to.shape().blocks() {
            let (from, to) =
                (from.place(self.image, block, 0, 0), to.place(self.image, block, 0, 0));
            for i in (0..count).step_by(TOGETHER) {
                // Past the last level it is taken again, and dropped.
                let mut rows = [weights; TOGETHER];
                for (m, row) in rows.iter_mut().enumerate() {
                    *row = weights.wrapping_add((i + m).min(count - 1) * steps.0);
                }
                let mut sums = [s.zero(); TOGETHER];
                for j in 0..count {
                    // SAFETY: level j in one of the planes, and numbers of the square.
                    unsafe {
                        let value = s.load(from.add(j * LANES));
                        for m in 0..TOGETHER {
                            sums[m] = s.mul_add(s.splat(*rows[m].add(j * steps.1)), value, sums[m]);
                        }
                    }
                }
                for (m, sum) in sums.iter().enumerate().take(count - i) {
                    // SAFETY: level i + m of this picture, which this job alone writes.
                    unsafe { into.put(s, to.add((i + m) * LANES), *sum) };
                }
            }
        }
    }
}
