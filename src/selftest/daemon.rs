//! The daemon as a process: its files, its start, its end, and how large it is.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::now;
use super::plant::Layout;
use super::station::ENCODER_AT;

/// Where its files are.
#[derive(Clone)]
pub struct Files {
    folder: PathBuf,
    /// With two marks where the deadline stands, for reloads.
    template: String,
}

/// The way that a part has for its verdict, of which a reload changes the number.
const TRAVEL_MS: [u32; 2] = [700, 690];

impl Files {
    pub fn write(
        folder: &Path,
        layout: &Layout,
        camera: Ipv4Addr,
        station: SocketAddr,
        plc_port: u16,
    ) -> Result<Files> {
        let Layout { pitch, travel, speed, valve, watchdog, .. } = layout;
        let template = format!(
            r#"# Written by `inspectd selftest`. Every key is explained in docs/config.md.
[line]
name = "selftest"
bundle = "bundle"

[[camera]]
name = "station"

[camera.source]
kind = "gige"
address = "{camera}"
silence_ms = 4000
heartbeat_ms = 600
receive_buffer_mib = 1

[camera.deadline]
travel_ms = TRAVEL_MS
output_latency_ms = 60

[output.modbus]
listen = "127.0.0.1:{plc_port}"

[output.gate]
gate_output = 0

[output.gate.io]
kind = "modbus"
address = "{ip}"
port = {port}
outputs = 1
encoder_at = {ENCODER_AT}
timeout_ms = 10

[output.gate.way]
clock = "encoder"
travel = {travel:.1}
before = 60.0
after = 60.0
pitch = {pitch:.1}
# The belt's own speed and what readings at uneven times may add.
max_speed = {max_speed:.1}
valve_ms = {valve}
watchdog_ms = {watchdog}

[ledger]
folder = "ledger"

[archive]
folder = "rejects"
max_gib = 0.05
"#,
            ip = station.ip(),
            port = station.port(),
            max_speed = 1.3 * speed,
            valve = valve.as_millis(),
            watchdog = watchdog.as_millis(),
        );
        let files = Files { folder: folder.to_owned(), template };
        files.configure(0)?;
        Ok(files)
    }

    fn configure(&self, version: usize) -> Result<()> {
        let path = self.config();
        let travel = TRAVEL_MS[version % TRAVEL_MS.len()].to_string();
        fs::write(&path, self.template.replace("TRAVEL_MS", &travel))
            .with_context(|| format!("writing {}", path.display()))
    }

    fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }
}

pub struct Daemon {
    program: PathBuf,
    files: Files,
    child: Child,
    pub starts: u64,
    reloads: usize,
    ended_badly: Vec<String>,
}

impl Daemon {
    pub fn start(program: &Path, files: &Files) -> Result<Daemon> {
        File::create(files.log()).with_context(|| format!("writing {}", files.log().display()))?;
        Ok(Daemon {
            program: program.to_owned(),
            child: launch(program, files)?,
            files: files.clone(),
            starts: 1,
            reloads: 0,
            ended_badly: Vec::new(),
        })
    }

    pub fn log(&self) -> PathBuf {
        self.files.log()
    }

    /// It may not end by itself, whatever goes wrong.
    pub fn must_run(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("looking at the daemon")? {
            self.ended_badly.push(format!("the daemon ended by itself: {status}"));
            ensure!(
                self.starts > 1 || self.ended_badly.len() < 3,
                "the daemon ends by itself ({status}); its log: {}",
                self.files.log().display()
            );
            self.child = launch(&self.program, &self.files)?;
            self.starts += 1;
        }
        Ok(())
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().context("running kill")?;
        ensure!(sent.success(), "kill {name} {pid}: {sent}");
        Ok(())
    }

    /// No file of it may grow beyond so many bytes from now on, whatever the disk has room for.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let all = getrlimit(Resource::Fsize).maximum;
        let limit = Rlimit { current: bytes.or(all), maximum: all };
        prlimit(pid, Resource::Fsize, limit).context("limiting the daemon's files")?;
        Ok(())
    }

    /// As a power cut or the kernel does it, and as the service manager starts it again.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.child.kill().context("killing the daemon")?;
        self.child.wait().context("waiting for the killed daemon")?;
        self.child = launch(&self.program, &self.files)?;
        self.starts += 1;
        Ok(())
    }

    /// Writes the config anew and has it re-read.
    pub fn reload(&mut self) -> Result<()> {
        self.reloads += 1;
        self.files.configure(self.reloads)?;
        self.signal("-HUP")
    }

    /// Resident memory.
    pub fn rss_mib(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let kib = status.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == "VmRSS").then(|| value.trim().trim_end_matches(" kB").parse::<f64>().ok())?
        });
        Ok(kib.with_context(|| format!("{path} has no VmRSS"))? / 1024.0)
    }

    /// Ends it in order. What was wrong with how it ended.
    pub fn end(&mut self) -> Result<Vec<String>> {
        self.signal("-TERM")?;
        let give_up = now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = self.child.try_wait().context("waiting for the daemon")? {
                break status;
            }
            if now() >= give_up {
                self.child.kill().context("killing the daemon")?;
                bail!("the daemon did not end within 20 s; its log: {}", self.log().display());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if !status.success() {
            self.ended_badly.push(format!("the daemon's end: {status}"));
        }
        Ok(std::mem::take(&mut self.ended_badly))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended in order.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn launch(program: &Path, files: &Files) -> Result<Child> {
    let log = OpenOptions::new()
        .append(true)
        .open(files.log())
        .with_context(|| format!("opening {}", files.log().display()))?;
    Command::new(program)
        .args(["run", "--config"])
        .arg(files.config())
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("the daemon's log")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}
