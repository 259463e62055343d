//! Where the texture of a made-up anomaly comes from: a folder of pictures (DTD or any other), or
//! the procedural textures.

use std::path::{Path, PathBuf};

use anyhow::Result;
use image::RgbImage;
use rand::{Rng, RngExt};

use super::procedural;
use crate::camera::folder;

/// Pictures that anomalies are made of.
#[derive(Debug)]
pub enum Source {
    /// Every picture below a folder, in the order of their paths' bytes.
    Folder {
        root: PathBuf,
        names: Vec<PathBuf>,
    },
    Procedural,
}

impl Source {
    /// A folder of pictures with all its subfolders, or the procedural textures.
    pub fn open(folder: Option<&Path>) -> Result<Source> {
        Ok(match folder {
            Some(root) => {
                Source::Folder { root: root.to_path_buf(), names: folder::list(root, true)? }
            }
            None => Source::Procedural,
        })
    }

    pub fn picture(&self, rng: &mut impl Rng, width: u32, height: u32) -> Result<RgbImage> {
        match self {
            Source::Folder { root, names } => {
                let path = root.join(&names[rng.random_range(0..names.len())]);
                Ok(image::imageops::thumbnail(&folder::read(&path, 16)?.to_rgb(), width, height))
            }
            Source::Procedural => Ok(procedural::texture(rng, width, height)),
        }
    }

    pub fn words(&self) -> String {
        match self {
            Source::Folder { root, names } => {
                format!("{} pictures of {}", names.len(), root.display())
            }
            Source::Procedural => {
                "procedural textures; results are not comparable with published ones".to_owned()
            }
        }
    }
}
