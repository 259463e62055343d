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
    /// Make a bundle from pictures of good parts
    Teach(cmd::teach::Args),
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
        Command::Teach(args) => cmd::teach::run(&args),
    }
}
