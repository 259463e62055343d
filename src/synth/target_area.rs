//! The target area TA: where on the part an anomaly may be (PRN, Zhang et al. 2023; section 5 of
//! `anomaly-generation.md`). The paper says "randomly sampled" of circle, rectangle and polygon; the
//! laws here are ours (G-7).

use std::f64::consts::{PI, TAU};

use anyhow::{Result, ensure};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::dataset::mask::Mask;

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Off, anomalies may be anywhere in the picture: for ablations.
    pub on: bool,
    /// The shape's share of the picture, `[lo, hi]`, uniform (G-7).
    pub area: [f64; 2],
}

impl Default for Config {
    fn default() -> Config {
        Config { on: true, area: [0.1, 0.6] }
    }
}

impl Config {
    pub fn check(&self) -> Result<()> {
        let [lo, hi] = self.area;
        ensure!(
            0.0 < lo && lo <= hi && hi <= 1.0,
            "target_area.area = [{lo}, {hi}]: must be two numbers above 0 and up to 1, the smaller \
             first"
        );
        Ok(())
    }
}

/// A shape about a place of the foreground, and only what of it is foreground; everything where it is
/// off. A polygon's random corners may leave nothing.
///
/// Draws, in this order: circle, rectangle or polygon; the centre, which of the foreground's pixels
/// counted along the rows; the area f. Of a rectangle then the logarithm of width by height, uniform
/// in ln 1/3..ln 3, and the turn in 0..180 degrees; of a polygon the corners, 5 to 8, the angles of
/// all corners in a full turn (sorted afterwards), and along them each corner's way from the centre,
/// uniform in 0.5..1 times 1.2·sqrt(f·H·W/π). Nothing is drawn where it is off.
pub fn draw(foreground: &Mask, config: &Config, rng: &mut impl Rng) -> Mask {
    let (width, height) = (foreground.width, foreground.height);
    let all = foreground.area();
    if !config.on || all == 0 {
        return Mask { width, height, inside: vec![!config.on; width * height] };
    }
    let kind = rng.random_range(0..3_u32);
    let nth = rng.random_range(0..all as u32) as usize;
    let mut inside = foreground.inside.iter().enumerate().filter(|(_, inside)| **inside);
    let at = inside.nth(nth).expect("nth is below the count").0;
    let centre = ((at % width) as f64, (at / width) as f64);
    let [lo, hi] = config.area;
    let area = rng.random_range(lo..=hi) * (width * height) as f64;
    let shape = match kind {
        0 => Shape::Circle { radius: (area / PI).sqrt() },
        1 => {
            let aspect = rng.random_range(-(3_f64.ln())..3_f64.ln()).exp();
            let turn = rng.random_range(0.0..PI);
            Shape::Rectangle {
                half: ((area * aspect).sqrt() / 2.0, (area / aspect).sqrt() / 2.0),
                turn,
            }
        }
        _ => {
            let corners = rng.random_range(5..=8_u32);
            let mut angles: Vec<f64> = (0..corners).map(|_| rng.random_range(0.0..TAU)).collect();
            angles.sort_by(f64::total_cmp);
            let farthest = (area / PI).sqrt() * 1.2;
            let corner = |angle: f64| {
                let away = farthest * rng.random_range(0.5..1.0);
                (away * angle.cos(), away * angle.sin())
            };
            Shape::Polygon { corners: angles.into_iter().map(corner).collect() }
        }
    };
    keep_within(&shape.fill(centre, width, height), foreground)
}

/// What of a mask is in the area, both of one size.
pub(super) fn keep_within(mask: &Mask, area: &Mask) -> Mask {
    let inside = mask.inside.iter().zip(&area.inside).map(|(inside, area)| inside & area).collect();
    Mask { width: mask.width, height: mask.height, inside }
}

/// What a target area is cut out with; lengths in pixels, from the centre.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Circle {
        radius: f64,
    },
    Rectangle {
        half: (f64, f64),
        /// In radians.
        turn: f64,
    },
    /// Corners in the order of their angles about the centre.
    Polygon {
        corners: Vec<(f64, f64)>,
    },
}

impl Shape {
    /// The pixels whose centre is in the shape.
    fn fill(&self, (centre_x, centre_y): (f64, f64), width: usize, height: usize) -> Mask {
        let mut mask = Mask::empty(width, height);
        for (y, row) in mask.inside.chunks_exact_mut(width).enumerate() {
            for [from, to] in self.spans(y as f64 - centre_y) {
                let first = (from + centre_x).ceil().max(0.0) as usize;
                let past = ((to + centre_x).floor() + 1.0).clamp(0.0, width as f64) as usize;
                row[first.min(past)..past].fill(true);
            }
        }
        mask
    }

    /// Where a row of pixels that is `dy` below the centre is in the shape.
    fn spans(&self, dy: f64) -> Vec<[f64; 2]> {
        match self {
            Shape::Circle { radius } => {
                let half = radius * radius - dy * dy;
                if half >= 0.0 { vec![[-half.sqrt(), half.sqrt()]] } else { Vec::new() }
            }
            Shape::Rectangle { half: (half_width, half_height), turn } => {
                let (sin, cos) = turn.sin_cos();
                let corner = |u: f64, v: f64| {
                    (
                        u * half_width * cos - v * half_height * sin,
                        u * half_width * sin + v * half_height * cos,
                    )
                };
                crossings(
                    &[corner(-1.0, -1.0), corner(1.0, -1.0), corner(1.0, 1.0), corner(-1.0, 1.0)],
                    dy,
                )
            }
            Shape::Polygon { corners } => crossings(corners, dy),
        }
    }
}

/// Where a row goes in and out of a polygon, by the even-odd rule.
fn crossings(corners: &[(f64, f64)], dy: f64) -> Vec<[f64; 2]> {
    let next = corners.iter().cycle().skip(1);
    let mut at: Vec<f64> = corners
        .iter()
        .zip(next)
        // One end belongs to an edge, the other to the next.
        .filter(|((_, y0), (_, y1))| (*y0 <= dy) != (*y1 <= dy))
        .map(|((x0, y0), (x1, y1))| x0 + (dy - y0) / (y1 - y0) * (x1 - x0))
        .collect();
    at.sort_by(f64::total_cmp);
    at.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::synth::foreground::whole;
    use crate::synth::{SampleKey, Tag};

    fn half(width: usize, height: usize) -> Mask {
        let inside = (0..width * height).map(|at| at % width < width / 2).collect();
        Mask { width, height, inside }
    }

    #[test]
    fn it_is_on_the_foreground() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let foreground = half(60, 40);
        let mut empty = 0;
        for _ in 0..300 {
            let area = draw(&foreground, &Config::default(), &mut rng);
            assert_eq!((area.width, area.height, area.inside.len()), (60, 40, 2400));
            assert!(area.inside.iter().zip(&foreground.inside).all(|(area, on)| !area || *on));
            empty += usize::from(area.area() == 0);
        }
        assert!(empty <= 6, "{empty} of 300 are empty");
    }

    #[test]
    fn off_it_is_everything_and_of_nothing_it_is_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let off = Config { on: false, ..Config::default() };
        assert_eq!(draw(&half(6, 4), &off, &mut rng), whole(6, 4));
        assert_eq!(rng, ChaCha8Rng::seed_from_u64(1), "nothing is drawn");
        let nothing = Mask::empty(6, 4);
        assert_eq!(draw(&nothing, &Config::default(), &mut rng), nothing);
    }

    #[test]
    fn shapes_have_their_area() {
        let turned = Shape::Rectangle { half: (20.0, 10.0), turn: 0.7 };
        let straight = Shape::Rectangle { half: (20.25, 10.25), turn: 0.0 };
        let triangle = Shape::Polygon { corners: vec![(30.2, 0.3), (-10.4, 20.1), (-10.4, -20.3)] };
        for (shape, area, rim) in [
            (Shape::Circle { radius: 25.0 }, PI * 625.0, 160.0),
            (turned, 800.0, 120.0),
            (straight, 41.0 * 21.0, 0.5),
            (triangle, 40.6 * 40.4 / 2.0, 130.0),
        ] {
            let filled = shape.fill((50.0, 40.0), 100, 80).area() as f64;
            // Of the pixels along the rim, as many are in as out, but for chance.
            assert!(
                (filled - area).abs() <= f64::sqrt(rim) + 0.5,
                "{shape:?}: {filled}, not {area}"
            );
        }
    }

    #[test]
    fn shapes_are_cut_at_the_picture() {
        let circle = Shape::Circle { radius: 1000.0 };
        assert_eq!(circle.fill((0.0, 0.0), 9, 5), whole(9, 5));
        let point = Shape::Circle { radius: 0.4 };
        assert_eq!(point.fill((8.0, 4.0), 9, 5).inside.iter().position(|&inside| inside), Some(44));
        assert_eq!(point.fill((12.0, 4.0), 9, 5).area(), 0);
        assert_eq!(point.fill((-3.0, 4.0), 9, 5).area(), 0);
    }

    /// Whether a point is in a polygon, by the winding of its corners about it.
    fn winds_around(corners: &[(f64, f64)], (x, y): (f64, f64)) -> bool {
        let angle = |&(u, v): &(f64, f64)| (v - y).atan2(u - x);
        let mut turns = 0.0;
        for (from, to) in corners.iter().zip(corners.iter().cycle().skip(1)) {
            let step = angle(to) - angle(from);
            turns += step - TAU * (step / TAU).round();
        }
        turns.abs() > PI
    }

    #[test]
    fn a_polygon_is_what_its_sides_go_around() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for _ in 0..20 {
            let corners: Vec<(f64, f64)> = (0..6)
                .map(|k| {
                    let away = rng.random_range(5.0..15.0);
                    let angle = f64::from(k) + rng.random_range(0.0..0.9);
                    (away * angle.cos(), away * angle.sin())
                })
                .collect();
            let filled = Shape::Polygon { corners: corners.clone() }.fill((16.0, 14.0), 32, 30);
            for (at, &inside) in filled.inside.iter().enumerate() {
                let point = ((at % 32) as f64 - 16.0, (at / 32) as f64 - 14.0);
                assert_eq!(inside, winds_around(&corners, point), "{point:?} of {corners:?}");
            }
        }
    }

    #[test]
    fn draws_are_pinned() {
        let areas: Vec<usize> = (0..6)
            .map(|index| {
                let mut rng = SampleKey { seed: 7, epoch: 1, index }.rng(Tag::TargetArea);
                draw(&half(64, 48), &Config::default(), &mut rng).area()
            })
            .collect();
        assert_eq!(areas, [384, 24, 77, 994, 536, 223]);
    }

    #[test]
    fn a_config_that_cannot_be_meant_is_refused() {
        assert!(Config::default().check().is_ok());
        for area in [[0.0, 0.5], [0.5, 0.4], [0.1, 1.1], [f64::NAN, 0.5]] {
            let error = Config { area, ..Config::default() }.check().unwrap_err();
            assert!(error.to_string().contains("target_area.area"), "{error}");
        }
    }
}
