//! A detector whose scores are known in advance, on pictures made here.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use image::{GrayImage, Luma};

use super::published::Choice;
use super::report::{Made, Report, Run, Shared};
use super::*;
use crate::dataset::{self, Layout, Purpose};

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

const SETTINGS: Settings = Settings {
    threshold: 1.0,
    map_limit: 1.0,
    batch: 4,
    significant_bits: 16,
    resolution: Resolution::Map,
    allow_unreadable: false,
    bootstrap: None,
};

fn samples(root: &Path) -> Vec<Sample> {
    dataset::find_for(root, Purpose::Testing).unwrap().remove(0).test
}

fn evaluated(root: &Path, settings: Settings) -> Evaluation {
    evaluate(&mut Brightness, &samples(root), &settings, &mut |_| ()).unwrap()
}

/// A run of [`Brightness`] as bundle `bundle` on a category.
fn run(bundle: &str, category: &str, evaluation: Evaluation) -> Run {
    Run {
        bundle: bundle.to_owned(),
        data: format!("sets/{category}"),
        category: category.to_owned(),
        layout: Layout::Mvtec,
        seconds: 0.5,
        images_per_s: 12.0,
        peak_rss_mib: 100.0,
        made: Made {
            system: "brightness".to_owned(),
            backbone: "none".to_owned(),
            precision: "f32",
            input: (8, 8),
            prototypes: Some(0),
            steps: None,
            seed: 0,
            inspectd: "0.0.0".to_owned(),
            revision: "unknown".to_owned(),
            images: 3,
            training_data_sha256: "0123456789abcdef".to_owned(),
        },
        seen_anomalies: Vec::new(),
        unreadable: evaluation.unreadable,
        published: published::published(Layout::Mvtec, category, &Choice::Usual),
        notes: Vec::new(),
        figures: evaluation.figures,
        scored: evaluation.scored,
        curves: evaluation.curves,
        gallery: Vec::new(),
    }
}

fn report(runs: Vec<Run>) -> Report {
    Report {
        runs,
        settings: Shared {
            inspectd: "0.0.0".to_owned(),
            revision: "unknown".to_owned(),
            cpu: "a processor".to_owned(),
            threads: 2,
            batch: 4,
            resolution: Resolution::Map,
            resamples: 0,
            confidence: 0.95,
            seed: 0,
        },
        choice: Choice::Usual,
        made_at: UNIX_EPOCH,
    }
}

#[test]
fn figures_count_what_the_threshold_does() {
    let root = test_set();
    let figures = evaluated(root.path(), SETTINGS).figures;
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
    let by = |batch| evaluated(root.path(), Settings { batch, ..SETTINGS }).figures;
    assert_eq!(by(1), by(4));
    assert_eq!(by(1), by(100));
}

#[test]
fn without_masks_pixel_figures_are_null() {
    let root = test_set();
    fs::remove_dir_all(root.path().join("ground_truth")).unwrap();
    let figures = evaluated(root.path(), SETTINGS).figures;
    assert_eq!((figures.pixel_auroc, figures.aupro_0_3), (None, None));
    assert_eq!(figures.image_auroc, Some(8.0 / 9.0));
    assert!(serde_json::to_value(&figures).unwrap()["pixel_ap"].is_null());
}

#[test]
fn all_unreadable_files_are_named() {
    let root = test_set();
    fs::write(root.path().join("test/dent/1.png"), "no picture").unwrap();
    fs::write(root.path().join("ground_truth/stain/0_mask.png"), "no mask").unwrap();
    for batch in [1, 4, 100] {
        let settings = Settings { batch, ..SETTINGS };
        let error = evaluate(&mut Brightness, &samples(root.path()), &settings, &mut |_| ());
        let error = format!("{:#}", error.unwrap_err());
        for text in ["2 of 6", "dent/1.png", "stain/0_mask.png", "--allow-unreadable"] {
            assert!(error.contains(text), "{text}: {error}");
        }
    }
}

#[test]
fn figures_can_be_taken_without_what_is_unreadable() {
    let root = test_set();
    fs::write(root.path().join("test/dent/1.png"), "no picture").unwrap();
    let settings = Settings { allow_unreadable: true, ..SETTINGS };
    let evaluation = evaluated(root.path(), settings);
    let names: Vec<_> = evaluation.unreadable.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["dent/1.png"]);
    assert_eq!((evaluation.figures.images, evaluation.figures.defects), (5, 2));

    for kind in ["good/0", "good/1", "good/2", "dent/0", "stain/0"] {
        fs::write(root.path().join(format!("test/{kind}.png")), "no picture").unwrap();
    }
    let all = samples(root.path());
    assert!(evaluate(&mut Brightness, &all, &settings, &mut |_| ()).is_err());
}

#[test]
fn pixels_can_be_counted_at_the_masks_size() {
    let root = test_set();
    let original = Settings { resolution: Resolution::Original, ..SETTINGS };
    let auroc = evaluated(root.path(), original).figures.pixel_auroc.unwrap();
    // A map brought from 8×8 to 16×16 runs over the square's edge, and so loses some pairs more.
    let at_map = evaluated(root.path(), SETTINGS).figures.pixel_auroc.unwrap();
    assert!(auroc < at_map && auroc > 0.8, "{auroc}, {at_map}");
}

#[test]
fn intervals_hold_their_figure() {
    let root = test_set();
    let bootstrap = Some(Bootstrap { resamples: 200, ..Bootstrap::default() });
    let figures = evaluated(root.path(), Settings { bootstrap, ..SETTINGS }).figures;
    for metric in [Metric::ImageAuroc, Metric::ImageAp, Metric::PixelAuroc, Metric::Aupro] {
        let interval = metric.interval(&figures.intervals).unwrap();
        let value = metric.of(&figures).unwrap();
        assert!(interval.low <= value && value <= interval.high, "{interval:?}, {value}");
    }
    assert_eq!(figures.intervals.image_auroc.unwrap().high, 1.0);
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
    let samples = samples(root.path());
    let error = evaluate(&mut Broken, &samples, &SETTINGS, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("dent/0.png"), "{error}");
}

#[test]
fn the_sheet_shows_both_sorts_of_errors() {
    let root = test_set();
    let evaluation = evaluated(root.path(), SETTINGS);
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
fn the_json_of_one_run_has_the_promised_keys_at_its_top() {
    let root = test_set();
    let report = report(vec![run("b", "disc", evaluated(root.path(), SETTINGS))]);
    let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
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
        "kinds",
        "pg2",
        "pb2",
        "images_per_s",
        "peak_rss_mib",
    ] {
        assert!(!json[key].is_null(), "{key}");
    }
    assert_eq!(json["pixel_counting"], "exact");
    let table = report.to_string();
    for line in ["image AUROC   0.8889", "pixel AUROC   0.9427", "escapes        1 of 3 defects"] {
        assert!(table.contains(line), "{line}: {table}");
    }
}

#[test]
fn several_runs_have_means_without_what_is_not_defined() {
    let (root, bare) = (test_set(), test_set());
    fs::remove_dir_all(bare.path().join("ground_truth")).unwrap();
    let mut second = evaluated(bare.path(), SETTINGS);
    second.figures.image_auroc = Some(0.5);
    let runs = vec![
        run("b", "disc", evaluated(root.path(), SETTINGS)),
        run("b", "cap", second),
        run("c", "disc", evaluated(root.path(), SETTINGS)),
    ];
    let report = report(runs);
    let means = report.means();
    assert_eq!(means.len(), 1, "one category has no mean");
    assert_eq!(means[0].of(Metric::ImageAuroc), Some((8.0 / 9.0 + 0.5) / 2.0));
    assert_eq!(means[0].of(Metric::PixelAuroc), report.runs[0].figures.pixel_auroc);
    assert_eq!(means[0].undefined[&Metric::PixelAuroc], ["cap"]);

    let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    assert_eq!(json["runs"].as_array().unwrap().len(), 3);
    assert_eq!(json["runs"][1]["category"], "cap");
    assert_eq!(json["means"][0]["undefined"]["pixel_auroc"][0], "cap");
    assert_eq!(json["means"][0]["categories"][1], "cap");
    let table = report.to_string();
    assert!(table.contains("not in the mean: pixel AUROC of cap"), "{table}");

    let csv = report.csv().unwrap();
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let column = |name| reader.headers().unwrap().iter().position(|one| one == name).unwrap();
    let columns = ["category", "image_auroc", "pixel_auroc", "escapes"].map(column);
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(columns.map(|at| &rows[1][at]), ["cap", "0.5", "", "1"]);
}

#[test]
fn published_means_stand_beside_whole_sets_only() {
    let root = test_set();
    let of = |categories: &[&str]| {
        let runs = categories.iter().map(|name| run("b", name, evaluated(root.path(), SETTINGS)));
        report(runs.collect()).means().remove(0).published
    };
    let all = published::categories(Layout::Mvtec);
    assert!(of(&all).iter().any(|one| one.method == "DeSTSeg"));
    assert!(of(&all[1..]).is_empty());
}

#[test]
fn a_table_fits_100_columns() {
    let root = test_set();
    let bootstrap = Some(Bootstrap { resamples: 20, ..Bootstrap::default() });
    let evaluated = || evaluated(root.path(), Settings { bootstrap, ..SETTINGS });
    let long = "a_category_with_a_very_long_name_that_nobody_reads";
    let one = report(vec![run("b", "bottle", evaluated())]).to_string();
    let runs = ["bottle", "metal_nut", long].map(|name| run("b", name, evaluated()));
    let several = report(runs.into_iter().collect()).to_string();
    for line in one.lines().chain(several.lines()) {
        // Notes are sentences, which the terminal wraps.
        let is_note = line.starts_with("note: ") || line.starts_with("not defined");
        assert!(is_note || line.chars().count() <= 100, "{line}");
    }
    assert!(one.contains("PatchCore (in PRN)"), "{one}");
    assert!(one.contains("note: published figures are at their authors' settings"), "{one}");
    for text in ["bottle", "mean", "PatchCore (in PRN)"] {
        assert!(several.contains(text), "{text}: {several}");
    }
}

#[test]
fn the_page_asks_for_nothing_and_escapes_what_it_shows() {
    let root = test_set();
    let evaluation = evaluated(root.path(), SETTINGS);
    let gallery = gallery::gallery(&mut Brightness, &evaluation, &SETTINGS, 4).unwrap();
    assert_eq!(gallery.len(), 4);
    let mut run = run("<b>&\"", "bottle", evaluation);
    run.gallery = gallery;
    run.notes.push("a </script> note".to_owned());
    let page = report(vec![run]).html().unwrap();
    for text in ["&lt;b&gt;&amp;&quot;", "a &lt;/script&gt; note", "PatchCore", "data:image/jpeg"] {
        assert!(page.contains(text), "{text}");
    }
    assert_eq!(page.matches("<svg").count(), 4);
    assert_eq!(page.matches("<figure").count(), 4);
    // The name of a format is no request.
    let rest = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for request in ["http:", "https:", "@import", "url(", "<link", " src=\"/", "fetch("] {
        assert!(!rest.contains(request), "{request}");
    }
}
