//! Gradients of what is done place by place, and sums of gradients. A gradient may be written over
//! the one that it is made of.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{FeatureMap, Shape, Shared};
use crate::ops::rows::{Rows, helping};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// The smallest number above zero: y is below it where y ≤ 0, and where y is NaN it is not.
const ABOVE_ZERO: f32 = f32::from_bits(1);

/// How far before its use dy is asked for. Compilers make of [`where_above_zero`] a load under its
/// mask, which cannot begin before the other map's numbers are there.
pub(super) const AHEAD: usize = 8 * LANES;

/// dx (+)= dy: what a sum gives to each of its terms, and what a concatenation gives to its parts,
/// where `dy` is the part's window of the whole.
///
/// # Panics
/// As all of this room: if the shapes differ, `dx` shares only a part with an argument, or is one
/// that it is to be added to.
pub fn add(team: &Team, isa: Isa, dy: FeatureMap<'_>, into: Accumulate, dx: FeatureMap<'_>) {
    each(team, isa, Pass, [dy, dy], into, dx);
}

/// dx (+)= the channels of `dy` from `first` on, one by one: what a concatenation gives to a part that
/// does not begin with a block.
///
/// # Panics
/// If sizes differ, the channels are not there, or the maps overlap.
pub fn add_channels(
    team: &Team,
    dy: FeatureMap<'_>,
    first: usize,
    into: Accumulate,
    dx: FeatureMap<'_>,
) {
    let (from, shape) = (dy.shape(), dx.shape());
    assert_eq!(Shape { channels: shape.channels, ..from }, shape, "a part's gradient");
    assert!(first + shape.channels <= from.channels, "{} channels from {first}", shape.channels);
    assert!(!dx.overlaps(&dy), "the gradient overlaps the argument");
    let maps = Shared((dy, dx));
    team.chunks(shape.images * shape.height, 1, |_, begin, end| {
        let (dy, dx) = maps.get();
        for row in begin..end {
            let (image, y) = (row / shape.height, row % shape.height);
            for channel in 0..shape.channels {
                for x in 0..shape.width {
                    let value = dy.get(image, first + channel, y, x);
                    let value = match into {
                        Accumulate::Set => value,
                        Accumulate::Add => dx.get(image, channel, y, x) + value,
                    };
                    dx.set(image, channel, y, x, value);
                }
            }
        }
    });
}

/// What a repetition of channels gives: dx [B, C, H, W] (+)= the sum over i of channels
/// c · times + i of `dy` [B, C·times, H, W].
///
/// # Panics
/// If shapes do not fit or the maps overlap.
pub fn repeat_channels(
    team: &Team,
    dy: FeatureMap<'_>,
    times: usize,
    into: Accumulate,
    dx: FeatureMap<'_>,
) {
    let (from, shape) = (dy.shape(), dx.shape());
    assert_eq!(Shape { channels: shape.channels * times, ..shape }, from, "repeated channels");
    assert!(!dx.overlaps(&dy), "the gradient overlaps the argument");
    let rows = Rows::of(shape);
    let len = shape.width * LANES * times;
    let maps = Shared((dy, dx));
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        let (dy, dx) = maps.get();
        for row in first..end {
            let (image, block, y) = rows.at(row);
            let to = dx.place(image, block, y as isize, 0);
            let own = (shape.channels - block * LANES).min(LANES);
            for lane in 0..LANES {
                // Lanes past C have no channels, and zero as their sum.
                for i in 0..if lane < own { times } else { 1 } {
                    let c = (block * LANES + lane.min(own - 1)) * times + i;
                    let from = dy.place(image, c / LANES, y as isize, 0).wrapping_add(c % LANES);
                    for place in (0..shape.width * LANES).step_by(LANES) {
                        // SAFETY: a lane of a place of a row of dy, and of a row of dx that no other
                        // thread has.
                        unsafe {
                            let to = to.add(place + lane);
                            let before = if i == 0 && into == Accumulate::Set { 0.0 } else { *to };
                            *to = before + if lane < own { *from.add(place) } else { 0.0 };
                        }
                    }
                }
            }
        }
    });
}

/// Of y = a · b: da (+)= dy · b.
pub fn mul(
    team: &Team,
    isa: Isa,
    b: FeatureMap<'_>,
    dy: FeatureMap<'_>,
    into: Accumulate,
    da: FeatureMap<'_>,
) {
    each(team, isa, Mul, [dy, b], into, da);
}

/// Of y = max(x, 0): dx (+)= dy where y > 0. A NaN is no reason to stop a gradient.
pub fn relu(
    team: &Team,
    isa: Isa,
    y: FeatureMap<'_>,
    dy: FeatureMap<'_>,
    into: Accumulate,
    dx: FeatureMap<'_>,
) {
    each(team, isa, Relu, [dy, y], into, dx);
}

/// Of y = x, or `slope` · x where x is negative: dx (+)= dy, or `slope` · dy where x, and with it y,
/// is not above zero.
///
/// # Panics
/// If `slope` is not above zero, besides.
pub fn leaky_relu(
    team: &Team,
    isa: Isa,
    slope: f32,
    y: FeatureMap<'_>,
    dy: FeatureMap<'_>,
    into: Accumulate,
    dx: FeatureMap<'_>,
) {
    assert!(slope > 0.0, "slope = {slope}: the sign of y is not that of x");
    each(team, isa, LeakyRelu(slope), [dy, y], into, dx);
}

/// Of y = 1/(1 + e⁻ˣ): dx (+)= dy · y · (1 − y).
pub fn sigmoid(
    team: &Team,
    isa: Isa,
    y: FeatureMap<'_>,
    dy: FeatureMap<'_>,
    into: Accumulate,
    dx: FeatureMap<'_>,
) {
    each(team, isa, Sigmoid, [dy, y], into, dx);
}

/// `dy` where `y` is above zero or NaN, else zero.
#[inline(always)]
pub(super) fn where_above_zero<S: Simd>(s: S, y: S::F, dy: S::F) -> S::F {
    s.select(s.lt(y, s.splat(ABOVE_ZERO)), s.zero(), dy)
}

/// What becomes of 16 numbers of dy and of another map; operations that need none get dy twice.
trait Lanewise: Copy + Sync {
    fn apply<S: Simd>(self, s: S, dy: S::F, y: S::F) -> S::F;
}

macro_rules! lanewise {
    ($name:ident, |$own:ident, $s:ident, $dy:ident, $y:ident| $value:expr) => {
        impl Lanewise for $name {
            #[inline(always)]
            fn apply<S: Simd>($own, $s: S, $dy: S::F, $y: S::F) -> S::F {
                $value
            }
        }
    };
}

#[derive(Clone, Copy)]
struct Pass;
lanewise!(Pass, |self, _s, dy, _y| dy);

#[derive(Clone, Copy)]
struct Mul;
lanewise!(Mul, |self, s, dy, b| s.mul(dy, b));

#[derive(Clone, Copy)]
struct Relu;
lanewise!(Relu, |self, s, dy, y| where_above_zero(s, y, dy));

#[derive(Clone, Copy)]
struct LeakyRelu(f32);
lanewise!(LeakyRelu, |self, s, dy, y| {
    s.select(s.lt(y, s.splat(ABOVE_ZERO)), s.mul(dy, s.splat(self.0)), dy)
});

#[derive(Clone, Copy)]
struct Sigmoid;
lanewise!(Sigmoid, |self, s, dy, y| s.mul(dy, s.mul(y, s.sub(s.splat(1.0), y))));

fn each(
    team: &Team,
    isa: Isa,
    op: impl Lanewise,
    from: [FeatureMap<'_>; 2],
    into: Accumulate,
    to: FeatureMap<'_>,
) {
    for map in from {
        assert_eq!(map.shape(), to.shape(), "a gradient place by place");
        let apart = match into {
            Accumulate::Set => to.is_or_is_apart_from(&map),
            Accumulate::Add => !to.overlaps(&map),
        };
        assert!(apart, "the gradient shares a part with an argument");
    }
    let rows = Rows::of(to.shape());
    let len = to.shape().width * LANES;
    let maps = Shared((from, to));
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        let (from, to) = maps.get();
        isa.run(EachRow { op, from, into, to, rows, first, end });
    });
}

struct EachRow<'a, O> {
    op: O,
    from: [FeatureMap<'a>; 2],
    into: Accumulate,
    to: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl<O: Lanewise> Kernel for EachRow<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.to.shape().width * LANES;
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            let place = |map: &FeatureMap<'_>| map.place(image, block, y as isize, 0);
            let (dy, other, to) = (place(&self.from[0]), place(&self.from[1]), place(&self.to));
            for i in (0..len).step_by(LANES) {
                s.prefetch(dy.wrapping_add(i + AHEAD));
                // SAFETY: a row has W places of 16 from its place 0 on, in each of the maps, which
                // have one shape; no other thread has this row of the result.
                unsafe {
                    let value = self.op.apply(s, s.load(dy.add(i)), s.load(other.add(i)));
                    self.into.put(s, to.add(i), value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, used};
    use crate::ops::feature_map::{Buffer, Shape};

    /// Of one map (y, or a product's other factor).
    type Op = fn(&Team, Isa, FeatureMap<'_>, FeatureMap<'_>, Accumulate, FeatureMap<'_>);

    struct Case {
        name: &'static str,
        op: Op,
        /// dx of y and dy.
        plain: fn(f32, f32) -> f32,
    }

    const CASES: [Case; 5] = [
        Case {
            name: "add",
            op: |team, isa, _, dy, into, dx| add(team, isa, dy, into, dx),
            plain: |_, dy| dy,
        },
        Case { name: "mul", op: mul, plain: |b, dy| dy * b },
        Case { name: "relu", op: relu, plain: |y, dy| if y > 0.0 { dy } else { 0.0 } },
        Case {
            name: "leaky_relu",
            op: |team, isa, y, dy, into, dx| leaky_relu(team, isa, 0.2, y, dy, into, dx),
            plain: |y, dy| if y > 0.0 { dy } else { 0.2 * dy },
        },
        Case { name: "sigmoid", op: sigmoid, plain: |y, dy| dy * (y * (1.0 - y)) },
    ];

    const SHAPES: [(usize, usize, usize, usize); 4] =
        [(1, 16, 4, 4), (3, 21, 5, 7), (2, 40, 1, 1), (1, 1, 3, 2)];

    #[test]
    fn equal_their_scalar_twins_set_added_and_in_place() {
        for shape in SHAPES.map(|(b, c, h, w)| Shape::new(b, c, h, w)) {
            let ((y, mut y_values), (dy, dy_values)) = (filled(shape, 1), filled(shape, 2));
            // Where a ReLU has been, many are zero.
            y_values.iter_mut().step_by(3).for_each(|y| *y = 0.0);
            y.map(shape, 0).write(&y_values);
            let (y, dy) = (y.map(shape, 0), dy.map(shape, 0));
            for Case { name, op, plain } in &CASES {
                let want: Vec<f32> =
                    y_values.iter().zip(&dy_values).map(|(y, dy)| plain(*y, *dy)).collect();
                everywhere(|team, isa| {
                    let out = used(shape);
                    let dx = out.map(shape, 0);
                    op(team, isa, y, dy, Accumulate::Set, dx);
                    // Rounded as the scalar is.
                    assert_holds(dx, &want, (0.0, 0.0), name);
                    op(team, isa, y, dy, Accumulate::Add, dx);
                    let twice: Vec<f32> = want.iter().map(|x| x + x).collect();
                    assert_holds(dx, &twice, (0.0, 0.0), name);
                    let own = Buffer::zeroed(shape.len());
                    let own = own.map(shape, 0);
                    own.write(&dy_values);
                    op(team, isa, y, own, Accumulate::Set, own);
                    assert_holds(own, &want, (0.0, 0.0), name);
                });
            }
        }
    }

    #[test]
    fn a_window_of_a_concatenation_is_read_and_written() {
        let (whole, part) = (Shape::new(2, 64, 3, 3), Shape::new(2, 20, 3, 3));
        let ((dy, _), (more, values)) = (filled(whole, 3), filled(part, 4));
        let window = dy.map(whole, 0).channels(32, 20);
        // Past the part's channels a concatenation holds nothing.
        window.channels(0, 32).write(&vec![0.0; 2 * 32 * 9]);
        window.write(&values);
        everywhere(|team, isa| {
            let out = used(part);
            add(team, isa, window, Accumulate::Set, out.map(part, 0));
            assert_holds(out.map(part, 0), &values, (0.0, 0.0), "a part");
            let wide = Buffer::zeroed(whole.len());
            let to = wide.map(whole, 0).channels(16, 20);
            add(team, isa, more.map(part, 0), Accumulate::Add, to);
            assert_holds(to, &values, (0.0, 0.0), "into a window");
            assert!(wide.map(whole, 0).channels(48, 16).read().iter().all(|x| *x == 0.0));
        });
    }

    #[test]
    fn nan_passes_a_relu_and_a_nan_result_stops_nothing() {
        let shape = Shape::new(1, 16, 1, 2);
        let (y, dy, dx) = (used(shape), used(shape), used(shape));
        let (y, dy, dx) = (y.map(shape, 0), dy.map(shape, 0), dx.map(shape, 0));
        y.set(0, 3, 0, 0, f32::NAN);
        dy.set(0, 4, 0, 1, f32::NAN);
        everywhere(|team, isa| {
            relu(team, isa, y, dy, Accumulate::Set, dx);
            assert_eq!(dx.get(0, 3, 0, 0), 77.0);
            assert!(dx.get(0, 4, 0, 1).is_nan());
        });
    }

    #[test]
    fn repeated_channels_give_the_sum_of_their_gradients() {
        for (times, (b, c, h, w)) in
            [(1, (1, 16, 4, 4)), (2, (3, 21, 5, 7)), (4, (1, 40, 1, 1)), (3, (2, 7, 3, 2))]
        {
            let (shape, wide) = (Shape::new(b, c, h, w), Shape::new(b, c * times, h, w));
            let (dy, values) = filled(wide, 6);
            let mut want = vec![0.0; b * c * h * w];
            for (plane, values) in values.chunks(h * w).enumerate() {
                let to = &mut want[plane / times * h * w..][..h * w];
                to.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
            everywhere(|team, _| {
                let dx = used(shape);
                let dx = dx.map(shape, 0);
                repeat_channels(team, dy.map(wide, 0), times, Accumulate::Set, dx);
                // Summed in the same order.
                assert_holds(dx, &want, (0.0, 0.0), "repeated");
                repeat_channels(team, dy.map(wide, 0), times, Accumulate::Add, dx);
                let twice: Vec<f32> = want.iter().map(|x| x + x).collect();
                assert_holds(dx, &twice, (1e-6, 0.0), "repeated, added");
            });
        }
    }

    #[test]
    #[should_panic(expected = "shares a part")]
    fn adding_to_an_argument_is_refused() {
        let shape = Shape::new(1, 16, 2, 2);
        let (map, _) = filled(shape, 5);
        let map = map.map(shape, 0);
        add(&Team::alone(), Isa::Portable, map, Accumulate::Add, map);
    }
}
