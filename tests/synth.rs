//! The command `synth`, as the shell calls it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{GrayImage, Luma, Rgb, RgbImage};
use inspectd::dataset::{self, Purpose};
use inspectd::synth::Kind;
use serde_json::Value;
use tempfile::TempDir;

const SIDE: u32 = 64;

/// A disc on black, of another brightness in each picture.
fn part(i: u32) -> RgbImage {
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let away = (f64::from(x) - 32.0).hypot(f64::from(y) - 32.0);
        let level = 120 + 9 * i as u8 + ((x * 7 + y * 13) % 9) as u8;
        Rgb(if away < 24.0 { [level, level, 90] } else { [8; 3] })
    })
}

/// A category in MVTec AD's layout: six good parts, two holes.
fn category() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("disc");
    for below in ["train/good", "test/good", "test/hole", "ground_truth/hole"] {
        fs::create_dir_all(root.join(below)).unwrap();
    }
    for i in 0..6 {
        part(i).save(root.join(format!("train/good/{i:03}.png"))).unwrap();
    }
    part(6).save(root.join("test/good/000.png")).unwrap();
    for i in 0..2 {
        let mut picture = part(i);
        let mut mask = GrayImage::new(SIDE, SIDE);
        for (x, y) in (28..36).flat_map(|x| (30..38 + i).map(move |y| (x, y))) {
            picture.put_pixel(x, y, Rgb([250, 20, 20]));
            mask.put_pixel(x, y, Luma([255]));
        }
        picture.save(root.join(format!("test/hole/{i:03}.png"))).unwrap();
        mask.save(root.join(format!("ground_truth/hole/{i:03}_mask.png"))).unwrap();
    }
    (folder, root)
}

/// Small pictures and few, where `args` do not say otherwise.
fn synth(data: &Path, out: &Path, args: &[&str]) -> Output {
    let small: &[&str] = if args.contains(&"--size") { &[] } else { &["--size", "64"] };
    Command::new(env!("CARGO_BIN_EXE_inspectd"))
        .arg("synth")
        .args(small)
        .args(["--count", "3", "--data"])
        .arg(data)
        .arg("--out")
        .arg(out)
        .args(args)
        .output()
        .unwrap()
}

/// What a run that went well said.
fn made(data: &Path, out: &Path, args: &[&str]) -> String {
    let output = synth(data, out, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(data: &Path, out: &Path, args: &[&str]) -> String {
    let output = synth(data, out, args);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// Every file below a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![folder.to_path_buf()];
    while let Some(inner) = ahead.pop() {
        for entry in fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                ahead.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_path_buf();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn manifest(out: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(out.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn every_kind_is_written_as_the_manifest_says() {
    let (folder, root) = category();
    let out = folder.path().join("out");
    made(&root, &out, &["--kind", "all", "--seen", "1", "--goods", "2", "--seed", "4"]);
    let manifest = manifest(&out);
    let words: Vec<&str> = Kind::ALL.iter().map(|kind| kind.word()).collect();
    assert_eq!(serde_json::from_value::<Vec<String>>(manifest["kinds"].clone()).unwrap(), words);
    assert_eq!(
        (&manifest["seed"], &manifest["size"], &manifest["count"]),
        (&4.into(), &64.into(), &3.into())
    );
    let samples = manifest["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3 * words.len());
    let mut empty = 0;
    for sample in samples {
        let open = |key: &str| image::open(out.join(sample[key].as_str().unwrap())).unwrap();
        let (image, mask) = (open("image").into_rgb8(), open("mask"));
        let image::DynamicImage::ImageLuma8(mask) = mask else { panic!("{sample}: no grey mask") };
        assert_eq!((image.dimensions(), mask.dimensions()), ((SIDE, SIDE), (SIDE, SIDE)));
        assert!(mask.pixels().all(|pixel| [0, 255].contains(&pixel.0[0])), "{sample}");
        let area = mask.pixels().filter(|pixel| pixel.0[0] == 255).count();
        assert_eq!(sample["mask_area"], area, "{sample}");
        empty += u64::from(area == 0);
        let normal = image::open(root.join(sample["normal"].as_str().unwrap())).unwrap();
        let changed = |(new, old): &(&Rgb<u8>, &Rgb<u8>)| new != old;
        let changes = image.pixels().zip(normal.into_rgb8().pixels()).filter(changed).count();
        assert!(changes > 0 || area == 0, "{sample}");
    }
    assert_eq!(manifest["empty_masks"], empty);
    // One defect was drawn of the two, and every extended anomaly is made of it.
    let seen = manifest["seen"].as_array().unwrap();
    assert_eq!(seen.len(), 1);
    let extended = samples.iter().filter(|sample| !sample["seen"].is_null());
    assert_eq!(extended.clone().count(), 3);
    assert!(extended.into_iter().all(|sample| sample["seen"] == seen[0]));
    let homogeneous = samples.iter().filter(|sample| !sample["other"].is_null()).count();
    assert_eq!(homogeneous, 3);

    let sheet = image::open(out.join("sheet.png")).unwrap();
    assert!(sheet.width() > 3 * 448 && sheet.height() > words.len() as u32 * 250);
}

#[test]
fn what_is_made_can_be_tested_with() {
    let (folder, root) = category();
    let out = folder.path().join("out");
    made(&root, &out, &["--kind", "cutpaste", "--goods", "2"]);
    let samples = dataset::find_for(&out, Purpose::Testing).unwrap().remove(0).test;
    let defects = samples.iter().filter(|sample| sample.defect.as_deref() == Some("cutpaste"));
    assert_eq!((samples.len(), defects.clone().count()), (5, 3));
    assert!(defects.into_iter().all(|sample| sample.mask.as_ref().unwrap().is_file()));
    // the goods are the good parts, pixel for pixel, as they had the size already
    let goods = manifest(&out)["goods"].clone();
    for (i, name) in goods.as_array().unwrap().iter().enumerate() {
        let written = image::open(out.join(format!("test/good/{i:04}.png"))).unwrap();
        assert_eq!(written, image::open(root.join(name.as_str().unwrap())).unwrap());
    }
    let found = dataset::find_for(&out, Purpose::Testing).unwrap();
    assert_eq!(found[0].test.len(), 5);
}

#[test]
fn threads_have_no_say_and_the_seed_has() {
    let (folder, root) = category();
    let run = |name: &str, args: &[&str]| {
        let out = folder.path().join(name);
        made(&root, &out, &[&["--kind", "all", "--seen", "2"], args].concat());
        contents(&out)
    };
    let one = run("one", &["--threads", "1"]);
    let many = run("many", &["--threads", "5"]);
    assert_eq!(one.keys().collect::<Vec<_>>(), many.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        assert!(many[name] == *bytes, "{} differs", name.display());
    }
    let other = run("other", &["--seed", "1"]);
    for kind in Kind::ALL {
        let name = PathBuf::from(format!("test/{kind}/0000.png"));
        assert!(other[&name] != one[&name], "{kind}");
    }
}

#[test]
fn a_plain_folder_of_good_parts_will_do() {
    let (folder, root) = category();
    let out = folder.path().join("out");
    let said = made(&root.join("train/good"), &out, &["--kind", "all"]);
    assert!(said.contains("good: 6 good parts"), "{said}");
    assert!(said.contains("extended: left out"), "{said}");
    assert!(!out.join("test/extended").exists());
    assert_eq!(manifest(&out)["kinds"].as_array().unwrap().len(), Kind::ALL.len() - 1);
}

#[test]
fn a_folder_of_textures_is_taken() {
    let (folder, root) = category();
    let textures = folder.path().join("textures");
    fs::create_dir_all(textures.join("red")).unwrap();
    let red = RgbImage::from_pixel(90, 70, Rgb([255, 0, 0]));
    red.save(textures.join("red/1.png")).unwrap();
    let out = folder.path().join("out");
    let textures = textures.display().to_string();
    made(&root, &out, &["--kind", "perlin", "--source", &textures]);
    assert!(manifest(&out)["source"].as_str().unwrap().contains(&textures));
    for sample in manifest(&out)["samples"].as_array().unwrap() {
        let open = |key: &str| image::open(out.join(sample[key].as_str().unwrap())).unwrap();
        let (image, mask) = (open("image").into_rgb8(), open("mask").into_luma8());
        let normal = image::open(root.join(sample["normal"].as_str().unwrap())).unwrap();
        let places = image.pixels().zip(normal.into_rgb8().pixels().copied().collect::<Vec<_>>());
        for ((new, old), mask) in places.zip(mask.pixels()) {
            let redder = new[0] > old[0] && new[1] <= old[1] && new[2] <= old[2];
            assert!(if mask.0[0] == 255 { redder } else { *new == old }, "{new:?} {old:?}");
        }
    }
}

#[test]
fn masks_that_are_empty_are_counted_and_said() {
    let (folder, root) = category();
    let config = folder.path().join("synth.toml");
    // Nearly nothing changes by 255 levels.
    fs::write(&config, "[confetti]\nmask_min_change = 255\n").unwrap();
    let config = config.display().to_string();
    let out = folder.path().join("out");
    let said = made(&root, &out, &["--kind", "confetti", "--config", &config]);
    assert!(said.contains("3 EMPTY"), "{said}");
    let manifest = manifest(&out);
    assert_eq!(manifest["empty_masks"], 3);
    assert_eq!(manifest["config"]["confetti"]["mask_min_change"], 255);
}

#[test]
fn only_what_the_command_made_is_replaced_and_only_when_told() {
    let (folder, root) = category();
    let out = folder.path().join("out");
    made(&root, &out, &["--kind", "cutpaste"]);
    let error = refused(&root, &out, &["--kind", "confetti"]);
    assert!(error.contains("already there") && error.contains("--force"), "{error}");
    made(&root, &out, &["--kind", "confetti", "--force"]);
    assert!(out.join("test/confetti").exists() && !out.join("test/cutpaste").exists());

    let error = refused(&folder.path().join("disc"), &root, &["--kind", "confetti", "--force"]);
    assert!(error.contains("was not made by inspectd synth"), "{error}");
    assert!(root.join("train/good/000.png").exists());
}

#[test]
fn a_failure_leaves_nothing() {
    let (folder, root) = category();
    fs::write(root.join("ground_truth/hole/000_mask.png"), b"not a picture").unwrap();
    let textures = folder.path().join("textures");
    fs::create_dir(&textures).unwrap();
    fs::write(textures.join("broken.png"), b"not a picture").unwrap();
    let textures = textures.display().to_string();
    let before = contents(folder.path()).len();
    let out = folder.path().join("out");
    let error = refused(&root, &out, &["--kind", "perlin", "--source", &textures]);
    assert!(error.contains("broken.png"), "{error}");
    let error = refused(&root, &out, &["--kind", "extended", "--seen", "2"]);
    assert!(error.contains("000_mask.png"), "{error}");
    assert_eq!(contents(folder.path()).len(), before);
    assert!(!out.exists());
}

#[test]
fn what_cannot_be_done_is_refused_with_a_word_on_what_can() {
    let (folder, root) = category();
    let goods = root.join("train/good");
    let config = folder.path().join("synth.toml");
    fs::write(&config, "[perlin]\nopacity = { lo = 0.5, hi = 1.0 }\ncolour = 1\n").unwrap();
    let config = config.display().to_string();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let cases: [(&Path, &[&str], &str); 8] = [
        (&root, &["--kind", "fog"], "must be one of confetti, cutpaste"),
        (&root, &["--kind", "perlin", "--size", "100"], "multiple of 32"),
        (&root, &["--kind", "extended", "--seen", "3"], "3 defects are to be learned from"),
        (&root, &["--kind", "extended", "--seen", "0"], "at least one defect"),
        (&goods, &["--kind", "extended"], "defects"),
        (&root, &["--kind", "confetti", "--goods", "7"], "no more than 6 good parts"),
        (&root, &["--kind", "perlin", "--config", &config], "unknown field `colour`"),
        (&empty, &["--kind", "confetti"], "no data set"),
    ];
    let out = folder.path().join("out");
    for (data, args, word) in cases {
        let error = refused(data, &out, args);
        assert!(error.contains(word), "{args:?}: {error}");
        assert!(!out.exists());
    }
}
