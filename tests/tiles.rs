//! Large pictures: what is lost when they are shrunk to the model's size is found on tiles.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use image::{Rgb, RgbImage};
use inspectd::camera::pattern;
use inspectd::detector::bundle::{self, Bundle};
use inspectd::detector::input::Input;
use inspectd::detector::patch_prototypes;
use inspectd::detector::tiles::{self, Layout, Tiles};
use inspectd::frame::Image;
use inspectd::nn::BackboneSpec;
use inspectd::nn::engine::{self, Engine};
use inspectd::teach::precision::Wanted;
use inspectd::teach::{self, BankSize, Config, Good, HoldOut};
use inspectd::verdict::{Cause, Judge, Limits, Verdict};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SIDE: u32 = 1024;

/// Picture number `index` of one part: light and the camera's noise differ.
fn picture(index: u64) -> RgbImage {
    static PART: LazyLock<RgbImage> = LazyLock::new(|| {
        let config = pattern::Config {
            width: SIDE,
            height: SIDE,
            defect_rate: 0.0,
            ..pattern::Config::default()
        };
        pattern::render(&config, 0).0
    });
    let mut rng = ChaCha8Rng::seed_from_u64(index);
    let light: i16 = rng.random_range(-6..=6);
    let mut picture = PART.clone();
    for pixel in picture.pixels_mut() {
        let noise: i16 = rng.random_range(-4..=4);
        pixel.0 = pixel.0.map(|level| (i16::from(level) + light + noise).clamp(0, 255) as u8);
    }
    picture
}

fn engine() -> Engine {
    Engine::new(&engine::Config { threads: Some(2), ..Default::default() }).unwrap()
}

/// On eight good pictures.
fn teach(tiles: Option<Layout>) -> Bundle {
    let goods = (0..8).map(|index| Good::Picture {
        name: format!("good-{index}"),
        image: Image::Rgb(picture(index)),
    });
    let config = Config {
        backbone: BackboneSpec::Compact,
        input: Input { width: 128, height: 128 },
        seed: 3,
        bank: BankSize::Ratio(0.1),
        holdout: HoldOut::Split(0.5),
        false_rejects: 0.001,
        significant_bits: 16,
        precision: Wanted::F32,
        tiles,
    };
    let loaded = patch_prototypes::load_backbone(&config.backbone).unwrap();
    let plan = config.plan(goods.collect(), &loaded).unwrap();
    let taught = teach::teach(&config, plan, loaded, &engine(), &mut |_, _, _| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.bundle");
    taught.write(&path, false).unwrap();
    bundle::load(&path, 4, &engine()).unwrap()
}

#[test]
fn a_small_defect_that_shrinking_hides_is_found_on_tiles() {
    let layout: Layout = "256:32".parse().unwrap();
    let whole = teach(None);
    let Bundle { card, detector } = teach(Some(layout));
    // The card says how, and a line that cuts otherwise is refused.
    assert_eq!((whole.card.tiles, card.tiles), (None, Some(layout)));
    let line = |text: &str| toml::from_str::<tiles::Config>(text).unwrap();
    let same = line("size_px = 256\noverlap_px = 32\npicture_px = [1024, 1024]");
    let other = line("size_px = 512\noverlap_px = 32\npicture_px = [1024, 1024]");
    assert_eq!(tiles::agreed(card.tiles, Some(&same)).unwrap(), Some(layout));
    assert_eq!(tiles::agreed(None, Some(&same)).unwrap(), Some(layout));
    assert_eq!(tiles::agreed(None, None).unwrap(), None);
    for (camera, says) in [(Some(&other), "tiles of 512:32"), (None, "no [camera.tiles]")] {
        let error = tiles::agreed(card.tiles, camera).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("tiles of 256:32"), "{error}");
    }
    let tiles = Bundle { card, detector: Box::new(Tiles::new(layout, detector)) };

    let good = picture(100);
    let mut defect = good.clone();
    // On the face of the part, on the seam of two tiles.
    for (dx, dy) in (0..DOT).flat_map(|dx| (0..DOT).map(move |dy| (dx, dy))) {
        defect.put_pixel(446 + dx, 300 + dy, Rgb([20, 20, 20]));
    }
    let judge = |mut bundle: Bundle| {
        let mut judge = Judge::new(Limits::new(
            &Default::default(),
            bundle.card.threshold.score,
            bundle.card.threshold.map,
        ));
        [&good, &defect].map(|picture| {
            let image = Image::Rgb(picture.clone());
            let detection = bundle.detector.detect(&[&image]).unwrap().remove(0);
            judge.judge(&detection, SIDE, SIDE)
        })
    };
    let [good_whole, defect_whole] = judge(whole);
    let [good_tiled, defect_tiled] = judge(tiles);
    assert_eq!(good_whole.verdict, Verdict::Accept, "{good_whole:?}");
    assert_eq!(good_tiled.verdict, Verdict::Accept, "{good_tiled:?}");
    assert_eq!(defect_whole.verdict, Verdict::Accept, "shrinking hides it: {defect_whole:?}");
    assert_eq!(defect_tiled.verdict, Verdict::Reject(Cause::Anomaly), "{defect_tiled:?}");
    let region = defect_tiled.region.unwrap();
    assert!((region.x..region.x + region.width).contains(&447), "{region}");
    assert!((region.y..region.y + region.height).contains(&301), "{region}");
}

/// Side of the defect, pixels.
const DOT: u32 = 5;
