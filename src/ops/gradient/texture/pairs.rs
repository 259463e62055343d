//! Of how many pairs of neighbours each pair of levels has. With Q = Σ E_{i,m} E_{i',n} over a region's
//! places i and their neighbours i', T = ΣQ + 10⁻⁶, P = Q/T and dy the gradient by P: Q gets
//! (dy − Σ dy·P)/T, E of a place that times E of its neighbour, and E of the neighbour that, turned,
//! times E of the place. Most E are zero: nothing is done for them.

use super::{Region, Wanted, give_levels, put_one};
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::patch_attention::claim;
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;
use crate::ops::texture::{LevelRule, Levels, Neighbour, check_cosines, encode, padded};

/// Numbers of scratch memory for [`co_occurrence`] of cosines of `shape`.
pub fn co_occurrence_scratch(threads: usize, shape: Shape, levels: usize, regions: usize) -> usize {
    threads * region_scratch((shape.height / regions, shape.width / regions), levels)
}

/// Of one region: its levels, what they get, what Q gets, that turned, what the E of a place get, E of
/// each place, and their sums.
fn region_scratch((height, width): (usize, usize), levels: usize) -> usize {
    (3 + 2 * levels + height * width) * padded(levels) + height * width
}

/// Of [`crate::ops::texture::co_occurrence`]: cosines [B, 1, H, W] in S × S regions, y [B, 3, S², N²] as
/// the way forward made it and dy of that shape → the cosines' gradient.
///
/// # Panics
/// If shapes do not fit, N < 2, or the gradient or `scratch` shares memory with another map.
pub fn co_occurrence(
    team: &Team,
    isa: Isa,
    [cosines, y, dy]: [FeatureMap<'_>; 3],
    (rule, neighbour): (LevelRule, Neighbour),
    scratch: &Buffer,
    gradient: Wanted<'_>,
) {
    let (side, count) = (y.shape().height.isqrt(), y.shape().width.isqrt());
    let shape = check_cosines(&cosines, count);
    let wanted = Shape::new(shape.images, 3, side * side, count * count);
    assert!(y.shape() == wanted && dy.shape() == wanted, "co-occurrences");
    let fits = shape.height.is_multiple_of(side) && shape.width.is_multiple_of(side);
    assert!(fits, "{shape:?} in {side} × {side} regions");
    assert_eq!(gradient.1.shape(), shape, "the gradient of co-occurrences");
    let apart = [cosines, y, dy].iter().all(|map| !gradient.1.overlaps(map));
    assert!(apart, "the gradient of co-occurrences in place");
    let len = co_occurrence_scratch(team.threads(), shape, count, side);
    let start = claim(scratch, len, &[&cosines, &y, &dy, &gradient.1]);
    let shared = Shared(([cosines, y, dy], gradient, start));
    team.chunks(shape.images * side * side, 1, |thread, from, to| {
        let (maps, gradient, start) = shared.get();
        let start = start.wrapping_add(thread * (len / team.threads()));
        let levels = Levels { rule, count, start };
        for job in from..to {
            let (image, region) = (job / (side * side), job % (side * side));
            let own = Region::of(&maps[0], image, region, side);
            isa.run(Pairs { maps, gradient, levels, neighbour, own, region });
        }
    });
}

/// One region.
struct Pairs<'a> {
    /// Cosines, y and dy.
    maps: [FeatureMap<'a>; 3],
    gradient: Wanted<'a>,
    /// At the start of this thread's scratch memory.
    levels: Levels,
    neighbour: Neighbour,
    own: Region,
    /// Its row in y.
    region: usize,
}

/// Where what lies in the scratch memory.
#[derive(Clone, Copy)]
struct Rooms {
    pad: usize,
    given: *mut f32,
    /// What Q gets, `[m][n]`, and the same turned, `[n][m]`.
    pairs: *mut f32,
    turned: *mut f32,
    /// What the E of one place get.
    given_encoded: *mut f32,
    /// E, a row of `pad` for each place.
    encoded: *mut f32,
    sums: *mut f32,
}

impl Kernel for Pairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pairs { maps: [cosines, ..], gradient: (into, dx), levels, own, .. } = self;
        let Levels { rule, count, start } = levels;
        let pad = padded(count);
        let room = |rows: usize| start.wrapping_add(rows * pad);
        let rooms = Rooms {
            pad,
            given: room(1),
            pairs: room(2),
            turned: room(2 + count),
            given_encoded: room(2 + 2 * count),
            encoded: room(3 + 2 * count),
            sums: room(3 + 2 * count + own.height * own.width),
        };
        let bounds = own.bounds(&cosines);
        // SAFETY: this thread's part of the scratch memory, here and below.
        let bound = unsafe {
            levels.fill((bounds.low, bounds.high));
            levels.bound()
        };
        self.encode(s, bound, rooms);
        self.weigh(s, rooms);
        let odd = bounds.odd();
        let (dy, dx_off) = self.neighbour.offset();
        for i in 0..own.height {
            for j in 0..own.width {
                let to = own.place(&dx, (i, j));
                // SAFETY: E of a place and its sum; a place of this region of the gradient, which
                // this job alone writes.
                unsafe {
                    let at = i * own.width + j;
                    let mut sum = odd;
                    if *rooms.sums.add(at) != 0.0 {
                        let after = (i + dy < own.height && j + dx_off < own.width)
                            .then(|| at + dy * own.width + dx_off);
                        let before = (i >= dy && j >= dx_off).then(|| at - dy * own.width - dx_off);
                        let value = *own.place(&cosines, (i, j));
                        let with = [(after, rooms.turned), (before, rooms.pairs)];
                        self.give_encoded(s, rooms, with);
                        let encoded = rooms.given_encoded;
                        sum += give_levels(s, &levels, bound, value, encoded, rooms.given);
                    }
                    put_one(s, into, to, sum);
                }
            }
        }
        // SAFETY: as above.
        unsafe { own.give_bounds(&bounds, (rule, count), rooms.given, &dx) };
    }
}

impl Pairs<'_> {
    /// E of every place, and its sum over the levels.
    #[inline(always)]
    fn encode<S: Simd>(&self, s: S, bound: f32, rooms: Rooms) {
        let Pairs { maps: [cosines, ..], levels, own, .. } = self;
        for i in 0..own.height {
            let from = own.place(cosines, (i, 0));
            for j in 0..own.width {
                let place = i * own.width + j;
                let mut sum = s.zero();
                // SAFETY: place j of the region's row i, and this thread's scratch memory.
                unsafe {
                    let value = s.splat(*from.add(j * LANES));
                    for at in (0..rooms.pad).step_by(LANES) {
                        let level = s.load(levels.start.add(at));
                        let encoded = encode(s, levels.rule, bound, level, value);
                        s.store(rooms.encoded.add(place * rooms.pad + at), encoded);
                        sum = s.add(sum, encoded);
                    }
                    *rooms.sums.add(place) = s.sum(sum);
                }
            }
        }
    }

    /// What Q gets and what levels get by being told of.
    #[inline(always)]
    fn weigh<S: Simd>(&self, s: S, rooms: Rooms) {
        let Pairs { maps: [_, y, dy], levels, own, region, .. } = self;
        let (rows, columns) = self.neighbour.offset();
        let mut total = 1e-6;
        for i in rows..own.height {
            for j in columns..own.width {
                let at = i * own.width + j;
                // SAFETY: the sums of two places of the region.
                let (sum, before) = unsafe {
                    (*rooms.sums.add(at), *rooms.sums.add(at - rows * own.width - columns))
                };
                total += f64::from(sum) * f64::from(before);
            }
        }
        let count = levels.count;
        let row = |map: &FeatureMap<'_>| map.place(own.image, 0, *region as isize, 0);
        let (y, dy) = (row(y), row(dy));
        let mut mean = 0.0;
        for at in (0..count * count).map(|column| column * LANES + 2) {
            // SAFETY: lane 2 of a column of the region's row.
            mean += unsafe { f64::from(*y.add(at)) * f64::from(*dy.add(at)) };
        }
        for at in (0..rooms.pad * (1 + 2 * count)).step_by(LANES) {
            // SAFETY: the rooms of `given`, `pairs` and `turned`, which follow each other.
            unsafe { s.store(rooms.given.add(at), s.zero()) };
        }
        for (m, n) in (0..count).flat_map(|m| (0..count).map(move |n| (m, n))) {
            // SAFETY: the first three lanes of column N·m + n, and this thread's scratch memory.
            unsafe {
                let from = dy.add((m * count + n) * LANES);
                *rooms.given.add(m) += *from;
                *rooms.given.add(n) += *from.add(1);
                let by_pair = ((f64::from(*from.add(2)) - mean) / total) as f32;
                *rooms.pairs.add(m * rooms.pad + n) = by_pair;
                *rooms.turned.add(n * rooms.pad + m) = by_pair;
            }
        }
    }

    /// To each E of a place: what its neighbours have of each level, by what those pairs get.
    ///
    /// # Safety
    /// `with` names places of the region and one of the two squares each, and the rooms are filled.
    #[inline(always)]
    unsafe fn give_encoded<S: Simd>(
        &self,
        s: S,
        rooms: Rooms,
        with: [(Option<usize>, *mut f32); 2],
    ) {
        for at in (0..rooms.pad).step_by(LANES) {
            let mut sum = s.zero();
            for (place, pairs) in with {
                let Some(place) = place else { continue };
                let encoded = rooms.encoded.wrapping_add(place * rooms.pad);
                for n in 0..self.levels.count {
                    // SAFETY: as the caller promises.
                    unsafe {
                        let value = *encoded.add(n);
                        if value != 0.0 {
                            let row = s.load(pairs.add(n * rooms.pad + at));
                            sum = s.mul_add(s.splat(value), row, sum);
                        }
                    }
                }
            }
            // SAFETY: this thread's scratch memory.
            unsafe { s.store(rooms.given_encoded.add(at), sum) };
        }
    }
}
