//! A detector whose scores are known in advance, on pictures made here.

use std::fs;
use std::path::Path;

use image::{GrayImage, Luma};

use super::*;
use crate::dataset::mvtec;

/// The map is the picture's grey level / 100 at 8×8; the score is its highest value.
struct Brightness;

impl Detector for Brightness {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        let of = |image: &&Image| {
            let gray = image::DynamicImage::ImageRgb8(image.to_rgb()).into_luma8();
            let small = image::imageops::thumbnail(&gray, 8, 8);
            let scores: Vec<f32> = small.pixels().map(|p| f32::from(p.0[0]) / 100.0).collect();
            let score = scores.iter().copied().fold(0.0, f32::max);
            Detection { score, map: AnomalyMap { width: 8, height: 8, scores } }
        };
        Ok(images.iter().map(of).collect())
    }
}

fn save(path: &Path, picture: &GrayImage) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    picture.save(path).unwrap();
}

/// A square of 4×4 in a picture of 16×16.
fn square(ground: u8, square: u8) -> GrayImage {
    GrayImage::from_fn(16, 16, |x, y| {
        Luma([if (4..8).contains(&x) && (4..8).contains(&y) { square } else { ground }])
    })
}

/// Goods score 0.1, 0.2 and 1.2; dents 0.5 and 1.5; one stain 2.0.
fn test_set() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, level) in [("good/0", 10), ("good/1", 20), ("good/2", 120)] {
        save(&root.path().join(format!("test/{name}.png")), &square(level, level));
    }
    for (name, level) in [("dent/0", 50), ("dent/1", 150), ("stain/0", 200)] {
        save(&root.path().join(format!("test/{name}.png")), &square(5, level));
        save(&root.path().join(format!("ground_truth/{name}_mask.png")), &square(0, 255));
    }
    root
}

const SETTINGS: Settings =
    Settings { threshold: 1.0, map_limit: 1.0, batch: 4, significant_bits: 16 };

fn evaluated(root: &Path, batch: usize) -> Evaluation {
    let samples = mvtec::test(root).unwrap();
    evaluate(&mut Brightness, &samples, &Settings { batch, ..SETTINGS }, &mut |_| ()).unwrap()
}

#[test]
fn figures_count_what_the_threshold_does() {
    let root = test_set();
    let figures = evaluated(root.path(), 4).figures;
    assert_eq!((figures.images, figures.goods, figures.defects), (6, 3, 3));
    assert_eq!((figures.false_rejects, figures.escapes), (1, 1));
    // Of nine pairs only dent/0 against good/2 is lost.
    assert_eq!(figures.image_auroc, Some(8.0 / 9.0));
    // 2×2 of the 8×8 map is anomalous in each defect: 12 pixels with scores .5, 1.5, 2 (four
    // each). Normal: 60 × .05 thrice, 64 × .1, 64 × .2, 64 × 1.2. Lost: the .5 against the 1.2.
    let pairs = 12.0 * (180.0 + 192.0);
    let auroc = figures.pixel_auroc.unwrap();
    assert!((auroc - (pairs - 4.0 * 64.0) / pairs).abs() < 1e-12, "{auroc}");
    let kinds: Vec<_> = figures
        .kinds
        .iter()
        .map(|kind| (kind.kind.as_str(), kind.images, kind.escapes, kind.image_auroc))
        .collect();
    assert_eq!(kinds, [("dent", 2, 1, Some(5.0 / 6.0)), ("stain", 1, 0, Some(1.0))]);
}

#[test]
fn the_batch_changes_nothing() {
    let root = test_set();
    let one = evaluated(root.path(), 1).figures;
    assert_eq!(one, evaluated(root.path(), 4).figures);
    assert_eq!(one, evaluated(root.path(), 100).figures);
}

#[test]
fn without_masks_pixel_figures_are_null() {
    let root = test_set();
    fs::remove_dir_all(root.path().join("ground_truth")).unwrap();
    let figures = evaluated(root.path(), 4).figures;
    assert_eq!((figures.pixel_auroc, figures.aupro_0_3), (None, None));
    assert_eq!(figures.image_auroc, Some(8.0 / 9.0));
    assert!(serde_json::to_value(&figures).unwrap()["pixel_ap"].is_null());
}

#[test]
fn an_unreadable_picture_is_named() {
    let root = test_set();
    fs::write(root.path().join("test/dent/1.png"), "no picture").unwrap();
    let samples = mvtec::test(root.path()).unwrap();
    let error = evaluate(&mut Brightness, &samples, &SETTINGS, &mut |_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("dent/1.png"), "{error:#}");
}

#[test]
fn a_score_that_is_not_finite_is_an_error() {
    struct Broken;
    impl Detector for Broken {
        fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
            let mut detections = Brightness.detect(images)?;
            detections[0].score = f32::NAN;
            Ok(detections)
        }
    }
    let root = test_set();
    let samples = mvtec::test(root.path()).unwrap();
    let error = evaluate(&mut Broken, &samples, &SETTINGS, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("dent/0.png"), "{error}");
}

#[test]
fn the_sheet_shows_both_sorts_of_errors() {
    let root = test_set();
    let evaluation = evaluated(root.path(), 4);
    let sheet = sheet::sheet(&mut Brightness, &evaluation, &SETTINGS, "a title").unwrap();
    // Two sections of one line of tiles each; the red of ESCAPE and of FALSE REJECT is there.
    assert_eq!((sheet.width(), sheet.height()), (1414, 668));
    let red = |rows: std::ops::Range<u32>| {
        rows.flat_map(|y| (0..sheet.width()).map(move |x| (x, y)))
            .any(|(x, y)| sheet.get_pixel(x, y).0 == [255, 107, 107])
    };
    assert!(red(96..362) && red(402..668));
}

#[test]
fn the_json_has_the_promised_keys() {
    let root = test_set();
    let report = report::Report {
        bundle: "b".into(),
        data: "d".into(),
        seconds: 0.5,
        figures: evaluated(root.path(), 4).figures,
    };
    let json = serde_json::to_value(&report).unwrap();
    for key in [
        "bundle",
        "data",
        "images",
        "image_auroc",
        "pixel_auroc",
        "pixel_ap",
        "aupro_0_3",
        "threshold",
        "seconds",
    ] {
        assert!(!json[key].is_null(), "{key}");
    }
    let table = report.to_string();
    assert!(table.contains("image AUROC   0.8889      pixel AUROC   0.9427"), "{table}");
    assert!(table.contains("escapes        1 of 3 defects"), "{table}");
}
