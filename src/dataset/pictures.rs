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
    /// reason, which names the file too.
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

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb};

    use super::*;

    /// 8×6, every other one grey, each with a look of its own.
    fn folder_of(count: u32) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> =
            (0..count).map(|i| folder.path().join(format!("{i:02}.png"))).collect();
        for (i, path) in (0..).zip(&paths) {
            let level = |x: u32, y: u32| (x * 29 + y * 17 + i * 7) as u8;
            if i % 2 == 0 {
                let rgb = RgbImage::from_fn(8, 6, |x, y| Rgb([level(x, y), level(y, x), i as u8]));
                rgb.save(path).unwrap();
            } else {
                GrayImage::from_fn(8, 6, |x, y| Luma([level(x, y)])).save(path).unwrap();
            }
        }
        (folder, paths)
    }

    /// Of 5 × 4 pixels.
    const BYTES: usize = 5 * 4 * 3;

    fn kept(pictures: &Pictures) -> usize {
        pictures.kept.iter().filter(|kept| kept.get().is_some()).count()
    }

    #[test]
    fn the_cache_keeps_what_it_holds_and_changes_nothing() {
        let (_folder, paths) = folder_of(10);
        let want: Vec<RgbImage> = paths
            .iter()
            .map(|path| resize(&folder::read(path, 16).unwrap(), 5, 4).unwrap().to_rgb())
            .collect();
        for (bytes, holds) in [(0, 0), (BYTES - 1, 0), (3 * BYTES + 1, 3), (100 * BYTES, 10)] {
            let pictures = Pictures::open(paths.clone(), (5, 4), bytes, 16).unwrap();
            assert_eq!(kept(&pictures), 0);
            // Each picture by several threads at once, in an order that jumps.
            (0..80).into_par_iter().for_each(|i| {
                let i = i * 37 % 10;
                assert_eq!(*pictures.get(i).unwrap(), want[i]);
            });
            assert_eq!(kept(&pictures), holds, "{bytes}");
            for i in 0..10 {
                let same = Arc::ptr_eq(&pictures.get(i).unwrap(), &pictures.get(i).unwrap());
                assert_eq!(same, i < holds, "{bytes}: {i}");
            }
        }
    }

    #[test]
    fn the_cache_is_said() {
        let paths = vec![PathBuf::from("a.png"); 209];
        let words = |bytes| Pictures::open(paths.clone(), (256, 256), bytes, 16).unwrap().words();
        assert_eq!(words(512 << 20), "cache 512 MiB holds 209 of 209 pictures of 256×256");
        // 256 · 256 · 3 bytes are 3/16 MiB.
        assert_eq!(words(3 << 20), "cache 3 MiB holds 16 of 209 pictures of 256×256");
    }

    #[test]
    fn what_cannot_be_read_is_listed_and_left_out() {
        let (_folder, mut paths) = folder_of(20);
        std::fs::write(&paths[1], "no picture").unwrap();
        std::fs::remove_file(&paths[4]).unwrap();
        let mut pictures = Pictures::open(paths.clone(), (5, 4), 3 * BYTES, 16).unwrap();
        let unreadable = pictures.scan().unwrap();
        let listed: Vec<&PathBuf> = unreadable.iter().map(|(path, _)| path).collect();
        assert_eq!(listed, [&paths[1], &paths[4]]);
        assert!(unreadable[0].1.contains("01.png: it is neither a PNG"), "{}", unreadable[0].1);
        assert!(unreadable[1].1.contains("reading"), "{}", unreadable[1].1);
        assert_eq!(pictures.len(), 18);
        paths.remove(4);
        paths.remove(1);
        for (i, path) in paths.iter().enumerate() {
            assert_eq!(pictures.path(i), path);
            let image = folder::read(path, 16).unwrap();
            assert_eq!(*pictures.get(i).unwrap(), resize(&image, 5, 4).unwrap().to_rgb(), "{i}");
        }
        assert_eq!(kept(&pictures), 3);
        assert!(pictures.scan().unwrap().is_empty());
    }

    #[test]
    fn more_than_a_tenth_unreadable_is_an_error() {
        let (_folder, paths) = folder_of(20);
        for path in &paths[..3] {
            std::fs::write(path, "no picture").unwrap();
        }
        let mut pictures = Pictures::open(paths.clone(), (5, 4), 0, 16).unwrap();
        assert!(pictures.get(2).unwrap_err().to_string().contains("02.png"));
        let error = pictures.scan().unwrap_err().to_string();
        assert!(error.contains("3 of 20 pictures can't be read, more than a tenth"), "{error}");
        assert!(error.contains("02.png"), "{error}");
    }
}
