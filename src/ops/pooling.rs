//! Maxima and means over windows of feature maps. Letters: C channels, H × W places.

use super::feature_map::{FeatureMap, Shape, Shared};
use super::rows::{Rows, helping};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// 3×3 maximum, stride 2, padding 1, which counts as −∞: [C, H, W] → [C, ⌈H/2⌉, ⌈W/2⌉]. NaN wins.
///
/// # Panics
/// If `to` has another shape or overlaps `x`.
pub fn max_pool(team: &Team, isa: Isa, x: FeatureMap<'_>, to: FeatureMap<'_>) {
    let shape = x.shape();
    let want = Shape { height: shape.height.div_ceil(2), width: shape.width.div_ceil(2), ..shape };
    assert_eq!(to.shape(), want, "3×3 maximum of {shape:?}");
    run(team, isa, x, to, 9, MaxRow);
}

/// Means of `kernel` × `kernel` places that do not overlap: [C, H, W] → [C, H/kernel, W/kernel].
///
/// # Panics
/// If the sides are no multiples of `kernel`, `to` has another shape, or it overlaps `x`.
pub fn average_pool(team: &Team, isa: Isa, kernel: usize, x: FeatureMap<'_>, to: FeatureMap<'_>) {
    let shape = x.shape();
    let want = Shape { height: shape.height / kernel, width: shape.width / kernel, ..shape };
    assert_eq!(to.shape(), want, "means of {kernel} × {kernel} of {shape:?}");
    means(team, isa, x, to);
}

/// Means of `regions` × `regions` equal regions: [C, H, W] → [C, regions, regions].
///
/// # Panics
/// If the sides are no multiples of `regions`, `to` has another shape, or it overlaps `x`.
pub fn region_mean(team: &Team, isa: Isa, regions: usize, x: FeatureMap<'_>, to: FeatureMap<'_>) {
    let want = Shape { height: regions, width: regions, ..x.shape() };
    assert_eq!(to.shape(), want, "means of {regions} × {regions} regions of {:?}", x.shape());
    means(team, isa, x, to);
}

/// Cuts `x` into as many regions as `to` has places.
fn means(team: &Team, isa: Isa, x: FeatureMap<'_>, to: FeatureMap<'_>) {
    let (from, into) = (x.shape(), to.shape());
    assert!(
        from.height.is_multiple_of(into.height) && from.width.is_multiple_of(into.width),
        "{from:?} in regions: sides must be multiples of {} and {}",
        into.height,
        into.width
    );
    let (height, width) = (from.height / into.height, from.width / into.width);
    run(team, isa, x, to, height * width, MeanRow { height, width });
}

/// What makes a row of the result.
trait PoolRow: Copy + Sync {
    /// Row `y` of plane `block` of `image`.
    fn row<S: Simd>(self, s: S, maps: [FeatureMap<'_>; 2], at: (usize, usize, usize));
}

/// `window`: numbers read for a number written.
fn run(
    team: &Team,
    isa: Isa,
    x: FeatureMap<'_>,
    to: FeatureMap<'_>,
    window: usize,
    op: impl PoolRow,
) {
    assert!(!x.overlaps(&to), "the result overlaps the argument");
    let rows = Rows::of(to.shape());
    let len = to.shape().width * LANES * window;
    let maps = Shared([x, to]);
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        isa.run(PoolRows { op, maps: maps.get(), rows, first, end });
    });
}

struct PoolRows<'a, O> {
    op: O,
    /// Argument and result.
    maps: [FeatureMap<'a>; 2],
    rows: Rows,
    first: usize,
    end: usize,
}

impl<O: PoolRow> Kernel for PoolRows<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.first..self.end {
            self.op.row(s, self.maps, self.rows.at(row));
        }
    }
}

#[derive(Clone, Copy)]
struct MaxRow;

impl PoolRow for MaxRow {
    #[inline(always)]
    fn row<S: Simd>(
        self,
        s: S,
        [x, to]: [FeatureMap<'_>; 2],
        (image, block, y): (usize, usize, usize),
    ) {
        let Shape { height, width, .. } = x.shape();
        let to_row = to.place(image, block, y as isize, 0);
        let first_y = (2 * y).saturating_sub(1);
        let count_y = (2 * y + 2).min(height) - first_y;
        let from = x.place(image, block, first_y as isize, 0);
        let row_len = x.shape().row();
        // The column right of a window's middle is left of the next one's.
        let mut left = Column { max: s.splat(f32::NEG_INFINITY), sum: s.zero() };
        for i in 0..to.shape().width {
            let first_x = (2 * i).saturating_sub(1);
            let end_x = (2 * i + 2).min(width);
            // SAFETY: columns inside the map; W' places begin at `to_row`, and no other thread has
            // this row.
            unsafe {
                let middle = Column::of(s, from.add(2 * i * LANES), (count_y, row_len));
                let right = if end_x == 2 * i + 2 {
                    Column::of(s, from.add((2 * i + 1) * LANES), (count_y, row_len))
                } else {
                    middle
                };
                let max = s.max(s.max(left.max, middle.max), right.max);
                let sum = s.add(s.add(left.sum, middle.sum), right.sum);
                let to = to_row.add(i * LANES);
                s.store(to, max);
                if s.lt(sum, s.splat(f32::INFINITY)) != u16::MAX {
                    let window = from.add(first_x * LANES);
                    keep_nan(window, (count_y, row_len), end_x - first_x, to);
                }
                left = right;
            }
        }
    }
}

/// What a window's column comes to. The maximum forgets a NaN; the sum keeps it.
#[derive(Clone, Copy)]
struct Column<F> {
    max: F,
    sum: F,
}

impl<F: Copy> Column<F> {
    /// # Safety
    /// `count` readable places from `top` on, `row_len` numbers apart.
    #[inline(always)]
    unsafe fn of<S: Simd<F = F>>(s: S, top: *const f32, (count, row_len): (usize, usize)) -> Self {
        // SAFETY: as the caller promises; a window has a row at least.
        let first = unsafe { s.load(top) };
        let (mut max, mut sum) = (first, first);
        for dy in 1..count {
            // SAFETY: as the caller promises.
            let value = unsafe { s.load(top.add(dy * row_len)) };
            max = s.max(max, value);
            sum = s.add(sum, value);
        }
        Self { max, sum }
    }
}

/// Writes NaN into the lanes of `to` whose window has one. Rarely called: a sum was not below +∞.
///
/// # Safety
/// `count_y` rows, `row_len` apart, of `count_x` readable places from `window` on; 16 writable
/// numbers at `to`.
#[cold]
unsafe fn keep_nan(
    window: *const f32,
    (count_y, row_len): (usize, usize),
    count_x: usize,
    to: *mut f32,
) {
    for dy in 0..count_y {
        for i in 0..count_x * LANES {
            // SAFETY: as the caller promises.
            unsafe {
                let value = *window.add(dy * row_len + i);
                if value.is_nan() {
                    *to.add(i % LANES) = value;
                }
            }
        }
    }
}

/// Regions of that many places.
#[derive(Clone, Copy)]
struct MeanRow {
    height: usize,
    width: usize,
}

impl PoolRow for MeanRow {
    #[inline(always)]
    fn row<S: Simd>(
        self,
        s: S,
        [x, to]: [FeatureMap<'_>; 2],
        (image, block, y): (usize, usize, usize),
    ) {
        let to_row = to.place(image, block, y as isize, 0);
        let from = x.place(image, block, (y * self.height) as isize, 0);
        let row_len = x.shape().row();
        let count = s.splat((self.height * self.width) as f32);
        for i in 0..to.shape().width {
            let mut sum = s.zero();
            for dy in 0..self.height {
                // SAFETY: row y · height + dy < H, and its place i · width < W.
                let row = unsafe { from.add(dy * row_len + i * self.width * LANES) };
                // Rows are summed for themselves, which keeps sums of large regions exact.
                let mut sums = [s.zero(); 4];
                let mut dx = 0;
                while dx + 4 <= self.width {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: the region's row has `width` places.
                        *sum = s.add(*sum, unsafe { s.load(row.add((dx + j) * LANES)) });
                    }
                    dx += 4;
                }
                for dx in dx..self.width {
                    // SAFETY: as above.
                    sums[0] = s.add(sums[0], unsafe { s.load(row.add(dx * LANES)) });
                }
                let row_sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
                sum = s.add(sum, row_sum);
            }
            // SAFETY: W' places begin at `to_row`; no other thread has this row.
            unsafe { s.store(to_row.add(i * LANES), s.div(sum, count)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::{assert_holds, everywhere, filled, used};
    use super::*;

    /// Folds, for each place of `to`, the values of the window that `range(y)` × `range(x)` names.
    fn plain(
        values: &[f32],
        from: Shape,
        to: (usize, usize),
        range: impl Fn(usize, usize) -> std::ops::Range<usize>,
        fold: impl Fn(&[f32]) -> f32,
    ) -> Vec<f32> {
        let mut out = Vec::new();
        for plane in values.chunks(from.places()) {
            for (y, x) in (0..to.0).flat_map(|y| (0..to.1).map(move |x| (y, x))) {
                let window: Vec<f32> = range(y, from.height)
                    .flat_map(|sy| range(x, from.width).map(move |sx| (sy, sx)))
                    .map(|(sy, sx)| plane[sy * from.width + sx])
                    .collect();
                out.push(fold(&window));
            }
        }
        out
    }

    fn three(i: usize, side: usize) -> std::ops::Range<usize> {
        (2 * i).saturating_sub(1)..(2 * i + 2).min(side)
    }

    fn greatest(window: &[f32]) -> f32 {
        window.iter().fold(f32::NEG_INFINITY, |a, &b| {
            if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
        })
    }

    fn mean(window: &[f32]) -> f32 {
        (window.iter().map(|x| f64::from(*x)).sum::<f64>() / window.len() as f64) as f32
    }

    #[test]
    fn max_pool_equals_its_scalar_twin_and_keeps_nan_and_infinity() {
        for (b, c, h, w) in [(1, 16, 8, 8), (3, 21, 5, 7), (1, 40, 1, 2), (2, 3, 1, 1)] {
            let shape = Shape::new(b, c, h, w);
            let (x, mut values) = filled(shape, 5);
            for (i, odd) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
                let i = i * 37 % values.len();
                values[i] = odd;
            }
            x.map(shape, 0).write(&values);
            let to = Shape { height: h.div_ceil(2), width: w.div_ceil(2), ..shape };
            let want = plain(&values, shape, (to.height, to.width), three, greatest);
            everywhere(|team, isa| {
                let out = used(to);
                max_pool(team, isa, x.map(shape, 0), out.map(to, 0));
                for (got, want) in out.map(to, 0).read().iter().zip(&want) {
                    assert!(got == want || got.is_nan() && want.is_nan(), "{got} {want}");
                }
            });
        }
    }

    #[test]
    fn means_equal_their_scalar_twin() {
        for (b, c, h, w, parts) in
            [(1, 16, 8, 8, 2), (3, 21, 6, 9, 3), (2, 40, 5, 5, 1), (1, 3, 14, 14, 2)]
        {
            let shape = Shape::new(b, c, h, w);
            let (x, values) = filled(shape, 6);
            let region = |i: usize, side: usize| i * (side / parts)..(i + 1) * (side / parts);
            let to = Shape { height: parts, width: parts, ..shape };
            let want = plain(&values, shape, (parts, parts), region, mean);
            everywhere(|team, isa| {
                let out = used(to);
                region_mean(team, isa, parts, x.map(shape, 0), out.map(to, 0));
                // At most 49 additions of numbers below 1, a few of them one behind the other.
                assert_holds(out.map(to, 0), &want, (1e-6, 0.0), "region mean");
                if h == w {
                    average_pool(team, isa, h / parts, x.map(shape, 0), out.map(to, 0));
                    assert_holds(out.map(to, 0), &want, (1e-6, 0.0), "average pool");
                }
            });
        }
    }

    #[test]
    #[should_panic(expected = "multiples of 2")]
    fn ragged_regions_are_refused() {
        let (x, _) = filled(Shape::new(1, 16, 5, 4), 1);
        let out = used(Shape::new(1, 16, 2, 2));
        let (x, out) = (x.map(Shape::new(1, 16, 5, 4), 0), out.map(Shape::new(1, 16, 2, 2), 0));
        region_mean(&Team::alone(), Isa::Portable, 2, x, out);
    }
}
