//! What Linux says of the machine and of this process.

use std::fs;

use anyhow::{Context, Result};

/// What the machine calls its processor.
pub fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}

/// The most memory that this process has had so far.
pub fn peak_rss_mib() -> Result<f64> {
    Ok(proc_kib("/proc/self/status", "VmHWM")? as f64 / 1024.0)
}

/// Memory that can be had without swapping.
pub fn available_bytes() -> Result<u64> {
    Ok(proc_kib("/proc/meminfo", "MemAvailable")? * 1024)
}

/// A `Key:   123 kB` line of a file in /proc.
fn proc_kib(path: &str, key: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok())
        .with_context(|| format!("{path} has no line {key}"))
}
