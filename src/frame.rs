//! What a camera hands on: one picture of one part.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use image::{DynamicImage, GrayImage, RgbImage};

/// The number of a triggered part. Counts up over the life of the ledger, across restarts; never
/// given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId(pub u64);

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which camera saw the part, and the how many-eth trigger of that camera since start it was.
/// `seq` starts at 0 and has no gaps: a trigger without a picture takes a number too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameId {
    pub camera: u16,
    pub seq: u64,
}

/// Pixels as the camera gave them, reduced to 8 bits a sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Image {
    Gray(GrayImage),
    Rgb(RgbImage),
}

impl Image {
    pub fn width(&self) -> u32 {
        match self {
            Image::Gray(image) => image.width(),
            Image::Rgb(image) => image.width(),
        }
    }

    pub fn height(&self) -> u32 {
        match self {
            Image::Gray(image) => image.height(),
            Image::Rgb(image) => image.height(),
        }
    }

    /// The picture in colour; grey is put on all three channels.
    pub fn to_rgb(&self) -> RgbImage {
        match self {
            Image::Gray(image) => DynamicImage::ImageLuma8(image.clone()).into_rgb8(),
            Image::Rgb(image) => image.clone(),
        }
    }
}

/// Where the belt stood when a picture was taken, by its encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// Counts at the picture's first row, counted on past the counter's own wrap.
    pub count: i64,
    /// Counts from one row to the next; 0 for an area camera, whose rows are taken at once.
    pub per_row: f64,
}

/// What is really on the part, known only where the part was made by us (`pattern`).
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// The kind of defect; `None` on a good part.
    pub defect: Option<&'static str>,
}

/// One picture of one part on its way to a verdict.
#[derive(Clone, Debug)]
pub struct Frame {
    pub id: FrameId,
    pub part: PartId,
    /// When the part was triggered; its deadline counts from here.
    pub captured_at: Instant,
    pub image: Image,
    /// What the source calls the picture: a file name, a frame number.
    pub name: Arc<str>,
    /// `None`: no encoder is known.
    pub position: Option<Position>,
    pub truth: Option<Truth>,
}
