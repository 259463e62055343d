//! Finds the programs that we did not write and test against.

// Each test takes what it needs.
#![allow(dead_code)]

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

/// A Python that has `module`: `INSPECTD_PYTHON`, else `python3`. `None` with a clear word where
/// there is none; with `INSPECTD_REQUIRE_PEERS` set its absence fails.
pub fn python_with(module: &str) -> Option<String> {
    let python = std::env::var("INSPECTD_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if found {
        return Some(python);
    }
    assert!(
        std::env::var_os("INSPECTD_REQUIRE_PEERS").is_none(),
        "{python} can't import {module} though it was promised; pip install pymodbus==3.16.1 \
         python-snap7==3.3.0 and set INSPECTD_PYTHON"
    );
    println!("SKIPPED: {python} can't import {module}");
    None
}

/// Where a program lies, in the path or where Debian puts daemons; as [`python_with`] where it does not.
pub fn program(name: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path
        .split(':')
        .chain(["/usr/sbin"])
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file());
    if let Some(found) = found {
        return Some(found.display().to_string());
    }
    assert!(
        std::env::var_os("INSPECTD_REQUIRE_PEERS").is_none(),
        "{name} is not here though it was promised; apt-get install mosquitto mosquitto-clients"
    );
    println!("SKIPPED: {name} is not here");
    None
}

/// A port that nobody has just now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
