//! `inspectd bench` as it is called: what it writes for machines, and what it refuses. No time is
//! asserted; a time is of the machine.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inspectd"));
    command.arg("bench").args(arguments).args(["--seconds", "0.05"]);
    command.output().unwrap()
}

/// The objects that a bench with these arguments writes.
fn figures(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let file = folder.join("bench.json");
    let done = bench(&[arguments, &["--json", file.to_str().unwrap()]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The times are in order, and all keys are there; those in `undefined` are null.
fn check(figures: &Value, net: &str, undefined: &[&str]) {
    assert_eq!(figures["net"], net);
    let number = |key: &str| figures[key].as_f64().unwrap_or_else(|| panic!("{key}: {figures}"));
    assert!(number("min_ms") > 0.0, "{figures}");
    let times = ["min_ms", "median_ms", "p99_ms", "p999_ms"].map(number);
    assert!(times.is_sorted(), "{figures}");
    assert!(number("images_per_s") > 0.0 && number("runs") >= 5.0, "{figures}");
    for key in ["gflops", "peak_gflops", "arena_mib", "weights_mib"] {
        match undefined.contains(&key) {
            true => assert!(figures.get(key).is_some_and(Value::is_null), "{key}: {figures}"),
            false => assert!(number(key) > 0.0, "{key}: {figures}"),
        }
    }
    assert!(!figures["simd"].as_str().unwrap().is_empty());
}

/// A file of `prototypes` [20, 384] and `queries` [7, 384].
fn bank(folder: &Path) -> String {
    let rows = |rows: usize, step: usize| -> Vec<u8> {
        let value = |i: usize| ((i * step) % 97) as f32 / 97.0;
        (0..rows * 384).flat_map(|i| value(i).to_le_bytes()).collect()
    };
    let (prototypes, queries) = (rows(20, 31), rows(7, 53));
    let view = |rows, bytes| TensorView::new(Dtype::F32, vec![rows, 384], bytes).unwrap();
    let tensors =
        BTreeMap::from([("prototypes", view(20, &prototypes)), ("queries", view(7, &queries))]);
    let file = folder.join("bank.safetensors");
    fs::write(&file, serialize(tensors, None).unwrap()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_network_is_timed_at_each_batch_and_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let grid = ["--batch", "1", "--batch", "2", "--threads", "1", "--threads", "2"];
    let all = figures(folder.path(), &[&["--net", "compact", "--samples"], &grid[..]].concat());
    let cells: Vec<_> = all.iter().map(|f| (f["threads"].as_u64(), f["batch"].as_u64())).collect();
    let cell = |threads, batch| (Some(threads), Some(batch));
    assert_eq!(cells, [cell(1, 1), cell(1, 2), cell(2, 1), cell(2, 2)]);
    for figures in &all {
        check(figures, "compact", &[]);
        assert_eq!(figures["precision"], "f32");
        let samples = figures["samples_ms"].as_array().unwrap();
        assert_eq!(samples.len() as u64, figures["runs"].as_u64().unwrap());
    }
}

#[test]
fn the_search_is_timed_on_what_a_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let bank = bank(folder.path());
    let all = figures(folder.path(), &["--net", "search", "--threads", "1", "--bank", &bank]);
    assert!(!all.is_empty());
    for figures in &all {
        check(figures, "search", &["arena_mib", "weights_mib"]);
        assert!(["f32", "int8"].contains(&figures["precision"].as_str().unwrap()));
        assert!(figures.get("samples_ms").is_none());
    }
}

#[test]
fn the_whole_way_of_a_picture_is_timed() {
    let folder = tempfile::tempdir().unwrap();
    let bank = bank(folder.path());
    let net = ["--net", "patch_prototypes", "--threads", "1"];
    let undefined = ["gflops", "arena_mib", "weights_mib"];
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    image::RgbImage::new(300, 200).save(pictures.join("dark.png")).unwrap();
    let pictures = pictures.to_str().unwrap();
    for own in [
        &["--bank-size", "12", "--batch", "2"][..],
        &["--bank", &bank, "--bank-size", "15", "--backbone", "resnet18", "--pictures", pictures],
    ] {
        let all = figures(folder.path(), &[&net[..], own].concat());
        assert_eq!(all.len(), 1);
        check(&all[0], "patch_prototypes", &undefined);
    }
}

#[test]
fn the_line_is_timed_part_by_part() {
    let folder = tempfile::tempdir().unwrap();
    let all = figures(folder.path(), &["--net", "line", "--rate-hz", "200", "--samples"]);
    assert_eq!(all.len(), 1);
    check(&all[0], "line", &["gflops", "peak_gflops", "arena_mib", "weights_mib"]);
    assert_eq!((&all[0]["runs"], &all[0]["precision"]), (&10.into(), &"none".into()));
}

#[test]
fn what_cannot_be_timed_is_refused_with_what_would_do() {
    let folder = tempfile::tempdir().unwrap();
    let bank = bank(folder.path());
    struct Case<'a> {
        arguments: &'a [&'a str],
        says: &'a [&'a str],
    }
    for case in [
        Case {
            arguments: &["--net", "resnet7"],
            says: &["net resnet7", "resnet18-layer3", "mlff", "search", "patch_prototypes", "line"],
        },
        Case { arguments: &["--net", "line", "--batch", "0"], says: &["batch = 0", "1 to 64"] },
        Case { arguments: &["--net", "compact", "--batch", "65"], says: &["batch = 65"] },
        Case { arguments: &["--net", "search", "--threads", "0"], says: &["threads = 0", "256"] },
        Case { arguments: &["--net", "line", "--rate-hz", "0"], says: &["rate_hz = 0"] },
        Case {
            arguments: &["--net", "patch_prototypes", "--bank", &bank, "--bank-size", "21"],
            says: &["20 prototypes, 21"],
        },
        Case {
            arguments: &["--net", "patch_prototypes", "--backbone", "vgg"],
            says: &["backbone vgg"],
        },
        Case { arguments: &["--net", "search", "--bank", "absent"], says: &["reading", "absent"] },
    ] {
        let done = bench(case.arguments);
        assert!(!done.status.success(), "{:?}", case.arguments);
        let said = String::from_utf8_lossy(&done.stderr);
        for word in case.says {
            assert!(said.contains(word), "{:?}: {said}", case.arguments);
        }
    }
}

#[test]
fn metrics_are_timed_on_maps_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = |of: fn(usize) -> f32| -> Vec<u8> {
        (0..3 * 64).flat_map(|i| of(i).to_le_bytes()).collect()
    };
    let (scores, masks) = (numbers(|i| (i * 31 % 97) as f32), numbers(|i| f32::from(i % 64 < 9)));
    let view = |bytes| TensorView::new(Dtype::F32, vec![3, 64], bytes).unwrap();
    let tensors = BTreeMap::from([("scores", view(&scores)), ("masks", view(&masks))]);
    let file = folder.path().join("maps.safetensors");
    fs::write(&file, serialize(tensors, None).unwrap()).unwrap();
    let arguments = ["--net", "metrics", "--threads", "1", "--maps", file.to_str().unwrap()];
    let [figures] = figures(folder.path(), &arguments).try_into().unwrap();
    check(&figures, "metrics", &["gflops", "peak_gflops", "arena_mib", "weights_mib"]);
    assert_eq!(figures["batch"], 3);
}
