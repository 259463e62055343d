//! The `inspectd` command.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod cmd;

#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    // one line a file in cmd/
    Eval(cmd::eval::Args),
    /// Make a bundle from pictures of good parts
    Teach(cmd::teach::Args),
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    match args.command {
        Command::Eval(args) => cmd::eval::run(&args),
        Command::Teach(args) => cmd::teach::run(&args).map(|()| ExitCode::SUCCESS),
    }
}
