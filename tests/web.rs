//! Strips of a web to defects told of: line scan, line and merging together.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use image::{GrayImage, Luma};
use inspectd::camera::line_scan::{self, LineScan};
use inspectd::camera::{self, CameraFault};
use inspectd::detector::{AnomalyMap, Detection, Detector};
use inspectd::frame::Image;
use inspectd::output::{LineStatus, Outcome, RejectOutput};
use inspectd::pipeline::{self, CameraSlot, Parts, Tuning, now};
use inspectd::verdict::web::WebDefect;
use inspectd::verdict::{Cause, Limits, Verdict};

/// A map of the pixels' levels, and the largest of them as score.
struct Levels;

impl Detector for Levels {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        let detection = |image: &&Image| {
            let Image::Gray(gray) = image else { panic!("strips are grey") };
            let scores: Vec<f32> = gray.as_raw().iter().copied().map(f32::from).collect();
            let score = scores.iter().copied().fold(0.0, f32::max);
            let (width, height) = (gray.width() as usize, gray.height() as usize);
            Detection { score, map: AnomalyMap { width, height, scores } }
        };
        Ok(images.iter().map(detection).collect())
    }
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<(Vec<Outcome>, Vec<WebDefect>)>>);

struct Wire(Told);

impl RejectOutput for Wire {
    fn name(&self) -> &str {
        "test"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        self.0.0.lock().unwrap().0.push(outcome.clone());
        Ok(())
    }

    fn defect(&mut self, defect: &WebDefect) -> Result<()> {
        self.0.0.lock().unwrap().1.push(defect.clone());
        Ok(())
    }

    fn beat(&mut self, _status: &LineStatus) -> Result<()> {
        Ok(())
    }
}

/// Columns from, to, rows from, to.
const DEFECTS: [[u32; 4]; 3] = [[10, 14, 37, 75], [30, 33, 18, 20], [2, 5, 117, 120]];
const ROWS: u32 = 120;

fn level(x: u32, row: u32) -> Luma<u8> {
    let inside = |[left, right, top, bottom]: [u32; 4]| {
        (left..right).contains(&x) && (top..bottom).contains(&row)
    };
    Luma([if DEFECTS.into_iter().any(inside) { 200 } else { 20 }])
}

#[test]
fn a_web_of_strips_gives_one_verdict_a_block_and_one_line_a_defect() {
    let folder = tempfile::tempdir().unwrap();
    let mut row = 0;
    for height in [7, 30, 1, 1, 24, 13, 44] {
        let strip = GrayImage::from_fn(40, height, |x, y| level(x, row + y));
        strip.save(folder.path().join(format!("{row:03}.png"))).unwrap();
        row += height;
    }
    assert_eq!(row, ROWS);
    let path = folder.path().display();
    let source: camera::Config =
        toml::from_str(&format!("kind = 'folder'\npath = '{path}'\nrate_hz = 1000")).unwrap();
    let scan: line_scan::Config = toml::from_str(
        "mode = 'web'\npart_rows = 20\noverlap_rows = 4\ncounts_per_row = 2.0\nmm_per_count = 0.25",
    )
    .unwrap();
    scan.check().unwrap();

    let told = Told::default();
    let web = scan.web();
    let running = pipeline::start(Parts {
        queue: pipeline::Config { frames: 32, batch: 4, evidence: 4 },
        cameras: vec![CameraSlot {
            name: "web".into(),
            open: Box::new(move || {
                let strips = camera::open(&source)?;
                Ok::<_, CameraFault>(LineScan::around(Some(&scan), strips, now))
            }),
            detector: 0,
            triggers: None,
            web,
            tuning: Tuning {
                limits: Limits { threshold: 100.0, map_threshold: 100.0, regions: vec![] },
                decide_within: Duration::from_secs(20),
                output_latency: Duration::from_millis(20),
            },
        }],
        detectors: vec![Box::new(Levels)],
        pin: false,
        outputs: vec![Box::new(Wire(told.clone()))],
        ledger: None,
        archive: None,
        alarms: Default::default(),
    })
    .unwrap();
    while !running.finished() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let report = running.stop().unwrap();
    let (outcomes, defects) = std::mem::take(&mut *told.0.lock().unwrap());

    // Blocks begin every 16 rows, and the last is as long as the web.
    assert!(report.tally.closed());
    let counts: Vec<i64> = outcomes.iter().map(|o| o.position.unwrap().count).collect();
    assert_eq!(counts, [0, 32, 64, 96, 128, 160, 192, 224]);
    let is_hit = |first: u32, last: u32| {
        DEFECTS.into_iter().any(|[_, _, top, bottom]| top < last && first < bottom)
    };
    for (outcome, first) in outcomes.iter().zip((0..).step_by(16)) {
        let expected = match is_hit(first, (first + 20).min(ROWS)) {
            true => Verdict::Reject(Cause::Anomaly),
            false => Verdict::Accept,
        };
        assert_eq!(outcome.verdict, expected, "{}", outcome.name);
    }

    let mut found: Vec<_> = defects
        .iter()
        .map(|d| ([d.x, d.x + d.width, d.row as u32, (d.row + d.rows) as u32], d.counts, d.mm))
        .collect();
    found.sort_by_key(|(place, ..)| std::cmp::Reverse(place[1]));
    let expected = [DEFECTS[1], DEFECTS[0], DEFECTS[2]].map(|place| {
        let [from, to] = [place[2], place[3]].map(|row| i64::from(2 * row));
        (place, Some([from, to]), Some([from as f64 / 4.0, to as f64 / 4.0]))
    });
    assert_eq!(found, expected);
    assert!(defects.iter().all(|defect| !defect.goes_on && defect.peak == 200.0));
}
