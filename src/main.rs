//! The `inspectd` command.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use inspectd::journal;

mod cmd;

/// Inline inspection: every triggered part gets exactly one verdict, in time, and what was not
/// inspected is rejected.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// off, error, warn, info, debug or trace; default: INSPECTD_LOG, else info.
    #[arg(long, global = true)]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(cmd::bench::Args),
    Check(cmd::check::Args),
    Demo(cmd::demo::Args),
    Eval(cmd::eval::Args),
    Import(cmd::import::Args),
    Ledger(cmd::ledger::Args),
    Replay(cmd::replay::Args),
    Run(cmd::run::Args),
    #[cfg(feature = "gige")]
    Selftest(cmd::selftest::Args),
    Synth(cmd::synth::Args),
    /// Make a bundle from pictures of good parts
    Teach(cmd::teach::Args),
    Train(cmd::train::Args),
}

fn main() -> ExitCode {
    run(Args::parse()).unwrap_or_else(|error| {
        // A disk that takes no line of it is no reason for a panic on top.
        let _unheard = writeln!(io::stderr(), "inspectd: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(args: Args) -> Result<ExitCode> {
    let env = std::env::var("INSPECTD_LOG").ok();
    let level = journal::level(args.log_level.as_deref(), env.as_deref())?;
    // The daemon's log has a thread of its own; short commands write where they stand.
    if !matches!(args.command, Command::Run(_) | Command::Demo(_)) {
        journal::start_direct(level)?;
    }
    match args.command {
        Command::Eval(args) => return cmd::eval::run(&args),
        Command::Ledger(args) => return cmd::ledger::run(&args),
        Command::Bench(args) => cmd::bench::run(&args),
        Command::Check(args) => cmd::check::run(&args),
        Command::Demo(args) => cmd::demo::run(&args, level),
        Command::Replay(args) => cmd::replay::run(&args),
        Command::Import(args) => cmd::import::run(&args),
        Command::Run(args) => cmd::run::run(&args, level),
        #[cfg(feature = "gige")]
        Command::Selftest(args) => cmd::selftest::run(&args),
        Command::Synth(args) => cmd::synth::run(&args),
        Command::Teach(args) => cmd::teach::run(&args),
        Command::Train(args) => cmd::train::run(&args),
    }?;
    Ok(ExitCode::SUCCESS)
}
