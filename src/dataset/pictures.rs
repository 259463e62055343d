//! Pictures of a data set at working size: decoded and resized when they are asked for, side by side
//! by whoever asks, and kept as far as the cache goes.
//!
//! The first pictures of the list are kept and none of them ever leaves. Training asks for every
//! picture once an epoch in an order of its own, where no rule finds more in the cache, and which
//! pictures are in it depends on nothing but its size.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use rayon::prelude::*;

use crate::camera::folder;
pub use crate::detector::input::resize;
use crate::frame::Image;

/// A list of pictures, all at one size.
pub struct Pictures {
    paths: Vec<PathBuf>,
    width: usize,
    height: usize,
    cache_bytes: usize,
    significant_bits: u32,
    /// Of the first pictures, as many as the cache holds.
    kept: Vec<OnceLock<Arc<RgbImage>>>,
}

impl Pictures {
    /// Nothing is read yet. See [`folder::decode`] for `significant_bits`.
    ///
    /// # Errors
    /// A width or height of 0.
    pub fn open(
        paths: Vec<PathBuf>,
        (width, height): (usize, usize),
        cache_bytes: usize,
        significant_bits: u32,
    ) -> Result<Pictures> {
        ensure!(width > 0 && height > 0, "pictures of {width}×{height} have no pixels");
        let mut pictures =
            Pictures { paths, width, height, cache_bytes, significant_bits, kept: Vec::new() };
        pictures.kept.resize_with(pictures.room(), OnceLock::new);
        Ok(pictures)
    }

    pub fn len(&self) -> usize {
        self.paths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Width and height of every picture.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    pub fn path(&self, i: usize) -> &Path {
        &self.paths[i]
    }

    /// The `i`-th picture of the list, grey on all three channels.
    ///
    /// # Errors
    /// A file that can't be read; the message names it.
    pub fn get(&self, i: usize) -> Result<Arc<RgbImage>> {
        let kept = self.kept.get(i);
        if let Some(picture) = kept.and_then(OnceLock::get) {
            return Ok(Arc::clone(picture));
        }
        let path = &self.paths[i];
        let image = folder::read(path, self.significant_bits)?;
        let resized = resize(&image, self.width, self.height)
            .with_context(|| format!("resizing {}", path.display()))?;
        let picture = Arc::new(match resized {
            Image::Rgb(rgb) => rgb,
            gray => gray.to_rgb(),
        });
        // Two may have read the same file at once; they have the same bytes.
        Ok(match kept {
            Some(kept) => Arc::clone(kept.get_or_init(|| picture)),
            None => picture,
        })
    }

    /// Reads all pictures once and takes those that can't be read off the list. Gives them with the
    /// reason. The cache is full thereafter.
    ///
    /// # Errors
    /// More than a tenth of them unreadable, or all.
    pub fn scan(&mut self) -> Result<Vec<(PathBuf, String)>> {
        let read: Vec<Option<String>> = (0..self.len())
            .into_par_iter()
            .map(|i| self.get(i).err().map(|error| format!("{error:#}")))
            .collect();
        let mut kept = std::mem::take(&mut self.kept).into_iter();
        let mut unreadable = Vec::new();
        let mut readable = Vec::with_capacity(read.len());
        for (path, error) in std::mem::take(&mut self.paths).into_iter().zip(read) {
            let picture = kept.next();
            match error {
                Some(reason) => unreadable.push((path, reason)),
                None => {
                    readable.push(path);
                    self.kept.extend(picture);
                }
            }
        }
        self.paths = readable;
        self.kept.resize_with(self.room(), OnceLock::new);
        let bad = unreadable.len();
        let all = bad + self.len();
        let listed: String =
            unreadable.iter().take(10).map(|(_, reason)| format!("\n  {reason}")).collect();
        ensure!(
            bad * 10 <= all,
            "{bad} of {all} pictures can't be read, more than a tenth; repair or remove them:{listed}"
        );
        Ok(unreadable)
    }

    /// The cache for the log: `cache 512 MiB holds 209 of 209 pictures of 256×256`.
    pub fn words(&self) -> String {
        format!(
            "cache {} MiB holds {} of {} pictures of {}×{}",
            self.cache_bytes >> 20,
            self.room(),
            self.len(),
            self.width,
            self.height
        )
    }

    fn room(&self) -> usize {
        (self.cache_bytes / (self.width * self.height * 3)).min(self.len())
    }
}
