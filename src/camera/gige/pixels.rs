//! Makes a picture of a frame's bytes, by the Pixel Format Naming Convention.

use image::{GrayImage, RgbImage};

use crate::frame::Image;

/// The formats that are understood. Everything is reduced to 8 bits a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Mono8,
    /// `bits` of each 16, the low ones, little endian.
    Mono {
        bits: u32,
    },
    Rgb8,
    Bgr8,
    /// One colour a pixel; where the red one of each 2×2 is.
    Bayer {
        red: (usize, usize),
    },
}

/// The names of the convention and those before it, with the codes that frames carry.
const FORMATS: [(&str, u32, Format); 13] = [
    ("Mono8", 0x0108_0001, Format::Mono8),
    ("Mono10", 0x0110_0003, Format::Mono { bits: 10 }),
    ("Mono12", 0x0110_0005, Format::Mono { bits: 12 }),
    ("Mono14", 0x0110_0025, Format::Mono { bits: 14 }),
    ("Mono16", 0x0110_0007, Format::Mono { bits: 16 }),
    ("RGB8", 0x0218_0014, Format::Rgb8),
    ("RGB8Packed", 0x0218_0014, Format::Rgb8),
    ("BGR8", 0x0218_0015, Format::Bgr8),
    ("BGR8Packed", 0x0218_0015, Format::Bgr8),
    ("BayerGR8", 0x0108_0008, Format::Bayer { red: (1, 0) }),
    ("BayerRG8", 0x0108_0009, Format::Bayer { red: (0, 0) }),
    ("BayerGB8", 0x0108_000a, Format::Bayer { red: (0, 1) }),
    ("BayerBG8", 0x0108_000b, Format::Bayer { red: (1, 1) }),
];

impl Format {
    /// By the name of the feature `PixelFormat`.
    pub fn named(name: &str) -> Result<Format, String> {
        FORMATS.iter().find(|known| known.0 == name).map(|known| known.2).ok_or_else(|| {
            let names: Vec<_> = FORMATS.iter().map(|known| known.0).collect();
            format!(
                "PixelFormat = {name:?} is not understood; set one of {} in features",
                names.join(", ")
            )
        })
    }

    pub fn name(self) -> &'static str {
        let known = FORMATS.iter().find(|known| known.2 == self);
        known.expect("FORMATS has every format").0
    }

    fn bytes_per_pixel(self) -> usize {
        match self {
            Format::Mono8 | Format::Bayer { .. } => 1,
            Format::Mono { .. } => 2,
            Format::Rgb8 | Format::Bgr8 => 3,
        }
    }

    fn is_coded(self, code: u32) -> bool {
        FORMATS.iter().any(|known| known.1 == code && known.2 == self)
    }
}

/// How a frame's bytes lie.
pub struct Layout {
    pub format: Format,
    /// The code that the frame itself carries.
    pub code: u32,
    pub width: u32,
    pub height: u32,
    /// Bytes after each row.
    pub padding: usize,
}

/// The picture. What follows the rows in `bytes` is left aside; a frame with fewer is none.
pub fn picture(layout: &Layout, bytes: &[u8]) -> Result<Image, String> {
    let Layout { format, code, width, height, padding } = *layout;
    if !format.is_coded(code) {
        return Err(format!("it came in the pixel format {code:#010x}, not in {}", format.name()));
    }
    let (columns, rows) = (width as usize, height as usize);
    if columns == 0 || rows == 0 {
        return Err(format!("it has no pixels: {width}×{height}"));
    }
    let row = columns * format.bytes_per_pixel();
    let stride = row + padding;
    // The last row's padding may be left away.
    if bytes.len() < stride * (rows - 1) + row {
        return Err(format!("only {} of its {height} rows came", bytes.len() / stride));
    }
    let lines = bytes.chunks(stride).take(rows).map(|line| &line[..row]);
    let samples = match format {
        Format::Mono8 | Format::Rgb8 if padding == 0 => bytes[..row * rows].to_vec(),
        Format::Mono8 | Format::Rgb8 => lines.flatten().copied().collect(),
        Format::Bgr8 => {
            let mut samples = Vec::with_capacity(row * rows);
            lines.for_each(|line| {
                samples.extend(line.as_chunks().0.iter().flat_map(|&[b, g, r]| [r, g, b]));
            });
            samples
        }
        Format::Mono { bits } => upper_eight(lines, bits, columns * rows)?,
        Format::Bayer { red } => {
            if columns < 2 || rows < 2 {
                return Err(format!("{width}×{height} has no 2×2 of a Bayer pattern"));
            }
            demosaiced(&lines.collect::<Vec<_>>(), red)
        }
    };
    match format {
        Format::Mono8 | Format::Mono { .. } => {
            GrayImage::from_raw(width, height, samples).map(Image::Gray)
        }
        _ => RgbImage::from_raw(width, height, samples).map(Image::Rgb),
    }
    .ok_or_else(|| format!("{width}×{height} pixels don't come out of its bytes"))
}

fn upper_eight<'a>(
    lines: impl Iterator<Item = &'a [u8]>,
    bits: u32,
    pixels: usize,
) -> Result<Vec<u8>, String> {
    let mut samples = Vec::with_capacity(pixels);
    let mut seen = 0;
    for line in lines {
        samples.extend(line.as_chunks().0.iter().map(|&bytes| {
            let sample = u16::from_le_bytes(bytes);
            seen |= sample;
            (sample >> (bits - 8)) as u8
        }));
    }
    let used = u16::BITS - seen.leading_zeros();
    if used > bits {
        return Err(format!("a sample has {used} bits, its pixel format {bits}"));
    }
    Ok(samples)
}

/// Each missing colour is the mean of the nearest pixels that have it (bilinear). At the edge the
/// picture goes on mirrored about its last row or column, which keeps the pattern.
fn demosaiced(lines: &[&[u8]], (red_x, red_y): (usize, usize)) -> Vec<u8> {
    let (columns, rows) = (lines[0].len(), lines.len());
    let mirrored = |at: usize, end: usize| {
        (if at == 0 { 1 } else { at - 1 }, if at + 1 == end { end - 2 } else { at + 1 })
    };
    let mut samples = vec![0; 3 * columns * rows];
    for (y, out) in samples.chunks_exact_mut(3 * columns).enumerate() {
        let (above, below) = mirrored(y, rows);
        let (up, mid, down) = (lines[above], lines[y], lines[below]);
        let red_row = y % 2 == red_y;
        for (x, rgb) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (l, r) = mirrored(x, columns);
            let mean2 = |a: u8, b: u8| (u16::from(a) + u16::from(b)).div_ceil(2) as u8;
            let mean4 = |of: [u8; 4]| ((of.map(u16::from).iter().sum::<u16>() + 2) / 4) as u8;
            // Red and blue sites share their diagonals, so what is not one of them is green.
            *rgb = if (x % 2 == red_x) == red_row {
                let green = mean4([up[x], down[x], mid[l], mid[r]]);
                let other = mean4([up[l], up[r], down[l], down[r]]);
                if red_row { [mid[x], green, other] } else { [other, green, mid[x]] }
            } else {
                let (beside, over) = (mean2(mid[l], mid[r]), mean2(up[x], down[x]));
                if red_row { [beside, mid[x], over] } else { [over, mid[x], beside] }
            };
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(name: &str, width: u32, height: u32) -> Layout {
        let &(_, code, format) = FORMATS.iter().find(|known| known.0 == name).unwrap();
        Layout { format, code, width, height, padding: 0 }
    }

    fn gray(image: &Image) -> &[u8] {
        let Image::Gray(image) = image else { panic!("{image:?} is not grey") };
        image.as_raw()
    }

    fn rgb(image: &Image) -> Vec<[u8; 3]> {
        let Image::Rgb(image) = image else { panic!("{image:?} has no colour") };
        image.pixels().map(|pixel| pixel.0).collect()
    }

    #[test]
    fn plain_formats_come_out_as_they_are_and_what_follows_is_left() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(gray(&picture(&layout("Mono8", 3, 2), &bytes).unwrap()), [1, 2, 3, 4, 5, 6]);
        let image = picture(&layout("RGB8", 2, 1), &bytes).unwrap();
        assert_eq!(rgb(&image), [[1, 2, 3], [4, 5, 6]]);
        let image = picture(&layout("BGR8Packed", 2, 1), &bytes).unwrap();
        assert_eq!(rgb(&image), [[3, 2, 1], [6, 5, 4]]);
    }

    #[test]
    fn padding_after_rows_is_skipped_and_may_miss_after_the_last() {
        let padded = Layout { padding: 2, ..layout("Mono8", 2, 2) };
        for bytes in [&[1, 2, 9, 9, 3, 4, 9, 9][..], &[1, 2, 9, 9, 3, 4]] {
            assert_eq!(gray(&picture(&padded, bytes).unwrap()), [1, 2, 3, 4]);
        }
        let padded = Layout { padding: 1, ..layout("BGR8", 1, 2) };
        let image = picture(&padded, &[1, 2, 3, 9, 4, 5, 6]).unwrap();
        assert_eq!(rgb(&image), [[3, 2, 1], [6, 5, 4]]);
    }

    #[test]
    fn deep_samples_keep_their_upper_eight_bits() {
        for (name, bits) in [("Mono10", 10), ("Mono12", 12), ("Mono14", 14), ("Mono16", 16)] {
            let full = ((1_u32 << bits) - 1) as u16;
            let samples = [0, full, full / 2 + 1];
            let bytes: Vec<u8> = samples.into_iter().flat_map(u16::to_le_bytes).collect();
            assert_eq!(gray(&picture(&layout(name, 3, 1), &bytes).unwrap()), [0, 255, 128]);
        }
        let error = picture(&layout("Mono10", 1, 1), &4095_u16.to_le_bytes()).unwrap_err();
        assert_eq!(error, "a sample has 12 bits, its pixel format 10");
    }

    #[test]
    fn short_frames_and_other_formats_are_refused() {
        let error = picture(&layout("Mono8", 4, 3), &[0; 11]).unwrap_err();
        assert_eq!(error, "only 2 of its 3 rows came");
        let other = Layout { code: 0x0108_0009, ..layout("Mono8", 1, 1) };
        let error = picture(&other, &[0]).unwrap_err();
        assert_eq!(error, "it came in the pixel format 0x01080009, not in Mono8");
        assert!(picture(&layout("Mono8", 0, 4), &[0]).unwrap_err().contains("0×4"));
        assert!(picture(&layout("BayerRG8", 1, 2), &[0; 2]).unwrap_err().contains("2×2"));
        let error = Format::named("YUV422_8").unwrap_err();
        assert!(error.contains("\"YUV422_8\"") && error.contains("Mono8, Mono10"), "{error}");
    }

    /// What a sensor behind a filter sees of a picture in one colour is that colour everywhere.
    #[test]
    fn one_colour_comes_out_of_all_four_patterns_to_the_edges() {
        let colour = [200, 100, 50];
        for (name, first_row) in [
            ("BayerRG8", ["RG", "GB"]),
            ("BayerGR8", ["GR", "BG"]),
            ("BayerGB8", ["GB", "RG"]),
            ("BayerBG8", ["BG", "GR"]),
        ] {
            for (width, height) in [(2, 2), (5, 3), (4, 6)] {
                let sites = (0..height).flat_map(|y: usize| {
                    let row = first_row[y % 2].as_bytes();
                    (0..width).map(move |x: usize| match row[x % 2] {
                        b'R' => colour[0],
                        b'G' => colour[1],
                        _ => colour[2],
                    })
                });
                let bytes: Vec<u8> = sites.collect();
                let layout = layout(name, width as u32, height as u32);
                let image = picture(&layout, &bytes).unwrap();
                assert!(rgb(&image).iter().all(|&pixel| pixel == colour), "{name} {image:?}");
            }
        }
    }

    #[test]
    fn missing_colours_are_the_mean_of_their_neighbours() {
        #[rustfmt::skip]
        let bytes = [
            10, 20, 30, 40,
            50, 60, 70, 80,
            90, 100, 110, 120,
        ];
        let image = picture(&layout("BayerRG8", 4, 3), &bytes).unwrap();
        let pixels = rgb(&image);
        // (1, 1) is blue: red from the corners, green from the sides.
        assert_eq!(pixels[5], [60, 60, 60]);
        // (2, 1) is green in a blue row: blue from the sides, red from above and below.
        assert_eq!(pixels[6], [70, 70, 70]);
        // (1, 0) is green in a red row at the edge: both rows beside it are row 1.
        assert_eq!(pixels[1], [20, 20, 60]);
    }
}
