//! Attention between patches (`Op::PatchAttention` of [`crate::nn::graph`], PRN's eq. 3): maps q, k
//! [B, C, H, W] and v [B, Cv, H, W] are cut into N = (H/p)·(W/p) tokens of p × p places, and token i
//! of the result is Σ_j A_ij v_j with A the softmax of the rows of s·QKᵀ, s being `scale`.
//!
//! In blocked layout a token is `⌈C/16⌉ · p` strips of p places. QKᵀ is summed strip by strip with
//! tiles of tokens against tokens in registers; slices of the strips, fixed by the shapes alone, are
//! what threads share, each with logits of its own, so that the order of a sum does not depend on the
//! number of threads.

use super::feature_map::{Buffer, FeatureMap, Shape, Shared};
use super::gradient::accumulate::Accumulate;
use super::simd::{Isa, Kernel, LANES, Simd};
use super::simd_math::exp;
use super::team::Team;

/// Most pieces that QKᵀ is cut into, along the strips and then along the queries.
const PIECES: usize = 16;

/// Places of a token that a tile sums over before its lanes are added up: 4 KiB, so that eight tokens
/// stay in a core's first cache.
const PLACES_AT_ONCE: usize = 64;

/// The three arguments and the result, and what the logits are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a> {
    pub q: FeatureMap<'a>,
    pub k: FeatureMap<'a>,
    pub v: FeatureMap<'a>,
    pub y: FeatureMap<'a>,
    pub patch: usize,
    pub scale: f32,
}

/// q, k, v [B, C, H, W] → y [B, C, H, W], which may be a part of a wider map; `scratch` of
/// [`scratch_len`]. `scale` is what logits are multiplied by.
///
/// # Panics
/// If shapes do not fit, `patch` does not divide H and W, or `y` or `scratch` shares memory with
/// another argument.
pub fn patch_attention(
    team: &Team,
    isa: Isa,
    [q, k, v]: [FeatureMap<'_>; 3],
    (patch, scale): (usize, f32),
    scratch: &Buffer,
    y: FeatureMap<'_>,
) {
    assert_eq!(q.shape(), v.shape(), "patch attention");
    attend(team, isa, Attention { q, k, v, y, patch, scale }, scratch);
}

/// Numbers of scratch memory for q and k of `shape` in patches of `patch`.
pub fn scratch_len(shape: Shape, patch: usize) -> usize {
    let cut = Cut::new(shape, patch);
    shape.images * cut.slices * cut.logits()
}

/// Where the operation's scratch memory begins.
///
/// # Panics
/// If it is shorter than `len` or shares memory with a map.
pub(super) fn claim(scratch: &Buffer, len: usize, maps: &[&FeatureMap<'_>]) -> *mut f32 {
    assert!(scratch.len() >= len, "{} of {len} numbers of scratch memory", scratch.len());
    let start = scratch.as_ptr();
    for map in maps {
        let shape = map.shape();
        let first = map.plane(0, 0) as usize;
        let last = map.plane(shape.images - 1, shape.blocks() - 1) as usize;
        let end = last + map.plane_len() * size_of::<f32>();
        let apart = end <= start as usize || start as usize + len * size_of::<f32>() <= first;
        assert!(apart, "scratch memory within a feature map");
    }
    start
}

/// A mask of the first `n` ≤ 16 lanes.
#[inline(always)]
pub(super) fn first_lanes(n: usize) -> u16 {
    ((1_u32 << n) - 1) as u16
}

/// How a map of q or k is cut into tokens, and the sums of QKᵀ into slices.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub patch: usize,
    /// Tokens side by side.
    columns: usize,
    pub tokens: usize,
    /// From one row of the map to the next.
    row: usize,
    plane: usize,
    /// Strips of a token: one of each row of each block.
    strips: usize,
    strips_at_once: usize,
    pub slices: usize,
    strips_a_slice: usize,
}

impl Cut {
    pub fn new(shape: Shape, patch: usize) -> Self {
        assert!(
            patch > 0 && shape.height.is_multiple_of(patch) && shape.width.is_multiple_of(patch),
            "{shape:?} in patches of {patch}"
        );
        let columns = shape.width / patch;
        let strips = shape.blocks() * patch;
        let strips_at_once = (PLACES_AT_ONCE / patch).clamp(1, strips);
        let strips_a_slice = strips.div_ceil(PIECES).next_multiple_of(strips_at_once);
        Self {
            patch,
            columns,
            tokens: shape.height / patch * columns,
            row: shape.row(),
            plane: shape.plane(),
            strips,
            strips_at_once,
            slices: strips.div_ceil(strips_a_slice),
            strips_a_slice,
        }
    }

    /// From one row of logits to the next.
    pub fn logit_row(&self) -> usize {
        self.tokens.next_multiple_of(LANES)
    }

    /// Numbers of one slice's logits.
    pub fn logits(&self) -> usize {
        self.tokens * self.logit_row()
    }

    /// From place (0, 0) of a plane to the first of a token.
    #[inline(always)]
    fn token(&self, i: usize) -> usize {
        (i / self.columns * self.row + i % self.columns * LANES) * self.patch
    }

    /// From the first number of a token to that of its strip.
    #[inline(always)]
    fn strip(&self, strip: usize) -> usize {
        strip / self.patch * self.plane + strip % self.patch * self.row
    }
}

/// # Panics
/// As [`patch_attention`]; q and k may have other channels than v and y.
pub(super) fn attend(team: &Team, isa: Isa, a: Attention<'_>, scratch: &Buffer) {
    let (shape, v) = (a.q.shape(), a.v.shape());
    assert_eq!(shape, a.k.shape(), "attention's keys");
    assert_eq!(v, a.y.shape(), "attention's result");
    assert_eq!((shape.images, shape.height, shape.width), (v.images, v.height, v.width));
    assert!(!a.y.overlaps(&a.q) && !a.y.overlaps(&a.k) && !a.y.overlaps(&a.v), "in place");
    let cut = Cut::new(shape, a.patch);
    let len = shape.images * cut.slices * cut.logits();
    let logits = claim(scratch, len, &[&a.q, &a.k, &a.v, &a.y]);
    // SAFETY: `len` numbers of scratch memory that holds no map; the shapes were checked.
    unsafe {
        products(team, isa, cut, [a.q, a.k], logits);
        softmax(team, isa, cut, shape.images, a.scale, logits);
        let weights = Weights { first: logits, stride: cut.slices * cut.logits() };
        blend(team, isa, cut, weights, a.v, Accumulate::Set, a.y);
    }
}

/// The slices of QKᵀ of all pictures, one picture's behind the other's. Nothing where there is one
/// token: the softmax of one logit is 1 whatever it is.
///
/// # Safety
/// q and k of the shape that `cut` was made for; images × slices × [`Cut::logits`] numbers at `logits`
/// that nobody else uses.
pub(super) unsafe fn products(
    team: &Team,
    isa: Isa,
    cut: Cut,
    maps: [FeatureMap<'_>; 2],
    logits: *mut f32,
) {
    if cut.tokens == 1 {
        return;
    }
    let shared = Shared((maps, logits));
    let parts = (PIECES / cut.slices).clamp(1, cut.tokens.div_ceil(4));
    let queries = cut.tokens.div_ceil(parts).next_multiple_of(4);
    let jobs = maps[0].shape().images * cut.slices * parts;
    team.chunks(jobs, 1, |_, from, to| {
        let ([q, k], logits) = shared.get();
        for job in from..to {
            let (b, slice, part) =
                (job / parts / cut.slices, job / parts % cut.slices, job % parts);
            // SAFETY: slice `slice` of picture b, within the numbers that the caller promises.
            let logits = unsafe { logits.add((b * cut.slices + slice) * cut.logits()) };
            let first = (part * queries).min(cut.tokens);
            let to = (first + queries).min(cut.tokens);
            isa.run(Logits { q, k, cut, b, slice, queries: (first, to), logits });
        }
    });
}

/// Of what [`products`] made: the softmax of each row of scale·QKᵀ, in the place of each picture's
/// first slice.
///
/// # Safety
/// As [`products`], which has run.
pub(super) unsafe fn softmax(
    team: &Team,
    isa: Isa,
    cut: Cut,
    images: usize,
    scale: f32,
    logits: *mut f32,
) {
    if cut.tokens == 1 {
        return;
    }
    let shared = Shared(logits);
    team.chunks(images * cut.tokens, 8, |_, from, to| {
        isa.run(Softmax { cut, scale, logits: shared.get(), from, to });
    });
}

/// Where the weights of pictures lie, [N, N up to a multiple of 16] each, and how far it is from a
/// picture's to the next's.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub first: *const f32,
    pub stride: usize,
}

/// y_i (+)= Σ_j weight_ij v_j; the only weight of one token is 1.
///
/// # Safety
/// Weights for each picture of v, readable, if there are several tokens; v and y of one shape that
/// has the height and width that `cut` was made for, and apart.
pub(super) unsafe fn blend(
    team: &Team,
    isa: Isa,
    cut: Cut,
    weights: Weights,
    v: FeatureMap<'_>,
    into: Accumulate,
    y: FeatureMap<'_>,
) {
    let strips = v.shape().images * v.shape().blocks() * cut.patch;
    let shared = Shared((weights, v, y));
    team.chunks(strips, strips.div_ceil(4 * team.threads()), |_, from, to| {
        let (weights, v, y) = shared.get();
        isa.run(Blend { cut, weights, v, into, y, from, to });
    });
}

/// Q Kᵀ over one slice of the strips, for some of the queries.
struct Logits<'a> {
    q: FeatureMap<'a>,
    k: FeatureMap<'a>,
    cut: Cut,
    b: usize,
    slice: usize,
    queries: (usize, usize),
    /// [N, N up to a multiple of 16], this slice's.
    logits: *mut f32,
}

impl Kernel for Logits<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Sums, and operands beside them, fill the registers.
        if S::PANEL > 1 { self.tiles::<S, 4>(s) } else { self.tiles::<S, 2>(s) }
    }
}

impl Logits<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const T: usize>(&self, s: S) {
        let cut = &self.cut;
        let begin = self.slice * cut.strips_a_slice;
        let end = (begin + cut.strips_a_slice).min(cut.strips);
        for from in (begin..end).step_by(cut.strips_at_once) {
            let to = (from + cut.strips_at_once).min(end);
            for i in (self.queries.0..self.queries.1).step_by(T) {
                for j in (0..cut.tokens).step_by(T) {
                    let sums = self.tile::<S, T>(s, (i, j), (from, to));
                    for (m, sums) in sums.iter().enumerate() {
                        for (n, sum) in sums.iter().enumerate() {
                            if i + m >= self.queries.1 || j + n >= cut.tokens {
                                continue;
                            }
                            let at = (i + m) * cut.logit_row() + j + n;
                            // SAFETY: row i + m, column j + n of this slice's logits; other jobs on
                            // the slice have other rows.
                            unsafe {
                                let to = self.logits.add(at);
                                let before = if from == begin { 0.0 } else { *to };
                                *to = before + s.sum(*sum);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Products of queries i.. and keys j.. over strips `from`..`to`. Past the last token it is taken
    /// again, and the caller drops it.
    #[inline(always)]
    fn tile<S: Simd, const T: usize>(
        &self,
        s: S,
        (i, j): (usize, usize),
        (from, to): (usize, usize),
    ) -> [[S::F; T]; T] {
        let cut = &self.cut;
        let (q, k) = (self.q.place(self.b, 0, 0, 0), self.k.place(self.b, 0, 0, 0));
        let (mut q_at, mut k_at) = ([0; T], [0; T]);
        for t in 0..T {
            q_at[t] = cut.token((i + t).min(cut.tokens - 1));
            k_at[t] = cut.token((j + t).min(cut.tokens - 1));
        }
        let channels = self.q.shape().channels;
        let mut sums = [[s.zero(); T]; T];
        for strip in from..to {
            // Channels past C may be other than zero.
            let own = (channels - strip / cut.patch * LANES).min(LANES);
            let mask = first_lanes(own);
            let at = cut.strip(strip);
            for x in 0..cut.patch {
                let (mut qs, mut ks) = ([s.zero(); T], [s.zero(); T]);
                for t in 0..T {
                    // SAFETY: place x of the strip of a token of the maps, which have one shape.
                    unsafe {
                        qs[t] = s.load(q.add(at + q_at[t] + x * LANES));
                        ks[t] = s.load(k.add(at + k_at[t] + x * LANES));
                    }
                    if own < LANES {
                        qs[t] = s.select(mask, qs[t], s.zero());
                    }
                }
                for m in 0..T {
                    for n in 0..T {
                        sums[m][n] = s.mul_add(qs[m], ks[n], sums[m][n]);
                    }
                }
            }
        }
        sums
    }
}

/// Rows `from`..`to` of all pictures' logits: slices added up, scaled, exponentiated, divided by
/// their sum; laid down in the first slice.
struct Softmax {
    cut: Cut,
    scale: f32,
    logits: *mut f32,
    from: usize,
    to: usize,
}

impl Kernel for Softmax {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Cut { tokens, slices, .. } = self.cut;
        let own = |column: usize| first_lanes((tokens - column).min(LANES));
        for row in self.from..self.to {
            let (b, i) = (row / tokens, row % tokens);
            let at = b * slices * self.cut.logits() + i * self.cut.logit_row();
            // SAFETY: row i of picture b's first slice; this job alone has row i of its slices.
            let logits = unsafe { self.logits.add(at) };
            let mut largest = s.splat(f32::NEG_INFINITY);
            for column in (0..tokens).step_by(LANES) {
                let mut sum = s.zero();
                for slice in 0..slices {
                    // SAFETY: rows are multiples of 16 long, and `column` lies in one.
                    let part = unsafe { s.load(logits.add(slice * self.cut.logits() + column)) };
                    sum = s.add(sum, part);
                }
                sum = s.mul(sum, s.splat(self.scale));
                sum = s.select(own(column), sum, s.splat(f32::NEG_INFINITY));
                largest = s.max(largest, sum);
                // SAFETY: as above.
                unsafe { s.store(logits.add(column), sum) };
            }
            let mut most = f32::NEG_INFINITY;
            for x in s.to_array(largest) {
                most = most.max(x);
            }
            let mut total = s.zero();
            for column in (0..tokens).step_by(LANES) {
                // SAFETY: as above.
                let logit = unsafe { s.load(logits.add(column)) };
                // A NaN that the maxima let go is still here.
                let weight = exp(s, s.sub(logit, s.splat(most)));
                let weight = s.select(own(column), weight, s.zero());
                total = s.add(total, weight);
                // SAFETY: as above.
                unsafe { s.store(logits.add(column), weight) };
            }
            let inverse = s.splat(1.0 / s.sum(total));
            for column in (0..tokens).step_by(LANES) {
                // SAFETY: as above.
                unsafe {
                    s.store(logits.add(column), s.mul(s.load(logits.add(column)), inverse));
                }
            }
        }
    }
}

/// Strips `from`..`to` of the result, counted over pictures, blocks and rows of a patch.
struct Blend<'a> {
    cut: Cut,
    weights: Weights,
    v: FeatureMap<'a>,
    into: Accumulate,
    y: FeatureMap<'a>,
    from: usize,
    to: usize,
}

impl Kernel for Blend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let wide = S::PANEL > 1;
        match self.cut.patch {
            p if wide && p.is_multiple_of(4) => self.strips::<S, 4, 4>(s),
            p if wide && p.is_multiple_of(2) => self.strips::<S, 8, 2>(s),
            _ if wide => self.strips::<S, 16, 1>(s),
            p if p.is_multiple_of(2) => self.strips::<S, 2, 2>(s),
            _ => self.strips::<S, 4, 1>(s),
        }
    }
}

impl Blend<'_> {
    /// In tiles of Q tokens by P places, which divides the patch.
    #[inline(always)]
    fn strips<S: Simd, const Q: usize, const P: usize>(&self, s: S) {
        let (cut, blocks) = (&self.cut, self.v.shape().blocks());
        for job in self.from..self.to {
            let (b, dy) = (job / (blocks * cut.patch), job % cut.patch);
            let block = job / cut.patch % blocks;
            let v = self.v.place(b, block, dy as isize, 0);
            let y = self.y.place(b, block, dy as isize, 0);
            let weights = self.weights.first.wrapping_add(b * self.weights.stride);
            for i in (0..cut.tokens).step_by(Q) {
                for x in (0..cut.patch).step_by(P) {
                    // SAFETY: places x.. of strip dy of a token are in the plane; weights are those
                    // of picture b.
                    let sums = unsafe { self.tile::<S, Q, P>(s, weights, i, v.add(x * LANES)) };
                    for (m, sums) in sums.iter().enumerate().take(cut.tokens - i) {
                        for (n, sum) in sums.iter().enumerate() {
                            // SAFETY: as above; this job alone writes strip dy of y's tokens here.
                            unsafe {
                                let to = y.add(cut.token(i + m) + (x + n) * LANES);
                                self.into.put(s, to, *sum);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Σ_j A_ij v_j for Q tokens i.. and P places. Past the last token it is taken again, and the
    /// caller drops it.
    ///
    /// # Safety
    /// `weights` [N, N up to a multiple of 16]; P places readable at `v` moved by each token.
    #[inline(always)]
    unsafe fn tile<S: Simd, const Q: usize, const P: usize>(
        &self,
        s: S,
        weights: *const f32,
        i: usize,
        v: *const f32,
    ) -> [[S::F; P]; Q] {
        let cut = &self.cut;
        let mut sums = [[s.zero(); P]; Q];
        if cut.tokens == 1 {
            for (n, sum) in sums[0].iter_mut().enumerate() {
                // SAFETY: as the caller promises; the only token is moved by nothing.
                *sum = unsafe { s.load(v.add(n * LANES)) };
            }
            return sums;
        }
        let mut rows = [weights; Q];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = row.wrapping_add((i + m).min(cut.tokens - 1) * cut.logit_row());
        }
        for j in 0..cut.tokens {
            let v = v.wrapping_add(cut.token(j));
            let mut values = [s.zero(); P];
            for (n, value) in values.iter_mut().enumerate() {
                // SAFETY: as the caller promises.
                *value = unsafe { s.load(v.add(n * LANES)) };
            }
            for m in 0..Q {
                // SAFETY: column j of a row of weights.
                let weight = s.splat(unsafe { *rows[m].add(j) });
                for n in 0..P {
                    sums[m][n] = s.mul_add(weight, values[n], sums[m][n]);
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// q, k, v [B, C, H, W] → [B, C, H, W].
    fn plain([q, k, v]: [&[f32]; 3], shape: Shape, patch: usize) -> Vec<f32> {
        let Shape { images, channels, height, width } = shape;
        let columns = width / patch;
        let tokens = height / patch * columns;
        let size = channels * patch * patch;
        let at = |b: usize, token: usize, n: usize| {
            let (c, dy, dx) = (n / patch / patch, n / patch % patch, n % patch);
            let (y, x) = (token / columns * patch + dy, token % columns * patch + dx);
            ((b * channels + c) * height + y) * width + x
        };
        let mut out = vec![0.0; v.len()];
        for (b, i) in (0..images).flat_map(|b| (0..tokens).map(move |i| (b, i))) {
            let logit = |j| {
                let dot = (0..size).map(|n| f64::from(q[at(b, i, n)]) * f64::from(k[at(b, j, n)]));
                dot.sum::<f64>() / size as f64
            };
            let weights: Vec<f64> = (0..tokens).map(|j| logit(j).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for n in 0..size {
                let value = |j: usize| weights[j] * f64::from(v[at(b, j, n)]);
                out[at(b, i, n)] = ((0..tokens).map(value).sum::<f64>() / sum) as f32;
            }
        }
        out
    }

    fn wave(len: usize, seed: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.911 + seed).sin() * 3.0).collect()
    }

    #[test]
    fn every_path_is_the_definition_and_no_thread_changes_a_bit() {
        struct Case {
            shape: Shape,
            patch: usize,
        }
        let cases = [
            Case { shape: Shape::new(2, 2, 8, 8), patch: 8 },
            Case { shape: Shape::new(2, 2, 8, 8), patch: 4 },
            Case { shape: Shape::new(1, 33, 4, 4), patch: 2 },
            Case { shape: Shape::new(1, 17, 6, 9), patch: 3 },
            Case { shape: Shape::new(2, 20, 3, 7), patch: 1 },
            Case { shape: Shape::new(1, 512, 4, 4), patch: 2 },
            Case { shape: Shape::new(1, 16, 1, 37), patch: 1 },
        ];
        for Case { shape, patch } in cases {
            let len = shape.images * shape.channels * shape.places();
            let (q, k, v) = (wave(len, 0.1), wave(len, 0.2), wave(len, 2.3));
            let want = plain([&q, &k, &v], shape, patch);
            let buffers = [&q, &k, &v].map(|values| {
                let buffer = Buffer::zeroed(shape.len());
                buffer.map(shape, 0).write(values);
                // Behind the last channel anything finite may stand.
                for c in shape.channels..shape.blocks() * LANES {
                    buffer.map(shape, 0).set(shape.images - 1, c, 0, 0, 1e3);
                }
                buffer
            });
            let [q, k, v] = [0, 1, 2].map(|i| buffers[i].map(shape, 0));
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                let mut first: Option<Vec<f32>> = None;
                for threads in [1, 2] {
                    let team = Team::new(threads, false).unwrap();
                    let scratch = Buffer::zeroed(scratch_len(shape, patch));
                    let buffer = Buffer::zeroed(2 * shape.len());
                    let y = buffer.window(shape, shape.blocks(), 2 * shape.blocks());
                    let scale = 1.0 / (shape.channels * patch * patch) as f32;
                    patch_attention(&team, isa, [q, k, v], (patch, scale), &scratch, y);
                    let got = y.read();
                    for (got, want) in got.iter().zip(&want) {
                        // Logits are means of products ≤ 9 in f32 (10⁻⁵), values ≤ 3.
                        assert!((got - want).abs() < 3e-5, "{} {shape:?} {patch}", isa.word());
                    }
                    assert_eq!(first.get_or_insert(got.clone()), &got, "threads");
                }
            }
        }
    }

    /* s = lambda n, a, m, q: torch.arange(n).mul(a).remainder(m) / q
    q, k, v = (specmodels.patchify(s(32, m, 13, 2.).view(1, 2, 4, 4), 2) for m in (3, 5, 7))
    y = (q @ k.transpose(1, 2) / 8).softmax(-1) @ v
    print(specmodels.unpatchify(y, 2, 2, 4, 4).flatten()) */
    #[test]
    fn torch_says_the_same() {
        let shape = Shape::new(1, 2, 4, 4);
        let want = [
            0.877_638, 4.377_638, 1.528_731, 5.028_731, 1.877_638, 3.884_848, 2.528_731, 2.480_052,
            0.987_982, 4.487_982, 1.288_767, 4.788_767, 1.987_982, 3.880_767, 2.288_766, 2.475_024,
            4.154_56, 1.877_638, 2.077_943, 2.528_731, 4.384_848, 2.877_638, 2.980_052, 3.528_731,
            3.452_579, 1.987_982, 2.627_255, 2.288_766, 4.380_767, 2.987_982, 2.975_024, 3.288_766,
        ];
        let buffer = Buffer::zeroed(4 * shape.len());
        let [q, k, v, y] = [0, 1, 2, 3].map(|i| buffer.map(shape, i));
        for (map, step) in [(q, 3), (k, 5), (v, 7)] {
            map.write(&std::array::from_fn::<f32, 32, _>(|i| (i * step % 13) as f32 / 2.0));
        }
        let scratch = Buffer::zeroed(scratch_len(shape, 2));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            patch_attention(&Team::alone(), isa, [q, k, v], (2, 0.125), &scratch, y);
            for (got, want) in y.read().iter().zip(want) {
                // Seven printed digits of numbers below 6, logits up to 12 in f32.
                assert!((got - want).abs() < 1e-5, "{} {got} {want}", isa.word());
            }
        }
    }

    #[test]
    #[should_panic(expected = "scratch memory within")]
    fn scratch_in_a_map_is_refused() {
        let shape = Shape::new(1, 16, 2, 2);
        let buffer = Buffer::zeroed(4 * shape.len());
        let [q, k, v, y] = [0, 1, 2, 3].map(|i| buffer.map(shape, i));
        patch_attention(&Team::alone(), Isa::Portable, [q, k, v], (1, 1.0), &buffer, y);
    }
}
