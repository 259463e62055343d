//! Gradients of maxima and means over windows. Letters: C channels, H × W places.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{FeatureMap, Shape, Shared};
use crate::ops::rows::{Rows, helping};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Of [`crate::ops::pooling::max_pool`], y of x: each window's dy goes to the first of its places, row
/// by row, that holds the maximum; to the first of all where the maximum is NaN.
///
/// The places are looked for anew: x is read once, which costs less than an index of each place kept
/// from the way forward would in memory.
///
/// # Panics
/// If shapes do not fit, or `dx` shares memory with an argument.
pub fn max_pool(
    team: &Team,
    isa: Isa,
    [x, y, dy]: [FeatureMap<'_>; 3],
    into: Accumulate,
    dx: FeatureMap<'_>,
) {
    let shape = x.shape();
    let pooled =
        Shape { height: shape.height.div_ceil(2), width: shape.width.div_ceil(2), ..shape };
    assert_eq!((y.shape(), dy.shape()), (pooled, pooled), "3×3 maximum of {shape:?}");
    assert_eq!(dx.shape(), shape, "the gradient of a 3×3 maximum");
    assert!([x, y, dy].iter().all(|map| !dx.overlaps(map)), "the gradient overlaps an argument");
    let planes = shape.images * shape.blocks();
    let maps = Shared([x, y, dy, dx]);
    // Windows share rows, so that a plane is one thread's.
    team.chunks(planes, helping(team, planes, 4 * shape.plane()), |_, from, to| {
        isa.run(MaxPlanes { maps: maps.get(), into, from, to });
    });
}

/// Of means of equal regions, as many as `dy` has places ([`crate::ops::pooling::average_pool`] and
/// [`crate::ops::pooling::region_mean`]): each place's share of dy.
///
/// # Panics
/// If the sides of `dx` are no multiples of those of `dy`, pictures or channels differ, or the maps
/// overlap.
pub fn mean(team: &Team, isa: Isa, dy: FeatureMap<'_>, into: Accumulate, dx: FeatureMap<'_>) {
    let (from, to) = (dy.shape(), dx.shape());
    assert_eq!(Shape { height: to.height, width: to.width, ..from }, to, "the gradient of means");
    assert!(
        to.height.is_multiple_of(from.height) && to.width.is_multiple_of(from.width),
        "{to:?} in regions: sides must be multiples of {} and {}",
        from.height,
        from.width
    );
    assert!(!dx.overlaps(&dy), "the gradient overlaps the argument");
    let rows = Rows::of(to);
    let maps = Shared((dy, dx));
    team.chunks(rows.count(), helping(team, rows.count(), to.width * LANES), |_, first, end| {
        let (dy, dx) = maps.get();
        isa.run(MeanRows { dy, into, dx, rows, first, end });
    });
}

struct MaxPlanes<'a> {
    /// x, y, dy and dx.
    maps: [FeatureMap<'a>; 4],
    into: Accumulate,
    /// Counted over pictures and blocks.
    from: usize,
    to: usize,
}

impl Kernel for MaxPlanes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [x, y, ..] = self.maps;
        for plane in self.from..self.to {
            let (image, block) = (plane / x.shape().blocks(), plane % x.shape().blocks());
            let corners = self.maps.map(|map| map.place(image, block, 0, 0));
            for row in 0..y.shape().height {
                // SAFETY: places (0, 0) of one plane of each map, which is this thread's.
                unsafe { window_row(s, corners, [x.shape(), y.shape()], row, self.into) };
            }
        }
    }
}

/// What the windows of row `row` give to up to three rows of dx. The first of them has had its share
/// from the row before; the others are begun here.
///
/// # Safety
/// Places (0, 0) of planes of x, y, dy and dx with these shapes of x and y.
#[inline(always)]
unsafe fn window_row<S: Simd>(
    s: S,
    [x, y, dy, dx]: [*mut f32; 4],
    [wide, pooled]: [Shape; 2],
    row: usize,
    into: Accumulate,
) {
    let first = (2 * row).saturating_sub(1);
    let count = (2 * row + 2).min(wide.height) - first;
    let begun = usize::from(row > 0);
    let offset = first * wide.row();
    // SAFETY: rows `first`..`first + count` of the plane, and row `row` of y's.
    let (x, dx, y, dy) = unsafe {
        (x.add(offset), dx.add(offset), y.add(row * pooled.row()), dy.add(row * pooled.row()))
    };
    // What a window gives to its last column is held until the next has given to its first.
    let mut held = [s.zero(); 3];
    for i in 0..pooled.width {
        // SAFETY: place i < W' of y and dy; columns 2i − 1 (not in the first window), 2i, and 2i + 1
        // (where it is below W) of the `count` rows.
        unsafe {
            let greatest = s.load(y.add(i * LANES));
            let mut left = s.load(dy.add(i * LANES));
            let with_right = 2 * i + 1 < wide.width;
            for j in 0..3 {
                if j == count {
                    break;
                }
                let into = if j < begun { Accumulate::Add } else { into };
                let at = j * wide.row() + 2 * i * LANES;
                if i > 0 {
                    let given;
                    (given, left) = take(s, s.load(x.add(at - LANES)), greatest, left);
                    into.put(s, dx.add(at - LANES), s.add(held[j], given));
                }
                let given;
                (given, left) = take(s, s.load(x.add(at)), greatest, left);
                into.put(s, dx.add(at), given);
                if with_right {
                    (held[j], left) = take(s, s.load(x.add(at + LANES)), greatest, left);
                }
            }
        }
    }
    if wide.width.is_multiple_of(2) {
        for j in 0..count {
            let into = if j < begun { Accumulate::Add } else { into };
            // SAFETY: the last column of the `count` rows.
            unsafe { into.put(s, dx.add(j * wide.row() + (wide.width - 1) * LANES), held[j]) };
        }
    }
}

/// What of `left` a place takes that holds `x`: all where it is not below the greatest. And what is
/// left.
#[inline(always)]
fn take<S: Simd>(s: S, x: S::F, greatest: S::F, left: S::F) -> (S::F, S::F) {
    let below = s.lt(x, greatest);
    (s.select(below, s.zero(), left), s.select(below, left, s.zero()))
}

struct MeanRows<'a> {
    dy: FeatureMap<'a>,
    into: Accumulate,
    dx: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for MeanRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (from, to) = (self.dy.shape(), self.dx.shape());
        let (height, width) = (to.height / from.height, to.width / from.width);
        let count = s.splat((height * width) as f32);
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            let dy = self.dy.place(image, block, (y / height) as isize, 0);
            let dx = self.dx.place(image, block, y as isize, 0);
            for i in 0..from.width {
                // SAFETY: place i < W' of dy's row, and its `width` places of dx's, which no other
                // thread has.
                unsafe {
                    let share = s.div(s.load(dy.add(i * LANES)), count);
                    for x in i * width..(i + 1) * width {
                        self.into.put(s, dx.add(x * LANES), share);
                    }
                }
            }
        }
    }
}
