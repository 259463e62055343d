//! Pictures of good parts: where they lie, what was read of them, what was left out.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::camera;
use crate::frame::Image;
use crate::nn::weights;

/// A picture of a good part.
#[derive(Clone, Debug)]
pub enum Good {
    File { name: String, path: PathBuf },
    Picture { name: String, image: Image },
}

/// The pictures lying in `folder` (not in folders below it), in byte order of their names.
///
/// # Errors
/// A folder that can't be read, or has no picture in it.
pub fn pictures_in(folder: &Path) -> Result<Vec<Good>> {
    let names = camera::folder::list(folder, false)
        .context("good parts (folders below are not looked into: give the folder of good ones)")?;
    let good = |name: PathBuf| Good::File {
        path: folder.join(&name),
        name: name.to_string_lossy().into_owned(),
    };
    Ok(names.into_iter().map(good).collect())
}

impl Good {
    /// Where the file lies; `None` for a picture in memory.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Good::File { path, .. } => Some(path),
            Good::Picture { .. } => None,
        }
    }

    /// File name, or what the picture is called.
    pub fn name(&self) -> &str {
        match self {
            Good::File { name, .. } | Good::Picture { name, .. } => name,
        }
    }

    /// The picture and the SHA-256 of its contents.
    pub(super) fn read(&self, significant_bits: u32) -> Result<(Image, [u8; 32])> {
        match self {
            Good::File { path, .. } => {
                let bytes = fs::read(path)?;
                let image = camera::folder::decode(&bytes, significant_bits)?;
                Ok((image, Sha256::digest(&bytes).into()))
            }
            Good::Picture { image, .. } => {
                let (samples, pixels): (u8, &[u8]) = match image {
                    Image::Gray(gray) => (1, gray.as_raw()),
                    Image::Rgb(rgb) => (3, rgb.as_raw()),
                };
                let mut hash = Sha256::new_with_prefix([samples]);
                hash.update(image.width().to_le_bytes());
                hash.update(image.height().to_le_bytes());
                hash.update(pixels);
                Ok((image.clone(), hash.finalize().into()))
            }
        }
    }
}

/// What was read so far and what was left out.
#[derive(Default)]
pub(crate) struct Register {
    pub(crate) used: BTreeMap<String, [u8; 32]>,
    contents: HashSet<[u8; 32]>,
    pub(crate) unreadable: Vec<(String, String)>,
    pub(crate) copies: Vec<String>,
}

impl Register {
    /// The pictures of `goods` that can be read and were not seen before, in order.
    pub(crate) fn read(&mut self, goods: &[Good], significant_bits: u32) -> Vec<Image> {
        let read: Vec<_> = goods.par_iter().map(|good| good.read(significant_bits)).collect();
        let mut images = Vec::with_capacity(goods.len());
        for (good, read) in goods.iter().zip(read) {
            let name = good.name().to_owned();
            match read {
                Err(error) => self.unreadable.push((name, format!("{error:#}"))),
                Ok((_, contents)) if !self.contents.insert(contents) => self.copies.push(name),
                Ok((image, contents)) => {
                    self.used.insert(name, contents);
                    images.push(image);
                }
            }
        }
        images
    }

    pub(crate) fn check(&self, least: usize, pictures: usize) -> Result<()> {
        let usable = self.used.len();
        let listed = || {
            let lines = self.unreadable.iter().take(10);
            lines.map(|(name, why)| format!("\n  {name}: {why}")).collect::<String>()
        };
        let bad = self.unreadable.len();
        ensure!(
            bad * 10 <= pictures,
            "{bad} of {pictures} pictures can't be read, more than a tenth; repair or remove them:{}",
            listed()
        );
        ensure!(
            usable >= least,
            "only {usable} pictures are left where {least} are needed ({bad} can't be read, {} are copies of \
             others){}",
            self.copies.len(),
            listed()
        );
        Ok(())
    }

    /// Over `name`, a zero byte and the SHA-256 of the contents of each picture used, by name.
    pub(crate) fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (name, contents) in &self.used {
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(contents);
        }
        weights::hex(&hash.finalize())
    }
}
