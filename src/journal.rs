//! The log itself: one line per record on standard error, which under systemd is the journal.
//!
//! The threads that judge parts format their line and push it into a bounded queue; one thread
//! writes. A terminal or journal that stands still therefore costs log lines, which are counted,
//! and never a verdict. A broken standard error costs log lines too and nothing else.
//!
//! [`start`] is for the daemon, [`start_direct`] for commands that end soon, [`Repeats`] for
//! whatever may go wrong once per part.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use log::{Level, LevelFilter, Log, Metadata, Record};

mod repeats;

pub use repeats::Repeats;

/// Lines that may wait for the writer. When it is full the newest line is dropped and counted.
const QUEUE_LINES: usize = 4096;
/// How long the end of the process waits for the last lines to be taken.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
const WRITER: &str = "journal";

/// Writes what is still queued when it is dropped.
#[must_use = "dropping it at once flushes at once; keep it to the end of main"]
pub struct Guard(());

impl Drop for Guard {
    fn drop(&mut self) {
        log::logger().flush();
    }
}

/// Starts the log of a long-running command: its writer thread, and a panic hook that brings the
/// panic and all lines before it out before the process aborts.
pub fn start(level: LevelFilter) -> Result<Guard> {
    let (journal, writer) = queued(level, Style::of_stderr(), QUEUE_LINES);
    install(journal)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the log is there before the pipeline and outlives it; this thread judges nothing"
    )]
    thread::Builder::new()
        .name(WRITER.into())
        .spawn(move || writer.run(&mut io::stderr()))
        .context("starting the log's writer thread")?;
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!("panic thread={} {panic}", thread::current().name().unwrap_or("unnamed"));
        log::logger().flush();
        default_hook(panic);
    }));
    Ok(Guard(()))
}

/// Starts the log of a short command: every line is written where it arises, without a thread.
pub fn start_direct(level: LevelFilter) -> Result<()> {
    install(Journal { level, style: Style::of_stderr(), sink: Sink::Direct })
}

/// The level from the command line, else from the value of `INSPECTD_LOG`, else `info`.
pub fn level(flag: Option<&str>, env: Option<&str>) -> Result<LevelFilter> {
    let (source, word) = match (flag, env) {
        (Some(word), _) => ("--log-level", word),
        (None, Some(word)) => ("INSPECTD_LOG", word),
        (None, None) => return Ok(LevelFilter::Info),
    };
    let Ok(level) = word.parse() else {
        bail!("{source} = {word:?} is none of off, error, warn, info, debug, trace");
    };
    Ok(level)
}

/// Foreign text (a file name, a device's message) for a `key="value"` of a line: it must not end
/// the quotes. Control characters are escaped when the line is written.
pub fn plain(text: impl std::fmt::Display) -> String {
    text.to_string().replace('"', "'")
}

struct Journal {
    level: LevelFilter,
    style: Style,
    sink: Sink,
}

enum Sink {
    Direct,
    Queue { lines: Sender<Entry>, dropped: Arc<AtomicU64> },
}

enum Entry {
    Line(String),
    /// Answered when all lines before it are written.
    Flush(Sender<()>),
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Dependencies speak of their own affairs; only their warnings concern the line.
        metadata.level() <= self.level
            && (metadata.target().starts_with(env!("CARGO_PKG_NAME"))
                || metadata.level() <= Level::Warn
                || self.level == LevelFilter::Trace)
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.style.line(SystemTime::now(), record.level(), &record.args().to_string());
        match &self.sink {
            Sink::Direct => {
                // Nobody is left to tell that standard error is gone.
                let _ = io::stderr().write_all(line.as_bytes());
            }
            Sink::Queue { lines, dropped } => match lines.try_send(Entry::Line(line)) {
                Ok(()) => {}
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            },
        }
    }

    fn flush(&self) {
        let Sink::Queue { lines, .. } = &self.sink else { return };
        if thread::current().name() == Some(WRITER) {
            return; // a panic in the writer itself: nobody would answer
        }
        let (answer, written) = bounded(1);
        if lines.send_timeout(Entry::Flush(answer), FLUSH_PATIENCE).is_ok() {
            let _ = written.recv_timeout(FLUSH_PATIENCE);
        }
    }
}

/// The other end of the queue.
struct Writer {
    style: Style,
    capacity: usize,
    lines: Receiver<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// Writes until every sender is gone.
    fn run(self, out: &mut impl Write) {
        let mut since_told = 0;
        while let Ok(entry) = self.lines.recv() {
            match entry {
                Entry::Line(line) => self.write(out, &line, 1),
                Entry::Flush(answer) => {
                    let _ = answer.send(());
                }
            }
            // Told when the writer has caught up, and once a queue's length where it never does:
            // to tell it after every line would make a flood worse.
            since_told += 1;
            if !self.lines.is_empty() && since_told < self.capacity {
                continue;
            }
            since_told = 0;
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                let text = format!("log lines_dropped={dropped}");
                self.write(out, &self.style.line(SystemTime::now(), Level::Warn, &text), dropped);
            }
        }
    }

    /// A line that cannot be written counts as dropped; `stands_for` is how many it tells of.
    fn write(&self, out: &mut impl Write, line: &str, stands_for: u64) {
        if out.write_all(line.as_bytes()).is_err() {
            self.dropped.fetch_add(stands_for, Ordering::Relaxed);
        }
    }
}

fn queued(level: LevelFilter, style: Style, capacity: usize) -> (Journal, Writer) {
    let (sender, lines) = bounded(capacity);
    let dropped = Arc::new(AtomicU64::new(0));
    let sink = Sink::Queue { lines: sender, dropped: Arc::clone(&dropped) };
    (Journal { level, style, sink }, Writer { style, capacity, lines, dropped })
}

fn install(journal: Journal) -> Result<()> {
    let level = journal.level;
    log::set_boxed_logger(Box::new(journal)).context("starting the log a second time")?;
    log::set_max_level(level);
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    /// `<6>text`: the priority in front as sd-daemon(3) says; the journal has its own clock.
    Systemd,
    /// `2026-05-04T12:00:00.123Z INFO text`
    Plain,
}

impl Style {
    /// By the rule of systemd.exec(5): `JOURNAL_STREAM` is inherited by whatever a service
    /// starts, so it counts only while it names the very file that standard error is.
    fn of_stderr() -> Style {
        let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        let metadata = stderr.and_then(|fd| File::from(fd).metadata());
        Style::of(&stream, metadata.ok().map(|file| (file.dev(), file.ino())))
    }

    fn of(journal_stream: &str, stderr: Option<(u64, u64)>) -> Style {
        match stderr {
            Some((device, inode)) if journal_stream == format!("{device}:{inode}") => {
                Style::Systemd
            }
            _ => Style::Plain,
        }
    }

    /// One line with its end. Control characters are escaped, so that a file name cannot forge
    /// a record.
    fn line(self, now: SystemTime, level: Level, text: &str) -> String {
        let mut line = match self {
            Style::Systemd => format!("<{}>", priority(level)),
            Style::Plain => format!("{} {level} ", rfc3339(now)),
        };
        for c in text.chars() {
            if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
        }
        line.push('\n');
        line
    }
}

/// syslog(3): LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// UTC with milliseconds: `2026-05-04T12:00:00.123Z`. Before 1970 it stays 1970, and after 9999, the
/// last year of RFC 3339, the last millisecond of that year.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(END_OF_9999);
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// 9999-12-31T23:59:59.999Z.
const END_OF_9999: Duration = Duration::from_millis(253_402_300_799_999);

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
/// The year begins in March, so that the leap day is its last: 400 years are 146,097 days, a
/// century 36,524, four years 1,461, and five months from March on 153.
fn civil(days: u64) -> (u64, u64, u64) {
    let since_0000_03_01 = days + 719_468;
    let (era, day) = (since_0000_03_01 / 146_097, since_0000_03_01 % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // 0 = March
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    (era * 400 + year, month, day)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use proptest::prelude::*;

    const OWN: &str = "inspectd::pipeline";

    fn say(journal: &Journal, level: Level, target: &str, text: &str) {
        let mut record = Record::builder();
        journal.log(&record.level(level).target(target).args(format_args!("{text}")).build());
    }

    /// What the writer puts out once every sender is gone.
    fn written(journal: Journal, writer: Writer) -> String {
        drop(journal);
        let mut out = Vec::new();
        writer.run(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        struct Case {
            seconds: u64,
            millis: u32,
            want: &'static str,
        }
        // date -u -d @SECONDS +%FT%TZ
        let cases = [
            Case { seconds: 0, millis: 0, want: "1970-01-01T00:00:00.000Z" },
            Case { seconds: 951_782_399, millis: 999, want: "2000-02-28T23:59:59.999Z" },
            Case { seconds: 951_782_400, millis: 0, want: "2000-02-29T00:00:00.000Z" },
            Case { seconds: 1_777_896_000, millis: 123, want: "2026-05-04T12:00:00.123Z" },
            Case { seconds: 4_107_542_400, millis: 7, want: "2100-03-01T00:00:00.007Z" },
            Case { seconds: 253_402_300_799, millis: 999, want: "9999-12-31T23:59:59.999Z" },
            // Beyond the last year.
            Case { seconds: 253_402_300_800, millis: 0, want: "9999-12-31T23:59:59.999Z" },
            Case { seconds: 1 << 60, millis: 1, want: "9999-12-31T23:59:59.999Z" },
        ];
        for Case { seconds, millis, want } in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000)), want);
        }
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    proptest! {
        /// Counting days one by one is the independent twin.
        #[test]
        fn the_calendar_agrees_with_counting(days in 0_u64..80_000) {
            let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
            let (mut year, mut month, mut left) = (1970, 1, days);
            loop {
                let length = match month {
                    2 => if leap(year) { 29 } else { 28 },
                    4 | 6 | 9 | 11 => 30,
                    _ => 31,
                };
                if left < length {
                    break;
                }
                left -= length;
                (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            }
            prop_assert_eq!(civil(days), (year, month, left + 1));
        }
    }

    #[test]
    fn lines_carry_time_and_level_or_the_priority() {
        let now = UNIX_EPOCH + Duration::from_millis(1_777_896_000_123);
        assert_eq!(
            Style::Plain.line(now, Level::Info, "reject part=7"),
            "2026-05-04T12:00:00.123Z INFO reject part=7\n"
        );
        // sd-daemon(3): SD_ERR "<3>", SD_WARNING "<4>", SD_INFO "<6>", SD_DEBUG "<7>"
        let cases = [
            (Level::Error, "<3>x\n"),
            (Level::Warn, "<4>x\n"),
            (Level::Info, "<6>x\n"),
            (Level::Debug, "<7>x\n"),
            (Level::Trace, "<7>x\n"),
        ];
        for (level, want) in cases {
            assert_eq!(Style::Systemd.line(now, level, "x"), want);
        }
    }

    #[test]
    fn a_file_name_cannot_forge_a_line() {
        let line = Style::Systemd.line(UNIX_EPOCH, Level::Info, "image=a\n<3>panic\u{1b}[2J größe");
        assert_eq!(line, "<6>image=a\\n<3>panic\\u{1b}[2J größe\n");
    }

    #[test]
    fn priorities_only_where_stderr_is_the_journal() {
        assert_eq!(Style::of("8:1234", Some((8, 1234))), Style::Systemd);
        assert_eq!(Style::of("8:1234", Some((8, 1235))), Style::Plain);
        assert_eq!(Style::of("", Some((8, 1234))), Style::Plain);
        assert_eq!(Style::of("8:1234", None), Style::Plain);
    }

    #[test]
    fn a_full_queue_drops_and_tells_how_many() {
        let (journal, writer) = queued(LevelFilter::Info, Style::Systemd, 2);
        for text in ["one", "two", "three", "four", "five"] {
            say(&journal, Level::Info, OWN, text);
        }
        assert_eq!(written(journal, writer), "<6>one\n<6>two\n<4>log lines_dropped=3\n");
    }

    #[test]
    fn a_writer_that_never_catches_up_tells_once_a_queue() {
        /// Refills the queue whenever a line goes out, as a flood would.
        struct Flood(Option<Journal>, Vec<u8>);
        impl Write for Flood {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                self.1.extend_from_slice(line);
                if self.1.iter().filter(|&&byte| byte == b'\n').count() == 40 {
                    self.0 = None;
                }
                for _ in 0..3 {
                    if let Some(journal) = &self.0 {
                        say(journal, Level::Info, OWN, "flood");
                    }
                }
                Ok(line.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (journal, writer) = queued(LevelFilter::Info, Style::Systemd, 8);
        say(&journal, Level::Info, OWN, "flood");
        let mut out = Flood(Some(journal), Vec::new());
        writer.run(&mut out);
        let text = String::from_utf8(out.1).unwrap();
        let told = text.lines().filter(|line| line.contains("lines_dropped")).count();
        let lines = text.lines().count();
        assert!((3..=lines / 8 + 1).contains(&told), "{told} of {lines} lines tell of drops");
    }

    #[test]
    fn a_broken_stderr_costs_lines_only() {
        struct Broken(u32, Vec<u8>);
        impl Write for Broken {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                if self.0 > 0 {
                    self.0 -= 1;
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                self.1.extend_from_slice(line);
                Ok(line.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (journal, writer) = queued(LevelFilter::Info, Style::Systemd, 8);
        for text in ["one", "two", "three"] {
            say(&journal, Level::Info, OWN, text);
        }
        drop(journal);
        let mut out = Broken(2, Vec::new());
        writer.run(&mut out);
        assert_eq!(String::from_utf8(out.1).unwrap(), "<6>three\n<4>log lines_dropped=2\n");
    }

    #[test]
    fn dependencies_are_heard_from_warning_up() {
        let (journal, writer) = queued(LevelFilter::Debug, Style::Systemd, 8);
        say(&journal, Level::Debug, OWN, "batch");
        say(&journal, Level::Trace, OWN, "too fine");
        say(&journal, Level::Info, "mio::poll", "registered");
        say(&journal, Level::Warn, "mio::poll", "trouble");
        assert_eq!(written(journal, writer), "<7>batch\n<4>trouble\n");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test plays the writer's thread")]
    fn flush_returns_when_the_lines_are_out() {
        struct Slow(mpsc::Sender<Vec<u8>>);
        impl Write for Slow {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                thread::sleep(Duration::from_millis(20));
                self.0.send(line.to_vec()).unwrap();
                Ok(line.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (journal, writer) = queued(LevelFilter::Info, Style::Systemd, 8);
        let (out, lines) = mpsc::channel();
        let thread = thread::spawn(move || writer.run(&mut Slow(out)));
        say(&journal, Level::Info, OWN, "second last");
        say(&journal, Level::Error, OWN, "last words");
        journal.flush();
        let lines: Vec<Vec<u8>> = lines.try_iter().collect();
        assert_eq!(lines, [b"<6>second last\n".to_vec(), b"<3>last words\n".to_vec()]);
        drop(journal);
        thread.join().unwrap();
    }

    #[test]
    fn levels_are_refused_by_the_name_of_their_source() {
        assert_eq!(level(None, None).unwrap(), LevelFilter::Info);
        assert_eq!(level(None, Some("debug")).unwrap(), LevelFilter::Debug);
        assert_eq!(level(Some("warn"), Some("nonsense")).unwrap(), LevelFilter::Warn);
        let error = level(None, Some("loud")).unwrap_err().to_string();
        assert_eq!(
            error,
            "INSPECTD_LOG = \"loud\" is none of off, error, warn, info, debug, trace"
        );
    }
}
