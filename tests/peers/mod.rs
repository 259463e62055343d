//! Finds the programs that we did not write and test against.

// Each test takes what it needs.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

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
         python-snap7==3.3.0 icspacket==0.3.1 asyncua==2.1.0 and set INSPECTD_PYTHON"
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
        "{name} is not here though it was promised; apt-get install mosquitto mosquitto-clients mbpoll"
    );
    println!("SKIPPED: {name} is not here");
    None
}

/// A program of this folder, played in Python; it is killed when this is dropped.
pub struct Peer {
    pub child: Child,
    said: Receiver<String>,
}

impl Peer {
    pub fn start(python: &str, script: &str, arguments: &[String]) -> Peer {
        let mut child = Command::new(python)
            .arg(format!("{}/tests/peers/{script}", env!("CARGO_MANIFEST_DIR")))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (told, said) = mpsc::channel();
        #[expect(clippy::disallowed_methods, reason = "a test's own reader")]
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|l| told.send(l)));
        Peer { child, said }
    }

    /// Its next line.
    pub fn hear(&self, patience: Duration) -> String {
        self.said.recv_timeout(patience).unwrap()
    }

    /// Its next line, if it comes so soon.
    pub fn hears_within(&self, patience: Duration) -> Option<String> {
        match self.said.recv_timeout(patience) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("it has ended; see its words above"),
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of ours in C around `library` that others wrote, compiled anew. As [`python_with`] where
/// gcc, pkg-config or the library's `packages` are not here.
pub fn compiled(source: &str, library: &str, packages: &str) -> Option<PathBuf> {
    let flags = Command::new("pkg-config")
        .args(["--cflags", "--libs", library])
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|flags| flags.status.success());
    let gcc = Command::new("gcc").arg("--version").stdout(Stdio::null()).status().is_ok();
    let Some(flags) = flags.filter(|_| gcc) else {
        assert!(
            std::env::var_os("INSPECTD_REQUIRE_PEERS").is_none(),
            "gcc, pkg-config or {library} is not here though it was promised; apt-get install gcc \
             pkg-config {packages}"
        );
        println!("SKIPPED: gcc, pkg-config or {library} is not here (apt-get install {packages})");
        return None;
    };
    let flags = String::from_utf8(flags.stdout).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(source);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(source.file_stem().unwrap());
    // Other tests run at the same time, in this process or another; the last to compile wins.
    static COMPILING: Mutex<()> = Mutex::new(());
    let _compiling = COMPILING.lock().unwrap();
    let own = program.with_extension(std::process::id().to_string());
    let status = Command::new("gcc")
        .args(["-O1", "-Wall", "-o"])
        .args([&own, &source])
        .args(flags.split_whitespace())
        .status()
        .unwrap();
    assert!(status.success(), "gcc {}", source.display());
    fs::rename(own, &program).unwrap();
    Some(program)
}

/// A port that nobody has just now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
