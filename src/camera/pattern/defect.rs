//! What can be wrong with a rendered part. Lengths and colours as in `part.rs`.

use std::f32::consts::TAU;

use rand::{Rng, RngExt};
use serde::Deserialize;

use super::part::{
    BAND, Blob, CODE, Color, HOLES, LOGO, LOGO_RADIUS, Part, Point, SINK, TEXT_RADIUS, cover,
    length, mix, to_stroke,
};

/// The kinds of defects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A line scored into the face, bright with a dark flank.
    Scratch,
    /// A blot of oil or dirt.
    Stain,
    /// A screw hole that was not drilled.
    MissingHole,
    /// A piece of the print that did not take.
    MissingPrint,
    /// A dint that changes nothing but the shading.
    Dent,
    /// A hair or a particle lying on the part.
    Contamination,
    /// A piece broken out of the edge.
    Chip,
    /// A print in the wrong ink.
    WrongColour,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Scratch,
        Kind::Stain,
        Kind::MissingHole,
        Kind::MissingPrint,
        Kind::Dent,
        Kind::Contamination,
        Kind::Chip,
        Kind::WrongColour,
    ];

    /// As it stands in config.toml, in the log and in [`crate::frame::Truth`].
    pub fn word(self) -> &'static str {
        match self {
            Kind::Scratch => "scratch",
            Kind::Stain => "stain",
            Kind::MissingHole => "missing_hole",
            Kind::MissingPrint => "missing_print",
            Kind::Dent => "dent",
            Kind::Contamination => "contamination",
            Kind::Chip => "chip",
            Kind::WrongColour => "wrong_colour",
        }
    }
}

/// One defect on one part.
#[derive(Clone, Debug)]
pub struct Defect {
    pub kind: Kind,
    shape: Shape,
    /// Nothing farther than `reach` from `center` is changed.
    center: Point,
    reach: f32,
}

#[derive(Clone, Debug)]
enum Shape {
    Scratch { line: Line, half_width: f32, strength: f32 },
    Stain { blob: Blob, strength: f32 },
    MissingHole(usize),
    MissingPrint(Blob),
    Dent { size: f32, depth: f32 },
    Hair { line: Line, half_width: f32, color: Color },
    Particle { blob: Blob, color: Color },
    Chip(Blob),
    Band(Color),
    Logo(Color),
}

impl Defect {
    pub fn draw(kind: Kind, rng: &mut impl Rng) -> Defect {
        // Room for the border's softness, in radii: a pixel and a half at 64 pixels.
        const SOFT: f32 = 0.06;
        let (shape, center, reach) = match kind {
            Kind::Scratch => {
                let line = Line::draw(on_face(rng), rng.random_range(0.3..0.7), 0.25, rng);
                let half_width = rng.random_range(0.0065..0.011);
                let strength = rng.random_range(0.16..0.30);
                let (center, reach) = line.bounds();
                (Shape::Scratch { line, half_width, strength }, center, reach + 4.0 * half_width)
            }
            Kind::Stain => {
                let blob = Blob::draw(on_face(rng), rng.random_range(0.07..0.16), rng);
                let (center, reach) = (blob.center, blob.reach());
                (Shape::Stain { blob, strength: rng.random_range(0.22..0.45) }, center, reach)
            }
            Kind::MissingHole => {
                let number = rng.random_range(0..HOLES.len());
                (Shape::MissingHole(number), HOLES[number], SINK)
            }
            Kind::MissingPrint => {
                let center = on_print(rng);
                let blob = Blob::draw(center, rng.random_range(0.08..0.13), rng);
                let reach = blob.reach();
                (Shape::MissingPrint(blob), center, reach)
            }
            Kind::Dent => {
                let size = rng.random_range(0.06..0.11);
                let depth = rng.random_range(0.55..0.9);
                (Shape::Dent { size, depth }, on_face(rng), 3.0 * size)
            }
            Kind::Contamination if rng.random() => {
                let line = Line::draw(on_face(rng), rng.random_range(0.25..0.5), 0.9, rng);
                let (center, reach) = line.bounds();
                let half_width = rng.random_range(0.006..0.01);
                let tone = rng.random_range(0.10..0.20);
                let color = [tone * 1.1, tone, tone * 0.85];
                (Shape::Hair { line, half_width, color }, center, reach + half_width)
            }
            Kind::Contamination => {
                let blob = Blob::draw(on_face(rng), rng.random_range(0.022..0.045), rng);
                let (center, reach) = (blob.center, blob.reach());
                let color = if rng.random() { [0.15, 0.13, 0.11] } else { [0.30, 0.22, 0.13] };
                (Shape::Particle { blob, color }, center, reach)
            }
            Kind::Chip => {
                let angle = rng.random_range(0.0..TAU);
                let blob =
                    Blob::draw([angle.cos(), angle.sin()], rng.random_range(0.05..0.10), rng);
                let (center, reach) = (blob.center, blob.reach() + 0.022);
                (Shape::Chip(blob), center, reach)
            }
            Kind::WrongColour => {
                let violet = rng.random();
                if rng.random() {
                    let ink = if violet { [0.34, 0.12, 0.42] } else { [0.08, 0.38, 0.22] };
                    (Shape::Band(ink), [0.0; 2], BAND[1])
                } else {
                    let ink = if violet { [0.72, 0.10, 0.14] } else { [0.74, 0.62, 0.10] };
                    (Shape::Logo(ink), LOGO, LOGO_RADIUS)
                }
            }
        };
        Defect { kind, shape, center, reach: reach + SOFT }
    }

    /// The part with the defects that belong to its shape or print.
    pub fn alter(&self, good: &Part) -> Part {
        let mut part = good.clone();
        match &self.shape {
            Shape::MissingHole(number) => part.missing_hole = Some(*number),
            Shape::MissingPrint(blob) => part.bare = Some(blob.clone()),
            Shape::Chip(blob) => part.bite = Some(blob.clone()),
            Shape::Band(ink) => part.inks.band = *ink,
            Shape::Logo(ink) => part.inks.logo = *ink,
            Shape::Scratch { .. }
            | Shape::Stain { .. }
            | Shape::Dent { .. }
            | Shape::Hair { .. }
            | Shape::Particle { .. } => {}
        }
        part
    }

    pub fn reaches(&self, [x, y]: Point) -> bool {
        length([x - self.center[0], y - self.center[1]]) <= self.reach
    }

    /// The colour at a point of the part with the defects that lie on it.
    pub fn cover(&self, part: &Part, point: Point, color: Color) -> Color {
        let pixel = part.pixel();
        let on_part = cover(length(point) - 1.0, pixel);
        match &self.shape {
            Shape::Scratch { line, half_width, strength } => {
                let (distance, side) = line.distance(point);
                // The burr beside the furrow lies in its own shadow.
                let flank = cover((distance - 2.0 * half_width).abs() - half_width, pixel);
                let flank = if side > 0.0 { 0.6 * flank } else { 0.0 };
                let change = strength * (cover(distance - half_width, pixel) - flank);
                // What is bright already cannot gain as much.
                color.map(|value| value + on_part * change * (1.25 - value).min(0.8))
            }
            Shape::Stain { blob, strength } => {
                let distance = blob.distance(point);
                let inside = (0.5 - distance / (0.35 * blob.radius)).clamp(0.0, 1.0);
                // Dried from the rim: darker there.
                let rim = (-(distance / (0.15 * blob.radius)).powi(2)).exp();
                let share = on_part * strength * (inside + 0.35 * rim).min(1.0);
                let tint = [0.85, 1.0, 1.25];
                [0, 1, 2].map(|c| color[c] * (1.0 - (share * tint[c]).min(0.9)))
            }
            Shape::Dent { size, depth } => {
                let [x, y] =
                    [(point[0] - self.center[0]) / size, (point[1] - self.center[1]) / size];
                let [lx, ly] = part.light_on_part;
                let slope = -(x * lx + y * ly) * (-(x * x + y * y)).exp();
                color.map(|value| value * (1.0 + on_part * depth * slope))
            }
            Shape::Hair { line, half_width, color: hair } => {
                let (distance, _) = line.distance(point);
                mix(color, *hair, 0.85 * cover(distance - half_width, pixel))
            }
            Shape::Particle { blob, color: grain } => {
                let [lx, ly] = part.light_on_part;
                let shadow = blob.distance([
                    point[0] + 0.4 * blob.radius * lx,
                    point[1] + 0.4 * blob.radius * ly,
                ]);
                let below = mix(color, color.map(|value| value * 0.6), cover(shadow, 2.0 * pixel));
                mix(below, *grain, cover(blob.distance(point), pixel))
            }
            Shape::MissingHole(_)
            | Shape::MissingPrint(_)
            | Shape::Chip(_)
            | Shape::Band(_)
            | Shape::Logo(_) => color,
        }
    }
}

/// A bent line.
#[derive(Clone, Debug)]
struct Line {
    points: [Point; 17],
}

impl Line {
    /// Through `middle`, in any direction; `bend` is how far it leaves the straight, in lengths.
    fn draw(middle: Point, length: f32, bend: f32, rng: &mut impl Rng) -> Line {
        let angle = rng.random_range(0.0..TAU);
        let (sin, cos) = (angle.sin(), angle.cos());
        let [arc, wave] = [(); 2].map(|()| bend * rng.random_range(-0.5..0.5f32));
        let mut points = [[0.0; 2]; 17];
        for (step, point) in points.iter_mut().enumerate() {
            let t = step as f32 / 16.0 - 0.5;
            let aside = arc * (1.0 - 4.0 * t * t) + wave * t * (1.0 - 4.0 * t * t);
            let (along, aside) = (length * t, length * aside);
            *point = [middle[0] + along * cos - aside * sin, middle[1] + along * sin + aside * cos];
        }
        Line { points }
    }

    /// Distance to the line, and on which side of its direction the point lies (sign).
    fn distance(&self, point: Point) -> (f32, f32) {
        let mut nearest = (f32::INFINITY, 0.0);
        for pair in self.points.windows(2) {
            let distance = to_stroke(point, [pair[0], pair[1]]);
            if distance < nearest.0 {
                let [ax, ay] = pair[0];
                let [bx, by] = pair[1];
                let side = (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax);
                nearest = (distance, side);
            }
        }
        nearest
    }

    fn bounds(&self) -> (Point, f32) {
        let [cx, cy] = self.points[8];
        let reach = self.points.iter().map(|[x, y]| length([x - cx, y - cy])).fold(0.0, f32::max);
        (self.points[8], reach)
    }
}

/// A point of the turned face, clear of the holes.
fn on_face(rng: &mut impl Rng) -> Point {
    loop {
        let angle = rng.random_range(0.0..TAU);
        let radius = rng.random_range(0.48..0.86);
        let point = [radius * angle.cos(), radius * angle.sin()];
        // The holes take a tenth of the ring: a clear point comes soon.
        if HOLES.iter().all(|[x, y]| length([point[0] - x, point[1] - y]) > SINK + 0.04) {
            return point;
        }
    }
}

/// A point of text, band or code.
fn on_print(rng: &mut impl Rng) -> Point {
    match rng.random_range(0..3) {
        0 => {
            let angle = rng.random_range(-0.55..0.55f32);
            [TEXT_RADIUS * angle.sin(), TEXT_RADIUS * angle.cos()]
        }
        1 => {
            let angle = rng.random_range(0.0..TAU);
            let radius = (BAND[0] + BAND[1]) / 2.0;
            [radius * angle.cos(), radius * angle.sin()]
        }
        _ => CODE.map(|middle| middle + rng.random_range(-0.06..0.06f32)),
    }
}
