//! Puts the git revision into `INSPECTD_REVISION`, for `--version`, the log and the model cards.
//!
//! `<12 hex digits>`, with `+changes` where the sources differ from that commit; `unknown` in a
//! source archive. A packager who knows better sets `INSPECTD_REVISION` for the build.

use std::path::Path;
use std::process::Command;

/// What the binary is made of: changes elsewhere do not change it.
const SOURCES: [&str; 6] = ["src", "assets", "kernels", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() {
    println!("cargo::rerun-if-env-changed=INSPECTD_REVISION");
    for source in SOURCES {
        watch(source);
    }
    let revision = std::env::var("INSPECTD_REVISION").ok().or_else(revision);
    println!("cargo::rustc-env=INSPECTD_REVISION={}", revision.as_deref().unwrap_or("unknown"));
}

fn revision() -> Option<String> {
    // A source archive unpacked inside somebody else's repository must not take that one's number.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // HEAD moves on checkout, its log on every commit; in a worktree both lie outside `.git`.
    for name in ["HEAD", "logs/HEAD", "packed-refs"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            watch(&path);
        }
    }
    let mut diff = vec!["diff", "--quiet", "HEAD", "--"];
    diff.extend(SOURCES.into_iter().filter(|source| Path::new(source).exists()));
    Some(if git(&diff).is_some() { commit } else { format!("{commit}+changes") })
}

/// Only what exists: Cargo runs the script every time for a path that does not.
fn watch(path: &str) {
    if Path::new(path).exists() {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// The trimmed output of a git command that succeeded.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).env("GIT_OPTIONAL_LOCKS", "0").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
