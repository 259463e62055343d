//! `inspectd ledger`: the record of every part, printed and verified, also while the line runs.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use inspectd::journal::rfc3339;
use inspectd::ledger::{self, Contents, Record, UNKNOWN_FRAME};
use inspectd::verdict::{Cause, Verdict};
use serde_json::json;

/// Print and verify the record of every part.
#[derive(clap::Args)]
pub struct Args {
    /// The config's ledger.folder.
    #[arg(long, global = true, default_value = "/var/lib/inspectd/ledger")]
    folder: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One line a part, in order of writing.
    Print {
        /// Rejected parts only.
        #[arg(long)]
        rejects: bool,
        /// Part ids from this one on.
        #[arg(long, value_name = "ID")]
        from: Option<u64>,
        /// Part ids up to this one.
        #[arg(long, value_name = "ID")]
        to: Option<u64>,
        /// JSON objects instead of key=value.
        #[arg(long)]
        json: bool,
    },
    /// Go through every byte; exit code 1 if anything is not as it was written.
    Verify,
    /// Totals since the ledger began.
    Tally {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = match &args.what {
        What::Print { rejects, from, to, json } => {
            let wanted = Wanted {
                rejects: *rejects,
                from: from.unwrap_or(0),
                to: to.unwrap_or(u64::MAX),
                json: *json,
            };
            print(args, &wanted, &mut out)
        }
        What::Verify => verify(args, &mut out),
        What::Tally { json } => tally(args, *json, &mut out),
    };
    let done = done.and_then(|code| out.flush().map(|()| code).context("writing to stdout"));
    match done {
        // `inspectd ledger print | head` is no failure.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        done => done,
    }
}

struct Wanted {
    rejects: bool,
    from: u64,
    to: u64,
    json: bool,
}

impl Wanted {
    fn holds(&self, record: &Record) -> bool {
        (self.from..=self.to).contains(&record.part.0)
            && !(self.rejects && record.verdict == Verdict::Accept)
    }
}

fn print(args: &Args, wanted: &Wanted, out: &mut impl Write) -> Result<ExitCode> {
    let mut written = Ok(());
    let contents = ledger::read_with(&args.folder, |record| {
        if written.is_ok() && wanted.holds(record) {
            written = match wanted.json {
                true => writeln!(out, "{}", object(record)),
                false => writeln!(out, "{}", line(record)),
            };
        }
    })?;
    written.context("writing to stdout")?;
    for problem in &contents.problems {
        eprintln!("damaged: {problem}");
    }
    Ok(if contents.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verify(args: &Args, out: &mut impl Write) -> Result<ExitCode> {
    let contents = ledger::read_with(&args.folder, |_| {})?;
    for problem in &contents.problems {
        writeln!(out, "damaged: {problem}")?;
    }
    if contents.torn_bytes > 0 {
        writeln!(
            out,
            "note: {} bytes at the end are no whole record: being written, or dropped by the next \
             start",
            contents.torn_bytes
        )?;
    }
    let word = if contents.problems.is_empty() { "ok" } else { "DAMAGED" };
    writeln!(
        out,
        "{word} segments={} records={} problems={} {}",
        contents.segments,
        contents.records,
        contents.problems.len(),
        totals(&contents)
    )?;
    Ok(if contents.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tally(args: &Args, as_json: bool, out: &mut impl Write) -> Result<ExitCode> {
    let contents = ledger::survey(&args.folder)?;
    if as_json {
        let tally = &contents.tally;
        let causes: serde_json::Map<String, serde_json::Value> = Cause::ALL
            .into_iter()
            .map(|cause| (cause.word().to_owned(), tally.rejected_for(cause).into()))
            .collect();
        let object = json!({
            "epoch": contents.epoch,
            "stopped": contents.stopped,
            "triggers": tally.triggers,
            "accepted": tally.accepted,
            "rejected": tally.rejected_total(),
            "in_flight": tally.in_flight(),
            "causes": causes,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "{}", totals(&contents))?;
    }
    for problem in &contents.problems {
        eprintln!("damaged: {problem}");
    }
    Ok(if contents.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn totals(contents: &Contents) -> String {
    let tally = &contents.tally;
    let mut line = format!(
        "epoch={} stopped={} triggers={} accepted={} rejected={} in_flight={}",
        contents.epoch,
        contents.stopped,
        tally.triggers,
        tally.accepted,
        tally.rejected_total(),
        tally.in_flight()
    );
    for cause in Cause::ALL {
        line += &format!(" {cause}={}", tally.rejected_for(cause));
    }
    line
}

/// `key=value`, stable; `-` where there is nothing to say.
fn line(record: &Record) -> String {
    let (camera, seq) = match record.frame {
        UNKNOWN_FRAME => ("-".to_owned(), "-".to_owned()),
        frame => (frame.camera.to_string(), frame.seq.to_string()),
    };
    let (verdict, cause) = words(record.verdict);
    let number = |value: Option<f32>| value.map_or("-".to_owned(), |value| value.to_string());
    format!(
        "time={} part={} camera={camera} seq={seq} verdict={verdict} cause={} score={} \
         threshold={} region={} latency_ms={:.3}",
        rfc3339(record.triggered_at),
        record.part,
        cause.unwrap_or("-"),
        number(record.score),
        number(record.threshold),
        record.region.map_or("-".to_owned(), |region| region.to_string()),
        f64::from(record.latency_us) / 1000.0,
    )
}

fn object(record: &Record) -> serde_json::Value {
    let known = (record.frame != UNKNOWN_FRAME).then_some(record.frame);
    let (verdict, cause) = words(record.verdict);
    // JSON has no NaN: what is not a finite number is null.
    json!({
        "time": rfc3339(record.triggered_at),
        "part": record.part.0,
        "camera": known.map(|frame| frame.camera),
        "seq": known.map(|frame| frame.seq),
        "verdict": verdict,
        "cause": cause,
        "score": record.score,
        "threshold": record.threshold,
        "region": record.region,
        "latency_ms": f64::from(record.latency_us) / 1000.0,
    })
}

fn words(verdict: Verdict) -> (&'static str, Option<&'static str>) {
    match verdict {
        Verdict::Accept => ("accept", None),
        Verdict::Reject(cause) => ("reject", Some(cause.word())),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
