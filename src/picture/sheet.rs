//! Contact sheets: pairs of pictures with a line of words each, in sections under a title.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::lettering::{self, Style};

/// A sheet to be drawn.
pub struct Sheet {
    pub title: String,
    /// What left and right show; in the title's corner.
    pub legend: String,
    /// Tiles side by side.
    pub columns: u32,
    pub sections: Vec<Section>,
}

/// Tiles under a heading.
pub struct Section {
    pub heading: String,
    pub tiles: Vec<Tile>,
}

/// Two pictures side by side, none larger than [`SIDE`], over a name and a word.
pub struct Tile {
    pub left: RgbImage,
    pub right: RgbImage,
    pub name: String,
    pub word: String,
    pub colour: Rgb<u8>,
}

/// The most that a picture of a tile measures.
pub const SIDE: u32 = 224;

pub const INK: Rgb<u8> = Rgb([236, 238, 242]);
pub const RIGHT: Rgb<u8> = Rgb([112, 214, 140]);
pub const WRONG: Rgb<u8> = Rgb([255, 107, 107]);
/// The outline of what is anomalous.
pub const TRUTH: Rgb<u8> = Rgb([64, 224, 120]);

impl Sheet {
    pub fn draw(&self) -> RgbImage {
        let width = MARGIN + self.columns * (TILE_WIDTH + MARGIN);
        let height = self.sections.iter().map(|section| section.height(self.columns)).sum::<u32>();
        let mut sheet = RgbImage::from_pixel(width, MARGIN + HEADING + height, PAPER);
        let title = Style::Title.fit(&self.title, width - 2 * MARGIN);
        lettering::write(&mut sheet, MARGIN, MARGIN, &title, Style::Title, INK);
        let legend = Style::Plain.fit(&self.legend, width - 2 * MARGIN);
        let left = width - MARGIN - Style::Plain.width_px(&legend);
        lettering::write(&mut sheet, left, MARGIN + HEADING + 8, &legend, Style::Plain, FAINT);
        let mut top = MARGIN + HEADING;
        for section in &self.sections {
            let heading = &section.heading;
            lettering::write(&mut sheet, MARGIN, top + 8, heading, Style::Strong, FAINT);
            for (i, tile) in section.tiles.iter().enumerate() {
                let (column, line) = (i as u32 % self.columns, i as u32 / self.columns);
                let x = MARGIN + column * (TILE_WIDTH + MARGIN);
                let y = top + HEADING + line * (TILE_HEIGHT + MARGIN);
                imageops::replace(&mut sheet, &tile.draw(), i64::from(x), i64::from(y));
            }
            top += section.height(self.columns);
        }
        sheet
    }
}

/// The picture in a square of `side` pixels, its shape kept; small ones grow.
pub fn shrink(picture: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longer = width.max(height);
    let scaled = |length: u32| (length * side / longer).max(1);
    imageops::resize(picture, scaled(width), scaled(height), FilterType::CatmullRom)
}

const MARGIN: u32 = 16;
const HEADING: u32 = 40;
const GAP: u32 = 2;
const CAPTION: u32 = 26;
const TILE_WIDTH: u32 = 2 * SIDE + GAP;
const TILE_HEIGHT: u32 = SIDE + CAPTION;

const PAPER: Rgb<u8> = Rgb([22, 24, 29]);
const TILE_PAPER: Rgb<u8> = Rgb([34, 37, 44]);
const FAINT: Rgb<u8> = Rgb([160, 166, 178]);

impl Section {
    fn height(&self, columns: u32) -> u32 {
        HEADING + (self.tiles.len() as u32).div_ceil(columns) * (TILE_HEIGHT + MARGIN)
    }
}

impl Tile {
    fn draw(&self) -> RgbImage {
        let mut tile = RgbImage::from_pixel(TILE_WIDTH, TILE_HEIGHT, TILE_PAPER);
        for (half, left) in [(&self.left, 0), (&self.right, SIDE + GAP)] {
            let x = left + SIDE.saturating_sub(half.width()) / 2;
            let y = SIDE.saturating_sub(half.height()) / 2;
            imageops::replace(&mut tile, half, i64::from(x), i64::from(y));
        }
        let baseline = SIDE + (CAPTION - Style::Plain.height_px()) / 2;
        let right = TILE_WIDTH - 6 - Style::Strong.width_px(&self.word);
        let name = Style::Plain.fit(&self.name, right - 6 - 8);
        lettering::write(&mut tile, 6, baseline, &name, Style::Plain, INK);
        lettering::write(&mut tile, right, baseline, &self.word, Style::Strong, self.colour);
        tile
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(level: u8) -> Tile {
        Tile {
            left: RgbImage::from_pixel(SIDE, SIDE, Rgb([level; 3])),
            right: RgbImage::from_pixel(SIDE, 100, Rgb([level + 1; 3])),
            name: "a long name that has to be cut somewhere to leave room".to_owned(),
            word: "caught".to_owned(),
            colour: RIGHT,
        }
    }

    #[test]
    fn tiles_fill_line_after_line_of_each_section() {
        let section = |tiles: Vec<Tile>| Section { heading: "heading".to_owned(), tiles };
        let sheet = Sheet {
            title: "title".to_owned(),
            legend: "left, right".to_owned(),
            columns: 2,
            sections: vec![section(vec![tile(1), tile(3), tile(5)]), section(vec![tile(7)])],
        };
        let drawn = sheet.draw();
        assert_eq!(drawn.dimensions(), (16 + 2 * 466, 16 + 40 + 3 * 40 - 40 + 3 * 266));
        let first = MARGIN + 2 * HEADING;
        let places = [(0, 0, 1), (1, 0, 3), (0, 266, 5), (0, 2 * 266 + 40, 7)];
        for (column, down, level) in places {
            let (x, y) = (MARGIN + column * 466, first + down);
            assert_eq!(drawn.get_pixel(x, y).0, [level; 3]);
            // the right one stands in the middle of its half
            let right = x + SIDE + GAP;
            assert_eq!(drawn.get_pixel(right, y).0, TILE_PAPER.0);
            assert_eq!(drawn.get_pixel(right, y + 62).0, [level + 1; 3]);
        }
    }

    #[test]
    fn a_shrunk_picture_keeps_its_shape() {
        let cases = [((448, 112), (224, 56)), ((10, 20), (112, 224)), ((3000, 1), (224, 1))];
        for ((width, height), want) in cases {
            assert_eq!(shrink(&RgbImage::new(width, height), SIDE).dimensions(), want);
        }
    }
}
