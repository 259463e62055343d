//! The `inspectd` command.

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
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
    }
}
