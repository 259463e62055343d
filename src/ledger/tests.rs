//! The ledger on real folders, with crashes and disks that fail.

use std::time::{Duration, UNIX_EPOCH};

use super::*;

const NOW: SystemTime = UNIX_EPOCH;
const SMALL: Limits = Limits { max_bytes: 1 << 20, segment_bytes: 4096, backlog: 8 };

fn open(folder: &Path) -> (Ledger, Resumed) {
    Ledger::open_with(folder, SMALL, Box::new(Direct), NOW).unwrap()
}

fn record(part: u64, issued: u64, verdict: Verdict) -> Record {
    Record {
        part: PartId(part),
        issued: PartId(issued),
        frame: FrameId { camera: 1, seq: part * 3 },
        verdict,
        score: Some(part as f32 / 8.0),
        threshold: Some(2.5),
        region: None,
        triggered_at: UNIX_EPOCH + Duration::from_millis(part),
        latency_us: 900,
    }
}

fn accept(part: u64) -> Record {
    record(part, part, Verdict::Accept)
}

fn ids(folder: &Path) -> Vec<u64> {
    read(folder).unwrap().iter().map(|record| record.part.0).collect()
}

/// The newest segment.
fn last_segment(folder: &Path) -> PathBuf {
    read::segments(folder).unwrap().pop().unwrap().path
}

#[test]
fn a_clean_end_counts_on_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, resumed) = open(folder.path());
    assert_eq!((resumed.next_part, resumed.epoch), (PartId(1), 1));
    let written = [accept(1), record(2, 3, Verdict::Reject(Cause::Anomaly)), accept(3)];
    for record in &written {
        ledger.append(record).unwrap();
    }
    ledger.close(NOW).unwrap();
    assert_eq!(read(folder.path()).unwrap(), written);
    let (_ledger, resumed) = open(folder.path());
    assert_eq!((resumed.next_part, resumed.epoch), (PartId(4), 2));
    assert_eq!((resumed.torn_bytes, resumed.interrupted.len(), resumed.damaged.len()), (0, 0, 0));
    let tally = resumed.tally;
    assert_eq!((tally.triggers, tally.accepted, tally.rejected_for(Cause::Anomaly)), (3, 2, 1));
}

#[test]
fn an_unclean_end_closes_the_open_parts_and_skips_ids() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(folder.path());
    ledger.append(&record(2, 5, Verdict::Accept)).unwrap();
    drop(ledger);
    let (ledger, resumed) = open(folder.path());
    assert_eq!(resumed.interrupted, [1, 3, 4, 5].map(PartId));
    assert_eq!(resumed.next_part, PartId(5 + UNCLEAN_SKIP + 1));
    assert_eq!(resumed.tally.rejected_for(Cause::Interrupted), 4);
    assert!(resumed.tally.closed() && resumed.tally.triggers == 5);
    drop(ledger);
    assert_eq!(ids(folder.path()), [2, 1, 3, 4, 5]);
}

/// Cuts the file at every byte of the last two records.
#[test]
fn a_tail_torn_at_any_byte_is_dropped_and_the_rest_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(folder.path());
    (1..=5).for_each(|part| ledger.append(&accept(part)).unwrap());
    drop(ledger);
    let path = last_segment(folder.path());
    let whole = fs::read(&path).unwrap();
    for cut in 1..=2 * ENTRY_BYTES {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let kept = 5 - cut.div_ceil(ENTRY_BYTES) as u64;
        let torn = (2 * ENTRY_BYTES - cut) % ENTRY_BYTES;
        // A reader takes it for a record being written.
        assert_eq!(ids(folder.path()), (1..=kept).collect::<Vec<_>>(), "cut {cut}");
        let (mut ledger, resumed) = open(folder.path());
        assert_eq!(resumed.torn_bytes, torn as u64, "cut {cut}");
        assert!(resumed.next_part > PartId(5), "cut {cut}");
        assert_eq!(resumed.tally.accepted, kept, "cut {cut}");
        let next = resumed.next_part.0;
        ledger.append(&accept(next)).unwrap();
        ledger.close(NOW).unwrap();
        assert_eq!(ids(folder.path()), (1..=kept).chain([next]).collect::<Vec<_>>(), "cut {cut}");
    }
}

#[test]
fn zeros_after_a_power_cut_are_a_torn_tail() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(folder.path());
    (1..=3).for_each(|part| ledger.append(&accept(part)).unwrap());
    drop(ledger);
    let path = last_segment(folder.path());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, [bytes.as_slice(), &[0; 700]].concat()).unwrap();
    let (_ledger, resumed) = open(folder.path());
    assert_eq!((resumed.torn_bytes, resumed.tally.accepted), (700, 3));
    assert_eq!(resumed.next_part, PartId(3 + UNCLEAN_SKIP + 1));
}

/// Flips one bit in every byte of a ledger with records on both sides.
#[test]
fn damage_is_named_set_aside_and_counting_goes_on() {
    let made = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(made.path());
    (1..=3).for_each(|part| ledger.append(&accept(part)).unwrap());
    ledger.append(&record(4, 9, Verdict::Reject(Cause::TooLate))).unwrap();
    drop(ledger);
    let path = last_segment(made.path());
    let name = path.file_name().unwrap();
    let whole = fs::read(&path).unwrap();
    // The last record has nothing behind it: damaged there is torn there.
    for byte in (0..whole.len() - ENTRY_BYTES).step_by(7) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        bytes[byte] ^= 0x10;
        fs::write(folder.path().join(name), &bytes).unwrap();
        let offset = match byte.checked_sub(segment::HEADER_BYTES) {
            None => 0,
            Some(byte) => segment::HEADER_BYTES + byte / ENTRY_BYTES * ENTRY_BYTES,
        };
        let error = format!("{:#}", read(folder.path()).unwrap_err());
        assert!(error.contains(&format!("at byte {offset}: ")), "byte {byte}: {error}");
        let (mut ledger, resumed) = open(folder.path());
        assert_eq!(resumed.damaged.len(), 1, "byte {byte}");
        assert_eq!(fs::read(&resumed.damaged[0].path).unwrap(), bytes, "byte {byte}");
        assert_eq!(resumed.next_part, PartId(9 + UNCLEAN_SKIP + 1), "byte {byte}");
        assert!(resumed.epoch > 1, "byte {byte}");
        assert!(resumed.tally.closed(), "byte {byte}");
        assert_eq!(resumed.tally.triggers, 9, "byte {byte}");
        ledger.append(&accept(resumed.next_part.0)).unwrap();
        ledger.close(NOW).unwrap();
        let (_ledger, resumed) = open(folder.path());
        assert_eq!(resumed.damaged.len(), 0, "byte {byte}: told once");
        assert_eq!(resumed.tally.triggers, 10, "byte {byte}");
        let contents = read_with(folder.path(), |_| {}).unwrap();
        assert_eq!(contents.problems.len(), 1, "byte {byte}: verify still names it");
    }
}

#[test]
fn a_later_format_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let path = last_segment(folder.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    let crc = crc32fast::hash(&bytes[..segment::HEADER_BYTES - 4]);
    bytes[segment::HEADER_BYTES - 4..segment::HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let error = Ledger::open_with(folder.path(), SMALL, Box::new(Direct), NOW).err().unwrap();
    assert!(format!("{error:#}").contains("later inspectd"), "{error:#}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn two_daemons_on_one_ledger_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let held = open(folder.path());
    let error = Ledger::open_with(folder.path(), SMALL, Box::new(Direct), NOW).err().unwrap();
    assert!(format!("{error:#}").contains("in use by another inspectd"), "{error:#}");
    drop(held);
    open(folder.path());
}

#[test]
fn a_part_is_recorded_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(folder.path());
    ledger.append(&accept(1)).unwrap();
    assert!(ledger.append(&record(1, 1, Verdict::Reject(Cause::TooLate))).is_err());
    assert_eq!(ledger.tally().triggers, 1);
    drop(ledger);
    assert_eq!(read(folder.path()).unwrap(), [accept(1)]);
}

#[test]
fn segments_follow_each_other_and_the_oldest_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { max_bytes: 5 * 4096, ..SMALL };
    let (mut ledger, _) = Ledger::open_with(folder.path(), limits, Box::new(Direct), NOW).unwrap();
    // Part 1 stays open over all segments; the others come in pairs, the later one first.
    for pair in 1..=400 {
        ledger.append(&record(2 * pair + 1, 2 * pair + 1, Verdict::Accept)).unwrap();
        ledger.append(&record(2 * pair, 2 * pair + 1, Verdict::Reject(Cause::BadFrame))).unwrap();
        let bytes: u64 = read::segments(folder.path())
            .unwrap()
            .iter()
            .map(|segment| segment.path.metadata().unwrap().len())
            .sum();
        assert!(bytes <= limits.max_bytes, "{bytes} bytes after pair {pair}");
    }
    drop(ledger);
    let contents = read_with(folder.path(), |_| {}).unwrap();
    assert_eq!(contents.problems, []);
    assert!(contents.segments == 5 && contents.records < 250, "{contents:?}");
    assert_eq!((contents.tally.triggers, contents.tally.accepted), (801, 400));
    assert_eq!(contents.tally.in_flight(), 1);
    assert_eq!(survey(folder.path()).unwrap().tally, contents.tally);
    let (_ledger, resumed) = open(folder.path());
    assert_eq!(resumed.interrupted, [PartId(1)]);
    assert_eq!((resumed.tally.triggers, resumed.tally.accepted), (801, 400));
}

#[test]
fn a_ledger_is_read_while_it_is_written_and_trimmed() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { max_bytes: 8 * 4096, ..SMALL };
    let (mut ledger, _) = Ledger::open_with(folder.path(), limits, Box::new(Direct), NOW).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            (1..=20_000).for_each(|part| ledger.append(&accept(part)).unwrap());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let mut ids = Vec::new();
            let contents = read_with(folder.path(), |record| ids.push(record.part.0)).unwrap();
            assert_eq!(contents.problems, []);
            assert!(ids.is_sorted());
        }
    });
    assert_eq!(survey(folder.path()).unwrap().tally.accepted, 20_000);
}

#[test]
fn the_config_has_defaults_and_knows_its_keys() {
    let config: Config = toml::from_str("folder = 'here'").unwrap();
    assert_eq!((config.folder, config.max_gib), (PathBuf::from("here"), 2.0));
    assert!(toml::from_str::<Config>("folder = 'here'\nmax_gb = 2").is_err());
}

#[test]
fn damage_in_an_old_segment_does_not_stop_the_line_and_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(folder.path());
    (1..=120).for_each(|part| ledger.append(&accept(part)).unwrap());
    drop(ledger);
    let oldest = read::segments(folder.path()).unwrap().remove(0).path;
    let mut bytes = fs::read(&oldest).unwrap();
    bytes[1000] ^= 1;
    fs::write(&oldest, bytes).unwrap();
    let (_ledger, resumed) = open(folder.path());
    assert_eq!((resumed.tally.accepted, resumed.damaged.len()), (120, 0));
    let mut seen = 0;
    let contents = read_with(folder.path(), |_| seen += 1).unwrap();
    assert_eq!(seen, 119);
    assert_eq!(contents.problems.len(), 1);
    assert_eq!(contents.problems[0].offset, 976, "256 + 9 entries of 80");
}

#[test]
fn ids_never_repeat_over_many_crashes() {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    let folder = tempfile::tempdir().unwrap();
    let mut given = std::collections::HashSet::new();
    let mut judged = 0;
    for crash in 0..150 {
        let (mut ledger, resumed) = open(folder.path());
        assert!(resumed.tally.closed());
        let mut next = resumed.next_part.0;
        let mut open: Vec<u64> = Vec::new();
        for _ in 0..rng.random_range(0..80) {
            if open.len() < 20 && rng.random_bool(0.6) {
                assert!(given.insert(next), "id {next} given twice, crash {crash}");
                open.push(next);
                next += 1;
            } else if !open.is_empty() {
                let part = open.swap_remove(rng.random_range(0..open.len()));
                ledger.append(&record(part, next - 1, Verdict::Accept)).unwrap();
                judged += 1;
            }
        }
        if rng.random_bool(0.2) {
            for part in open {
                ledger.append(&record(part, next - 1, Verdict::Accept)).unwrap();
                judged += 1;
            }
            ledger.close(NOW).unwrap();
            continue;
        }
        drop(ledger);
        let path = last_segment(folder.path());
        let bytes = fs::read(&path).unwrap();
        let last = segment::decode(bytes[bytes.len() - ENTRY_BYTES..].first_chunk().unwrap());
        let verdict = last.and_then(|(entry, _)| match entry {
            Entry::Part(part) => Some(part.verdict),
            _ => None,
        });
        // A start is whole before the first id is given out.
        let cut = verdict.map_or(0, |_| rng.random_range(0..ENTRY_BYTES));
        judged -= u64::from(cut > 0 && verdict == Some(Verdict::Accept));
        fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
    }
    let (ledger, resumed) = open(folder.path());
    assert_eq!(resumed.tally.accepted, judged);
    drop(ledger);
    let records = read(folder.path()).unwrap();
    let distinct: std::collections::HashSet<u64> = records.iter().map(|r| r.part.0).collect();
    assert_eq!(distinct.len(), records.len(), "no part twice");
    assert_eq!(records.len() as u64, resumed.tally.triggers);
}

/// Takes `room` more bytes, then is full, as often as the test says.
struct FullAt {
    room: Arc<Mutex<usize>>,
}

impl Disk for FullAt {
    fn write_at(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut room = self.room.lock().unwrap();
        if *room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = file.write_at(&bytes[..bytes.len().min(*room)], offset)?;
        *room -= count;
        Ok(count)
    }
}

/// The disk is full after every possible number of bytes, over two segment borders.
#[test]
fn a_full_disk_delays_records_and_loses_none_within_the_backlog() {
    let limits = Limits { segment_bytes: 256 + 5 * 80, backlog: 30, ..SMALL };
    for room in (0..1500).step_by(11) {
        let folder = tempfile::tempdir().unwrap();
        let left = Arc::new(Mutex::new(usize::MAX));
        let disk = Box::new(FullAt { room: left.clone() });
        let (mut ledger, _) = Ledger::open_with(folder.path(), limits, disk, NOW).unwrap();
        *left.lock().unwrap() = room;
        let mut records = Vec::new();
        for part in 1..=20 {
            records.push(record(part, part + 2, Verdict::Accept));
            ledger.append(records.last().unwrap()).unwrap();
        }
        assert!(ledger.backlog() > 0 && ledger.fault().is_some(), "room {room}");
        assert_eq!(ledger.tally().accepted, 20, "room {room}");
        // What is on disk meanwhile reads as a ledger being written.
        let so_far = ids(folder.path());
        assert_eq!(so_far, (1..=20 - ledger.backlog() as u64).collect::<Vec<_>>(), "room {room}");
        *left.lock().unwrap() = usize::MAX;
        ledger.flush().unwrap();
        assert_eq!((ledger.backlog(), ledger.lost(), ledger.fault()), (0, 0, None));
        drop(ledger);
        assert_eq!(read(folder.path()).unwrap(), records, "room {room}");
        assert_eq!(open(folder.path()).1.interrupted, [21, 22].map(PartId), "room {room}");
    }
}

#[test]
fn a_full_backlog_loses_loudly() {
    let folder = tempfile::tempdir().unwrap();
    let room = Arc::new(Mutex::new(usize::MAX));
    let disk = Box::new(FullAt { room: room.clone() });
    let (mut ledger, _) = Ledger::open_with(folder.path(), SMALL, disk, NOW).unwrap();
    *room.lock().unwrap() = 0;
    (1..=8).for_each(|part| ledger.append(&accept(part)).unwrap());
    let error = format!("{:#}", ledger.append(&accept(9)).unwrap_err());
    assert!(error.contains("part 9 is not recorded"), "{error}");
    // With a mark of part 9's id.
    assert_eq!((ledger.backlog(), ledger.lost()), (9, 1));
    *room.lock().unwrap() = usize::MAX;
    ledger.append(&accept(10)).unwrap();
    ledger.close(NOW).unwrap();
    assert_eq!(ids(folder.path()), [1, 2, 3, 4, 5, 6, 7, 8, 10]);
    let (mut ledger, resumed) = open(folder.path());
    assert_eq!((resumed.interrupted, resumed.next_part), (vec![PartId(9)], PartId(11)));
    // The last id given out is lost, and not given again.
    *room.lock().unwrap() = 0;
    ledger.disk = Box::new(FullAt { room });
    (11..=18).for_each(|part| ledger.append(&accept(part)).unwrap());
    ledger.append(&accept(19)).unwrap_err();
    ledger.disk = Box::new(Direct);
    ledger.close(NOW).unwrap();
    let (_ledger, resumed) = open(folder.path());
    assert_eq!((resumed.interrupted, resumed.next_part), (vec![PartId(19)], PartId(20)));
}

/// What an outage may last and still no id is given twice: the backlog full, most records lost.
#[test]
fn ids_given_out_while_the_disk_took_nothing_are_not_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let room = Arc::new(Mutex::new(usize::MAX));
    let disk = Box::new(FullAt { room: room.clone() });
    let (mut ledger, _) = Ledger::open_with(folder.path(), SMALL, disk, NOW).unwrap();
    *room.lock().unwrap() = 0;
    for part in 1..=5000 {
        ledger.mark_issued(PartId(part));
        assert_eq!(ledger.append(&accept(part)).is_ok(), part <= 8);
    }
    drop(ledger);
    let (_ledger, resumed) = open(folder.path());
    assert!(resumed.next_part > PartId(5000), "{}", resumed.next_part);
    assert_eq!(resumed.tally.triggers, 0, "nothing was on disk");
}

#[test]
fn a_part_marked_and_not_recorded_is_closed_as_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(folder.path());
    (1..=4).for_each(|part| ledger.mark_issued(PartId(part)));
    ledger.mark_issued(PartId(2));
    ledger.append(&record(3, 4, Verdict::Accept)).unwrap();
    // A reader sees records only, and the rest as parts in flight.
    assert_eq!(ids(folder.path()), [3]);
    let tally = survey(folder.path()).unwrap().tally;
    assert_eq!((tally.triggers, tally.in_flight()), (4, 3));
    drop(ledger);
    let (ledger, resumed) = open(folder.path());
    assert_eq!(resumed.interrupted, [1, 2, 4].map(PartId));
    assert!(resumed.tally.closed() && resumed.tally.triggers == 4);
    drop(ledger);
    assert_eq!(ids(folder.path()), [3, 1, 2, 4]);
}

#[test]
fn marks_need_no_room_in_the_backlog_and_are_written_when_the_disk_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let room = Arc::new(Mutex::new(usize::MAX));
    let disk = Box::new(FullAt { room: room.clone() });
    let (mut ledger, _) = Ledger::open_with(folder.path(), SMALL, disk, NOW).unwrap();
    *room.lock().unwrap() = 0;
    (1..=100).for_each(|part| ledger.mark_issued(PartId(part)));
    assert_eq!(ledger.backlog(), 1);
    assert!(ledger.fault().is_some());
    ledger.append(&record(50, 100, Verdict::Accept)).unwrap();
    *room.lock().unwrap() = usize::MAX;
    ledger.mark_issued(PartId(102));
    assert_eq!((ledger.backlog(), ledger.fault()), (0, None));
    drop(ledger);
    let (_ledger, resumed) = open(folder.path());
    assert_eq!(resumed.interrupted.len(), 101);
    assert_eq!(resumed.tally.triggers, 102);
}

/// More parts than may be open at once by the format's own check.
#[test]
fn an_outage_of_a_million_parts_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let room = Arc::new(Mutex::new(usize::MAX));
    let disk = Box::new(FullAt { room: room.clone() });
    let (mut ledger, _) = Ledger::open_with(folder.path(), SMALL, disk, NOW).unwrap();
    *room.lock().unwrap() = 0;
    (1..=1_200).for_each(|step| ledger.mark_issued(PartId(step * 1000)));
    ledger.mark_issued(PartId(u64::MAX));
    *room.lock().unwrap() = usize::MAX;
    ledger.append(&accept(1_200_001)).unwrap();
    ledger.close(NOW).unwrap();
    let contents = read_with(folder.path(), |_| {}).unwrap();
    assert_eq!(contents.problems, []);
    assert_eq!((contents.records, contents.tally.in_flight()), (1, 1_200_000));
}

#[test]
fn max_gib_below_four_segments_is_refused() {
    let folder = PathBuf::from("ledger");
    for max_gib in [0.0, -1.0, f64::NAN, 0.0624] {
        let error = Config { folder: folder.clone(), max_gib }.check().unwrap_err();
        assert!(error.to_string().contains("0.0625"), "{error}");
    }
    Config { folder, max_gib: 0.0625 }.check().unwrap();
}

#[test]
fn a_withdrawn_accept_counts_as_the_reject_that_it_became() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(folder.path());
    (1..=3).for_each(|part| ledger.append(&accept(part)).unwrap());
    let late = record(2, 3, Verdict::Reject(Cause::TooLate));
    ledger.withdraw(&late).unwrap();
    // Only a recorded accept can be withdrawn.
    ledger.withdraw(&record(4, 4, Verdict::Reject(Cause::TooLate))).unwrap_err();
    // Before, among and after those that a reader holds back.
    (4..=200).for_each(|part| ledger.append(&accept(part)).unwrap());
    ledger.withdraw(&record(200, 200, late.verdict)).unwrap();
    drop(ledger);
    let mut visited = Vec::new();
    read_with(folder.path(), |record| visited.push(*record)).unwrap();
    assert!(visited.iter().map(|record| record.part.0).eq(1..=200));
    let rejects = visited.iter().filter(|record| record.verdict != Verdict::Accept);
    assert!(rejects.map(|record| record.part.0).eq([2, 200]));
    assert_eq!(read(folder.path()).unwrap()[1], late);
    let (_ledger, resumed) = open(folder.path());
    assert_eq!((resumed.tally.triggers, resumed.tally.accepted), (200, 198));
    assert_eq!(resumed.tally.rejected_for(Cause::TooLate), 2);
    assert!(resumed.interrupted.is_empty());
}
