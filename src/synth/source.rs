//! Where the textures of made-up anomalies come from (`anomaly-generation.md` of the specification,
//! section 3.1): a folder of pictures (DTD's or any other), or the procedural textures.
//!
//! Draw order, part of the format: of a folder one number, which picture; of the procedural textures
//! what [`procedural`] draws.
//!
//! Nothing is cached: DTD's 5640 pictures are drawn evenly, so that a cache that does not hold nearly
//! all of them holds nearly never the one that is asked for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::RgbImage;
use rand::{Rng, RngExt};

use super::procedural;
use crate::camera::folder;
use crate::dataset::pictures::resize;
use crate::frame::Image;

/// Pictures that anomalies are made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// All pictures below a folder, each as often as every other.
    Folder {
        root: PathBuf,
        /// Relative to the folder, in the order of their bytes.
        names: Vec<PathBuf>,
    },
    Procedural,
}

impl Source {
    /// A folder with all its subfolders (of DTD the one with `images`, or that itself), or the
    /// procedural textures where there is none.
    ///
    /// # Errors
    /// A folder that is not there or has no picture.
    pub fn open(folder: Option<&Path>) -> Result<Source> {
        let Some(root) = folder else { return Ok(Source::Procedural) };
        let names = folder::list(root, true).with_context(|| {
            format!(
                "opening the anomaly source {}; name a folder of texture pictures, or none for the \
                 built-in procedural textures",
                root.display()
            )
        })?;
        Ok(Source::Folder { root: root.to_path_buf(), names })
    }

    /// A drawn picture, squeezed or stretched to this size. Several threads may ask at once.
    ///
    /// # Errors
    /// A file that can't be read; the message names it.
    pub fn picture(&self, rng: &mut impl Rng, width: u32, height: u32) -> Result<RgbImage> {
        match self {
            Source::Folder { root, names } => {
                let path = root.join(&names[rng.random_range(0..names.len())]);
                let picture = folder::read(&path, 16)?;
                let resized = resize(&picture, width as usize, height as usize)
                    .with_context(|| format!("resizing {}", path.display()))?;
                Ok(match resized {
                    Image::Rgb(rgb) => rgb,
                    gray => gray.to_rgb(),
                })
            }
            Source::Procedural => Ok(procedural::texture(rng, width, height)),
        }
    }

    /// For the log and the report.
    pub fn words(&self) -> String {
        match self {
            Source::Folder { root, names } => {
                format!("textures: {} pictures of {}", names.len(), root.display())
            }
            Source::Procedural => "textures: procedural, made by this program; the run is not \
                comparable with published results, which use DTD (name its folder)"
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use image::{GrayImage, Luma, Rgb};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rayon::prelude::*;

    use super::*;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    /// As DTD lies: `images/<class>/<picture>`, beside labels that are no pictures.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (k, class) in ["banded", "dotted", "woven"].into_iter().enumerate() {
            let inside = folder.path().join("images").join(class);
            std::fs::create_dir_all(&inside).unwrap();
            let level = 60 * k as u8 + 30;
            RgbImage::from_pixel(30, 20, Rgb([level, 0, 9])).save(inside.join("b.png")).unwrap();
            GrayImage::from_pixel(8, 50, Luma([level + 20])).save(inside.join("a.png")).unwrap();
        }
        std::fs::create_dir(folder.path().join("labels")).unwrap();
        std::fs::write(folder.path().join("labels/train1.txt"), "banded/b.png").unwrap();
        folder
    }

    #[test]
    fn a_folder_gives_every_picture_equally_often_at_the_size_asked_for() {
        let folder = folder();
        let source = Source::open(Some(folder.path())).unwrap();
        let drawn: Vec<[u8; 3]> = (0..600)
            .into_par_iter()
            .map(|seed| {
                let picture = source.picture(&mut rng(seed), 16, 12).unwrap();
                assert_eq!(picture.dimensions(), (16, 12));
                picture.get_pixel(5, 5).0
            })
            .collect();
        let kinds: BTreeSet<[u8; 3]> = drawn.iter().copied().collect();
        let grey = |level: u8| [level; 3];
        let want = [[30, 0, 9], [90, 0, 9], [150, 0, 9], grey(50), grey(110), grey(170)];
        assert_eq!(kinds, BTreeSet::from(want));
        for kind in want {
            let count = drawn.iter().filter(|&&one| one == kind).count();
            // 100 ± 9.1 of a binomial; four times that.
            assert!(count.abs_diff(100) < 37, "{kind:?} came {count} times of 600");
        }
        assert!(source.words().contains("6 pictures"), "{}", source.words());
    }

    #[test]
    fn names_are_in_the_order_of_their_bytes() {
        let folder = folder();
        let Source::Folder { names, .. } = Source::open(Some(folder.path())).unwrap() else {
            panic!("not a folder")
        };
        assert!(names.is_sorted());
        assert_eq!(names[0], Path::new("images/banded/a.png"));
    }

    #[test]
    fn a_picture_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("half.jpg"), b"\xff\xd8\xff\xe0").unwrap();
        let source = Source::open(Some(folder.path())).unwrap();
        let error = format!("{:#}", source.picture(&mut rng(0), 8, 8).unwrap_err());
        assert!(error.contains("half.jpg"), "{error}");
    }

    #[test]
    fn a_folder_without_pictures_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_path_buf(), folder.path().join("not-there")] {
            let error = format!("{:#}", Source::open(Some(&path)).unwrap_err());
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains("or none for the built-in"), "{error}");
        }
    }

    #[test]
    fn without_a_folder_textures_are_procedural_and_said_to_be() {
        let source = Source::open(None).unwrap();
        let picture = source.picture(&mut rng(1), 24, 40).unwrap();
        assert_eq!(picture, procedural::texture(&mut rng(1), 24, 40));
        assert!(source.words().contains("not comparable"), "{}", source.words());
    }
}
