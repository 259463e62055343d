//! The register image with a clock of the test's own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::*;
use crate::frame::{FrameId, PartId};
use crate::verdict::Region;

#[expect(clippy::disallowed_methods, reason = "where the tests' time begins")]
fn begin() -> Instant {
    Instant::now()
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn outcome(part: u64, verdict: Verdict) -> Outcome {
    Outcome {
        part: PartId(part),
        frame: FrameId { camera: 2, seq: 0 },
        camera: Arc::from("left"),
        name: Arc::from("left/1.png"),
        verdict,
        score: Some(3.5),
        threshold: Some(-0.25),
        region: Some(Region { x: 70_000, y: 2, width: 3, height: 4 }),
        position: None,
        latency: Duration::from_micros(123_456),
        triggered_at: SystemTime::UNIX_EPOCH + ms(1_777_000_000_123),
        image: Some(PathBuf::new()),
        reason: None,
        truth: None,
    }
}

fn status(state: LineState) -> LineStatus {
    let mut tally = Tally { triggers: 1 << 33, accepted: 5, ..Tally::default() };
    tally.rejected = [1, 2, 3, 4, 5, 6, 7, 1 << 32];
    LineStatus {
        state,
        epoch: 0x0001_0002,
        tally,
        late_verdicts: 9,
        cameras_up: vec![true, false, true],
        alarms: Default::default(),
        evidence_lost: false,
    }
}

fn registers(image: &Image, address: u16, count: u16, now: Instant) -> Vec<u16> {
    let mut bytes = Vec::new();
    image.read(address, count, now, &mut bytes).unwrap();
    assert_eq!(bytes.len(), usize::from(count) * 2);
    bytes.as_chunks::<2>().0.iter().map(|&word| u16::from_be_bytes(word)).collect()
}

fn register(image: &Image, address: u16, now: Instant) -> u16 {
    registers(image, address, 1, now)[0]
}

fn accepts(image: &mut Image, parts: std::ops::RangeInclusive<u64>) {
    parts.for_each(|part| image.publish(Entry::of(&outcome(part, Verdict::Accept))));
}

#[test]
fn at_power_up_nothing_reads_as_ready_or_pass() {
    let image = Image::new(Limits::default(), Controls::default());
    let now = begin();
    assert_eq!(register(&image, map::STATUS, now), map::PLC_STALE | map::STANDSTILL);
    assert_eq!(register(&image, map::STATE, now), 1);
    assert_eq!(register(&image, map::LATEST + map::RESULT, now), map::NONE);
    for slot in 0..map::SLOTS {
        let entry = registers(&image, map::RING + slot * map::ENTRY, map::ENTRY, now);
        assert_eq!(entry, [0; 32]);
    }
}

#[test]
fn ready_falls_when_the_beats_stop() {
    let mut image = Image::new(Limits::default(), Controls::default());
    let start = begin();
    image.beat(Beat::of(&status(LineState::ContinuousExecution)), start);
    let seen = |image: &Image, now| {
        (register(image, map::STATUS, now) & !map::PLC_STALE, register(image, map::STATE, now))
    };
    assert_eq!(seen(&image, start + ms(500)), (map::READY, 8));
    assert_eq!(seen(&image, start + ms(501)), (map::ERROR | map::STANDSTILL, 3));
    assert_eq!(register(&image, map::HEARTBEAT, start + ms(501)), 1);
    assert_eq!(register(&image, map::CAMERAS_UP, start + ms(501)), 0);
    image.beat(Beat::of(&status(LineState::Initialized)), start + ms(600));
    assert_eq!(seen(&image, start + ms(600)), (0, 5));
    image.beat(Beat::of(&status(LineState::Halted)), start + ms(700));
    assert_eq!(seen(&image, start + ms(700)), (0, 2));
    assert_eq!(seen(&image, start + ms(9000)), (map::STANDSTILL, 2), "halted in order");
    image.beat(Beat::of(&status(LineState::Error)), start + ms(9000));
    assert_eq!(seen(&image, start + ms(9000)), (map::ERROR, 3));
}

#[test]
fn the_status_block_holds_what_the_beat_said() {
    let mut image = Image::new(Limits::default(), Controls::default());
    let now = begin();
    let mut said = status(LineState::ContinuousExecution);
    said.evidence_lost = true;
    image.beat(Beat::of(&said), now);
    let quad_at = |address| {
        registers(&image, address, 4, now)
            .iter()
            .fold(0, |sum: u64, &word| sum << 16 | u64::from(word))
    };
    assert_eq!(registers(&image, map::EPOCH, 2, now), [1, 2]);
    assert_eq!(registers(&image, map::CAMERAS_UP, 2, now), [0b101, 3]);
    assert_eq!(register(&image, map::STATUS, now) & map::EVIDENCE_LOST, map::EVIDENCE_LOST);
    assert_eq!((quad_at(map::TRIGGERS), quad_at(map::ACCEPTED)), (1 << 33, 5));
    assert_eq!(quad_at(map::REJECTED), 28 + (1 << 32));
    assert_eq!(quad_at(map::IN_FLIGHT), (1 << 33) - 5 - 28 - (1 << 32));
    assert_eq!(quad_at(map::LATE), 9);
    for cause in Cause::ALL {
        let address = map::CAUSES + 4 * (u16::from(cause.code()) - 1);
        assert_eq!(quad_at(address), said.tally.rejected_for(cause), "{cause}");
    }
    said.cameras_up = vec![true; 20];
    image.beat(Beat::of(&said), now);
    assert_eq!(registers(&image, map::CAMERAS_UP, 2, now), [0xFFFF, 20]);
    assert_ne!(register(&image, map::STATUS, now) & map::CAMERAS_ALL_UP, 0);
}

#[test]
fn an_entry_says_all_of_the_outcome() {
    let mut image = Image::new(Limits::default(), Controls::default());
    let now = begin();
    image.beat(Beat::of(&status(LineState::ContinuousExecution)), now);
    let part = 0x0123_4567_89AB_CDEF;
    image.publish(Entry::of(&outcome(part, Verdict::Reject(Cause::Anomaly))));
    /* struct.pack(">f", 3.5).hex() = 40600000; struct.pack(">f", -0.25).hex() = be800000;
    hex(1777000000123) = 0x19dbd742a7b; hex(123456) = 0x1e240; hex(70000) = 0x11170 */
    #[rustfmt::skip]
    let expected = [
        1, map::FAIL, 1, 2, 0x0123, 0x4567, 0x89AB, 0xCDEF, 0x4060, 0, 0xBE80, 0, 7, 0,
        1, 0x1170, 0, 2, 0, 3, 0, 4, 1, 0xE240, 1, 2, 0, 0x019D, 0xBD74, 0x2A7B, 0, 1,
    ];
    assert_eq!(registers(&image, map::RING, map::ENTRY, now), expected);
    assert_eq!(registers(&image, map::LATEST, map::ENTRY, now), expected);
}

#[test]
fn only_an_accept_reads_as_pass() {
    let code = |verdict| Entry::of(&outcome(1, verdict)).0[usize::from(map::RESULT)];
    assert_eq!(code(Verdict::Accept), map::PASS);
    for cause in Cause::ALL {
        assert!([2, 3, 4].contains(&code(Verdict::Reject(cause))), "{cause}");
    }
}

#[test]
fn a_score_that_is_no_number_is_not_shown() {
    for score in [None, Some(f32::NAN), Some(f32::INFINITY)] {
        let verdict = Verdict::Reject(Cause::DetectorFailed);
        let bare = Outcome { score, threshold: None, region: None, ..outcome(1, verdict) };
        let entry = Entry::of(&bare).0;
        assert_eq!(entry[usize::from(map::VALID)], 0);
        assert_eq!(entry[usize::from(map::SCORE)..usize::from(map::LATENCY)], [0; 14]);
    }
}

#[test]
fn overwriting_an_unacknowledged_entry_latches_the_overrun_bit() {
    let mut image = Image::new(Limits::default(), Controls::default());
    let now = begin();
    let overrun = |image: &Image| register(image, map::STATUS, now) & map::OVERRUN != 0;
    let lost = |image: &Image| register(image, map::OVERRUNS + 3, now);
    accepts(&mut image, 1..=255);
    assert!(!overrun(&image));
    assert_eq!(registers(&image, map::NEWEST_SEQ, 3, now), [255, 255, 1]);
    accepts(&mut image, 256..=257);
    assert!(overrun(&image));
    assert_eq!(lost(&image), 2);
    assert_eq!(registers(&image, map::NEWEST_SEQ, 3, now), [257, 255, 3]);
    // Handling the rest does not hide it; the PLC has to say that it knows.
    image.write(map::ACKNOWLEDGE, &[257], now).unwrap();
    assert!(overrun(&image));
    assert_eq!(registers(&image, map::NEWEST_SEQ, 3, now), [257, 0, 0]);
    image.write(map::CONTROL, &[map::CLEAR_OVERRUN], now).unwrap();
    assert!(!overrun(&image));
    accepts(&mut image, 258..=513);
    assert!(overrun(&image), "256 more and none acknowledged");
    image.write(map::CONTROL, &[map::CLEAR_OVERRUN], now).unwrap();
    assert!(overrun(&image), "the bit was left standing");
    image.write(map::CONTROL, &[0], now).unwrap();
    image.write(map::CONTROL, &[map::CLEAR_OVERRUN], now).unwrap();
    assert!(!overrun(&image));
    image.missed(3);
    assert!(overrun(&image));
    assert_eq!(lost(&image), 6);
}

#[test]
fn late_doubled_and_unknown_acknowledges_change_nothing() {
    let mut image = Image::new(Limits::default(), Controls::default());
    let now = begin();
    let waiting = |image: &Image| registers(image, map::UNACKNOWLEDGED, 2, now);
    let unknown = |image: &Image| register(image, map::STATUS, now) & map::ACKNOWLEDGE_UNKNOWN != 0;
    image.write(map::ACKNOWLEDGE, &[1], now).unwrap();
    assert!(unknown(&image), "nothing was published yet");
    accepts(&mut image, 1..=10);
    image.write(map::ACKNOWLEDGE, &[7], now).unwrap();
    assert_eq!(waiting(&image), [3, 8]);
    for (seq, known) in [(7, true), (3, true), (0, true), (11, false), (65535, false)] {
        image.write(map::ACKNOWLEDGE, &[seq], now).unwrap();
        assert_eq!(waiting(&image), [3, 8], "after {seq}");
        assert_eq!(unknown(&image), !known, "after {seq}");
        assert_eq!(register(&image, map::ACKNOWLEDGE, now), seq);
    }
}

/// A PLC that follows the documented steps, over the wrap of the sequence number and with every
/// length of backlog, sees each part once and in order.
#[test]
fn the_ring_is_followed_without_loss_over_the_wrap() {
    let mut image = Image::new(Limits::default(), Controls::default());
    let now = begin();
    let (mut last, mut published, mut handled) = (0_u16, 0_u64, 0_u64);
    for burst in (0..=255).cycle().take(1200) {
        accepts(&mut image, published + 1..=published + burst);
        published += burst;
        while last != register(&image, map::NEWEST_SEQ, now) {
            let next = if last == 65_535 { 1 } else { last + 1 };
            let slot = (next - 1) % map::SLOTS;
            let entry = registers(&image, map::RING + slot * map::ENTRY, map::ENTRY, now);
            assert_eq!((entry[0], entry[31]), (next, next));
            handled += 1;
            assert_eq!(u64::from(entry[6]) << 16 | u64::from(entry[7]), handled);
            last = next;
        }
        image.write(map::ACKNOWLEDGE, &[last], now).unwrap();
        assert_eq!(register(&image, map::UNACKNOWLEDGED, now), 0);
    }
    assert!(published > 2 * 65_535 && handled == published);
    assert_eq!(register(&image, map::STATUS, now) & map::OVERRUN, 0);
}

#[test]
fn a_plc_that_stands_still_is_stale() {
    let require = Limits { require_plc_heartbeat: true, ..Limits::default() };
    let mut image = Image::new(require, Controls::default());
    let start = begin();
    let seen =
        |image: &Image, now| register(image, map::STATUS, now) & (map::READY | map::PLC_STALE);
    let beat = Beat::of(&status(LineState::ContinuousExecution));
    image.beat(beat, start);
    assert_eq!(seen(&image, start), map::PLC_STALE, "it never wrote");
    image.write(map::PLC_HEARTBEAT, &[0], start).unwrap();
    assert_eq!(seen(&image, start), map::READY, "the first write counts, whatever it says");
    image.write(map::PLC_HEARTBEAT, &[0], start + ms(400)).unwrap();
    image.beat(beat, start + ms(501));
    assert_eq!(seen(&image, start + ms(501)), map::PLC_STALE, "written, not changed");
    image.write(map::PLC_HEARTBEAT, &[1], start + ms(501)).unwrap();
    assert_eq!(seen(&image, start + ms(501)), map::READY);
}
