//! Gradients of what is done place by place, and sums of gradients. A gradient may be written over
//! the one that it is made of.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{FeatureMap, Shared};
use crate::ops::rows::{Rows, helping};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// The smallest number above zero: y is below it where y ≤ 0, and where y is NaN it is not.
const ABOVE_ZERO: f32 = f32::from_bits(1);

/// dx (+)= dy: what a sum gives to each of its terms, and what a concatenation gives to its parts,
/// where `dy` is the part's window of the whole.
///
/// # Panics
/// As all of this room: if the shapes differ, `dx` shares only a part with an argument, or is one
/// that it is to be added to.
pub fn add(team: &Team, isa: Isa, dy: FeatureMap<'_>, into: Accumulate, dx: FeatureMap<'_>) {
    each(team, isa, Pass, [dy, dy], into, dx);
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
