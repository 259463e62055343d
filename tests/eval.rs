//! `inspectd eval` itself, on rendered parts: several bundles on several categories, and what it
//! says of what is missing.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use inspectd::camera::pattern;
use serde_json::Value;
use tempfile::TempDir;

const CATEGORIES: [&str; 2] = ["cap", "disc"];

/// `sets/<category>` in MVTec AD's layout, and `system/<category>`, the bundle for it.
static WORKSHOP: LazyLock<TempDir> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    for (seed, category) in CATEGORIES.iter().enumerate() {
        let set = root.path().join("sets").join(category);
        let config = |defect_rate| pattern::Config {
            width: 64,
            height: 64,
            seed: seed as u64,
            defect_rate,
            ..pattern::Config::default()
        };
        for i in 0..15 {
            let half = if i < 12 { "train" } else { "test" };
            let picture = pattern::render(&config(0.0), i).0;
            save(&set.join(format!("{half}/good/{i:03}.png")), |path| picture.save(path));
        }
        for i in 0..4 {
            let (picture, defect) = pattern::render(&config(1.0), 100 + i);
            let mask = defect.unwrap().1;
            let kind = ["dent", "stain"][i as usize % 2];
            save(&set.join(format!("test/{kind}/{i}.png")), |path| picture.save(path));
            let truth = set.join(format!("ground_truth/{kind}/{i}_mask.png"));
            save(&truth, |path| mask.save(path));
        }
        let good = set.join("train/good").display().to_string();
        let out = root.path().join("system").join(category).display().to_string();
        let few = ["--size", "64", "--prototypes", "50", "--holdout", "0.25", "--threads", "2"];
        let told = inspectd(&[&["teach", "--good", &good, "--out", &out], few.as_slice()].concat());
        assert!(told.status.success(), "{}", said(&told));
    }
    root
});

fn save(path: &Path, write: impl Fn(&Path) -> image::ImageResult<()>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write(path).unwrap();
}

fn inspectd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inspectd")).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// A copy of a folder of the workshop that a test may change.
fn copy_of(folder: &str) -> (TempDir, PathBuf) {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
            if from.is_dir() {
                copy(&from, &to);
            } else {
                fs::copy(from, to).unwrap();
            }
        }
    }
    let root = tempfile::tempdir().unwrap();
    let place = root.path().join(Path::new(folder).file_name().unwrap());
    copy(&WORKSHOP.path().join(folder), &place);
    (root, place)
}

fn at(path: &str) -> String {
    WORKSHOP.path().join(path).display().to_string()
}

fn eval(bundles: &[&str], data: &[&str], more: &[&str]) -> Output {
    let mut args = vec!["eval", "--resamples", "20", "--threads", "2"];
    bundles.iter().for_each(|path| args.extend(["--bundle", path]));
    data.iter().for_each(|path| args.extend(["--data", path]));
    args.extend(more);
    inspectd(&args)
}

#[test]
fn a_system_is_scored_on_a_whole_data_set_and_written_in_every_form() {
    let out = tempfile::tempdir().unwrap();
    let file = |name: &str| out.path().join(name).display().to_string();
    let (json, csv, page) = (file("a.json"), file("a.csv"), file("a.html"));
    let forms = ["--json", &json, "--csv", &csv, "--html", &page, "--gallery", "3"];
    let output = eval(&[&at("system"), &at("system/cap")], &[&at("sets")], &forms);
    assert!(output.status.success(), "{}", said(&output));
    let table = said(&output);
    for text in ["mean", "cap", "disc", "dent", "stain", "used on all 2 categories"] {
        assert!(table.contains(text), "{text}: {table}");
    }

    let json: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let runs = json["runs"].as_array().unwrap();
    assert_eq!((runs.len(), json["means"].as_array().unwrap().len()), (4, 2));
    let categories: Vec<_> = runs.iter().map(|run| run["category"].as_str().unwrap()).collect();
    assert_eq!(categories, ["cap", "disc", "cap", "disc"]);
    // The same bundle on the same pictures, reached by the system's name and by its own.
    assert_eq!(runs[0]["image_auroc"], runs[2]["image_auroc"]);
    assert!(runs[0]["intervals"]["pixel_ap"]["low"].is_number());

    assert_eq!(fs::read_to_string(csv).unwrap().lines().count(), 5);
    let page = fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<figure").count(), 4 * 3);
    assert_eq!(page.matches("<svg").count(), 4 * 4);
}

#[test]
fn a_category_without_a_bundle_is_named_before_anything_is_scored() {
    let (_root, system) = copy_of("system");
    fs::remove_dir_all(system.join("disc")).unwrap();
    let output = eval(&[&system.display().to_string()], &[&at("sets")], &[]);
    assert!(!output.status.success());
    for text in ["no bundle for category disc", "disc/model.toml is missing", "it has cap"] {
        assert!(said(&output).contains(text), "{text}: {}", said(&output));
    }
}

#[test]
fn unreadable_pictures_fail_by_name_unless_they_are_allowed() {
    let (_root, set) = copy_of("sets/cap");
    for name in ["test/good/013.png", "test/dent/2.png"] {
        fs::write(set.join(name), "no picture").unwrap();
    }
    let (bundle, set) = (at("system/cap"), set.display().to_string());
    let output = eval(&[&bundle], &[&set], &[]);
    assert!(!output.status.success());
    for text in ["2 of 7 test pictures", "good/013.png", "dent/2.png", "--allow-unreadable"] {
        assert!(said(&output).contains(text), "{text}: {}", said(&output));
    }

    let json = tempfile::NamedTempFile::new().unwrap();
    let path = json.path().display().to_string();
    let output = eval(&[&bundle], &[&set], &["--allow-unreadable", "--json", &path]);
    assert!(output.status.success(), "{}", said(&output));
    let note = "without 2 pictures that can't be read: dent/2.png, good/013.png";
    assert!(said(&output).contains(note), "{}", said(&output));
    let json: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!((json["images"].as_u64(), json["defects"].as_u64()), (Some(5), Some(3)));
    assert_eq!(json["unreadable"].as_array().unwrap().len(), 2);
}

#[test]
fn defects_that_the_bundle_has_seen_are_not_tested() {
    let (_root, bundle) = copy_of("system/cap");
    let card = bundle.join("model.toml");
    let text = fs::read_to_string(&card).unwrap();
    let seen = "[training_data]\nseen_anomalies = [\"dent/0.png\", \"dent/99.png\"]\n";
    fs::write(&card, text.replace("[training_data]\n", seen)).unwrap();
    let output = eval(&[&bundle.display().to_string()], &[&at("sets/cap")], &[]);
    let told = said(&output);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("images     6: 3 good, 3 with defects"), "{told}");
    assert!(told.contains("1 of the 2 defects that the bundle was taught with"), "{told}");
}

#[test]
fn what_can_not_be_meant_is_refused() {
    let (system, cap, sets) = (at("system"), at("system/cap"), at("sets"));
    let cases: [(&str, &[&str], &str); 4] = [
        (&system, &["--sheet", "worst.png"], "--html shows all"),
        (&cap, &["--published", "PatchCoar"], "\"PatchCoar\" is in no table"),
        (&cap, &["--resolution", "huge"], "map or original"),
        (&sets, &[], "is no bundle"),
    ];
    for (bundle, more, says) in cases {
        let output = eval(&[bundle], &[&sets], more);
        assert!(!output.status.success(), "{says}");
        assert!(said(&output).contains(says), "{says}: {}", said(&output));
    }
}
