//! Teaching on rendered good parts, and bundles that were tampered with.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use inspectd::camera::pattern;
use inspectd::detector::Detector;
use inspectd::detector::bundle::{self, Card, Rule};
use inspectd::detector::input::Input;
use inspectd::detector::patch_prototypes::{self, PatchFeatures, PatchPrototypes};
use inspectd::detector::tiles::{Layout, Tiles};
use inspectd::frame::Image;
use inspectd::nn::BackboneSpec;
use inspectd::nn::engine::{self, Engine};
use inspectd::nn::plan::Precision;
use inspectd::teach::precision::{self, Wanted};
use inspectd::teach::{self, BankSize, Config, Good, HoldOut, Step, Taught};
use tempfile::TempDir;

fn config() -> Config {
    Config {
        backbone: BackboneSpec::Compact,
        input: Input { width: 96, height: 96 },
        seed: 5,
        bank: BankSize::Count(200),
        holdout: HoldOut::Split(0.25),
        false_rejects: 0.01,
        significant_bits: 16,
        precision: Wanted::F32,
        tiles: None,
    }
}

/// [`config`] for few pictures; small, as it makes six memory banks.
fn folded() -> Config {
    Config { holdout: HoldOut::Auto, bank: BankSize::Count(60), ..config() }
}

/// Good part number `index`; rendered once, which is slow in a debug build.
fn part(index: usize) -> Image {
    static PARTS: LazyLock<Vec<Image>> = LazyLock::new(|| {
        let config = pattern::Config {
            width: 96,
            height: 96,
            defect_rate: 0.0,
            ..pattern::Config::default()
        };
        (0..20).map(|i| Image::Rgb(pattern::render(&config, i).0)).collect()
    });
    PARTS[index].clone()
}

fn goods(count: usize) -> Vec<Good> {
    (0..count).map(|i| Good::Picture { name: format!("part-{i}"), image: part(i) }).collect()
}

fn engine() -> Engine {
    Engine::new(&engine::Config { threads: Some(2), ..Default::default() }).unwrap()
}

fn teach(config: &Config, goods: Vec<Good>) -> anyhow::Result<Taught> {
    let loaded = patch_prototypes::load_backbone(&config.backbone)?;
    let plan = config.plan(goods, &loaded)?;
    teach::teach(config, plan, loaded, &engine(), &mut |_, _, _| ())
}

#[test]
fn taught_on_tiles_a_good_part_is_a_whole_picture() {
    let layout: Layout = "64:16".parse().unwrap();
    let tiled = Config { tiles: Some(layout), ..folded() };
    let bundle = teach(&tiled, goods(6)).unwrap();
    let (rows, columns) = patch_prototypes::grid(tiled.input);
    let bank = bundle.card.prototypes.as_ref().unwrap();
    assert_eq!(bank.patches, 6 * 4 * rows * columns, "four tiles of each of six pictures");
    assert_eq!(bundle.card.calibration.held_out, 6, "one score a picture");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiled.bundle");
    bundle.write(&path, false).unwrap();
    let bundle = bundle::load(&path, 2, &engine()).unwrap();
    // Each part was in the memory bank that scores it here, so it scores less than in its fold.
    let mut tiles = Tiles::new(layout, bundle.detector);
    for index in 0..6 {
        let found = tiles.detect(&[&part(index)]).unwrap().remove(0);
        assert!(found.score < bundle.card.threshold.score, "{index}: {}", found.score);
        assert_eq!((found.map.width, found.map.height), (144, 144));
    }

    let mut mixed = goods(6);
    let image = Image::Gray(image::GrayImage::new(120, 200));
    mixed[4] = Good::Picture { name: "other".into(), image };
    let error = format!("{:#}", teach(&tiled, mixed).err().unwrap());
    assert!(error.contains("pictures of one size"), "{error}");
    let int8 = Config { precision: Wanted::Int8, ..tiled };
    assert!(int8.check().unwrap_err().to_string().contains("int8"));
}

/// A bundle of 20 rendered parts in a folder of its own.
fn taught() -> (TempDir, PathBuf) {
    static FILES: LazyLock<BTreeMap<PathBuf, Vec<u8>>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disc.bundle");
        teach(&config(), goods(20)).unwrap().write(&path, false).unwrap();
        relative(&path)
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disc.bundle");
    fs::create_dir_all(path.join("golden")).unwrap();
    for (name, bytes) in &*FILES {
        fs::write(path.join(name), bytes).unwrap();
    }
    (folder, path)
}

/// Every file of a folder by its name.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

fn relative(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let strip = |(path, bytes): (PathBuf, Vec<u8>)| {
        (path.strip_prefix(folder).unwrap().to_path_buf(), bytes)
    };
    contents(folder).into_iter().map(strip).collect()
}

fn load_error(bundle: &Path) -> String {
    format!("{:#}", bundle::load(bundle, 3, &engine()).err().expect("this bundle must not load"))
}

/// Changes the card's text, which no hash protects.
fn edit_card(bundle: &Path, edit: impl Fn(String) -> String) {
    let path = bundle.join("model.toml");
    let text = fs::read_to_string(&path).unwrap();
    let edited = edit(text.clone());
    assert_ne!(edited, text, "the edit found nothing to change");
    fs::write(&path, edited).unwrap();
}

/// Puts other bytes into a file of the bundle and makes the card agree.
fn forge(bundle: &Path, name: &str, bytes: &[u8]) {
    let old = bundle::sha256(&fs::read(bundle.join(name)).unwrap());
    fs::write(bundle.join(name), bytes).unwrap();
    edit_card(bundle, |text| text.replace(&old, &bundle::sha256(bytes)));
}

#[test]
fn a_taught_bundle_loads_and_says_what_it_said() {
    let (_folder, path) = taught();
    let mut loaded = bundle::load(&path, 3, &engine()).unwrap();
    let Card { training_data, prototypes, calibration, threshold, .. } = &loaded.card;
    assert_eq!((training_data.taught, training_data.held_out), (15, 5));
    let prototypes = prototypes.as_ref().unwrap();
    assert_eq!((prototypes.count, prototypes.dims, prototypes.patches), (200, 384, 15 * 144));
    assert_eq!((calibration.rule, calibration.needed), (Rule::Extrapolated, 99));
    assert!(threshold.score > calibration.scores.max && threshold.map > calibration.map_maxima.max);

    let detections = loaded.detector.detect(&[&part(3), &part(19)]).unwrap();
    assert_eq!((detections[0].map.width, detections[0].map.height), (96, 96));
    // the blot of golden/3.png is the worst of the golden four
    let golden = inspectd::camera::folder::list(&path.join("golden"), false).unwrap();
    assert_eq!(golden.len(), 4);
    let scores: Vec<f32> = golden
        .iter()
        .map(|name| {
            let bytes = fs::read(path.join("golden").join(name)).unwrap();
            let image = inspectd::camera::folder::decode(&bytes, 16).unwrap();
            loaded.detector.detect(&[&image]).unwrap()[0].score
        })
        .collect();
    assert!(scores[..3].iter().all(|good| *good < scores[3]), "{scores:?}");
    assert!(scores[3] > loaded.card.threshold.score, "{scores:?}");
}

#[test]
fn same_seed_same_bytes_and_another_seed_another_model() {
    let (_first, first) = taught();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("again");
    teach(&config(), goods(20)).unwrap().write(&path, false).unwrap();
    let (first, second) = (relative(&first), relative(&path));
    assert_eq!(first.len(), 7, "{:?}", first.keys());
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    for (name, bytes) in &first {
        assert!(second[name] == *bytes, "{} differs", name.display());
    }
    let other = teach(&Config { seed: 6, ..config() }, goods(20)).unwrap();
    other.write(&folder.path().join("b"), false).unwrap();
    let other = relative(&folder.path().join("b"));
    assert!(other[Path::new("weights.safetensors")] != first[Path::new("weights.safetensors")]);
}

#[test]
fn a_changed_or_missing_file_does_not_load() {
    for name in ["weights.safetensors", "golden/0.png", "golden/expected.safetensors"] {
        let (_folder, path) = taught();
        let file = path.join(name);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        let error = load_error(&path);
        assert!(error.contains(name) && error.contains("was changed"), "{error}");
        fs::remove_file(&file).unwrap();
        let error = load_error(&path);
        assert!(error.contains(name) && error.contains("incomplete"), "{error}");
    }
}

#[test]
fn golden_scores_that_are_not_reproduced_do_not_arm() {
    let (_folder, path) = taught();
    let name = "weights.safetensors";
    let mut bytes = fs::read(path.join(name)).unwrap();
    // every 50th prototype value is moved by a little; the file stays well-formed and finite
    let start = bytes.len() - 200 * 384 * 4;
    for value in bytes[start..].chunks_exact_mut(4).step_by(50) {
        let moved = f32::from_le_bytes(value.try_into().unwrap()) + 1.0;
        value.copy_from_slice(&moved.to_le_bytes());
    }
    forge(&path, name, &bytes);
    let error = load_error(&path);
    for word in ["parity seal", "golden/0.png at batch 1", "was expected"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn weights_that_are_not_finite_do_not_load() {
    let (_folder, path) = taught();
    let mut bytes = fs::read(path.join("weights.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    forge(&path, "weights.safetensors", &bytes);
    assert!(load_error(&path).contains("not finite"), "{}", load_error(&path));
}

#[test]
fn a_card_that_does_not_add_up_does_not_load() {
    let cases = [
        ("\"patch_prototypes\"", "\"magic\"", "system = \"magic\" is not known"),
        ("version = 1", "version = 2", "reads bundles of version 1"),
        ("count = 200", "count = 100", "memory bank"),
        ("width = 96", "width = 100", "multiple of 32"),
        ("width = 96", "width = 128", "parity seal"),
        ("\"golden/0.png\"", "\"../0.png\"", "no golden picture"),
        ("\"golden/3.png\"", "\"/etc/passwd\"", "has no place in a bundle"),
        ("network = \"compact\"", "network = \"resnet18\"", "conv1"),
        ("network = \"compact\"", "network = \"vgg\"", "not known"),
        ("seed = 5", "seed = 5\nsurprise = 1", "surprise"),
        ("[threshold]\nscore = ", "[threshold]\nscore = -", "must be a number above 0"),
        ("[threshold]\nscore = ", "[threshold]\nscore = nan # ", "must be a finite number"),
    ];
    let (_folder, path) = taught();
    let original = fs::read_to_string(path.join("model.toml")).unwrap();
    for (old, new, word) in cases {
        edit_card(&path, |text| text.replacen(old, new, 1));
        let error = load_error(&path);
        assert!(error.contains(word), "{old} → {new}: {error}");
        fs::write(path.join("model.toml"), &original).unwrap();
    }
    bundle::load(&path, 3, &engine()).unwrap();
}

#[test]
fn a_bundle_is_replaced_only_when_told_and_nothing_else_ever() {
    let (folder, path) = taught();
    let again = || teach(&config(), goods(20)).unwrap();
    let error = again().write(&path, false).unwrap_err().to_string();
    assert!(error.contains("already there"), "{error}");
    again().write(&path, true).unwrap();
    bundle::load(&path, 1, &engine()).unwrap();

    let precious = folder.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("thesis.txt"), "years of work").unwrap();
    let error = again().write(&precious, true).unwrap_err().to_string();
    assert!(error.contains("not a bundle"), "{error}");
    assert!(precious.join("thesis.txt").exists());

    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "nothing unfinished is left beside the bundle");
}

#[test]
fn pictures_that_cannot_be_read_and_copies_are_left_out_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, index| part(index).to_rgb().save(folder.path().join(name)).unwrap();
    for i in 0..18 {
        save(&format!("{i:02}.png"), i);
    }
    save("copy.png", 4);
    fs::write(folder.path().join("broken.png"), b"not a picture").unwrap();
    let goods = teach::pictures_in(folder.path()).unwrap();
    assert_eq!(goods.len(), 20);
    let taught = teach(&config(), goods).unwrap();
    assert_eq!(taught.copies.len(), 1);
    assert!(["04.png", "copy.png"].contains(&taught.copies[0].as_str()), "{:?}", taught.copies);
    assert_eq!(taught.unreadable[0].0, "broken.png");
    let data = &taught.card.training_data;
    assert_eq!((data.taught + data.held_out, data.unreadable, data.copies), (18, 1, 1));

    for i in 0..3 {
        fs::write(folder.path().join(format!("{i:02}.png")), b"").unwrap();
    }
    let error = teach(&config(), teach::pictures_in(folder.path()).unwrap()).err().unwrap();
    assert!(error.to_string().contains("more than a tenth"), "{error}");
}

#[test]
fn too_little_to_learn_from_is_refused() {
    let few = |config: Config, count| teach(&config, goods(count)).err().unwrap().to_string();
    assert!(few(config(), 4).contains("at least 5"), "{}", few(config(), 4));
    let greedy = Config { holdout: HoldOut::Split(0.7), ..config() };
    assert!(few(greedy.clone(), 6).contains("hold out fewer"), "{}", few(greedy, 6));
    let thin = Config { holdout: HoldOut::Folds(7), ..config() };
    assert!(few(thin.clone(), 6).contains("folds = 7 of 6"), "{}", few(thin, 6));
    let full = Config { bank: BankSize::Count(5 * 144), ..folded() };
    // 6 pictures fill it, but not the 4 that are left without the largest fold
    assert!(few(full.clone(), 6).contains("576 patches of 4"), "{}", few(full, 6));
    let huge = Config { bank: BankSize::Count(100_000), ..config() };
    assert!(few(huge.clone(), 6).contains("100000 prototypes"), "{}", few(huge, 6));
    let same = (0..8).map(|i| Good::Picture { name: format!("{i}"), image: part(1) }).collect();
    let error = teach(&config(), same).err().unwrap().to_string();
    assert!(error.contains("copies"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    assert!(teach::pictures_in(empty.path()).is_err());
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_the_arithmetic() {
    let loaded = patch_prototypes::load_backbone(&BackboneSpec::Compact).unwrap();
    let plan = config().plan(goods(20), &loaded).unwrap();
    plan.check_memory(plan.bytes()).unwrap();
    let error = plan.check_memory(plan.bytes() - 1).unwrap_err().to_string();
    assert!(error.contains("15 pictures × 144 patches × 384 channels × 4 bytes"), "{error}");
    // features alone of a thousand pictures at 256 × 256
    let large = Config { input: Input { width: 256, height: 256 }, ..config() };
    let file = |i| Good::File { name: format!("{i}"), path: PathBuf::new() };
    let many = (0..1334).map(file).collect(); // a quarter is held out
    assert!(large.plan(many, &loaded).unwrap().bytes() > 1000 * 1024 * 384 * 4);
}

#[test]
fn progress_ends_at_the_end_of_every_step() {
    let loaded = patch_prototypes::load_backbone(&BackboneSpec::Compact).unwrap();
    let plan = config().plan(goods(20), &loaded).unwrap();
    let mut last = BTreeMap::new();
    teach::teach(&config(), plan, loaded, &engine(), &mut |step, done, total| {
        assert!(done <= total, "{step:?}: {done} of {total}");
        last.insert(format!("{step:?}"), (done, total));
    })
    .unwrap();
    let want = [(Step::Calibration, 5), (Step::Coreset, 200), (Step::Features, 15)];
    assert_eq!(last, want.map(|(step, n)| (format!("{step:?}"), (n, n))).into());
}

#[test]
fn few_pictures_go_into_folds_and_many_are_split() {
    struct Case {
        holdout: HoldOut,
        pictures: usize,
        folds: Option<usize>,
        held_out: usize,
    }
    let cases = [
        Case { holdout: HoldOut::Auto, pictures: 5, folds: Some(5), held_out: 0 },
        Case { holdout: HoldOut::Auto, pictures: 99, folds: Some(5), held_out: 0 },
        Case { holdout: HoldOut::Auto, pictures: 100, folds: None, held_out: 20 },
        Case { holdout: HoldOut::Split(0.2), pictures: 30, folds: None, held_out: 6 },
        Case { holdout: HoldOut::Folds(7), pictures: 200, folds: Some(7), held_out: 0 },
    ];
    let loaded = patch_prototypes::load_backbone(&BackboneSpec::Compact).unwrap();
    for Case { holdout, pictures, folds, held_out } in cases {
        let file = |i| Good::File { name: format!("{i}"), path: PathBuf::new() };
        let config = Config { holdout, ..config() };
        let plan = config.plan((0..pictures).map(file).collect(), &loaded).unwrap();
        let got = (plan.pictures(), plan.folds(), plan.held_out());
        assert_eq!(got, (pictures, folds, held_out), "{holdout:?}");
    }
}

#[test]
fn a_model_from_folds_has_every_picture_and_the_same_bytes_again() {
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str, config: Config| {
        let path = folder.path().join(name);
        teach(&config, goods(12)).unwrap().write(&path, false).unwrap();
        path
    };
    let (first, again) = (written("a", folded()), written("b", folded()));
    assert_eq!(relative(&first), relative(&again));
    let Card { training_data, prototypes, calibration, .. } =
        bundle::load(&first, 3, &engine()).unwrap().card;
    assert_eq!((training_data.taught, training_data.held_out), (12, 0));
    let prototypes = prototypes.unwrap();
    assert_eq!((prototypes.count, prototypes.patches), (60, 12 * 144));
    assert_eq!((calibration.held_out, calibration.folds), (12, Some(5)));
    assert_eq!(calibration.rule, Rule::Extrapolated);
    let text = |path: &Path| fs::read_to_string(path.join("model.toml")).unwrap();
    assert!(text(&first).contains("\nfolds = 5\n"), "{}", text(&first));
    // a split's card says nothing of folds
    assert!(!text(&taught().1).contains("folds"), "{}", text(&taught().1));
}

/// With every patch of the others as its memory bank, a part that were in it would score 0.
#[test]
fn no_part_is_in_the_memory_bank_that_scores_it() {
    let all = Config {
        input: Input { width: 64, height: 64 },
        bank: BankSize::Ratio(1.0),
        holdout: HoldOut::Folds(6),
        ..config()
    };
    // the plain way: for each part a detector made of the five others
    let load = || patch_prototypes::load_backbone(&BackboneSpec::Compact).unwrap().backbone;
    let mut extractor = PatchFeatures::new(all.input, &load(), &engine()).unwrap();
    let features: Vec<Vec<f32>> = (0..6).map(|i| extractor.extract(&[&part(i)]).unwrap()).collect();
    let score = |i: usize, with: &dyn Fn(usize) -> bool| {
        let rows = (0..6).filter(|&j| with(j)).flat_map(|j| features[j].clone()).collect();
        let extractor = PatchFeatures::new(all.input, &load(), &engine()).unwrap();
        let mut detector = PatchPrototypes::new(extractor, rows).unwrap();
        detector.detect(&[&part(i)]).unwrap()[0].score
    };
    let mut plain: Vec<f32> = (0..6).map(|i| score(i, &|j| j != i)).collect();
    plain.sort_by(f32::total_cmp);

    let calibrated =
        |holdout| teach(&Config { holdout, ..all.clone() }, goods(6)).unwrap().card.calibration;
    let singly = calibrated(HoldOut::Folds(6));
    let got = [singly.scores.min, singly.scores.median, singly.scores.max];
    for (got, want) in got.into_iter().zip([plain[0], plain[3], plain[5]]) {
        // a batch may sum in another order: scores move by less than 1e-4 (see SEAL_TOLERANCE)
        assert!((got - want).abs() < 1e-4 * want, "{got} {want}");
    }
    let leaked = score(0, &|_| true);
    assert!(leaked < 1e-3 * plain[0], "leakage would not show: {leaked} of {}", plain[0]);

    // larger folds leave fewer others, so no distance gets smaller
    let pairs = calibrated(HoldOut::Folds(3)).map_maxima;
    let singly = singly.map_maxima;
    for (pairs, singly) in
        [(pairs.min, singly.min), (pairs.median, singly.median), (pairs.max, singly.max)]
    {
        assert!(pairs >= singly * (1.0 - 1e-4), "{pairs} {singly}");
    }
}

#[test]
fn a_memory_bank_of_all_patches_still_seals() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.bundle");
    let all = Config { bank: BankSize::Ratio(1.0), ..folded() };
    teach(&all, goods(6)).unwrap().write(&path, false).unwrap();
    bundle::load(&path, 3, &engine()).unwrap();
}

#[test]
fn folds_are_made_of_what_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..10 {
        part(i).to_rgb().save(folder.path().join(format!("{i:02}.png"))).unwrap();
    }
    fs::write(folder.path().join("broken.png"), b"not a picture").unwrap();
    fs::copy(folder.path().join("03.png"), folder.path().join("copy.png")).unwrap();
    let taught = teach(&folded(), teach::pictures_in(folder.path()).unwrap()).unwrap();
    let Card { training_data, calibration, .. } = taught.card;
    assert_eq!((training_data.unreadable, training_data.copies), (1, 1));
    assert_eq!((training_data.taught, calibration.held_out), (10, 10));
}

#[test]
fn progress_names_every_fold() {
    let loaded = patch_prototypes::load_backbone(&BackboneSpec::Compact).unwrap();
    let plan = folded().plan(goods(7), &loaded).unwrap();
    let mut steps = Vec::new();
    teach::teach(&folded(), plan, loaded, &engine(), &mut |step, done, total| {
        if done == total {
            steps.push((step, total));
        }
    })
    .unwrap();
    let folds = (1..=5).map(|fold| (Step::Fold { fold, folds: 5 }, 60));
    let want = [(Step::Features, 7)].into_iter().chain(folds).chain([(Step::Coreset, 60)]);
    assert_eq!(steps, want.collect::<Vec<_>>());
}

#[test]
fn int8_is_measured_and_comes_back_from_the_bundle() {
    let taught = teach(&Config { precision: Wanted::Int8, ..config() }, goods(20)).unwrap();
    let check = taught.precision.unwrap();
    assert!(precision::passes(&check), "{check:?}");
    assert_eq!((check.goods, check.anomalies), (5, 15));
    let card = taught.card.clone();
    assert_eq!((card.precision, card.int8.as_ref().unwrap().check), (Precision::Int8, check));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disc.bundle");
    taught.write(&path, false).unwrap();
    // Passes its seal.
    let loaded = bundle::load(&path, 3, &engine()).unwrap().card;
    assert_eq!((loaded.precision, &loaded.int8), (Precision::Int8, &card.int8));

    edit_card(&path, |text| text.replace("precision = \"int8\"\n", ""));
    assert!(load_error(&path).contains("precision = \"f32\" needs no table [int8]"));
}
