//! Small text on pictures, in Noto Sans Mono.

use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// A size and weight of lettering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// 16 pixels high.
    Plain,
    /// 16 pixels high, bold.
    Strong,
    /// 20 pixels high, bold.
    Title,
}

impl Style {
    /// Height of a line, in pixels.
    pub fn height_px(self) -> u32 {
        self.size().val() as u32
    }

    /// Width of `text`, in pixels; every letter is as wide as every other.
    pub fn width_px(self, text: &str) -> u32 {
        (text.chars().count() * get_raster_width(self.weight(), self.size())) as u32
    }

    /// `text`, cut in its middle to fit into `width_px`.
    pub fn fit(self, text: &str, width_px: u32) -> String {
        let room = width_px as usize / get_raster_width(self.weight(), self.size());
        let letters: Vec<char> = text.chars().collect();
        if letters.len() <= room {
            return text.to_owned();
        }
        let kept = room.saturating_sub(2);
        let (head, tail) = (kept / 2, kept - kept / 2);
        letters[..head].iter().chain(&['.', '.']).chain(&letters[letters.len() - tail..]).collect()
    }

    fn size(self) -> RasterHeight {
        match self {
            Style::Plain | Style::Strong => RasterHeight::Size16,
            Style::Title => RasterHeight::Size20,
        }
    }

    fn weight(self) -> FontWeight {
        match self {
            Style::Plain => FontWeight::Regular,
            Style::Strong | Style::Title => FontWeight::Bold,
        }
    }
}

/// Writes one line with its upper left corner at `x`, `y`. Letters outside of ASCII become `?`;
/// what lies beyond the picture is left out.
pub fn write(picture: &mut RgbImage, x: u32, y: u32, text: &str, style: Style, colour: Rgb<u8>) {
    let mut left = x;
    for letter in text.chars() {
        let raster = get_raster(letter, style.weight(), style.size())
            .or_else(|| get_raster('?', style.weight(), style.size()))
            .expect("the font has all of ASCII");
        for (row, y) in raster.rows().zip(y..) {
            for (&ink, x) in row.iter().zip(left..) {
                if let Some(pixel) = picture.get_pixel_mut_checked(x, y) {
                    for (channel, colour) in pixel.0.iter_mut().zip(colour.0) {
                        *channel = blend(*channel, colour, ink);
                    }
                }
            }
        }
        left += raster.width() as u32;
    }
}

fn blend(below: u8, above: u8, share: u8) -> u8 {
    let share = u32::from(share);
    ((u32::from(below) * (255 - share) + u32::from(above) * share + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_leave_ink_where_they_are_written() {
        let mut picture = RgbImage::new(60, 20);
        write(&mut picture, 20, 2, "H", Style::Plain, Rgb([255; 3]));
        let inked = |from: u32, to: u32| {
            (from..to).any(|x| (0..20).any(|y| picture.get_pixel(x, y).0 != [0; 3]))
        };
        assert!(inked(20, 20 + Style::Plain.width_px("H")));
        assert!(!inked(0, 20) && !inked(20 + Style::Plain.width_px("H"), 60));
    }

    #[test]
    fn text_beyond_the_edge_and_strange_letters_do_no_harm() {
        let mut picture = RgbImage::new(9, 9);
        write(&mut picture, 5, 5, "Grüße 部品", Style::Title, Rgb([255; 3]));
    }

    #[test]
    fn long_names_keep_head_and_tail() {
        let width = Style::Plain.width_px("0123456789");
        assert_eq!(Style::Plain.fit("0123456789", width), "0123456789");
        assert_eq!(Style::Plain.fit("contamination/0042.png", width), "cont...png");
        assert_eq!(Style::Plain.fit("abc", 0), "..");
    }
}
