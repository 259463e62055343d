//! On rendered parts of 64 × 64, a handful of each.

use std::fs;
use std::sync::LazyLock;

use super::report::Report;
use super::*;
use crate::camera::pattern;
use crate::dataset;
use crate::nn::engine;

/// Twelve good parts to learn from; three good ones and three defects to test with.
static PARTS: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    let save = |place: &str, seed: u64, index: u64, defect_rate: f64| {
        let config =
            pattern::Config { width: 64, height: 64, seed, defect_rate, ..Default::default() };
        let (image, defect) = pattern::render(&config, index);
        let path = root.path().join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(&path).unwrap();
        if let Some((_, mask)) = defect {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let place = root.path().join(format!("ground_truth/dent/{name}_mask.png"));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            mask.save(place).unwrap();
        }
    };
    (0..12).for_each(|i| save(&format!("train/good/{i:03}.png"), 1, i, 0.0));
    (0..3).for_each(|i| save(&format!("test/good/{i:03}.png"), 2, i, 0.0));
    (0..3).for_each(|i| save(&format!("test/dent/{i:03}.png"), 3, i, 1.0));
    root
});

fn category() -> Category {
    dataset::find(PARTS.path()).unwrap().remove(0)
}

fn config() -> Config {
    Config {
        shots: vec![Shots::Few(1), Shots::Few(3), Shots::All],
        seeds: vec![4, 5],
        input: Input { width: 64, height: 64 },
        bank: BankSize::Usual,
        significant_bits: 16,
    }
}

fn measured() -> BackboneCurve {
    let (config, category) = (config(), category());
    let engine = Engine::new(&engine::Config { threads: Some(2), ..Default::default() }).unwrap();
    let experiment = Experiment::new(&config, &category).unwrap();
    experiment.measure(&BackboneSpec::Compact, &engine, &mut |_, _, _| ()).unwrap()
}

static CURVE: LazyLock<BackboneCurve> = LazyLock::new(measured);

fn report() -> Report {
    Report {
        inspectd: "0".into(),
        category: "dials".into(),
        data: "d".into(),
        test_images: 6,
        seeds: vec![4, 5],
        backbones: vec![CURVE.clone()],
        seconds: 1.0,
    }
}

#[test]
fn draws_are_nested_and_each_seed_has_its_own() {
    let [one, three, all] = CURVE.points.as_slice() else { panic!("three points") };
    assert_eq!((one.pictures, three.pictures, all.pictures), (1, 3, 12));
    // 64 patches a picture, of which a half.
    assert_eq!((one.prototypes, three.prototypes, all.prototypes), (32, 96, 384));
    for (one, three) in one.runs.iter().zip(&three.runs) {
        assert_eq!((one.parts.len(), three.parts.len()), (1, 3));
        assert_eq!(one.parts[0], three.parts[0]);
    }
    assert_ne!(three.runs[0].parts, three.runs[1].parts);
    assert!(all.runs.iter().all(|run| run.parts.is_empty()));
}

#[test]
fn the_same_seeds_give_the_same_figures() {
    assert_eq!(measured(), *CURVE);
}

#[test]
fn figures_are_those_of_a_memory_bank_of_the_parts_drawn() {
    let run = &CURVE.points[1].runs[1];
    let category = category();
    let engine = Engine::new(&engine::Config { threads: Some(1), ..Default::default() }).unwrap();
    let loaded = patch_prototypes::load_backbone(&BackboneSpec::Compact).unwrap();
    let mut extractor = PatchFeatures::new(config().input, &loaded.backbone, &engine).unwrap();
    let picture = |name: &String| {
        let sample = category.train.iter().find(|sample| sample.name == *name).unwrap();
        folder::read(&sample.path, 16).unwrap()
    };
    let drawn: Vec<_> = run.parts.iter().map(picture).collect();
    let features = extractor.extract(&drawn.iter().collect::<Vec<_>>()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    rng.set_stream(CORESET_STREAM);
    let dims = extractor.dims();
    let rows =
        teach::memory_bank(BankSize::Count(96), &features, dims, &mut rng, &mut |_, _| ()).unwrap();
    let mut detector = PatchPrototypes::new(extractor, rows).unwrap();
    let settings = crate::eval::Settings {
        threshold: 1.0,
        map_limit: 1.0,
        batch: 2,
        significant_bits: 16,
        resolution: crate::eval::Resolution::Map,
        allow_unreadable: false,
        bootstrap: None,
    };
    let whole = crate::eval::evaluate(&mut detector, &category.test, &settings, &mut |_| ())
        .unwrap()
        .figures;
    assert_eq!(
        run.figures,
        Figures {
            image_auroc: whole.image_auroc,
            pixel_auroc: whole.pixel_auroc,
            pixel_ap: whole.pixel_ap,
            aupro_0_3: whole.aupro_0_3,
        }
    );
    assert!(run.figures.image_auroc.is_some() && run.figures.aupro_0_3.is_some());
}

#[test]
fn spread_is_the_sample_standard_deviation() {
    let spread = Spread::of(&[Some(0.5), Some(0.7), Some(0.9)]);
    assert!((spread.mean.unwrap() - 0.7).abs() < 1e-15);
    assert!((spread.std.unwrap() - 0.2).abs() < 1e-15);
    assert_eq!(Spread::of(&[Some(0.5)]), Spread { mean: Some(0.5), std: None });
    assert_eq!(Spread::of(&[Some(0.5), None]), Spread::default());
}

#[test]
fn the_plot_names_backbone_figures_and_parts() {
    let svg = report().svg().unwrap();
    for text in ["compact", "image AUROC of dials, 2 seeds", "AUPRO@0.3", "pixel AP", "all"] {
        assert!(svg.contains(text), "{text}");
    }
    assert_eq!(svg.matches("</svg>").count(), 5);
}

#[test]
fn table_and_csv_have_every_number_of_parts() {
    let report = report();
    let table = report.to_string();
    assert!(table.contains("all 12        384"), "{table}");
    assert_eq!(table.matches(" ± ").count(), 1 + 3 * 4, "{table}");
    let csv = report.csv().unwrap();
    assert_eq!(csv.lines().count(), 1 + 3 * 2);
    assert!(
        csv.starts_with("category,backbone,shots,pictures,prototypes,seed,image_auroc,"),
        "{csv}"
    );
    assert!(csv.contains("\ndials,compact,all,12,384,5,"), "{csv}");
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let category = category();
    let config = Config { shots: vec![Shots::Few(13)], ..config() };
    let error = Experiment::new(&config, &category).err().unwrap().to_string();
    assert!(error.contains("few-shot = 13") && error.contains("12 good parts"), "{error}");
    for (word, says) in [("0", "no memory bank"), ("-1", "or all"), ("some", "or all")] {
        let error = word.parse::<Shots>().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!("all".parse::<Shots>().unwrap(), Shots::All);
}
