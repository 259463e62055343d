//! The good part: a turned aluminium dial with a chamfer, a groove, a hub with a bore, three
//! countersunk screw holes and a print.
//!
//! Lengths are in radii of the part: its outline is the unit circle, x to the right and y down when
//! it lies straight. Colours are linear from 0 to 1 = level 255; nothing reaches either end.

use std::f32::consts::{PI, TAU};

use rand::{Rng, RngExt};

pub type Color = [f32; 3];
pub type Point = [f32; 2];

/// One part as it lies under the lamp.
#[derive(Clone, Debug)]
pub struct Part {
    center_px: Point,
    radius_px: f32,
    /// Of the part against the picture.
    turn: Turn,
    /// The direction to the light, in the picture's axes.
    light: Point,
    /// The same in the part's.
    pub light_on_part: Point,
    gain: f32,
    /// Fall of the light over one radius.
    slope: Point,
    highlight: f32,
    groove_depth: f32,
    tint: f32,
    /// The printer's error.
    print_shift: Point,
    ink_density: f32,
    /// The random values that [`Part::noise`] runs between.
    grain: Box<[u8; (GRAIN * GRAIN) as usize]>,
    belt_shift: Point,
    pub inks: Inks,
    pub missing_hole: Option<usize>,
    /// Where the print did not take.
    pub bare: Option<Blob>,
    /// What is broken out of the edge.
    pub bite: Option<Blob>,
}

/// The colours of the print.
#[derive(Clone, Debug)]
pub struct Inks {
    pub text: Color,
    pub band: Color,
    pub logo: Color,
}

/// A round region with an uneven border.
#[derive(Clone, Debug)]
pub struct Blob {
    pub center: Point,
    pub radius: f32,
    /// Phases of the border's waves.
    waves: [f32; 3],
}

/// Middles of the screw holes.
pub const HOLES: [Point; 3] = [[0.0, -0.66], [0.5716, 0.33], [-0.5716, 0.33]];
/// Outer radius of their countersinks.
pub const SINK: f32 = 0.115;
/// Middle of the data matrix.
pub const CODE: Point = [0.545, -0.315];
pub const LOGO: Point = [-0.572, -0.33];
pub const LOGO_RADIUS: f32 = 0.13;
/// The printed ring on the hub, from radius to radius.
pub const BAND: [f32; 2] = [0.275, 0.335];
/// Radius of the text's middle line; it stands around the foot of the part.
pub const TEXT_RADIUS: f32 = 0.69;

impl Part {
    pub fn draw(width_px: f32, height_px: f32, rng: &mut impl Rng) -> Part {
        let half_px = width_px.min(height_px) / 2.0;
        let mut grain = Box::new([0; (GRAIN * GRAIN) as usize]);
        rng.fill_bytes(&mut *grain);
        let mut about = |middle: f32, by: f32| middle + by * rng.random_range(-1.0..1.0f32);
        let turn = Turn::by(about(0.0, 0.12));
        let light_from = about(-2.25, 0.06);
        let light = [light_from.cos(), light_from.sin()];
        Part {
            center_px: [
                width_px / 2.0 + half_px * about(0.0, 0.025),
                height_px / 2.0 + half_px * about(0.0, 0.025),
            ],
            radius_px: half_px * about(0.875, 0.008),
            turn,
            light,
            light_on_part: turn.back(light),
            gain: about(1.0, 0.05),
            slope: [about(0.0, 0.035), about(-0.02, 0.035)],
            highlight: about(0.22, 0.03),
            groove_depth: about(0.085, 0.02),
            tint: about(0.0, 0.008),
            print_shift: [about(0.0, 0.006), about(0.0, 0.006)],
            ink_density: about(0.9, 0.04),
            belt_shift: [about(0.0, 3.0), about(0.0, 3.0)],
            grain,
            inks: Inks {
                text: [0.09, 0.11, 0.17],
                band: [0.07, 0.25, 0.50],
                logo: [0.80, 0.36, 0.09],
            },
            missing_hole: None,
            bare: None,
            bite: None,
        }
    }

    /// The point of the part that a point of the picture (in pixels) shows.
    pub fn place(&self, [x, y]: Point) -> Point {
        self.turn.back([
            (x - self.center_px[0]) / self.radius_px,
            (y - self.center_px[1]) / self.radius_px,
        ])
    }

    /// One pixel in radii.
    pub fn pixel(&self) -> f32 {
        1.0 / self.radius_px
    }

    /// What the camera sees at a point of the picture, before noise.
    pub fn color(&self, at: Point) -> Color {
        let point = self.place(at);
        let radius = length(point);
        let mut edge = radius - 1.0;
        if let Some(bite) = &self.bite {
            edge = edge.max(-bite.distance(point));
        }
        let inside = cover(edge, self.pixel());
        let mut color = [0.0; 3];
        if inside < 1.0 {
            color = self.belt(at, point);
        }
        if inside > 0.0 {
            color = mix(color, self.metal(point, radius), inside);
        }
        let [x, y] = self.turn.forth(point);
        let light = self.gain * (1.0 + self.slope[0] * x + self.slope[1] * y);
        color.map(|value| value * light)
    }

    fn belt(&self, [x, y]: Point, point: Point) -> Color {
        let [u, v] = [x * self.pixel() + self.belt_shift[0], y * self.pixel() + self.belt_shift[1]];
        let weave = wave(26.0 * u) * wave(26.0 * v);
        let grain =
            self.noise(u * 45.0, v * 45.0, GRAIN) + 0.6 * self.noise(u * 9.0, v * 9.0, GRAIN);
        let [lx, ly] = self.light_on_part;
        let from_shadow = length([point[0] + 0.06 * lx, point[1] + 0.06 * ly]) - 0.98;
        let shadow = 0.5 * (1.0 - from_shadow.max(0.0) / 0.15).max(0.0).powi(2);
        let value = (0.165 + 0.016 * weave + 0.014 * grain) * (1.0 - shadow);
        [value * 0.92, value, value * 1.02]
    }

    fn metal(&self, point: Point, radius: f32) -> Color {
        let pixel = self.pixel();
        let [x, y] = self.turn.forth(point);
        // Turned grooves mirror the lamp in two lobes along its direction.
        let lobe = (x * self.light[0] + y * self.light[1]) / radius.max(pixel);
        let facing = |lobe: f32| 0.50 + 0.22 * lobe;
        let face = || {
            let turns = y.atan2(x) / TAU + 0.5;
            let grooves = 0.6 * self.noise(radius * 105.0, turns * 8.0, 8)
                + 0.4 * self.noise(radius * 130.0 + 300.0, turns * 32.0, 32);
            let turned = (0.47 + self.highlight * lobe.powi(6) + 0.03 * lobe)
                * (1.0 + self.groove_depth * grooves);
            let chamfer = facing(lobe) + 0.02 * grooves;
            let value = blend(chamfer, turned, cover(radius - 0.945, pixel));
            value * (1.0 - 0.5 * band(radius, [0.895, 0.913], pixel))
        };
        let hub = || {
            let blasted = 0.52 + 0.05 * lobe + 0.03 * self.noise(x * 70.0, y * 70.0, GRAIN);
            let value = blend(facing(-lobe), blasted, cover(radius - 0.4, pixel));
            let value = blend(value, facing(-lobe), cover(radius - 0.2, pixel));
            let bore = 0.10 + 0.05 * (1.0 - lobe) * radius / 0.17;
            blend(value, bore, cover(radius - 0.17, pixel))
        };
        let value = match cover(radius - 0.425, pixel) {
            0.0 => face(),
            1.0 => hub(),
            share => blend(face(), hub(), share),
        };
        let mut color = [value * (1.0 + self.tint), value, value * (1.025 - self.tint)];

        color = self.print(color, point, radius);
        for (number, hole) in HOLES.iter().enumerate() {
            let [hx, hy] = [point[0] - hole[0], point[1] - hole[1]];
            if hx.abs().max(hy.abs()) > SINK + pixel || self.missing_hole == Some(number) {
                continue;
            }
            let depth = length([hx, hy]);
            let [lx, ly] = self.light_on_part;
            let wall = -(hx * lx + hy * ly) / depth.max(pixel);
            color = mix(color, [facing(wall) * 0.96; 3], cover(depth - SINK, pixel));
            let bottom = 0.085 + 0.05 * (wall + 1.0) * depth / 0.07;
            color = mix(color, [bottom; 3], cover(depth - 0.07, pixel));
        }
        if let Some(bite) = &self.bite {
            // The fracture is rough and bright.
            let rim = cover(bite.distance(point) - 0.022, pixel);
            let rough = 0.66 + 0.10 * self.noise(x * 60.0, y * 60.0, GRAIN);
            color = mix(color, [rough; 3], 0.9 * rim);
        }
        color
    }

    fn print(&self, metal: Color, point: Point, radius: f32) -> Color {
        let pixel = self.pixel();
        let point = [point[0] + self.print_shift[0], point[1] + self.print_shift[1]];
        let mut takes = self.ink_density;
        if let Some(bare) = &self.bare {
            takes *= 1.0 - cover(bare.distance(point), 2.0 * pixel);
        }
        let ink = |below: Color, ink: Color, how_much: f32| {
            if how_much == 0.0 {
                return below;
            }
            // Metal shines through: the ink is a little brighter where the metal is.
            let wet = ink.map(|value| value * (0.75 + 0.5 * below[1]));
            mix(below, wet, how_much * takes)
        };
        let printed = length(point);
        // Angle from the foot of the part, to the right.
        let angle = || point[0].atan2(point[1]);
        let mut color = metal;
        if radius < 0.42 {
            let ring = band(printed, BAND, pixel);
            if ring > 0.0 {
                let from_gap = (angle().rem_euclid(TAU / 3.0) - PI / 3.0).abs() * printed;
                color = ink(color, self.inks.band, ring * cover(0.06 - from_gap, pixel));
            }
            return color;
        }
        if printed > 0.79 {
            if printed < 0.9 {
                color = ink(color, self.inks.text, scale(angle(), printed, pixel));
            }
            return color;
        }
        if printed > 0.6 && point[1] > 0.4 {
            color = ink(color, self.inks.text, text(angle(), printed, pixel));
            return color;
        }
        color = ink(color, self.inks.text, code(point, pixel));
        let (disc, check) = logo(point, pixel);
        color = ink(color, self.inks.logo, disc);
        color = ink(color, [0.86; 3], check);
        color
    }

    /// Value noise from -1 to 1; `v` returns to its beginning after `period`, a power of two up
    /// to `GRAIN`.
    fn noise(&self, u: f32, v: f32, period: i32) -> f32 {
        let (i, j) = (floor(u), floor(v));
        let (fu, fv) = (u - i as f32, v - j as f32);
        let (fu, fv) = (fu * fu * (3.0 - 2.0 * fu), fv * fv * (3.0 - 2.0 * fv));
        let (j, k) = (j & (period - 1), (j + 1) & (period - 1));
        let corner = |i: i32, j: i32| {
            let at = (i & (GRAIN - 1)) * GRAIN + j;
            f32::from(self.grain[at as usize]) * (2.0 / 255.0) - 1.0
        };
        let top = blend(corner(i, j), corner(i + 1, j), fu);
        let bottom = blend(corner(i, k), corner(i + 1, k), fu);
        blend(top, bottom, fv)
    }
}

impl Blob {
    pub fn draw(center: Point, radius: f32, rng: &mut impl Rng) -> Blob {
        Blob { center, radius, waves: [(); 3].map(|()| rng.random_range(0.0..TAU)) }
    }

    /// Roughly how far outside (negative: inside) the blob a point is.
    pub fn distance(&self, [x, y]: Point) -> f32 {
        let [x, y] = [x - self.center[0], y - self.center[1]];
        let angle = y.atan2(x);
        let [a, b, c] = self.waves;
        let uneven = 0.16 * (2.0 * angle + a).sin()
            + 0.11 * (3.0 * angle + b).sin()
            + 0.07 * (5.0 * angle + c).sin();
        length([x, y]) - self.radius * (1.0 + uneven)
    }

    /// No point of the blob is farther from its middle.
    pub fn reach(&self) -> f32 {
        self.radius * 1.34
    }
}

/// How much of a pixel lies inside (`distance` < 0) of a border.
pub fn cover(distance: f32, pixel: f32) -> f32 {
    // A little wider than the pixel, as a lens draws it.
    (0.5 - distance / (1.5 * pixel)).clamp(0.0, 1.0)
}

pub fn mix(below: Color, above: Color, share: f32) -> Color {
    [0, 1, 2].map(|channel| blend(below[channel], above[channel], share))
}

pub fn length([x, y]: Point) -> f32 {
    (x * x + y * y).sqrt()
}

/// Distance from a point to a stroke.
pub fn to_stroke([x, y]: Point, [[ax, ay], [bx, by]]: [Point; 2]) -> f32 {
    let (sx, sy) = (bx - ax, by - ay);
    let along = (((x - ax) * sx + (y - ay) * sy) / (sx * sx + sy * sy)).clamp(0.0, 1.0);
    length([x - ax - along * sx, y - ay - along * sy])
}

/// The noise repeats after so many steps either way. A table of bytes this large stays in the
/// processor's first cache.
const GRAIN: i32 = 128;

/// The whole number below; `f32::floor` is a call into the C library on plain x86-64.
fn floor(value: f32) -> i32 {
    let whole = value as i32;
    whole - i32::from(value < whole as f32)
}

/// A wave of period 1 from -1 to 1.
fn wave(t: f32) -> f32 {
    let t = 4.0 * (t - floor(t) as f32 - 0.5).abs() - 1.0;
    // A triangle with its tips rounded, near enough a sine.
    t * (1.5 - 0.5 * t * t)
}

fn blend(below: f32, above: f32, share: f32) -> f32 {
    below + (above - below) * share
}

fn band(radius: f32, [from, to]: [f32; 2], pixel: f32) -> f32 {
    cover(from - radius, pixel) * cover(radius - to, pixel)
}

/// The dial's marks: one every 6 degrees, a long one every 30.
fn scale(angle: f32, radius: f32, pixel: f32) -> f32 {
    let mark = floor(angle / (TAU / 60.0) + 0.5);
    let long = mark % 5 == 0;
    let aside = (angle - mark as f32 * (TAU / 60.0)).abs() * radius;
    let (inner, half_width) = if long { (0.80, 0.009) } else { (0.835, 0.005) };
    cover(aside - half_width, pixel) * band(radius, [inner, 0.875], pixel)
}

/// The name around the foot of the part, its feet outward.
fn text(angle: f32, radius: f32, pixel: f32) -> f32 {
    const HEIGHT: f32 = 0.115;
    const PITCH: f32 = 0.112;
    // Strokes on a grid of 4 by 6, y down.
    const LETTERS: [&[[f32; 4]]; 8] = [
        &[[3., 0., 3., 6.]],
        &[[0., 6., 0., 0.], [0., 0., 4., 6.], [4., 6., 4., 0.]],
        &[[4., 0., 0., 0.], [0., 0., 0., 3.], [0., 3., 4., 3.], [4., 3., 4., 6.], [4., 6., 0., 6.]],
        &[[0., 6., 0., 0.], [0., 0., 4., 0.], [4., 0., 4., 3.], [4., 3., 0., 3.]],
        &[[4., 0., 0., 0.], [0., 0., 0., 6.], [0., 6., 4., 6.], [0., 3., 3., 3.]],
        &[[4., 0., 0., 0.], [0., 0., 0., 6.], [0., 6., 4., 6.]],
        &[[0., 0., 4., 0.], [2., 0., 2., 6.]],
        &[
            [0., 0., 0., 6.],
            [0., 0., 2.6, 0.],
            [2.6, 0., 4., 1.6],
            [4., 1.6, 4., 4.4],
            [4., 4.4, 2.6, 6.],
            [2.6, 6., 0., 6.],
        ],
    ];
    let down = radius - TEXT_RADIUS;
    if down.abs() > HEIGHT {
        return 0.0;
    }
    let along = angle * TEXT_RADIUS / PITCH + LETTERS.len() as f32 / 2.0;
    if along < 0.0 || along >= LETTERS.len() as f32 {
        return 0.0;
    }
    let unit = HEIGHT / 6.0;
    let at = [(along.fract() - 0.5) * PITCH / unit + 2.0, down / unit + 3.0];
    let nearest = LETTERS[along as usize]
        .iter()
        .map(|&[ax, ay, bx, by]| to_stroke(at, [[ax, ay], [bx, by]]))
        .fold(f32::INFINITY, f32::min);
    cover(nearest * unit - 0.011, pixel)
}

/// A data matrix of 10 by 10 modules, always the same: the lot.
fn code([x, y]: Point, pixel: f32) -> f32 {
    const MODULE: f32 = 0.0225;
    const ROWS: [u16; 10] = [
        0b10_1010_1010,
        0b11_0110_0101,
        0b10_1101_0010,
        0b11_0011_1011,
        0b10_0110_0100,
        0b11_1100_1101,
        0b10_1011_0110,
        0b11_0101_0011,
        0b10_1001_1100,
        0b11_1111_1111,
    ];
    let [u, v] = [(x - CODE[0]) / MODULE + 5.0, (y - CODE[1]) / MODULE + 5.0];
    if !(-1.0..11.0).contains(&u) || !(-1.0..11.0).contains(&v) {
        return 0.0;
    }
    let dark = |row: i32, column: i32| {
        let row = usize::try_from(row).ok().and_then(|row| ROWS.get(row)).copied().unwrap_or(0);
        f32::from((0..10).contains(&column) && row >> (9 - column) & 1 == 1)
    };
    // Borders between modules are blended over a pixel and a half.
    let soft = 1.5 * pixel / MODULE;
    let (row, column) = (floor(v - 0.5), floor(u - 0.5));
    let share = |from: f32| ((from - 0.5) / soft + 0.5).clamp(0.0, 1.0);
    let (right, below) = (share(u - 0.5 - column as f32), share(v - 0.5 - row as f32));
    blend(
        blend(dark(row, column), dark(row, column + 1), right),
        blend(dark(row + 1, column), dark(row + 1, column + 1), right),
        below,
    )
}

/// The maker's sign: a disc, and the mark on it.
fn logo([x, y]: Point, pixel: f32) -> (f32, f32) {
    let at = [x - LOGO[0], y - LOGO[1]];
    let disc = cover(length(at) - LOGO_RADIUS, pixel);
    if disc == 0.0 {
        return (0.0, 0.0);
    }
    let mark = to_stroke(at, [[-0.06, 0.0], [-0.018, 0.045]])
        .min(to_stroke(at, [[-0.018, 0.045], [0.062, -0.05]]));
    (disc, cover(mark - 0.018, pixel))
}

/// A turn of the part, to the right as the camera sees it.
#[derive(Clone, Copy, Debug)]
struct Turn {
    sin: f32,
    cos: f32,
}

impl Turn {
    fn by(radians: f32) -> Turn {
        Turn { sin: radians.sin(), cos: radians.cos() }
    }

    /// From the part's axes to the picture's.
    fn forth(self, [x, y]: Point) -> Point {
        [x * self.cos - y * self.sin, x * self.sin + y * self.cos]
    }

    /// From the picture's axes to the part's.
    fn back(self, [x, y]: Point) -> Point {
        [x * self.cos + y * self.sin, y * self.cos - x * self.sin]
    }
}
