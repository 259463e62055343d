//! The budget, the names and the faults of the archive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image::{GrayImage, Luma};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::detector::AnomalyMap;
use crate::frame::{FrameId, Image, PartId};
use crate::verdict::{Cause, Region};

const DAY_S: u64 = 86_400;
/// 2026-05-04T00:00:00Z, by `date -u -d 2026-05-04 +%s`.
const MAY_4: u64 = 1_777_852_800;

fn config(folder: &Path, max_bytes: u64) -> Config {
    Config {
        folder: folder.to_owned(),
        max_gib: max_bytes as f64 / f64::from(1 << 30),
        min_free_gib: 0.0,
        accepted_every: 0,
    }
}

fn outcome(part: u64, unix_s: u64, verdict: Verdict) -> Outcome {
    Outcome {
        part: PartId(part),
        frame: FrameId { camera: 0, seq: part },
        camera: Arc::from("left"),
        name: Arc::from("a \"quoted\" name.png"),
        verdict,
        score: Some(3.5),
        threshold: Some(2.5),
        region: Some(Region { x: 1, y: 2, width: 3, height: 4 }),
        position: None,
        latency: Duration::from_micros(18_437),
        triggered_at: SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s),
        image: None,
        reason: None,
        truth: None,
    }
}

/// Evidence whose picture does not compress, so that sizes are about `side_px` squared.
#[expect(clippy::disallowed_methods, reason = "a frame carries the moment of its trigger")]
fn evidence(part: u64, unix_s: u64, side_px: u32) -> Evidence {
    let outcome = outcome(part, unix_s, Verdict::Reject(Cause::Anomaly));
    let image = GrayImage::from_fn(side_px, side_px, |x, y| {
        Luma([((x * 7919 + y * 104_729 + part as u32).wrapping_mul(2_654_435_761) >> 24) as u8])
    });
    Evidence {
        frame: Some(Frame {
            id: outcome.frame,
            part: outcome.part,
            captured_at: Instant::now(),
            image: Image::Gray(image),
            name: outcome.name.clone(),
            position: None,
            truth: None,
        }),
        detection: Some(Detection {
            score: 3.5,
            map: AnomalyMap { width: 2, height: 2, scores: vec![0.0, 1.0, 2.0, 3.5] },
        }),
        outcome,
        map_limit: Some(2.0),
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What is really in the folder, counted afresh.
fn walked(folder: &Path) -> u64 {
    let mut bytes = stock::BLOCK;
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        bytes += match entry.metadata().unwrap() {
            about if about.is_dir() => walked(&entry.path()),
            about => on_disk(about.len()),
        };
    }
    bytes
}

#[test]
fn a_reject_leaves_picture_overlay_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Archive::open(&config(folder.path(), 1 << 20)).unwrap();
    let evidence = evidence(10_422, MAY_4 + 3600, 24);
    assert_eq!(Archive::picture_path(&evidence.outcome), Path::new("2026-05-04/10422.png"));
    assert_eq!(archive.store(&evidence).unwrap(), Kept::Yes);

    let day = folder.path().join("2026-05-04");
    let picture = image::open(day.join("10422.png")).unwrap().into_luma8();
    assert_eq!(Image::Gray(picture), evidence.frame.unwrap().image);
    let map = image::open(day.join("10422_map.png")).unwrap();
    assert_eq!((map.width(), map.height()), (24, 24));
    let want = serde_json::json!({
        "time": "2026-05-04T01:00:00.000Z", "part": 10422, "camera": "left",
        "name": "a \"quoted\" name.png", "verdict": "reject", "cause": "anomaly",
        "reason": null, "score": 3.5, "threshold": 2.5,
        "region": {"x": 1, "y": 2, "width": 3, "height": 4},
        "latency_ms": 18.437, "image": "2026-05-04/10422.png",
    });
    assert_eq!(lines(&day.join("rejects.jsonl")), [want]);
    assert_eq!(archive.bytes(), walked(folder.path()));
}

#[test]
fn a_part_without_picture_still_has_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Archive::open(&config(folder.path(), 1 << 20)).unwrap();
    let mut outcome = outcome(7, MAY_4, Verdict::Reject(Cause::CameraLost));
    outcome.score = Some(f32::NAN);
    let evidence = Evidence { outcome, frame: None, detection: None, map_limit: None };
    archive.store(&evidence).unwrap();
    let day = folder.path().join("2026-05-04");
    let line = &lines(&day.join("rejects.jsonl"))[0];
    assert_eq!((&line["cause"], &line["image"]), (&"camera_lost".into(), &Value::Null));
    assert_eq!(line["score"], Value::Null);
    assert_eq!(fs::read_dir(day).unwrap().count(), 1);
}

#[test]
fn accepted_parts_are_kept_as_samples_only_if_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), 1 << 20);
    let accepted = |part| outcome(part, MAY_4, Verdict::Accept);
    assert!(!config.wants(&accepted(20)));
    config.accepted_every = 10;
    assert!(config.wants(&accepted(20)) && !config.wants(&accepted(21)));
    assert!(config.wants(&outcome(21, MAY_4, Verdict::Reject(Cause::QueueFull))));

    let mut evidence = evidence(20, MAY_4, 8);
    evidence.outcome.verdict = Verdict::Accept;
    Archive::open(&config).unwrap().store(&evidence).unwrap();
    let line = &lines(&folder.path().join("2026-05-04/samples.jsonl"))[0];
    assert_eq!((&line["verdict"], &line["cause"]), (&"accept".into(), &Value::Null));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Never over the budget, the count is the truth, and what goes is the oldest.
    #[test]
    fn the_budget_holds_and_the_newest_stay(
        sizes in prop::collection::vec(8_u32..120, 1..30),
        // The largest part takes 19 blocks, with its line and the folders.
        budget_blocks in 20_u64..60,
        reopen_at in 0_usize..30,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), budget_blocks * stock::BLOCK);
        let mut archive = Archive::open(&config).unwrap();
        for (part, &side_px) in sizes.iter().enumerate() {
            if part == reopen_at {
                archive = Archive::open(&config).unwrap();
            }
            // Seven parts a day.
            let unix_s = MAY_4 + part as u64 / 7 * DAY_S;
            prop_assert_eq!(archive.store(&evidence(part as u64, unix_s, side_px)).unwrap(), Kept::Yes);
            prop_assert!(walked(folder.path()) <= budget_blocks * stock::BLOCK);
            prop_assert_eq!(archive.bytes(), walked(folder.path()));
        }
        let there = |part: usize| {
            let evidence = evidence(part as u64, MAY_4 + part as u64 / 7 * DAY_S, 8);
            folder.path().join(Archive::picture_path(&evidence.outcome)).exists()
        };
        prop_assert!(there(sizes.len() - 1));
        let kept: Vec<bool> = (0..sizes.len()).map(there).collect();
        prop_assert!(kept.is_sorted(), "a gap in what is kept: {kept:?}");
    }
}

#[test]
fn a_restart_counts_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let roomy = config(folder.path(), 1 << 22);
    let mut archive = Archive::open(&roomy).unwrap();
    for part in 0..10 {
        archive.store(&evidence(part, MAY_4 + part * DAY_S, 60)).unwrap();
    }
    let before = archive.bytes();
    assert_eq!(Archive::open(&roomy).unwrap().bytes(), before);
    // A smaller budget holds from the start on.
    let archive = Archive::open(&config(folder.path(), before / 2)).unwrap();
    assert!(archive.bytes() <= before / 2 && archive.bytes() == walked(folder.path()));
    assert!(!folder.path().join("2026-05-04").exists());
    assert!(folder.path().join("2026-05-13/9.png").exists());
}

#[test]
fn leftovers_of_a_crash_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let day = folder.path().join("2026-05-04");
    fs::create_dir(&day).unwrap();
    fs::write(day.join("3.png.part"), [0; 9000]).unwrap();
    fs::write(day.join("4.png"), []).unwrap();
    fs::write(day.join("rejects.jsonl"), "{\"part\":1}\n{\"par").unwrap();
    let mut archive = Archive::open(&config(folder.path(), 1 << 20)).unwrap();
    assert_eq!(archive.bytes(), walked(folder.path()));
    assert_eq!(archive.bytes(), 3 * stock::BLOCK);
    archive.store(&evidence(5, MAY_4, 8)).unwrap();
    let parts: Vec<_> =
        lines(&day.join("rejects.jsonl")).iter().map(|line| line["part"].as_u64()).collect();
    assert_eq!(parts, [Some(1), Some(5)]);
}

#[test]
fn foreign_files_count_but_stay() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("2026-05-04")).unwrap();
    let notes = [folder.path().join("notes.txt"), folder.path().join("2026-05-04/007.png")];
    for note in &notes {
        fs::write(note, [1; 9000]).unwrap();
    }
    let budget = 20 * stock::BLOCK;
    let mut archive = Archive::open(&config(folder.path(), budget)).unwrap();
    for part in 0..20 {
        archive.store(&evidence(part, MAY_4 + part * DAY_S, 60)).unwrap();
        assert!(walked(folder.path()) <= budget);
    }
    assert!(notes.iter().all(|note| note.exists()));
}

#[test]
fn too_small_a_budget_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Archive::open(&config(folder.path(), 3 * stock::BLOCK)).unwrap();
    let error = format!("{:#}", archive.store(&evidence(1, MAY_4, 200)).unwrap_err());
    assert!(error.contains("archive.max_gib"), "{error}");
    assert_eq!(walked(folder.path()), stock::BLOCK);
}

#[test]
fn a_full_disk_asks_for_the_free_room_it_should_have() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), 1 << 20);
    config.min_free_gib = 1e9;
    let error = Archive::open(&config).unwrap().store(&evidence(1, MAY_4, 8)).unwrap_err();
    assert!(format!("{error:#}").contains("archive.min_free_gib"), "{error:#}");
}

#[test]
fn a_fault_is_told_once_counted_and_overcome() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Archive::open(&config(folder.path(), 1 << 20)).unwrap();
    // Even root cannot make a folder where a file is.
    let in_the_way = folder.path().join("2026-05-04");
    fs::write(&in_the_way, "").unwrap();
    let error = format!("{:#}", archive.store(&evidence(1, MAY_4, 8)).unwrap_err());
    assert!(error.contains("part 1") && error.contains("2026-05-04"), "{error}");
    assert_eq!(archive.store(&evidence(2, MAY_4, 8)).unwrap(), Kept::StillNot);
    assert!(archive.failing() && archive.lost() == 2);
    fs::remove_file(&in_the_way).unwrap();
    assert_eq!(archive.store(&evidence(3, MAY_4, 8)).unwrap(), Kept::Yes);
    assert!(!archive.failing() && archive.lost() == 2);
}

#[test]
fn a_file_in_place_of_the_folder_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Archive::open(&config(file.path(), 1 << 20)).err().unwrap();
    let text = format!("{error:#}");
    assert!(text.contains(&*file.path().to_string_lossy()) && text.contains("archive.folder"));
}

#[test]
fn a_budget_of_nothing_is_refused() {
    for max_gib in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = Config { max_gib, ..config(Path::new("x"), 1) };
        assert!(config.check().unwrap_err().to_string().contains("archive.max_gib"));
    }
}
