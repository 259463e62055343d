//! Curves of a few hundred points that look like the curve of millions, and how far they are off.
//!
//! Two passes. While points come in, a long run of them that stays inside a square of 1/4096 of the
//! chart is kept as its first and its last. Of what is left, the points that the line so far misses
//! most are added one by one until there are enough (Ramer 1972, Douglas and Peucker 1973).

use std::collections::BinaryHeap;

use serde::Serialize;

/// Points joined by straight lines, the first and the last of the whole curve among them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    pub points: Vec<(f64, f64)>,
    /// No place of the whole curve is further than this from the drawn one; of the chart's width
    /// and height. 0 where every point was kept.
    pub max_error: f64,
}

/// A curve whose points are still coming in.
pub(super) struct Thinning {
    /// What the chart is wide; it is 1 high.
    width: f64,
    kept: Vec<(f64, f64)>,
    /// The last point that was pushed, if it was not kept.
    waiting: Option<(f64, f64)>,
    /// Half of the square's side; 0 while every point is kept.
    reach: f64,
}

impl Thinning {
    pub fn new(width: f64) -> Thinning {
        Thinning { width, kept: Vec::new(), waiting: None, reach: 0.0 }
    }

    pub fn push(&mut self, point: (f64, f64)) {
        let Some(&last) = self.kept.last() else {
            self.kept.push(point);
            return;
        };
        let across = (point.0 - last.0).abs() / self.width;
        let up = (point.1 - last.1).abs();
        if across.max(up) <= self.reach {
            self.waiting = Some(point);
            return;
        }
        // The step that left the square is drawn from where it began.
        self.kept.extend(self.waiting.take());
        self.kept.push(point);
        if self.reach == 0.0 && self.kept.len() > MOST_KEPT {
            self.reach = REACH;
            let kept = std::mem::take(&mut self.kept);
            kept.into_iter().for_each(|point| self.push(point));
        }
    }

    /// At most `most` points of it, 2 or more.
    pub fn finish(mut self, most: usize) -> Curve {
        assert!(most >= 2, "a curve has two ends");
        self.kept.extend(self.waiting.take());
        let points = self.kept;
        if points.len() <= most {
            let max_error = self.reach * std::f64::consts::SQRT_2;
            return Curve { points, max_error };
        }
        let mut is_kept = vec![false; points.len()];
        is_kept[0] = true;
        is_kept[points.len() - 1] = true;
        let mut pieces = BinaryHeap::from([Piece::new(&points, self.width, 0, points.len() - 1)]);
        for _ in 2..most {
            let worst = pieces.pop().expect("a curve has a piece");
            if worst.missed == 0 {
                pieces.push(worst);
                break;
            }
            is_kept[worst.furthest] = true;
            pieces.push(Piece::new(&points, self.width, worst.from, worst.furthest));
            pieces.push(Piece::new(&points, self.width, worst.furthest, worst.to));
        }
        let missed = pieces.peek().map_or(0.0, |piece| f64::from_bits(piece.missed));
        let kept =
            points.iter().zip(is_kept).filter_map(|(&point, is_kept)| is_kept.then_some(point));
        Curve { points: kept.collect(), max_error: missed + self.reach * std::f64::consts::SQRT_2 }
    }
}

/// A straight line that stands for the points `from..=to`. The order is that of the fields: the
/// worst is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    /// How far the furthest point lies from it: the bits of an `f64` that is not negative, which
    /// order as the number does.
    missed: u64,
    from: usize,
    to: usize,
    furthest: usize,
}

impl Piece {
    fn new(points: &[(f64, f64)], width: f64, from: usize, to: usize) -> Piece {
        let place = |i: usize| (points[i].0 / width, points[i].1);
        let (start, end) = (place(from), place(to));
        let mut piece = Piece { missed: 0, from, to, furthest: from };
        for i in from + 1..to {
            let missed = distance(place(i), start, end).to_bits();
            if missed > piece.missed {
                (piece.missed, piece.furthest) = (missed, i);
            }
        }
        piece
    }
}

/// From a point to the line between two others.
fn distance(point: (f64, f64), start: (f64, f64), end: (f64, f64)) -> f64 {
    let along = (end.0 - start.0, end.1 - start.1);
    let away = (point.0 - start.0, point.1 - start.1);
    let length2 = along.0 * along.0 + along.1 * along.1;
    let part = if length2 > 0.0 {
        ((away.0 * along.0 + away.1 * along.1) / length2).clamp(0.0, 1.0)
    } else {
        0.0
    };
    (away.0 - part * along.0).hypot(away.1 - part * along.1)
}

/// Points held before the first pass begins to leave any out: 1 MiB.
const MOST_KEPT: usize = 1 << 16;
/// A run stays this near to its first point, so in a square of twice the side; half a pixel of a
/// chart of 2048.
const REACH: f64 = 1.0 / 4096.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn thinned(points: impl IntoIterator<Item = (f64, f64)>, width: f64, most: usize) -> Curve {
        let mut thinning = Thinning::new(width);
        points.into_iter().for_each(|point| thinning.push(point));
        thinning.finish(most)
    }

    /// How far the points lie from the curve at most, in parts of the chart.
    fn furthest(points: &[(f64, f64)], curve: &Curve, width: f64) -> f64 {
        let place = |point: (f64, f64)| (point.0 / width, point.1);
        let nearest = |point: &(f64, f64)| {
            let pieces = curve.points.windows(2);
            pieces
                .map(|ends| distance(place(*point), place(ends[0]), place(ends[1])))
                .fold(f64::INFINITY, f64::min)
        };
        points.iter().map(nearest).fold(0.0, f64::max)
    }

    #[test]
    fn few_points_are_all_kept() {
        let points = vec![(0.0, 0.0), (0.0, 0.5), (0.2, 0.5), (1.0, 1.0)];
        let curve = thinned(points.clone(), 1.0, 4);
        assert_eq!(curve, Curve { points, max_error: 0.0 });
    }

    #[test]
    fn a_corner_survives() {
        let up = (0..=500).map(|i| (0.0, f64::from(i) / 500.0));
        let across = (1..=500).map(|i| (f64::from(i) / 500.0, 1.0));
        let curve = thinned(up.chain(across), 1.0, 50);
        assert_eq!(curve.points, [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]);
        assert_eq!(curve.max_error, 0.0);
    }

    #[test]
    fn a_million_points_look_the_same_with_300() {
        let whole: Vec<(f64, f64)> =
            (0..=1_000_000).map(|i| f64::from(i) / 1e6).map(|x| (x * 0.3, x.powf(0.2))).collect();
        let curve = thinned(whole.iter().copied(), 0.3, 300);
        assert!(curve.points.len() <= 300);
        assert_eq!((curve.points.first(), curve.points.last()), (whole.first(), whole.last()));
        assert!(curve.max_error < 5e-4, "{}", curve.max_error);
        let some: Vec<_> = whole.iter().step_by(997).copied().collect();
        assert!(furthest(&some, &curve, 0.3) <= curve.max_error);
    }

    proptest! {
        #[test]
        fn the_stated_error_holds(
            steps in prop::collection::vec((0.0_f64..1.0, -1.0_f64..1.0), 2..200),
            most in 2_usize..20,
        ) {
            let mut x = 0.0;
            let points: Vec<_> = steps.iter().map(|&(right, y)| { x += right; (x, y) }).collect();
            let curve = thinned(points.iter().copied(), 2.0, most);
            prop_assert!(curve.points.len() <= most.max(2));
            prop_assert_eq!(curve.points[0], points[0]);
            prop_assert_eq!(curve.points.last(), points.last());
            prop_assert!(furthest(&points, &curve, 2.0) <= curve.max_error + 1e-12);
        }
    }
}
