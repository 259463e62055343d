//! The way of a picture into a card and through all that is done with it there.
//!
//! For each size of picture there is a place on the card, the weights of its resize, and one list
//! of launches from there to the end, which a card records: a part costs it an upload, a start and
//! a download.

use anyhow::{Result, ensure};

use super::kept::{Kept, read_floats};
use super::pixels::PixelsIn;
use super::{Gpu, Launch, Prepared, Region};
use crate::detector::input::{MEAN, STD};
use crate::ops::pixels::Pixels;

/// Sizes of pictures that are kept ready: those of as many cameras that share a detector.
const MOST_SIZES: usize = 4;

/// What a row of a picture may have, bytes: the kernel keeps one in shared memory
/// ([`super::pixels`]).
const MOST_ROW_BYTES: usize = 48 * 1024;

/// A detector's [`Gpu`], and what it does with a picture.
pub struct FromPixels<G: Gpu> {
    gpu: G,
    /// Height and width of the planes that pictures become.
    to: (usize, usize),
    planes: Region,
    /// From the planes on.
    rest: Vec<Launch>,
    /// The one used last is the last.
    sizes: Vec<Size<G::Memory>>,
}

/// Pictures of one size.
struct Size<M> {
    /// Height, width, samples a pixel.
    from: [usize; 3],
    pictures: Region,
    /// That, and the table of the resize.
    _memory: Vec<M>,
    all: Prepared,
}

impl<G: Gpu> FromPixels<G> {
    /// Pictures become `planes` [1, 3, H, W], (H, W) = `to`, which the launches `rest` go on from.
    pub fn new(gpu: G, to: (usize, usize), planes: Region, rest: Vec<Launch>) -> Self {
        Self { gpu, to, planes, rest, sizes: Vec::new() }
    }

    /// Begins a picture.
    ///
    /// # Errors
    /// One with rows too long for the kernel; what the card says.
    pub fn run(&mut self, pixels: &Pixels<'_>) -> Result<()> {
        let (height, width) = pixels.size();
        let from = [height, width, pixels.depth()];
        match self.sizes.iter().position(|size| size.from == from) {
            Some(at) => self.sizes[at..].rotate_left(1),
            None => self.prepare(from)?,
        }
        let size = self.sizes.last().expect("one was just put there");
        self.gpu.upload(pixels.samples(), size.pictures)?;
        self.gpu.run(&size.all)
    }

    /// Makes room for pictures of another size.
    fn prepare(&mut self, from: [usize; 3]) -> Result<()> {
        let [height, width, depth] = from;
        ensure!(
            width * depth <= MOST_ROW_BYTES,
            "a row of {width} pixels is too long for a card, which takes {}: cut pictures into \
             tiles ([camera.tiles]), or device = \"cpu\"",
            MOST_ROW_BYTES / depth
        );
        if self.sizes.len() == MOST_SIZES {
            let oldest = self.sizes.remove(0);
            self.gpu.forget(oldest.all);
        }
        let resize = PixelsIn::new((height, width), depth, self.to, MEAN, STD);
        let mut kept = Kept::on(&mut self.gpu);
        let table = kept.bytes(&resize.table())?;
        let pictures = kept.room(height * width * depth)?;
        let memory = kept.memory;
        let first = resize.run(1, table, pictures, self.planes);
        let all = Prepared::new([first].into_iter().chain(self.rest.iter().cloned()).collect());
        self.sizes.push(Size { from, pictures, _memory: memory, all });
        Ok(())
    }

    /// The numbers in `from`, when all that was begun is done.
    ///
    /// # Errors
    /// What the card says.
    pub fn read(&mut self, from: Region) -> Result<Vec<f32>> {
        read_floats(&mut self.gpu, from)
    }
}
