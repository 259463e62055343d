//! The first convolution of a network, from the planes of a picture to a feature map, with ReLU, and
//! where asked for with ResNet's 3×3 maximum of stride 2 behind it, computed while the rows are in
//! the cache. Letters: B pictures, H × W the picture, O channels out, K kernel width.

use super::conv::{Geometry, pack_bias};
use super::feature_map::{Buffer, FeatureMap, Frozen, Shape, Shared};
use super::gemm::panels;
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// The picture's channels.
const CHANNELS: usize = 3;

/// Rows of output that a thread takes at once: enough that the rows of the convolution which two
/// neighbours both need for their maxima do not count.
const CHUNK: usize = 16;

/// Rows of the convolution that the maximum needs at once, and one to spare: a power of two.
const RING: usize = 4;

/// Where the pixels of a batch lie: `[B][3][H + 2·pad][row]`, a border of `pad` zeros around each
/// plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    pub height: usize,
    pub width: usize,
    pub pad: usize,
}

impl Planes {
    /// Numbers from a row to the next: the width with its border, and 16 more, so that lanes loaded
    /// from the last place stay in the buffer.
    pub fn row(&self) -> usize {
        self.width + 2 * self.pad + LANES
    }

    /// Numbers of one plane.
    pub fn plane(&self) -> usize {
        (self.height + 2 * self.pad) * self.row()
    }

    /// Numbers of a batch.
    pub fn len(&self, images: usize) -> usize {
        images * CHANNELS * self.plane()
    }

    /// Writes `values` [B, 3, H, W] into `buffer`, whose border must be zero.
    pub fn write(&self, values: &[f32], buffer: &mut Buffer) {
        let images = values.len() / (CHANNELS * self.height * self.width);
        assert!(buffer.len() >= self.len(images), "{images} pictures of {self:?}");
        let to = buffer.as_mut_slice();
        for (i, row) in values.chunks_exact(self.width).enumerate() {
            let (plane, y) = (i / self.height, i % self.height);
            let at = plane * self.plane() + (y + self.pad) * self.row() + self.pad;
            to[at..at + self.width].copy_from_slice(row);
        }
    }
}

/// A convolution of 3 planes with its weights packed.
pub struct StemConv {
    isa: Isa,
    geometry: Geometry,
    planes: Planes,
    images: usize,
    relu: bool,
    pool: bool,
    threads: usize,
    weights: Frozen, // [panels][3][K][K][16 · blocks of the panel]
    bias: Frozen,
}

impl StemConv {
    /// `weights` `[O, 3, K, K]`, `bias` `[O]`. With `pool`, a 3×3 maximum of stride 2 and padding 1
    /// follows, and `relu` must be set (so that zero is as good as −∞ outside).
    #[expect(clippy::too_many_arguments, reason = "each is one fact of the network's first layer")]
    pub fn new(
        isa: Isa,
        geometry: Geometry,
        weights: &[f32],
        bias: &[f32],
        planes: Planes,
        images: usize,
        (relu, pool): (bool, bool),
        threads: usize,
    ) -> Self {
        let Geometry { c_in, padding, dilation, .. } = geometry;
        // Taps reach out no further than the padding.
        assert!(c_in == CHANNELS && dilation == 1 && padding <= planes.pad, "{geometry:?}");
        assert!(!pool || relu, "a maximum over zeros outside needs a ReLU before it");
        assert_eq!(weights.len(), geometry.weights(), "{geometry:?}");
        let weights = isa.run(Pack { geometry, weights });
        let bias = pack_bias(bias, geometry.c_out);
        Self { isa, geometry, planes, images, relu, pool, threads, weights, bias }
    }

    /// The convolution's output before the maximum.
    fn inner(&self) -> Shape {
        let input = Shape::new(self.images, CHANNELS, self.planes.height, self.planes.width);
        self.geometry.output(input)
    }

    /// What a run makes.
    pub fn output(&self) -> Shape {
        let inner = self.inner();
        if self.pool {
            let (height, width) = (inner.height.div_ceil(2), inner.width.div_ceil(2));
            Shape { height, width, ..inner }
        } else {
            inner
        }
    }

    /// Numbers of one row of the convolution in the ring.
    fn ring_row(&self) -> usize {
        self.inner().blocks() * self.inner().width * LANES
    }

    /// Numbers of scratch memory that a run needs.
    pub fn scratch_len(&self) -> usize {
        if self.pool { self.threads * RING * self.ring_row() } else { 0 }
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// y = conv(planes), ReLU and maximum as asked for.
    ///
    /// # Panics
    /// If `y` has another shape, a buffer is too small, or two of the three are one.
    pub fn run(&self, team: &Team, planes: &Buffer, y: FeatureMap<'_>, scratch: &Buffer) {
        assert!(planes.len() >= self.planes.len(self.images), "{:?}", self.planes);
        assert!(scratch.len() >= self.scratch_len(), "scratch of {} numbers", scratch.len());
        assert!(!y.is_in(planes) && !y.is_in(scratch), "the output overlaps what is read");
        assert!(!self.pool || planes.as_ptr() != scratch.as_ptr(), "planes as scratch memory");
        let from = (planes.as_ptr().cast_const(), self.weights.as_ptr(), self.bias.as_ptr());
        // SAFETY: as just checked; the weights are packed for this geometry.
        unsafe { self.run_on(team, from, y, scratch.as_ptr()) };
    }

    /// As [`StemConv::run`], with weights and bias from elsewhere, packed as in [`pack`].
    ///
    /// # Safety
    /// Planes, weights and bias are as long as this struct says, `scratch` too; y overlaps none.
    pub(super) unsafe fn run_on(
        &self,
        team: &Team,
        from: (*const f32, *const f32, *const f32),
        y: FeatureMap<'_>,
        scratch: *mut f32,
    ) {
        assert_eq!(y.shape(), self.output(), "the output of {:?}", self.geometry);
        assert!(team.threads() <= self.threads, "made for {} threads", self.threads);
        let rows = self.images * y.shape().height;
        let chunk =
            if team.threads() == 1 { rows } else { rows.div_ceil(2 * team.threads()).min(CHUNK) };
        let work = Shared((from, y, scratch));
        team.chunks(rows, chunk, |thread, first, last| {
            let ((planes, weights, bias), y, scratch) = work.get();
            // SAFETY: a ring for each thread; none is used without a maximum.
            let ring =
                scratch.wrapping_add(if self.pool { thread * RING * self.ring_row() } else { 0 });
            let rows = (first, last);
            self.isa.run(Work { conv: self, planes, weights, bias, y, ring, rows });
        });
    }
}

struct Pack<'a> {
    geometry: Geometry,
    weights: &'a [f32],
}

impl Kernel for Pack<'_> {
    type Output = Frozen;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Frozen {
        let Geometry { c_out, kernel, .. } = self.geometry;
        let taps = CHANNELS * kernel * kernel;
        let mut packed = Buffer::zeroed(c_out.div_ceil(LANES) * taps * LANES);
        pack(self.geometry, self.weights, S::PANEL, packed.as_mut_slice());
        packed.into()
    }
}

/// Into zeros of `[panels][3][K][K][16 · blocks of the panel]`.
pub(super) fn pack(geometry: Geometry, weights: &[f32], panel: usize, out: &mut [f32]) {
    let Geometry { c_out, kernel, .. } = geometry;
    let taps = CHANNELS * kernel * kernel;
    let blocks_out = c_out.div_ceil(LANES);
    for (first, blocks) in panels(blocks_out, panel) {
        let width = blocks * LANES;
        for k in (first * LANES..(first + blocks) * LANES).take_while(|&k| k < c_out) {
            for tap in 0..taps {
                let at = first * taps * LANES + tap * width + k - first * LANES;
                out[at] = weights[k * taps + tap];
            }
        }
    }
}

struct Work<'a> {
    conv: &'a StemConv,
    planes: *const f32,
    weights: *const f32, // [panels][3][K][K][16 · blocks of the panel]
    bias: *const f32,
    y: FeatureMap<'a>,
    ring: *mut f32,
    /// Rows of y, counted over the pictures.
    rows: (usize, usize),
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let out = self.y.shape();
        if !self.conv.pool {
            for row in self.rows.0..self.rows.1 {
                let (image, y) = (row / out.height, row % out.height);
                let to = self.y.place(image, 0, y as isize, 0);
                // SAFETY: row y of the picture; its blocks lie a plane apart in the output.
                unsafe { self.row(s, image, y, to, self.y.plane_len()) };
            }
            return;
        }
        let inner = self.conv.inner();
        let mut held = [usize::MAX; RING];
        for row in self.rows.0..self.rows.1 {
            let (image, y) = (row / out.height, row % out.height);
            let above = (2 * y).saturating_sub(1)..(2 * y + 2).min(inner.height);
            for y in above.clone() {
                let id = image * inner.height + y;
                if held[y % RING] != id {
                    held[y % RING] = id;
                    // SAFETY: a row of this thread's ring; blocks lie a row of places apart.
                    unsafe { self.row(s, image, y, self.ring(y), inner.width * LANES) };
                }
            }
            for block in 0..out.blocks() {
                let to = self.y.place(image, block, y as isize, 0);
                for x in 0..out.width {
                    let mut largest = s.zero();
                    for y in above.clone() {
                        // SAFETY: block `block` of a row of the ring.
                        let row = unsafe { self.ring(y).add(block * inner.width * LANES) };
                        for x in (2 * x).saturating_sub(1)..(2 * x + 2).min(inner.width) {
                            // SAFETY: place x of the row.
                            largest = s.max(largest, unsafe { s.load(row.add(x * LANES)) });
                        }
                    }
                    // SAFETY: place x of row y of the output.
                    unsafe { s.store(to.add(x * LANES), largest) };
                }
            }
        }
    }
}

impl Work<'_> {
    fn ring(&self, y: usize) -> *mut f32 {
        self.ring.wrapping_add(y % RING * self.conv.ring_row())
    }

    /// One row of the convolution.
    ///
    /// # Safety
    /// `y` is a row of the convolution, `to` can take it, block by block `to_plane` numbers apart.
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, image: usize, y: usize, to: *mut f32, to_plane: usize) {
        let Geometry { kernel, stride, padding, .. } = self.conv.geometry;
        let (planes, inner) = (self.conv.planes, self.conv.inner());
        let taps = CHANNELS * kernel * kernel;
        let off = planes.pad - padding;
        let floor = if self.conv.relu { s.zero() } else { s.splat(f32::NEG_INFINITY) };
        for (first, blocks) in panels(inner.blocks(), S::PANEL) {
            let mut x = 0;
            while x < inner.width {
                let left = inner.width - x;
                let count = left.div_ceil(left.div_ceil(S::ROWS));
                // SAFETY: the border is as wide as the taps reach out, see `new`; panels lie one
                // behind the other.
                unsafe {
                    let places = Places {
                        from: self.planes.add(
                            image * CHANNELS * planes.plane()
                                + (y * stride + off) * planes.row()
                                + x * stride
                                + off,
                        ),
                        row: planes.row(),
                        plane: planes.plane(),
                        kernel,
                        stride,
                        weights: self.weights.add(first * taps * LANES),
                        bias: self.bias.add(first * LANES),
                        to: to.add(first * to_plane + x * LANES),
                        to_plane,
                    };
                    dispatch(s, count, blocks, places, floor);
                }
                x += count;
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Places {
    from: *const f32,
    row: usize,
    plane: usize,
    kernel: usize,
    stride: usize,
    weights: *const f32,
    bias: *const f32,
    to: *mut f32,
    to_plane: usize,
}

/// # Safety
/// See [`Work::row`].
#[inline(always)]
unsafe fn dispatch<S: Simd>(s: S, count: usize, blocks: usize, at: Places, floor: S::F) {
    macro_rules! sizes {
        ($($blocks:literal: $($count:literal)*;)*) => {
            match (blocks, count) {
                // SAFETY: as the caller promises.
                $($(($blocks, $count) if $blocks <= S::PANEL && $count <= S::ROWS => unsafe {
                    places::<S, $blocks, $count>(s, at, floor)
                },)*)*
                _ => unreachable!("{count} places of {blocks} blocks"),
            }
        };
    }
    sizes!(
        1: 1 2 3 4 5 6 7 8 9 10 11 12;
        2: 1 2 3 4 5 6 7 8 9 10 11 12;
    );
}

/// R places of P blocks.
///
/// # Safety
/// See [`Work::row`].
#[inline(always)]
unsafe fn places<S: Simd, const P: usize, const R: usize>(s: S, at: Places, floor: S::F) {
    let mut sums = [[s.zero(); P]; R];
    for p in 0..P {
        // SAFETY: block p of the panel's bias.
        let bias = unsafe { s.load(at.bias.add(p * LANES)) };
        for sums in &mut sums {
            sums[p] = bias;
        }
    }
    let mut weights = at.weights;
    for c in 0..CHANNELS {
        for ky in 0..at.kernel {
            // SAFETY: row ky of the taps in plane c.
            let from = unsafe { at.from.add(c * at.plane + ky * at.row) };
            for kx in 0..at.kernel {
                // SAFETY: tap (ky, kx) of each of the R places, and its weights.
                unsafe {
                    let mut own = [s.zero(); P];
                    for (p, own) in own.iter_mut().enumerate() {
                        *own = s.load(weights.add(p * LANES));
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = s.splat(*from.add(r * at.stride + kx));
                        for p in 0..P {
                            sums[p] = s.mul_add(x, own[p], sums[p]);
                        }
                    }
                    weights = weights.add(P * LANES);
                }
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (p, sum) in sums.into_iter().enumerate() {
            // SAFETY: place r of block p.
            unsafe { s.store(at.to.add(p * at.to_plane + r * LANES), s.max(floor, sum)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conv::tests::{numbers, plain};
    use super::*;

    /// The maximum over the definition's output, zeros outside.
    fn pooled(inner: Shape, values: &[f64]) -> Vec<f64> {
        let (h, w) = (inner.height as isize, inner.width as isize);
        let mut out = Vec::new();
        for plane in values.chunks(inner.places()) {
            for (y, x) in (0..(h + 1) / 2).flat_map(|y| (0..(w + 1) / 2).map(move |x| (y, x))) {
                let around = (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (dy, dx)));
                let inside = around
                    .map(|(dy, dx)| (2 * y + dy, 2 * x + dx))
                    .filter(|&(y, x)| (0..h).contains(&y) && (0..w).contains(&x));
                out.push(inside.map(|(y, x)| plane[(y * w + x) as usize]).fold(0.0, f64::max));
            }
        }
        out
    }

    #[test]
    fn equals_the_definition_with_and_without_maximum() {
        struct Case(usize, usize, usize, usize, (usize, usize, usize), usize, bool, bool);
        let cases = [
            // images, channels, height, width, (kernel, stride, padding), pad, relu, pool
            Case(1, 64, 32, 32, (7, 2, 3), 3, true, true),
            Case(2, 20, 23, 37, (7, 2, 3), 3, true, true),
            Case(2, 32, 18, 33, (3, 2, 1), 3, true, false),
            Case(1, 48, 9, 7, (3, 1, 1), 1, false, false),
        ];
        for Case(images, c_out, height, width, (kernel, stride, padding), pad, relu, pool) in cases
        {
            let geometry = Geometry { c_in: 3, c_out, kernel, stride, padding, dilation: 1 };
            let input = Shape::new(images, 3, height, width);
            let x = numbers(images * 3 * height * width, 1);
            let (w, bias) = (numbers(geometry.weights(), 2), numbers(c_out, 3));
            let mut want = plain(geometry, input, &x, &w, &bias);
            if relu {
                want.iter_mut().for_each(|x| *x = x.max(0.0));
            }
            if pool {
                want = pooled(geometry.output(input), &want);
            }
            let planes = Planes { height, width, pad };
            let mut pixels = Buffer::zeroed(planes.len(images));
            planes.write(&x, &mut pixels);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                for threads in [1, 2] {
                    let conv = StemConv::new(
                        isa,
                        geometry,
                        &w,
                        &bias,
                        planes,
                        images,
                        (relu, pool),
                        threads,
                    );
                    let y = Buffer::zeroed(conv.output().len());
                    let scratch = Buffer::zeroed(conv.scratch_len());
                    let team = Team::new(threads, false).unwrap();
                    conv.run(&team, &pixels, y.map(conv.output(), 0), &scratch);
                    for (got, want) in y.map(conv.output(), 0).read().iter().zip(&want) {
                        // f32 sums of 147 products below 1
                        assert!((f64::from(*got) - want).abs() < 2e-5, "{got} {want}");
                    }
                }
            }
        }
    }
}
