//! The rows that patch_prototypes looks up: each place's features of two levels, aware of their
//! surroundings (Roth et al. 2022, section 3.1).
//!
//! Both levels are averaged over 3×3 places, zeros outside and always divided by 9
//! ([`super::neighbourhood`]); the deeper one is brought to the size of the other by half-pixel
//! bilinear resize ([`super::interpolate`]); the two stand one behind the other. All of it in one
//! pass: rows of the deeper level are averaged and mixed where they are needed.
//!
//! Letters: B pictures, C2 and C3 channels of the levels, h × w places of the upper one.

use super::feature_map::{Buffer, FeatureMap, Shape, Shared};
use super::interpolate::{Align, Tap, taps};
use super::rows::{Rows, helping};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// For maps of two sizes.
#[derive(Debug)]
pub struct PatchFeatures {
    upper: (usize, usize),
    deeper: (usize, usize),
    rows: Vec<Tap>,
    columns: Vec<Tap>,
    /// For each thread, a row of the deeper level.
    mixed: Buffer,
    threads: usize,
}

impl PatchFeatures {
    /// For levels of (h, w) = `upper` and of `deeper`, and teams of at most `threads`.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn new(upper: (usize, usize), deeper: (usize, usize), threads: usize) -> Self {
        assert!(
            upper.0 * upper.1 * deeper.0 * deeper.1 > 0,
            "levels of {upper:?} and {deeper:?} places"
        );
        Self {
            upper,
            deeper,
            rows: taps(deeper.0, upper.0, Align::HalfPixel),
            columns: taps(deeper.1, upper.1, Align::HalfPixel),
            mixed: Buffer::zeroed(threads * deeper.1 * LANES),
            threads,
        }
    }

    /// `upper` [B, C2, h, w] and `deeper` [B, C3, …] → `to` [B·h·w, C2 + C3], row-major.
    ///
    /// # Panics
    /// If sizes or lengths do not fit, or the team is larger than was said.
    pub fn run(&mut self, team: &Team, isa: Isa, levels: [FeatureMap<'_>; 2], to: &mut [f32]) {
        let [upper, deeper] = levels.map(|level| level.shape());
        assert_eq!((upper.height, upper.width), self.upper, "the upper level");
        assert_eq!((deeper.height, deeper.width), self.deeper, "the deeper level");
        assert_eq!(upper.images, deeper.images, "pictures of the two levels");
        assert!(team.threads() <= self.threads, "more threads than there is room for");
        let channels = upper.channels + deeper.channels;
        assert_eq!(to.len(), upper.images * upper.places() * channels, "patch features");
        let rows = Rows::of_images(upper);
        let (own, shared) = (&*self, Shared((levels, to.as_mut_ptr(), self.mixed.as_ptr())));
        let tables = (own.rows.as_slice(), own.columns.as_slice());
        let helping = helping(team, rows.count(), 4 * upper.width * channels);
        team.chunks(rows.count(), helping, |thread, first, end| {
            let (levels, to, mixed) = shared.get();
            // SAFETY: there is a row for each thread of the team.
            let mixed = unsafe { mixed.add(thread * levels[1].shape().width * LANES) };
            isa.run(PatchRows { tables, levels, mixed, to, rows, first, end });
        });
    }
}

struct PatchRows<'a> {
    /// Rows and columns of the deeper level.
    tables: (&'a [Tap], &'a [Tap]),
    levels: [FeatureMap<'a>; 2],
    /// One row of the deeper level, this thread's own.
    mixed: *mut f32,
    to: *mut f32,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for PatchRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [upper, deeper] = self.levels.map(|level| level.shape());
        let channels = upper.channels + deeper.channels;
        for row in self.first..self.end {
            let (image, _, y) = self.rows.at(row);
            // SAFETY: row (image, y) of the result, which no other thread has: w places of `channels`
            // numbers.
            let to = unsafe { self.to.add(row * upper.width * channels) };
            for block in 0..upper.blocks() {
                let lanes = (upper.channels - block * LANES).min(LANES);
                // SAFETY: that block's channels of each place.
                unsafe {
                    let to = Places { to: to.add(block * LANES), apart: channels, lanes };
                    self.average(s, (image, block, y), to);
                }
            }
            for block in 0..deeper.blocks() {
                let lanes = (deeper.channels - block * LANES).min(LANES);
                // SAFETY: as above, behind the upper level's channels.
                unsafe {
                    let to = to.add(upper.channels + block * LANES);
                    self.mix(s, (image, block, y));
                    self.spread(s, Places { to, apart: channels, lanes });
                }
            }
        }
    }
}

/// A block of channels of each place of a row of the result.
#[derive(Clone, Copy)]
struct Places {
    to: *mut f32,
    /// Numbers from a place to the next.
    apart: usize,
    /// Channels that the block has.
    lanes: usize,
}

impl Places {
    /// # Safety
    /// Place `x` has `lanes` numbers that nobody else writes.
    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, x: usize, value: S::F) {
        // SAFETY: as the caller promises.
        unsafe {
            let to = self.to.add(x * self.apart);
            if self.lanes == LANES {
                s.store(to, value);
            } else {
                to.copy_from_nonoverlapping(s.to_array(value).as_ptr(), self.lanes);
            }
        }
    }
}

/// Three rows of a map, border included, one below the other.
#[derive(Clone, Copy)]
struct Column {
    above: *const f32,
    row_len: usize,
}

impl Column {
    /// Sum of the three at `x`.
    ///
    /// # Safety
    /// The rows have a place `x`.
    #[inline(always)]
    unsafe fn sum<S: Simd>(self, s: S, x: usize) -> S::F {
        // SAFETY: as the caller promises.
        unsafe {
            let at = self.above.add(x * LANES);
            let upper = s.add(s.load(at), s.load(at.add(self.row_len)));
            s.add(upper, s.load(at.add(2 * self.row_len)))
        }
    }
}

/// Four rows: the sum of the first three and that of the last three, with weights.
#[derive(Clone, Copy)]
struct MixedColumn<F> {
    rows: [*const f32; 4],
    up: F,
    down: F,
}

impl<F: Copy> MixedColumn<F> {
    /// # Safety
    /// The rows have a place `x`.
    #[inline(always)]
    unsafe fn sum<S: Simd<F = F>>(self, s: S, x: usize) -> F {
        let [first, second, third, fourth] = self.rows;
        let at = x * LANES;
        // SAFETY: as the caller promises.
        unsafe {
            let both = s.add(s.load(second.add(at)), s.load(third.add(at)));
            let upper = s.add(s.load(first.add(at)), both);
            let lower = s.add(both, s.load(fourth.add(at)));
            s.mul_add(lower, self.down, s.mul(upper, self.up))
        }
    }
}

impl PatchRows<'_> {
    /// Averages of a row of the upper level.
    ///
    /// # Safety
    /// `to` is a row of w places.
    #[inline(always)]
    unsafe fn average<S: Simd>(&self, s: S, (image, block, y): (usize, usize, usize), to: Places) {
        let Shape { width, .. } = self.levels[0].shape();
        let row_len = self.levels[0].shape().row();
        let above = self.levels[0].place(image, block, y as isize - 1, -1);
        let column = Column { above, row_len };
        // SAFETY: three rows of w + 2 places: y − 1 and y + 1 may be the border, which is zero.
        unsafe {
            let (mut left, mut middle) = (column.sum(s, 0), column.sum(s, 1));
            for x in 0..width {
                let right = column.sum(s, x + 2);
                let sum = s.add(s.add(left, middle), right);
                to.store(s, x, s.mul(sum, s.splat(1.0 / 9.0)));
                (left, middle) = (middle, right);
            }
        }
    }

    /// Averages of the deeper level where row `y` of the upper looks, between two of its rows, into
    /// `mixed`.
    ///
    /// # Safety
    /// `mixed` is this thread's.
    #[inline(always)]
    unsafe fn mix<S: Simd>(&self, s: S, (image, block, y): (usize, usize, usize)) {
        let tap = self.tables.0[y];
        // At the last row both neighbours are the same.
        let weight = if tap.high == tap.low { 0.0 } else { tap.weight };
        let row = |y: usize| self.levels[1].place(image, block, y as isize - 1, -1).cast_const();
        let column = MixedColumn {
            rows: [row(tap.low), row(tap.low + 1), row(tap.low + 2), row(tap.high + 2)],
            up: s.splat((1.0 - weight) / 9.0),
            down: s.splat(weight / 9.0),
        };
        // SAFETY: rows low − 1 to high + 1, borders included, of W + 2 places each; W places of
        // `mixed`.
        unsafe {
            let (mut left, mut middle) = (column.sum(s, 0), column.sum(s, 1));
            for x in 0..self.levels[1].shape().width {
                let right = column.sum(s, x + 2);
                s.store(self.mixed.add(x * LANES), s.add(s.add(left, middle), right));
                (left, middle) = (middle, right);
            }
        }
    }

    /// `mixed` at the width of the upper level.
    ///
    /// # Safety
    /// `to` is a row of w places, `mixed` is filled.
    #[inline(always)]
    unsafe fn spread<S: Simd>(&self, s: S, to: Places) {
        for (x, tap) in self.tables.1.iter().enumerate() {
            // SAFETY: taps are below W.
            unsafe {
                let (low, high) = (
                    s.load(self.mixed.add(tap.low * LANES)),
                    s.load(self.mixed.add(tap.high * LANES)),
                );
                let value = s.mul(low, s.splat(1.0 - tap.weight));
                to.store(s, x, s.mul_add(high, s.splat(tap.weight), value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::{everywhere, filled};
    use super::super::interpolate::bilinear_planes;
    use super::super::neighbourhood::average_planes;
    use super::*;

    #[test]
    fn equals_the_path_by_planes() {
        let cases = [
            (1, 16, 32, (4, 4), (2, 2)),
            (3, 21, 5, (6, 8), (3, 4)),
            (2, 40, 17, (5, 7), (3, 4)),
            (1, 3, 16, (4, 4), (4, 4)),
            (1, 16, 16, (3, 5), (1, 1)),
            (1, 16, 16, (2, 3), (5, 7)),
        ];
        for (b, c2, c3, (h, w), deeper) in cases {
            let shapes = [Shape::new(b, c2, h, w), Shape::new(b, c3, deeper.0, deeper.1)];
            let [(upper_map, upper), (deeper_map, below)] =
                [filled(shapes[0], 14), filled(shapes[1], 15)];
            let upper = average_planes(&upper, h, w);
            let below = average_planes(&below, deeper.0, deeper.1);
            let below = bilinear_planes(&below, deeper, (h, w), Align::HalfPixel);
            let mut want = Vec::new();
            for (image, place) in (0..b).flat_map(|b| (0..h * w).map(move |i| (b, i))) {
                want.extend((0..c2).map(|c| upper[(image * c2 + c) * h * w + place]));
                want.extend((0..c3).map(|c| below[(image * c3 + c) * h * w + place]));
            }
            let mut op = PatchFeatures::new((h, w), deeper, 2);
            everywhere(|team, isa| {
                let mut got = vec![77.0; want.len()];
                let levels = [upper_map.map(shapes[0], 0), deeper_map.map(shapes[1], 0)];
                op.run(team, isa, levels, &mut got);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    // Averages of nine numbers below 1, summed in another order.
                    assert!((got - want).abs() <= 5e-7, "{} {i}: {got} {want}", isa.word());
                }
            });
        }
    }

    #[test]
    #[should_panic(expected = "patch features")]
    fn another_length_is_refused() {
        let shape = Shape::new(1, 16, 2, 2);
        let (x, _) = filled(shape, 1);
        let mut op = PatchFeatures::new((2, 2), (2, 2), 1);
        op.run(&Team::alone(), Isa::Portable, [x.map(shape, 0); 2], &mut [0.0; 4]);
    }
}
