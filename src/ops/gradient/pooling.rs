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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, used};
    use crate::ops::pooling;

    fn plain_max(x: &[f32], dy: &[f32], shape: Shape) -> Vec<f32> {
        let (height, width) = (shape.height, shape.width);
        let pooled = (height.div_ceil(2), width.div_ceil(2));
        let mut dx = vec![0.0; x.len()];
        for (plane, x) in x.chunks(shape.places()).enumerate() {
            for (row, column) in (0..pooled.0).flat_map(|y| (0..pooled.1).map(move |x| (y, x))) {
                let side = |i: usize, side: usize| (2 * i).saturating_sub(1)..(2 * i + 2).min(side);
                let mut best = None;
                for y in side(row, height) {
                    for i in side(column, width).map(|column| y * width + column) {
                        if best.is_none_or(|best: usize| x[i] > x[best]) {
                            best = Some(i);
                        }
                    }
                }
                dx[plane * shape.places() + best.unwrap()] +=
                    dy[(plane * pooled.0 + row) * pooled.1 + column];
            }
        }
        dx
    }

    #[test]
    fn a_maximum_gives_to_the_first_place_that_holds_it() {
        let shapes = [(1, 16, 8, 8), (3, 21, 5, 7), (1, 40, 1, 2), (2, 3, 1, 1), (1, 17, 6, 9)];
        for shape in shapes.map(|(b, c, h, w)| Shape::new(b, c, h, w)) {
            let (x, mut values) = filled(shape, 5);
            // As behind a ReLU, half are equal.
            values.iter_mut().for_each(|x| *x = (*x * 4.0).round().max(0.0));
            x.map(shape, 0).write(&values);
            let pooled =
                Shape { height: shape.height.div_ceil(2), width: shape.width.div_ceil(2), ..shape };
            let (dy, dy_values) = filled(pooled, 6);
            let want = plain_max(&values, &dy_values, shape);
            everywhere(|team, isa| {
                let (out, dx) = (used(pooled), used(shape));
                let (x, y, dx) = (x.map(shape, 0), out.map(pooled, 0), dx.map(shape, 0));
                pooling::max_pool(team, isa, x, y);
                let maps = [x, y, dy.map(pooled, 0)];
                max_pool(team, isa, maps, Accumulate::Set, dx);
                // At most four numbers below 1, in some order.
                assert_holds(dx, &want, (3e-7, 0.0), "maximum");
                max_pool(team, isa, maps, Accumulate::Add, dx);
                let twice: Vec<f32> = want.iter().map(|x| 2.0 * x).collect();
                assert_holds(dx, &twice, (1e-6, 0.0), "maximum, added");
            });
        }
    }

    /* x = (torch.arange(30.) * 7 % 5).view(1, 1, 5, 6).requires_grad_()
    y = F.max_pool2d(x, 3, 2, 1)
    y.backward(torch.arange(1., 10).view_as(y)); print(list(enumerate(x.grad.flatten()))) */
    #[test]
    fn torch_gives_to_the_same_places() {
        let mut want = vec![0.0; 30];
        let given = [(2, 2.0), (4, 3.0), (7, 10.0), (17, 6.0), (19, 7.0), (22, 9.0), (27, 8.0)];
        for (place, value) in given {
            want[place] = value;
        }
        let (shape, pooled) = (Shape::new(1, 1, 5, 6), Shape::new(1, 1, 3, 3));
        everywhere(|team, isa| {
            let [x, dx] = [(); 2].map(|()| used(Shape::new(1, 16, 5, 6)));
            let [y, dy] = [(); 2].map(|()| used(Shape::new(1, 16, 3, 3)));
            let (x, dx) = (x.map(shape, 0), dx.map(shape, 0));
            let (y, dy) = (y.map(pooled, 0), dy.map(pooled, 0));
            x.write(&(0..30).map(|i| (i * 7 % 5) as f32).collect::<Vec<_>>());
            dy.write(&(1..10).map(|i| i as f32).collect::<Vec<_>>());
            pooling::max_pool(team, isa, x, y);
            max_pool(team, isa, [x, y, dy], Accumulate::Set, dx);
            assert_eq!(dx.read(), want);
        });
    }

    #[test]
    fn means_share_out_what_they_get() {
        for (b, c, h, w, parts) in [(1, 16, 8, 8, 2), (3, 21, 6, 9, 3), (2, 40, 5, 5, 1)] {
            let shape = Shape::new(b, c, h, w);
            let pooled = Shape { height: parts, width: parts, ..shape };
            let (dy, values) = filled(pooled, 7);
            let (height, width) = (h / parts, w / parts);
            let mut want = Vec::new();
            for plane in values.chunks(parts * parts) {
                for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                    want.push(plane[y / height * parts + x / width] / (height * width) as f32);
                }
            }
            everywhere(|team, isa| {
                let dx = used(shape);
                let dx = dx.map(shape, 0);
                mean(team, isa, dy.map(pooled, 0), Accumulate::Set, dx);
                assert_holds(dx, &want, (0.0, 0.0), "means");
                mean(team, isa, dy.map(pooled, 0), Accumulate::Add, dx);
                let twice: Vec<f32> = want.iter().map(|x| 2.0 * x).collect();
                assert_holds(dx, &twice, (0.0, 0.0), "means, added");
            });
        }
    }
}
