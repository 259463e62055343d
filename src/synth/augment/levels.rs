//! Operations that look at levels only, channel by channel, and the sharpness of Pillow.

use image::RgbImage;

/// What each of the 256 levels becomes.
pub type Table = [u8; 256];

pub fn through_tables(picture: &RgbImage, tables: &[Table; 3]) -> RgbImage {
    let mut out = picture.clone();
    for pixel in out.pixels_mut() {
        for (level, table) in pixel.0.iter_mut().zip(tables) {
            *level = table[usize::from(*level)];
        }
    }
    out
}

/// The same for all channels.
pub fn map(picture: &RgbImage, level: impl Fn(u8) -> u8) -> RgbImage {
    through_tables(picture, &[table(|from| level(from as u8)); 3])
}

/// 255 · (level/255)^exponent, cut to whole levels.
pub fn gamma(exponent: f64) -> Table {
    table(|level| (255.0 * (level as f64 / 255.0).powf(exponent)) as u8)
}

/// Times `factor` and plus `offset`, each held to 0..=255; fractions are cut off after the factor.
pub fn brightness(factor: f64, offset: i16, factor_first: bool) -> Table {
    let times = |level: u8| (f64::from(level) * factor) as u8;
    let plus = |level: u8| (i16::from(level) + offset).clamp(0, 255) as u8;
    table(|level| {
        let level = level as u8;
        if factor_first { plus(times(level)) } else { times(plus(level)) }
    })
}

/// Pillow's `ImageOps.autocontrast(cutoff=…)`: the lightest and darkest pixels are left out of
/// account, what is left is spread over all levels.
pub fn autocontrast(picture: &RgbImage, cutoff_percent: u8) -> RgbImage {
    let pixels = picture.pixels().len() as u64;
    let cut = pixels * u64::from(cutoff_percent) / 100;
    through_tables(
        picture,
        &histograms(picture).map(|mut histogram| {
            leave_out(histogram.iter_mut(), cut);
            leave_out(histogram.iter_mut().rev(), cut);
            let darkest = histogram.iter().position(|&count| count > 0);
            let lightest = histogram.iter().rposition(|&count| count > 0);
            match (darkest, lightest) {
                (Some(darkest), Some(lightest)) if darkest < lightest => {
                    let scale = 255.0 / (lightest - darkest) as f64;
                    let offset = -(darkest as f64) * scale;
                    table(|level| (level as f64 * scale + offset) as u8)
                }
                _ => table(|level| level as u8),
            }
        }),
    )
}

/// Pillow's `ImageOps.equalize`.
pub fn equalize(picture: &RgbImage) -> RgbImage {
    through_tables(
        picture,
        &histograms(picture).map(|histogram| {
            let pixels: u64 = histogram.iter().sum();
            let lightest = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
            let step = (pixels - lightest) / 255;
            if step == 0 {
                return table(|level| level as u8);
            }
            let mut before = step / 2;
            let mut equalized = [0; 256];
            for (level, count) in equalized.iter_mut().zip(histogram) {
                *level = (before / step).min(255) as u8;
                before += count;
            }
            equalized
        }),
    )
}

/// Pillow's `ImageEnhance.Sharpness`: between the picture smoothed (1 1 1, 1 5 1, 1 1 1; the rim
/// stays) at 0 and the picture at 1, and beyond it.
pub fn sharpen(picture: &RgbImage, factor: f64) -> RgbImage {
    let factor = factor as f32;
    let mut out = smooth(picture);
    for (level, &sharp) in out.iter_mut().zip(picture.as_raw()) {
        let (from, to) = (f32::from(*level), f32::from(sharp));
        *level = (from + factor * (to - from)) as u8;
    }
    out
}

fn smooth(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let mut out = picture.clone();
    let row = 3 * width as usize;
    let samples = picture.as_raw();
    if width < 3 || height < 3 {
        return out;
    }
    let target: &mut [u8] = &mut out;
    for y in 1..height as usize - 1 {
        for x in 3..row - 3 {
            let at = y * row + x;
            let sum = |middle: usize| -> u32 {
                [middle - 3, middle, middle + 3].map(|at| u32::from(samples[at])).iter().sum()
            };
            let sum = sum(at - row) + sum(at) + sum(at + row) + 4 * u32::from(samples[at]);
            // To the nearest level; thirteenths are never half way.
            target[at] = ((2 * sum + 13) / 26) as u8;
        }
    }
    out
}

fn table(level: impl FnMut(usize) -> u8) -> Table {
    std::array::from_fn(level)
}

/// How many pixels have each level, by channel.
fn histograms(picture: &RgbImage) -> [[u64; 256]; 3] {
    let mut histograms = [[0; 256]; 3];
    for pixel in picture.pixels() {
        for (histogram, level) in histograms.iter_mut().zip(pixel.0) {
            histogram[usize::from(level)] += 1;
        }
    }
    histograms
}

/// Takes away the first `cut` pixels.
fn leave_out<'a>(counts: impl Iterator<Item = &'a mut u64>, mut cut: u64) {
    for count in counts {
        let taken = cut.min(*count);
        *count -= taken;
        cut -= taken;
    }
}
