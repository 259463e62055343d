//! What comes by the camera, and the model that looks at it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{DynamicImage, GrayImage};

use crate::camera::pattern;
use crate::detector::bundle;
use crate::detector::input::Input;
use crate::detector::patch_prototypes;
use crate::frame::Image;
use crate::nn::BackboneSpec;
use crate::nn::engine::{self, Engine};
use crate::teach;

/// Of the camera's pictures, in pixels.
pub const SIDE: u32 = 160;
/// Rendered good parts to learn from.
const GOODS: u64 = 60;
/// Different pictures that come by.
const PICTURES: u64 = 80;
/// A score nearer to the threshold than this share of it may fall either way with the size of the
/// batch: such pictures are not shown.
const CLOSE: f32 = 0.02;

/// A part's picture with the verdict that it must get.
pub struct Rendered {
    pub mono8: Vec<u8>,
    pub accepted: bool,
}

/// Teaches `folder/bundle` and gives the pictures of the line.
pub fn teach(folder: &Path, seed: u64) -> Result<Vec<Rendered>> {
    let render = |seed: u64, defect_rate: f64, index: u64| -> GrayImage {
        let config = pattern::Config {
            seed,
            defect_rate,
            width: SIDE,
            height: SIDE,
            ..pattern::Config::default()
        };
        DynamicImage::ImageRgb8(pattern::render(&config, index).0).into_luma8()
    };
    let goods = folder.join("goods");
    fs::create_dir_all(&goods).with_context(|| format!("making {}", goods.display()))?;
    for index in 0..GOODS {
        let path = goods.join(format!("{index:04}.png"));
        render(seed.wrapping_add(1), 0.0, index)
            .save(&path)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let config = teach::Config {
        backbone: BackboneSpec::Compact,
        input: Input { width: 128, height: 128 },
        seed,
        bank: teach::BankSize::Usual,
        holdout: teach::HoldOut::Auto,
        false_rejects: 0.001,
        significant_bits: 8,
        precision: teach::precision::Wanted::F32,
        tiles: None,
    };
    let loaded = patch_prototypes::load_backbone(&config.backbone)?;
    let plan = config.plan(teach::pictures_in(&goods)?, &loaded)?;
    let engine = Engine::new(&engine::Config::default())?;
    let taught = teach::teach(&config, plan, loaded, &engine, &mut |_, _, _| {})?;
    taught.write(&folder.join("bundle"), true)?;

    let mut bundle = bundle::load(&folder.join("bundle"), 1, &engine)?;
    let threshold = bundle.card.threshold.score;
    let mut pictures = Vec::new();
    for index in 0..PICTURES {
        let picture = render(seed, 0.4, index);
        let image = Image::Gray(picture.clone());
        let score = bundle.detector.detect(&[&image])?[0].score;
        if (score - threshold).abs() > CLOSE * threshold {
            pictures.push(Rendered { mono8: picture.into_raw(), accepted: score < threshold });
        }
    }
    let accepted = pictures.iter().filter(|picture| picture.accepted).count();
    ensure!(
        accepted > 10 && pictures.len() - accepted > 10,
        "of {} pictures {accepted} are accepted: the box needs both kinds; try another --seed",
        pictures.len()
    );
    Ok(pictures)
}
