//! Makes anomalies of every kind on the pictures of one sort of part, for training and for
//! `inspectd synth`, from as many threads as like to ask.
//!
//! Draws of [`Tag::Order`]: the normal picture; the other one, that a homogeneous source is made of;
//! the seen anomaly, where there are some.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use image::buffer::ConvertBuffer;
use rand::RngExt;

use super::cutpaste::Variant;
use super::source::Source;
use super::{
    Config, Kind, SampleKey, Synthetic, Tag, confetti, cutpaste, extended, foreground, simulated,
};
use crate::camera::folder;
use crate::dataset::mask::Mask;
use crate::dataset::pictures::{self, Pictures};
use crate::dataset::{Sample, Surface};
use crate::frame::Image;

/// What anomalies are made of.
pub struct Stock {
    /// Good parts, at the working size.
    pub normals: Arc<Pictures>,
    pub source: Arc<Source>,
    /// Needed for extended anomalies only.
    pub seen: Vec<Seen>,
    /// As the data set calls the parts.
    pub category: String,
    pub surface: Option<Surface>,
}

/// A defect that may be learned from, at the working size.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// That of its sample.
    pub name: String,
    pub picture: RgbImage,
    pub mask: Mask,
}

/// A [`Stock`] with all that is set.
pub struct Synthesizer {
    stock: Stock,
    /// Of each normal picture, as soon as it was needed.
    foregrounds: Vec<OnceLock<Arc<Mask>>>,
    /// What all have in common where the whole picture is foreground.
    whole: Arc<Mask>,
    config: Config,
    seed: u64,
}

/// What a sample is made of. Whoever has an order of their own, as training does, puts another
/// `normal` in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub kind: Kind,
    pub key: SampleKey,
    /// Which of the good parts.
    pub normal: usize,
    /// Which of them a homogeneous source is made of.
    pub other: usize,
    /// Which seen anomaly an extended one is made of; `None` where there are none.
    pub seen: Option<usize>,
}

impl Seen {
    /// # Errors
    /// A sample without a mask, or with one that is empty at this size; a file that can't be read.
    pub fn read(sample: &Sample, size: (usize, usize), significant_bits: u32) -> Result<Seen> {
        let name = sample.name.clone();
        let path = sample.mask.as_ref().with_context(|| {
            format!("{name} has no mask, without which nothing can be made of its defect")
        })?;
        let image = folder::read(&sample.path, significant_bits)?;
        let picture = match pictures::resize(&image, size.0, size.1)? {
            Image::Rgb(rgb) => rgb,
            gray => gray.to_rgb(),
        };
        let mask = Mask::read(path, size.0, size.1)?;
        ensure!(
            mask.inside.contains(&true),
            "{}: nothing of the mask is left at {}×{}; take a larger size, or other defects by \
             another seed",
            path.display(),
            size.0,
            size.1
        );
        Ok(Seen { name, picture, mask })
    }
}

impl Synthesizer {
    /// # Errors
    /// No normal picture; settings that are refused.
    pub fn new(stock: Stock, config: Config, seed: u64) -> Result<Synthesizer> {
        config.check()?;
        ensure!(!stock.normals.is_empty(), "there is no good part to make an anomaly on");
        let (width, height) = stock.normals.size();
        let mut foregrounds = Vec::new();
        foregrounds.resize_with(stock.normals.len(), OnceLock::new);
        let whole = Arc::new(foreground::whole(width, height));
        Ok(Synthesizer { stock, foregrounds, whole, config, seed })
    }

    pub fn stock(&self) -> &Stock {
        &self.stock
    }

    /// Sample number `index` of an epoch.
    pub fn choose(&self, kind: Kind, epoch: u64, index: u64) -> Choice {
        let key = SampleKey { seed: self.seed, epoch, index };
        let mut rng = key.rng(Tag::Order);
        let count = self.stock.normals.len();
        let (normal, other) = (rng.random_range(0..count), rng.random_range(0..count));
        let seen = match self.stock.seen.len() {
            0 => None,
            count => Some(rng.random_range(0..count)),
        };
        Choice { kind, key, normal, other, seen }
    }

    /// The anomaly that was chosen. The mask may be empty: of Perlin noise seldom, of confetti where
    /// much change is asked for.
    ///
    /// # Errors
    /// A picture that can't be read; an extended anomaly where none was seen.
    pub fn make(&self, choice: &Choice) -> Result<Synthetic> {
        let Choice { kind, key, .. } = *choice;
        let config = &self.config;
        let normal = self.stock.normals.get(choice.normal)?;
        let cut = |variant| {
            let (places, colours) = (&mut key.rng(Tag::Mask), &mut key.rng(Tag::Source));
            levels(cutpaste::make(&normal, variant, &config.cutpaste, places, colours))
        };
        let simulate = |heterogeneous_share| {
            let other = self.stock.normals.get(choice.other)?;
            let foreground = self.foreground(choice.normal, &normal)?;
            let config = simulated::Config { heterogeneous_share, ..config.simulated };
            simulated::make(&normal, &other, &foreground, &self.stock.source, &config, key)
        };
        match kind {
            Kind::Confetti => {
                let (width, height) = self.stock.normals.size();
                let (places, colours) = (&mut key.rng(Tag::Mask), &mut key.rng(Tag::Source));
                let noise = confetti::draw(width, height, places, colours);
                Ok(levels(confetti::apply(&normal, &noise, &config.confetti)))
            }
            Kind::Cutpaste => Ok(cut(Variant::Normal)),
            Kind::CutpasteScar => Ok(cut(Variant::Scar)),
            Kind::CutpasteUnion => Ok(cut(Variant::Union)),
            Kind::Perlin => simulated::textured(&normal, &self.stock.source, &config.perlin, key),
            Kind::Heterogeneous => simulate(1.0),
            Kind::Homogeneous => simulate(0.0),
            Kind::Simulated => simulate(config.simulated.heterogeneous_share),
            Kind::Extended => {
                let seen = choice.seen.map(|seen| &self.stock.seen[seen]).context(
                    "an extended anomaly is made of a seen one, and none was given; give a data set \
                     with defects and masks",
                )?;
                let foreground = self.foreground(choice.normal, &normal)?;
                let seen = (&seen.picture, &seen.mask);
                extended::make(&normal, &foreground, seen, &config.extended, key)
            }
        }
    }

    fn foreground(&self, i: usize, normal: &RgbImage) -> Result<Arc<Mask>> {
        let kept = &self.foregrounds[i];
        if let Some(mask) = kept.get() {
            return Ok(Arc::clone(mask));
        }
        let Stock { normals, category, surface, .. } = &self.stock;
        let mask = self.config.foreground.of(normal, normals.path(i), category, *surface)?;
        let mask = if mask == *self.whole { Arc::clone(&self.whole) } else { Arc::new(mask) };
        Ok(Arc::clone(kept.get_or_init(|| mask)))
    }
}

fn levels((picture, mask): (RgbImage, Mask)) -> Synthetic {
    Synthetic { image: picture.convert(), mask }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use image::Rgb;
    use rayon::prelude::*;

    use super::*;

    const SIDE: usize = 64;

    /// A grey disc on black, another grey in each picture.
    fn part(i: u32) -> RgbImage {
        RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
            let away = (f64::from(x) - 32.0).hypot(f64::from(y) - 32.0);
            let level = 120 + 10 * i as u8 + ((x * 7 + y * 13) % 9) as u8;
            Rgb(if away < 24.0 { [level, level, 90] } else { [8; 3] })
        })
    }

    fn seen() -> Seen {
        let mut picture = part(1);
        let mut mask = Mask::empty(SIDE, SIDE);
        for (x, y) in (28..36).flat_map(|x| (30..38).map(move |y| (x, y))) {
            picture.put_pixel(x, y, Rgb([250, 20, 20]));
            mask.inside[y as usize * SIDE + x as usize] = true;
        }
        Seen { name: "hole/000.png".to_owned(), picture, mask }
    }

    fn synthesizer(folder: &Path, seen: Vec<Seen>, seed: u64) -> Synthesizer {
        let paths: Vec<_> = (0..5).map(|i| folder.join(format!("{i}.png"))).collect();
        for (i, path) in paths.iter().enumerate() {
            part(i as u32).save(path).unwrap();
        }
        let normals = Pictures::open(paths, (SIDE, SIDE), 1 << 20, 16).unwrap();
        let stock = Stock {
            normals: Arc::new(normals),
            source: Arc::new(Source::open(None).unwrap()),
            seen,
            category: "disc".to_owned(),
            surface: Some(Surface::Object),
        };
        Synthesizer::new(stock, Config::default(), seed).unwrap()
    }

    fn all(synthesizer: &Synthesizer, kinds: &[Kind]) -> Vec<Synthetic> {
        kinds
            .par_iter()
            .flat_map(|&kind| (0..4).into_par_iter().map(move |index| (kind, index)))
            .map(|(kind, index)| synthesizer.make(&synthesizer.choose(kind, 0, index)).unwrap())
            .collect()
    }

    #[test]
    fn threads_have_no_say() {
        let folder = tempfile::tempdir().unwrap();
        let run = |threads| {
            let synthesizer = synthesizer(folder.path(), vec![seen()], 3);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| all(&synthesizer, &Kind::ALL))
        };
        let (one, many) = (run(1), run(5));
        for (i, (one, many)) in one.iter().zip(&many).enumerate() {
            assert!(one == many, "{} {} differs", Kind::ALL[i / 4], i % 4);
        }
        assert_eq!(one.len(), 4 * Kind::ALL.len());
    }

    #[test]
    fn a_change_lies_in_the_mask_and_another_seed_makes_another() {
        let folder = tempfile::tempdir().unwrap();
        let synthesizer = synthesizer(folder.path(), vec![seen()], 3);
        let other = self::synthesizer(folder.path(), vec![seen()], 4);
        for kind in Kind::ALL {
            let choice = synthesizer.choose(kind, 1, 7);
            let made = synthesizer.make(&choice).unwrap();
            let normal = synthesizer.stock.normals.get(choice.normal).unwrap();
            let normal: image::Rgb32FImage = normal.convert();
            let rim = matches!(kind, Kind::CutpasteScar | Kind::CutpasteUnion);
            for (i, (new, old)) in made.image.pixels().zip(normal.pixels()).enumerate() {
                assert!(made.mask.inside[i] || new == old || rim, "{kind}: place {i}");
            }
            assert!(made.image.iter().all(|level| (0.0..=1.0).contains(level)), "{kind}");
            let other = other.make(&other.choose(kind, 1, 7)).unwrap();
            assert!(other != made, "{kind}");
            let next = synthesizer.make(&synthesizer.choose(kind, 2, 7)).unwrap();
            assert!(next != made, "{kind}: another epoch");
        }
    }

    #[test]
    fn every_normal_picture_gets_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let synthesizer = synthesizer(folder.path(), Vec::new(), 0);
        let mut count = [0; 5];
        for index in 0..500 {
            count[synthesizer.choose(Kind::Confetti, 0, index).normal] += 1;
        }
        // 100 ± 4 standard deviations of 9
        assert!(count.iter().all(|n| (64..=136).contains(n)), "{count:?}");
    }

    #[test]
    fn without_a_seen_anomaly_there_are_no_extended_ones() {
        let folder = tempfile::tempdir().unwrap();
        let synthesizer = synthesizer(folder.path(), Vec::new(), 0);
        let choice = synthesizer.choose(Kind::Extended, 0, 0);
        let error = synthesizer.make(&choice).unwrap_err().to_string();
        assert!(error.contains("none was given"), "{error}");
    }

    #[test]
    fn a_seen_anomaly_needs_a_mask_that_survives_the_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let mask = folder.path().join("a_mask.png");
        part(0).save(&path).unwrap();
        let mut drawn = image::GrayImage::new(SIDE as u32, SIDE as u32);
        drawn.put_pixel(10, 10, image::Luma([255]));
        drawn.save(&mask).unwrap();
        let name = "hole/a.png".to_owned();
        let mut sample = Sample { path, name, defect: Some("hole".to_owned()), mask: None };
        let error = Seen::read(&sample, (SIDE, SIDE), 16).unwrap_err().to_string();
        assert!(error.contains("hole/a.png has no mask"), "{error}");
        sample.mask = Some(mask);
        let error = Seen::read(&sample, (16, 16), 16).unwrap_err().to_string();
        assert!(error.contains("a_mask.png: nothing of the mask is left at 16×16"), "{error}");
        assert_eq!(Seen::read(&sample, (SIDE, SIDE), 16).unwrap().mask.area(), 1);
    }
}
