//! Place by place: sums, products and activations of feature maps of equal shape.
//!
//! The result may be written over an argument. Channels past C stay zero, but for [`sigmoid`], which
//! leaves ½ there.

use super::feature_map::{FeatureMap, Shape, Shared};
use super::rows::{Rows, helping};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::simd_math;
use super::team::Team;

/// `to` = a + b.
///
/// # Panics
/// As all of this room: if the shapes differ, or `to` shares only a part with an argument.
pub fn add(team: &Team, isa: Isa, a: FeatureMap<'_>, b: FeatureMap<'_>, to: FeatureMap<'_>) {
    each(team, isa, Add, [a, b], to);
}

/// `to` = max(a + b, 0).
pub fn add_relu(team: &Team, isa: Isa, a: FeatureMap<'_>, b: FeatureMap<'_>, to: FeatureMap<'_>) {
    each(team, isa, AddRelu, [a, b], to);
}

/// `to` = a · b.
pub fn mul(team: &Team, isa: Isa, a: FeatureMap<'_>, b: FeatureMap<'_>, to: FeatureMap<'_>) {
    each(team, isa, Mul, [a, b], to);
}

/// `to` = max(x, 0).
pub fn relu(team: &Team, isa: Isa, x: FeatureMap<'_>, to: FeatureMap<'_>) {
    each(team, isa, Relu, [x, x], to);
}

/// `to` = x, or `slope` · x where x is negative.
pub fn leaky_relu(team: &Team, isa: Isa, slope: f32, x: FeatureMap<'_>, to: FeatureMap<'_>) {
    each(team, isa, LeakyRelu(slope), [x, x], to);
}

/// `to` = 1/(1 + e⁻ˣ).
pub fn sigmoid(team: &Team, isa: Isa, x: FeatureMap<'_>, to: FeatureMap<'_>) {
    each(team, isa, Sigmoid, [x, x], to);
}

/// `to` = x: for a concatenation whose parts could not be made where it stands.
pub fn copy(team: &Team, isa: Isa, x: FeatureMap<'_>, to: FeatureMap<'_>) {
    each(team, isa, Copied, [x, x], to);
}

/// The channels of `to` from `first` on = those of x, one by one: for a part of a concatenation that
/// does not begin with a block.
///
/// # Panics
/// If sizes differ, the channels do not fit, or the maps overlap.
pub fn copy_channels(team: &Team, x: FeatureMap<'_>, to: FeatureMap<'_>, first: usize) {
    let (from, shape) = (x.shape(), to.shape());
    assert_eq!(Shape { channels: shape.channels, ..from }, shape, "a part of a concatenation");
    assert!(first + from.channels <= shape.channels, "{} channels from {first}", from.channels);
    assert!(!x.overlaps(&to), "a part lies within the whole");
    let maps = Shared((x, to));
    team.chunks(shape.images * shape.height, 1, |_, begin, end| {
        let (x, to) = maps.get();
        for row in begin..end {
            let (image, y) = (row / shape.height, row % shape.height);
            for channel in 0..from.channels {
                for column in 0..shape.width {
                    to.set(image, first + channel, y, column, x.get(image, channel, y, column));
                }
            }
        }
    });
}

/// Channel c of `to` [B, C·times, H, W] = channel c / times of x [B, C, H, W].
///
/// # Panics
/// If shapes do not fit or the maps overlap.
pub fn repeat_channels(team: &Team, x: FeatureMap<'_>, to: FeatureMap<'_>, times: usize) {
    let (from, shape) = (x.shape(), to.shape());
    assert_eq!(Shape { channels: from.channels * times, ..from }, shape, "{times} times {from:?}");
    assert!(!x.overlaps(&to), "the result overlaps the argument");
    let rows = Rows::of(shape);
    let maps = Shared((x, to));
    team.chunks(rows.count(), helping(team, rows.count(), shape.width * LANES), |_, first, end| {
        let (x, to) = maps.get();
        for row in first..end {
            let (image, block, y) = rows.at(row);
            let own = (shape.channels - block * LANES).min(LANES);
            let source: [usize; LANES] =
                std::array::from_fn(|lane| (block * LANES + lane.min(own - 1)) / times);
            let (from, to) = (
                source.map(|c| x.place(image, c / LANES, y as isize, 0).wrapping_add(c % LANES)),
                to.place(image, block, y as isize, 0),
            );
            for place in (0..shape.width * LANES).step_by(LANES) {
                for (lane, from) in from.iter().enumerate() {
                    // SAFETY: a lane of this place of a plane of x, and of a row of `to` that no
                    // other thread has.
                    unsafe {
                        let value = if lane < own { *from.add(place) } else { 0.0 };
                        *to.add(place + lane) = value;
                    }
                }
            }
        }
    });
}

/// What becomes of 16 numbers of two maps; operations on one map get it twice.
trait Lanewise: Copy + Sync {
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F;
}

macro_rules! lanewise {
    ($name:ident, |$own:ident, $s:ident, $a:ident, $b:ident| $value:expr) => {
        impl Lanewise for $name {
            #[inline(always)]
            fn apply<S: Simd>($own, $s: S, $a: S::F, $b: S::F) -> S::F {
                $value
            }
        }
    };
}

#[derive(Clone, Copy)]
struct Add;
lanewise!(Add, |self, s, a, b| s.add(a, b));

#[derive(Clone, Copy)]
struct AddRelu;
lanewise!(AddRelu, |self, s, a, b| s.max(s.zero(), s.add(a, b)));

#[derive(Clone, Copy)]
struct Mul;
lanewise!(Mul, |self, s, a, b| s.mul(a, b));

#[derive(Clone, Copy)]
struct Relu;
lanewise!(Relu, |self, s, a, _b| s.max(s.zero(), a));

#[derive(Clone, Copy)]
struct LeakyRelu(f32);
lanewise!(LeakyRelu, |self, s, a, _b| {
    s.select(s.lt(a, s.zero()), s.mul(a, s.splat(self.0)), a)
});

#[derive(Clone, Copy)]
struct Sigmoid;
lanewise!(Sigmoid, |self, s, a, _b| simd_math::sigmoid(s, a));

#[derive(Clone, Copy)]
struct Copied;
lanewise!(Copied, |self, _s, a, _b| a);

fn each(team: &Team, isa: Isa, op: impl Lanewise, from: [FeatureMap<'_>; 2], to: FeatureMap<'_>) {
    for x in from {
        assert_eq!(x.shape(), to.shape(), "operation place by place");
        assert!(to.is_or_is_apart_from(&x), "the result shares a part with an argument");
    }
    let rows = Rows::of(to.shape());
    let len = to.shape().width * LANES;
    let maps = Shared((from, to));
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        let (from, to) = maps.get();
        isa.run(EachRow { op, from, to, rows, first, end });
    });
}

struct EachRow<'a, O> {
    op: O,
    from: [FeatureMap<'a>; 2],
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
            let (a, b, to) = (place(&self.from[0]), place(&self.from[1]), place(&self.to));
            for i in (0..len).step_by(LANES) {
                // SAFETY: a row has W places of 16 from its place 0 on, in each of the maps, which
                // have one shape; no other thread has this row of the result.
                unsafe {
                    let value = self.op.apply(s, s.load(a.add(i)), s.load(b.add(i)));
                    s.store(to.add(i), value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::{assert_holds, everywhere, filled, used};
    use super::super::feature_map::{Buffer, Shape};
    use super::*;

    type Unary = fn(&Team, Isa, FeatureMap<'_>, FeatureMap<'_>);
    type PlainUnary = fn(f32) -> f32;
    type Binary = fn(&Team, Isa, FeatureMap<'_>, FeatureMap<'_>, FeatureMap<'_>);
    type PlainBinary = fn(f32, f32) -> f32;

    /// An operation, its name, and its scalar twin.
    struct Case<Op, Plain> {
        name: &'static str,
        op: Op,
        plain: Plain,
    }

    const SHAPES: [(usize, usize, usize, usize); 3] = [(1, 16, 4, 4), (3, 21, 5, 7), (2, 40, 1, 1)];

    fn shapes() -> impl Iterator<Item = Shape> {
        SHAPES.into_iter().map(|(b, c, h, w)| Shape::new(b, c, h, w))
    }

    #[test]
    fn two_maps_equal_their_scalar_twins() {
        let cases: [Case<Binary, PlainBinary>; 3] = [
            Case { name: "add", op: add, plain: |a, b| a + b },
            Case { name: "add_relu", op: add_relu, plain: |a, b| (a + b).max(0.0) },
            Case { name: "mul", op: mul, plain: |a, b| a * b },
        ];
        for shape in shapes() {
            let ((a, a_values), (b, b_values)) = (filled(shape, 1), filled(shape, 2));
            for Case { name, op, plain } in &cases {
                let want: Vec<f32> =
                    a_values.iter().zip(&b_values).map(|(a, b)| plain(*a, *b)).collect();
                everywhere(|team, isa| {
                    let out = used(shape);
                    op(team, isa, a.map(shape, 0), b.map(shape, 0), out.map(shape, 0));
                    // One operation, rounded as the scalar is.
                    assert_holds(out.map(shape, 0), &want, (0.0, 0.0), name);
                });
            }
        }
    }

    #[test]
    fn one_map_equals_its_scalar_twin() {
        let cases: [Case<Unary, PlainUnary>; 3] = [
            Case { name: "relu", op: relu, plain: |x| x.max(0.0) },
            Case {
                name: "leaky_relu",
                op: |team, isa, x, to| leaky_relu(team, isa, 0.2, x, to),
                plain: |x| if x < 0.0 { 0.2 * x } else { x },
            },
            Case { name: "copy", op: copy, plain: |x| x },
        ];
        for shape in shapes() {
            let (x, values) = filled(shape, 3);
            for Case { name, op, plain } in &cases {
                let want: Vec<f32> = values.iter().map(|x| plain(*x)).collect();
                everywhere(|team, isa| {
                    let out = used(shape);
                    op(team, isa, x.map(shape, 0), out.map(shape, 0));
                    assert_holds(out.map(shape, 0), &want, (0.0, 0.0), name);
                });
            }
        }
    }

    #[test]
    fn channels_are_repeated_one_by_one() {
        for (times, shape) in [1, 2, 3, 4].into_iter().flat_map(|n| shapes().map(move |s| (n, s))) {
            let wide = Shape { channels: shape.channels * times, ..shape };
            let (x, values) = filled(shape, 5);
            // Past the last channel anything may stand.
            for c in shape.channels..shape.blocks() * LANES {
                x.map(shape, 0).set(0, c, 0, 0, 9.0);
            }
            let planes = values.chunks(shape.places());
            let want: Vec<f32> = planes.flat_map(|plane| plane.repeat(times)).collect();
            everywhere(|team, _| {
                let out = used(wide);
                repeat_channels(team, x.map(shape, 0), out.map(wide, 0), times);
                assert_holds(out.map(wide, 0), &want, (0.0, 0.0), "repeated");
            });
        }
    }

    #[test]
    fn sigmoid_equals_its_scalar_twin() {
        let shape = Shape::new(2, 32, 3, 5);
        let (x, values) = filled(shape, 4);
        let want: Vec<f32> = values.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        everywhere(|team, isa| {
            let out = used(shape);
            sigmoid(team, isa, x.map(shape, 0), out.map(shape, 0));
            let got = out.map(shape, 0).read();
            for (got, want) in got.iter().zip(&want) {
                // The exponential is good to 3 · 10⁻⁷, the library's to half of a last place.
                assert!((got - want).abs() <= 5e-7 * want, "{got} {want}");
            }
        });
    }

    #[test]
    fn nan_passes_and_the_result_may_replace_an_argument() {
        let shape = Shape::new(1, 16, 2, 3);
        everywhere(|team, isa| {
            let ops: [Unary; 4] = [
                relu,
                sigmoid,
                |team, isa, x, to| leaky_relu(team, isa, 0.1, x, to),
                |team, isa, x, to| add_relu(team, isa, x, x, to),
            ];
            for op in ops {
                let buffer = Buffer::zeroed(shape.len());
                let map = buffer.map(shape, 0);
                map.set(0, 3, 1, 2, f32::NAN);
                op(team, isa, map, map);
                let nans = map.read().iter().filter(|x| x.is_nan()).count();
                assert!(map.get(0, 3, 1, 2).is_nan() && nans == 1);
            }
        });
    }

    #[test]
    #[should_panic(expected = "shares a part")]
    fn a_part_shared_is_refused() {
        let whole = Shape::new(1, 48, 2, 2);
        let buffer = Buffer::zeroed(whole.len());
        let map = buffer.map(whole, 0);
        relu(&Team::alone(), Isa::Portable, map.channels(0, 32), map.channels(16, 32));
    }
}
