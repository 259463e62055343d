//! Brightness, hue and saturation by way of colour spaces of 8 bits a channel, as OpenCV defines them
//! ("Color conversions" of its documentation): what rounding to 8 bits loses is part of the operation.
//!
//! Y'CrCb and YUV are computed in whole numbers of 1/2^14, HSV from RGB in 1/2^12, rounded half up; the
//! others in f32, rounded half to even: the numbers of OpenCV's plain paths (5.0 was tried). Where its
//! vector path differs from these it is by a level: HSV to RGB is cut off there, not rounded. Lab and
//! Luv go through coarser tables there, a level off in a channel of theirs, which becomes a few levels
//! of the weakest primary of strong colours, and more where lowered brightness leaves a colour that no
//! light has.

use std::sync::LazyLock;

use image::RgbImage;

use super::levels::Table;

/// A colour space with a channel of brightness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    YCrCb,
    Hsv,
    Hls,
    Lab,
    Luv,
    Yuv,
}

impl Space {
    pub const ALL: [Space; 6] =
        [Space::YCrCb, Space::Hsv, Space::Hls, Space::Lab, Space::Luv, Space::Yuv];

    /// Which channel is the brightness.
    fn brightness(self) -> usize {
        match self {
            Space::YCrCb | Space::Lab | Space::Luv | Space::Yuv => 0,
            Space::Hls => 1,
            Space::Hsv => 2,
        }
    }

    fn of_rgb(self, rgb: [u8; 3]) -> [u8; 3] {
        match self {
            Space::YCrCb => Y_CR_CB.of_rgb(rgb),
            Space::Hsv => hsv_of_rgb(rgb),
            Space::Hls => hls_of_rgb(rgb),
            Space::Lab => lab_of_rgb(rgb),
            Space::Luv => luv_of_rgb(rgb),
            Space::Yuv => {
                let [y, v, u] = YUV.of_rgb(rgb);
                [y, u, v]
            }
        }
    }

    fn to_rgb(self, levels: [u8; 3]) -> [u8; 3] {
        match self {
            Space::YCrCb => Y_CR_CB.to_rgb(levels),
            Space::Hsv => rgb_of_hsv(levels),
            Space::Hls => rgb_of_hls(levels),
            Space::Lab => rgb_of_lab(levels),
            Space::Luv => rgb_of_luv(levels),
            Space::Yuv => YUV.to_rgb([levels[0], levels[2], levels[1]]),
        }
    }
}

/// The brightness channel of `space` goes through the table.
pub fn change_brightness(picture: &RgbImage, space: Space, table: &Table) -> RgbImage {
    let mut out = picture.clone();
    for pixel in out.pixels_mut() {
        let mut levels = space.of_rgb(pixel.0);
        let brightness = &mut levels[space.brightness()];
        *brightness = table[usize::from(*brightness)];
        pixel.0 = space.to_rgb(levels);
    }
    out
}

/// Hue moves by `hue`/255 of the circle (cut to whole steps of 2°), saturation by so many levels.
pub fn shift_hue_saturation(picture: &RgbImage, hue: i16, saturation: i16) -> RgbImage {
    let hue = i32::from(hue) * HUES / 255;
    let mut out = picture.clone();
    for pixel in out.pixels_mut() {
        let [h, s, v] = hsv_of_rgb(pixel.0);
        let h = (i32::from(h) + hue).rem_euclid(HUES) as u8;
        let s = (i32::from(s) + i32::from(saturation)).clamp(0, 255) as u8;
        pixel.0 = rgb_of_hsv([h, s, v]);
    }
    out
}

/// Steps of the circle of hues in 8 bits.
const HUES: i32 = 180;

/// Luma and two differences from it, red's first; in 1/2^14.
struct Differences {
    red: i32,
    blue: i32,
    red_back: i32,
    green_back: [i32; 2],
    blue_back: i32,
}

/// 0.713 and 0.564; back 1.403, −0.714, −0.344, 1.773.
const Y_CR_CB: Differences = Differences {
    red: 11682,
    blue: 9241,
    red_back: 22987,
    green_back: [-11698, -5636],
    blue_back: 29049,
};

/// 0.877 and 0.492; back 1.140, −0.581, −0.395, 2.032.
const YUV: Differences = Differences {
    red: 14369,
    blue: 8061,
    red_back: 18678,
    green_back: [-9519, -6472],
    blue_back: 33292,
};

impl Differences {
    fn of_rgb(&self, rgb: [u8; 3]) -> [u8; 3] {
        let [r, g, b] = rgb.map(i32::from);
        let y = whole(4899 * r + 9617 * g + 1868 * b); // 0.299, 0.587, 0.114
        let middle = 128 << 14;
        [y, whole((r - y) * self.red + middle), whole((b - y) * self.blue + middle)].map(held)
    }

    fn to_rgb(&self, levels: [u8; 3]) -> [u8; 3] {
        let [y, red, blue] = levels.map(i32::from);
        let (red, blue) = (red - 128, blue - 128);
        [
            y + whole(red * self.red_back),
            y + whole(red * self.green_back[0] + blue * self.green_back[1]),
            y + whole(blue * self.blue_back),
        ]
        .map(held)
    }
}

/// From 1/2^14, halves up.
fn whole(fixed: i32) -> i32 {
    (fixed + (1 << 13)) >> 14
}

fn held(level: i32) -> u8 {
    level.clamp(0, 255) as u8
}

/// To the nearest level, halves to even.
fn nearest(level: f32) -> u8 {
    level.round_ties_even() as u8
}

fn hsv_of_rgb(rgb: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = rgb.map(i32::from);
    let most = r.max(g).max(b);
    let spread = most - r.min(g).min(b);
    // Both divisions as multiplications by rounded reciprocals in 1/2^12.
    let reciprocal = |numerator: i32, of: i32| -> i32 {
        if of == 0 {
            0
        } else {
            (f64::from(numerator << 12) / f64::from(of)).round_ties_even() as i32
        }
    };
    let whole = |fixed: i32| (fixed + (1 << 11)) >> 12;
    let saturation = whole(spread * reciprocal(255, most));
    let sixths = if most == r {
        g - b
    } else if most == g {
        b - r + 2 * spread
    } else {
        r - g + 4 * spread
    };
    let hue = whole(sixths * reciprocal(HUES, 6 * spread));
    [held(if hue < 0 { hue + HUES } else { hue }), held(saturation), held(most)]
}

fn rgb_of_hsv(levels: [u8; 3]) -> [u8; 3] {
    let [s, v] = [levels[1], levels[2]].map(|level| f32::from(level) / 255.0);
    let (sector, within) = sector(levels[0]);
    let least = v * (1.0 - s);
    around_the_circle(sector, v, least, v * (1.0 - s * within), v * (1.0 - s * (1.0 - within)))
}

fn hls_of_rgb(rgb: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = rgb.map(|level| f32::from(level) * (1.0 / 255.0));
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let (sum, spread) = (most + least, most - least);
    let lightness = sum / 2.0;
    if spread <= f32::EPSILON {
        return [0, nearest(lightness * 255.0), 0];
    }
    let saturation = if lightness < 0.5 { spread / sum } else { spread / (2.0 - most - least) };
    let degrees = if most == r {
        (g - b) * (60.0 / spread)
    } else if most == g {
        (b - r) * (60.0 / spread) + 120.0
    } else {
        (r - g) * (60.0 / spread) + 240.0
    };
    let degrees = if degrees < 0.0 { degrees + 360.0 } else { degrees };
    [nearest(degrees * 0.5), nearest(lightness * 255.0), nearest(saturation * 255.0)]
}

fn rgb_of_hls(levels: [u8; 3]) -> [u8; 3] {
    let [l, s] = [levels[1], levels[2]].map(|level| f32::from(level) / 255.0);
    let most = if l <= 0.5 { l * (1.0 + s) } else { l + s - l * s };
    let least = 2.0 * l - most;
    let (sector, within) = sector(levels[0]);
    let rising = least + (most - least) * within;
    let falling = least + (most - least) * (1.0 - within);
    around_the_circle(sector, most, least, falling, rising)
}

/// Which sixth of the circle, and how far into it, 0 to 1.
fn sector(hue: u8) -> (usize, f32) {
    let sixths = f32::from(hue) * (6.0 / HUES as f32);
    let sector = sixths.floor();
    (sector as usize % 6, sixths - sector)
}

/// From red over yellow, green, cyan, blue and magenta, and rounded to levels.
fn around_the_circle(sector: usize, most: f32, least: f32, falling: f32, rising: f32) -> [u8; 3] {
    let rgb = match sector {
        0 => [most, rising, least],
        1 => [falling, most, least],
        2 => [least, most, rising],
        3 => [least, falling, most],
        4 => [rising, least, most],
        _ => [most, least, falling],
    };
    rgb.map(|level| nearest(level * 255.0))
}

/// XYZ of linear RGB with sRGB's primaries and the white of D65.
const XYZ_OF_RGB: [[f32; 3]; 3] = [
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
];
const RGB_OF_XYZ: [[f32; 3]; 3] = [
    [3.240479, -1.53715, -0.498535],
    [-0.969256, 1.875991, 0.041556],
    [0.055648, -0.204043, 1.057311],
];
/// X and Z of white; its Y is 1.
const WHITE: (f32, f32) = (0.950456, 1.088754);
/// u' and v' of white.
const WHITE_UV: (f32, f32) = (0.197_939_43, 0.468_310_96);
/// Y below which lightness is a straight line, and its slope.
const DARK: f32 = 0.008856;
const DARK_SLOPE: f32 = 903.3;
/// Lab's own straight line below [`DARK`].
const LAB_SLOPE: f32 = 7.787;
const LAB_OFFSET: f32 = 16.0 / 116.0;

/// sRGB's 256 levels as parts of the brightest, in light.
static LINEAR: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|level| linear(level as f64) as f32));

/// The light half way between a level and the next.
static HALF_WAY: LazyLock<[f32; 255]> =
    LazyLock::new(|| std::array::from_fn(|level| linear(level as f64 + 0.5) as f32));

fn linear(level: f64) -> f64 {
    let level = level / 255.0;
    if level <= 0.04045 { level / 12.92 } else { ((level + 0.055) / 1.055).powf(2.4) }
}

fn xyz_of_rgb(rgb: [u8; 3]) -> [f32; 3] {
    times(&XYZ_OF_RGB, rgb.map(|level| LINEAR[usize::from(level)]))
}

fn rgb_of_xyz(xyz: [f32; 3]) -> [u8; 3] {
    times(&RGB_OF_XYZ, xyz).map(|light| HALF_WAY.partition_point(|&half| half < light) as u8)
}

fn times(matrix: &[[f32; 3]; 3], [a, b, c]: [f32; 3]) -> [f32; 3] {
    matrix.map(|row| row[0] * a + row[1] * b + row[2] * c)
}

/// L* of Y, 0 to 100.
fn lightness(y: f32) -> f32 {
    if y > DARK { 116.0 * y.cbrt() - 16.0 } else { DARK_SLOPE * y }
}

fn lab_of_rgb(rgb: [u8; 3]) -> [u8; 3] {
    let [x, y, z] = xyz_of_rgb(rgb);
    let [fx, fy, fz] = [x / WHITE.0, y, z / WHITE.1]
        .map(|part| if part > DARK { part.cbrt() } else { LAB_SLOPE * part + LAB_OFFSET });
    [lightness(y) * 2.55, 500.0 * (fx - fy) + 128.0, 200.0 * (fy - fz) + 128.0].map(nearest)
}

fn rgb_of_lab(levels: [u8; 3]) -> [u8; 3] {
    let [l, a, b] = levels.map(f32::from);
    let (l, a, b) = (l / 2.55, a - 128.0, b - 128.0);
    let (y, fy) = if l <= DARK * DARK_SLOPE {
        let y = l / DARK_SLOPE;
        (y, LAB_SLOPE * y + LAB_OFFSET)
    } else {
        let fy = (l + 16.0) / 116.0;
        (fy * fy * fy, fy)
    };
    let [x, z] = [fy + a / 500.0, fy - b / 200.0].map(|f| {
        if f <= LAB_SLOPE * DARK + LAB_OFFSET { (f - LAB_OFFSET) / LAB_SLOPE } else { f * f * f }
    });
    rgb_of_xyz([x * WHITE.0, y, z * WHITE.1])
}

fn luv_of_rgb(rgb: [u8; 3]) -> [u8; 3] {
    let [x, y, z] = xyz_of_rgb(rgb);
    let l = lightness(y);
    // Black has no colour.
    let sum = (x + 15.0 * y + 3.0 * z).max(f32::EPSILON);
    let u = 13.0 * l * (4.0 * x / sum - WHITE_UV.0);
    let v = 13.0 * l * (9.0 * y / sum - WHITE_UV.1);
    [l * 2.55, (u + 134.0) * (255.0 / 354.0), (v + 140.0) * (255.0 / 262.0)].map(nearest)
}

fn rgb_of_luv(levels: [u8; 3]) -> [u8; 3] {
    let [l, u, v] = levels.map(f32::from);
    let (l, u, v) = (l / 2.55, u * (354.0 / 255.0) - 134.0, v * (262.0 / 255.0) - 140.0);
    let y = if l <= DARK * DARK_SLOPE { l / DARK_SLOPE } else { ((l + 16.0) / 116.0).powi(3) };
    // u' and v' times 13 L; next to black, v' may be next to nothing.
    let (u, v) = (u + 13.0 * WHITE_UV.0 * l, v + 13.0 * WHITE_UV.1 * l);
    let quarter = (0.25 / v).clamp(-0.25, 0.25);
    let x = 9.0 * y * u * quarter;
    let z = y * ((156.0 * l - 3.0 * u) * quarter - 5.0);
    // A dark place with much colour would need negative light, or more of it than there is.
    rgb_of_xyz([x.clamp(0.0, 2.0), y, z.clamp(0.0, 2.0)])
}
