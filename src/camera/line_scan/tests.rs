use std::cell::Cell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use image::{GrayImage, Luma, RgbImage};
use proptest::prelude::*;

use super::{Config, LineScan};
use crate::camera::{CameraFault, FrameSource, Grab, Picture};
use crate::frame::{Image, Position};

fn config(text: &str) -> Config {
    let config: Config = toml::from_str(text).unwrap();
    config.check().unwrap();
    config
}

thread_local! {
    static AFTER: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static BEGAN: Instant = crate::pipeline::now();
}

/// A clock that stands until it is moved.
fn clock() -> Instant {
    BEGAN.with(|began| *began) + AFTER.get()
}

fn pass(ms: u64) {
    AFTER.set(AFTER.get() + Duration::from_millis(ms));
}

/// What a camera does, one step a grab.
enum Step {
    Block(Picture),
    Lost,
    Idle(u64),
    Gone,
}

struct Blocks(VecDeque<Step>);

impl FrameSource for Blocks {
    fn grab(&mut self, _patience: Duration) -> Result<Grab, CameraFault> {
        Ok(match self.0.pop_front() {
            Some(Step::Block(picture)) => Grab::Picture(picture),
            Some(Step::Lost) => Grab::Bad { name: "x".into(), reason: "packets lost".into() },
            Some(Step::Idle(ms)) => {
                pass(ms);
                Grab::Idle
            }
            Some(Step::Gone) => return Err(CameraFault("unplugged".into())),
            None => Grab::End,
        })
    }
}

const WIDTH: u32 = 3;

/// The level of a pixel says its row.
fn level(row: u32, x: u32) -> u8 {
    (row * 7 + x) as u8
}

/// `height` rows from `row` on; the encoder counts two a row from 100.
fn block(row: u32, height: u32) -> Picture {
    Picture {
        image: Image::Gray(GrayImage::from_fn(WIDTH, height, |x, y| Luma([level(row + y, x)]))),
        name: format!("b{row}"),
        captured_at: None,
        position: Some(Position { count: 100 + 2 * i64::from(row), per_row: 0.0 }),
        truth: None,
    }
}

/// Blocks of these heights, one after the other.
fn blocks(heights: &[u32]) -> Vec<Step> {
    let mut row = 0;
    let next = |height: &u32| {
        row += height;
        Step::Block(block(row - height, *height))
    };
    heights.iter().map(next).collect()
}

fn scan(config: &Config, steps: Vec<Step>) -> LineScan {
    LineScan::new(config, Box::new(Blocks(steps.into())), clock)
}

/// All that comes until the end, without the waits.
fn play(source: &mut LineScan) -> Vec<Grab> {
    let mut grabs = Vec::new();
    loop {
        match source.grab(Duration::from_millis(100)).unwrap() {
            Grab::Idle => {}
            Grab::End => break,
            grab => grabs.push(grab),
        }
    }
    assert!(matches!(source.grab(Duration::ZERO), Ok(Grab::End)), "the end stays the end");
    grabs
}

/// First row and height of a picture whose pixels and position are those of its rows.
fn rows(grab: &Grab) -> Option<(u32, u32)> {
    let Grab::Picture(picture) = grab else { return None };
    let row: u32 = picture.name.split_once('@').unwrap().1.parse().unwrap();
    let height = picture.image.height();
    assert_eq!(picture.image, block(row, height).image, "{}", picture.name);
    if let Some(position) = picture.position {
        assert_eq!(position, Position { count: 100 + 2 * i64::from(row), per_row: 2.0 });
    }
    Some((row, height))
}

fn all_rows(grabs: &[Grab]) -> Vec<Option<(u32, u32)>> {
    grabs.iter().map(rows).collect()
}

fn reason(grab: &Grab) -> (&str, &str) {
    let Grab::Bad { name, reason } = grab else { panic!("{grab:?}") };
    (name, reason)
}

const FIXED: &str = "mode = 'fixed'\npart_rows = 10";
const WEB: &str = "mode = 'web'\npart_rows = 10\noverlap_rows = 4";

/// Heights that add up to 64, cut anywhere.
fn any_cut() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::btree_set(1..64u32, 0..63).prop_map(|cuts| {
        let ends = cuts.into_iter().chain([64]);
        ends.scan(0, |from, to| Some(to - std::mem::replace(from, to))).collect()
    })
}

proptest! {
    #[test]
    fn any_cut_of_the_same_rows_gives_the_same_parts(heights in any_cut()) {
        let counts = "\ncounts_per_row = 2";
        let fixed = play(&mut scan(&config(&(FIXED.to_owned() + counts)), blocks(&heights)));
        prop_assert_eq!(fixed.len(), 7);
        for (i, part) in fixed[..6].iter().enumerate() {
            prop_assert_eq!(rows(part), Some((10 * i as u32, 10)));
            let Grab::Picture(picture) = part else { unreachable!() };
            prop_assert!(picture.position.is_some());
        }
        prop_assert_eq!(reason(&fixed[6]).1, "only 4 of its 10 rows came: the source has ended");

        let web = play(&mut scan(&config(&(WEB.to_owned() + counts)), blocks(&heights)));
        let expected: Vec<_> = (0..10).map(|i| Some((6 * i, 10))).collect();
        prop_assert_eq!(all_rows(&web), expected);
    }

    #[test]
    fn a_triggered_part_is_the_rows_after_its_trigger(
        heights in any_cut(),
        triggers in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        delay in 0..5u32,
    ) {
        let text = format!("mode = 'trigger'\npart_rows = 10\ndelay_rows = {delay}");
        let mut source = scan(&config(&text), blocks(&heights));
        let mut before: Vec<usize> = triggers.iter().map(|t| t.index(heights.len())).collect();
        before.sort_unstable();
        let (mut grabs, mut expected) = (Vec::new(), Vec::new());
        let mut row = 0;
        for (i, height) in heights.iter().enumerate() {
            for _ in before.iter().filter(|&&at| at == i) {
                source.trigger().unwrap();
                expected.push((row + delay + 10 <= 64).then_some((row + delay, 10)));
            }
            row += height;
            // What is ready goes first, and then the next block is taken.
            let ready = grabs.len();
            source.rows.push(&block(row - height, *height), clock());
            grabs.extend(std::iter::from_fn(|| source.rows.next()));
            prop_assert!(grabs.len() - ready <= expected.len());
        }
        source.rows.end();
        grabs.extend(std::iter::from_fn(|| source.rows.next()));
        prop_assert_eq!(all_rows(&grabs), expected);
    }
}

#[test]
fn counts_a_row_are_learned_from_blocks() {
    let grabs = play(&mut scan(&config(FIXED), blocks(&[4, 4, 4, 4, 4])));
    assert_eq!(all_rows(&grabs), [Some((0, 10)), Some((10, 10))]);
    for grab in &grabs {
        let Grab::Picture(picture) = grab else { unreachable!() };
        assert!(picture.position.is_some());
    }
    // One block says nothing of what lies between its rows; the next does.
    let grabs = play(&mut scan(&config(FIXED), blocks(&[10, 10])));
    let position = |grab: &Grab| match grab {
        Grab::Picture(picture) => picture.position,
        _ => None,
    };
    assert_eq!(position(&grabs[0]), None);
    assert_eq!(position(&grabs[1]), Some(Position { count: 120, per_row: 2.0 }));
}

#[test]
fn a_count_near_the_end_of_its_range_is_no_fault() {
    let mut steps = blocks(&[8, 8, 8]);
    for step in &mut steps {
        let Step::Block(Picture { position: Some(position), .. }) = step else { unreachable!() };
        position.count = position.count.wrapping_add(i64::MAX - 120);
    }
    let grabs = play(&mut scan(&config(&(FIXED.to_owned() + "\ncounts_per_row = 2")), steps));
    let counts: Vec<i64> = grabs
        .iter()
        .filter_map(|grab| match grab {
            Grab::Picture(picture) => Some(picture.position.unwrap().count),
            _ => None,
        })
        .collect();
    assert_eq!(counts, [i64::MAX - 20, i64::MAX]);
}

#[test]
fn without_an_encoder_set_counts_go_by_the_rows() {
    let mut steps = blocks(&[7, 7, 7]);
    for step in &mut steps {
        let Step::Block(picture) = step else { unreachable!() };
        picture.position = None;
    }
    let text = FIXED.to_owned() + "\ncounts_per_row = 2.5";
    let grabs = play(&mut scan(&config(&text), steps));
    let Grab::Picture(second) = &grabs[1] else { panic!("{grabs:?}") };
    assert_eq!(second.position, Some(Position { count: 25, per_row: 2.5 }));
}

#[test]
fn half_a_part_is_bad_when_the_belt_stands_still_and_the_next_row_begins_another() {
    let mut steps = blocks(&[10, 6, 10]);
    steps.insert(2, Step::Idle(80));
    steps.insert(3, Step::Idle(30));
    steps.insert(4, Step::Idle(900));
    let text = FIXED.to_owned() + "\nfinish_after_ms = 100";
    let grabs = play(&mut scan(&config(&text), steps));
    assert_eq!(all_rows(&grabs), [Some((0, 10)), None, Some((16, 10))]);
    assert_eq!(reason(&grabs[1]), ("b10@10", "only 6 of its 10 rows came: none came for 100 ms"));
}

#[test]
fn without_a_limit_a_part_is_waited_for() {
    let mut steps = blocks(&[6, 4]);
    steps.insert(1, Step::Idle(3_600_000));
    assert_eq!(all_rows(&play(&mut scan(&config(FIXED), steps))), [Some((0, 10))]);
}

#[test]
fn a_web_that_stands_still_is_inspected_as_far_as_it_came() {
    let mut steps = blocks(&[13, 9]);
    steps.insert(1, Step::Idle(200));
    steps.insert(2, Step::Idle(200));
    let text = WEB.to_owned() + "\nfinish_after_ms = 100\ncounts_per_row = 2";
    let grabs = play(&mut scan(&config(&text), steps));
    // Of the rows 10 to 12 and those repeated; then on from there, nothing twice but the overlap.
    assert_eq!(all_rows(&grabs), [(0, 10), (6, 7), (9, 10), (15, 7)].map(Some));
}

#[test]
fn a_lost_block_spoils_the_parts_that_it_belongs_to() {
    struct Case {
        mode: &'static str,
        lost: usize,
        parts: &'static [Option<(u32, u32)>],
    }
    // Ten blocks of 4 rows; the encoder and the height of the others say how many are missing.
    for case in [
        Case {
            mode: FIXED,
            lost: 1,
            parts: &[None, Some((10, 10)), Some((20, 10)), Some((30, 10))],
        },
        Case { mode: FIXED, lost: 2, parts: &[None, None, Some((20, 10)), Some((30, 10))] },
        Case { mode: WEB, lost: 3, parts: &[Some((0, 10)), Some((6, 6)), None, Some((16, 10))] },
    ] {
        let mut steps = blocks(&[4; 10]);
        steps[case.lost] = Step::Lost;
        let grabs = play(&mut scan(&config(case.mode), steps));
        assert_eq!(all_rows(&grabs[..case.parts.len()]), case.parts, "{}", case.mode);
        let bad = grabs.iter().find(|grab| rows(grab).is_none()).unwrap();
        assert!(reason(bad).1.contains("block x: packets lost"), "{bad:?}");
    }
}

#[test]
fn the_encoder_says_how_many_rows_a_lost_block_had() {
    let mut steps = blocks(&[4, 4, 12, 4, 4, 4, 4, 4]);
    steps[2] = Step::Lost;
    let grabs = play(&mut scan(&config(FIXED), steps));
    assert_eq!(all_rows(&grabs), [None, None, Some((20, 10)), Some((30, 10))]);
}

#[test]
fn a_hole_in_the_web_is_told_with_its_place() {
    let mut steps = blocks(&[10, 6, 6]);
    steps[1] = Step::Lost;
    let grabs = play(&mut scan(&config(&(WEB.to_owned() + "\ncounts_per_row = 2")), steps));
    assert_eq!(
        reason(&grabs[1]),
        ("hole@10", "not seen: about 10 rows from row 10, encoder 120: block x: packets lost")
    );
}

#[test]
fn blocks_of_another_kind_are_not_put_together() {
    let colour = |row: u32, height| Picture {
        image: Image::Rgb(RgbImage::new(WIDTH, height)),
        ..block(row, height)
    };
    let steps =
        || vec![Step::Block(block(0, 6)), Step::Block(colour(6, 6)), Step::Block(colour(12, 8))];
    let grabs = play(&mut scan(&config(FIXED), steps()));
    assert_eq!(
        reason(&grabs[0]).1,
        "block b6 is 3 pixels wide, colour, the part's other rows are 3 pixels wide, grey"
    );
    assert!(matches!(&grabs[1], Grab::Picture(part) if matches!(part.image, Image::Rgb(_))));

    let grabs = play(&mut scan(&config(WEB), steps()));
    assert_eq!(rows(&grabs[0]), Some((0, 6)), "what is grey is inspected");
    assert!(reason(&grabs[1]).1.contains("block b6 is 3 pixels wide, colour"));
    assert!(matches!(&grabs[2], Grab::Picture(part) if part.image.height() == 10));
}

#[test]
fn a_fault_passes_and_each_triggered_part_is_told_of() {
    let text = "mode = 'trigger'\npart_rows = 10";
    let mut source = scan(&config(text), vec![Step::Block(block(0, 4)), Step::Gone]);
    source.trigger().unwrap();
    source.trigger().unwrap();
    assert!(matches!(source.grab(Duration::ZERO), Ok(Grab::Idle)));
    // The camera thread rejects one part for the fault itself.
    let bad = source.grab(Duration::ZERO).unwrap();
    assert_eq!(reason(&bad), ("b0@0", "only 4 of its 10 rows came: unplugged"));
    assert_eq!(source.grab(Duration::ZERO).unwrap_err().0, "unplugged");
}

#[test]
fn a_trigger_that_chatters_is_bad_beyond_a_number() {
    let mut source = scan(&config("mode = 'trigger'\npart_rows = 10"), blocks(&[10]));
    for _ in 0..17 {
        source.trigger().unwrap();
    }
    let grabs = play(&mut source);
    assert_eq!(reason(&grabs[0]), ("part@0", "16 triggered parts are not complete yet"));
    assert_eq!(all_rows(&grabs[1..]), [Some((0, 10)); 16]);
}

#[test]
fn a_triggered_part_counts_from_its_trigger_and_others_from_their_last_row() {
    let mut source = scan(&config("mode = 'trigger'\npart_rows = 10"), blocks(&[5, 5]));
    let triggered_at = clock();
    source.trigger().unwrap();
    pass(50);
    let Grab::Picture(part) = &play(&mut source)[0] else { panic!("a part is complete") };
    assert_eq!(part.captured_at, Some(triggered_at));

    let mut steps = blocks(&[5, 5]);
    steps.insert(1, Step::Idle(50));
    let before = clock();
    let grabs = play(&mut scan(&config(FIXED), steps));
    let Grab::Picture(part) = &grabs[0] else { panic!("a part is complete") };
    assert_eq!(part.captured_at, Some(before + Duration::from_millis(50)));
}

#[test]
fn values_that_cannot_be_meant_are_refused_with_key_and_value() {
    for (text, says) in [
        ("mode = 'fixed'\npart_rows = 0", "part_rows = 0"),
        ("mode = 'fixed'\npart_rows = 100001", "part_rows = 100001"),
        ("mode = 'fixed'\npart_rows = 10\noverlap_rows = 2", "overlap_rows"),
        ("mode = 'trigger'\npart_rows = 10\nmm_per_count = 2.0", "mm_per_count"),
        ("mode = 'fixed'\npart_rows = 10\nmax_defect_rows = 7", "max_defect_rows"),
        ("mode = 'web'\npart_rows = 10\ndelay_rows = 2", "delay_rows = 2"),
        ("mode = 'web'\npart_rows = 10\noverlap_rows = 6", "overlap_rows = 6"),
        ("mode = 'web'\npart_rows = 10\nmax_defect_rows = 0", "max_defect_rows = 0"),
        ("mode = 'web'\npart_rows = 10\ncounts_per_row = 0.0", "counts_per_row = 0"),
        ("mode = 'web'\npart_rows = 10\nmm_per_count = nan", "mm_per_count = NaN"),
        ("mode = 'fixed'\npart_rows = 10\nfinish_after_ms = 0", "finish_after_ms = 0"),
    ] {
        let config: Config = toml::from_str(text).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}
