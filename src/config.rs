//! `config.toml`: read once, unknown keys refused, the physics of the line cross-checked. Each room
//! owns its part of it; here they are only gathered. Every key is explained in docs/config.md.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::detector::tiles;
use crate::nn::engine;
use crate::output::{ethernet_ip, gate, modbus, mqtt, opcua, s7};
use crate::{archive, camera, ledger, pipeline, tracker, trigger, verdict};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub line: Line,
    #[serde(default)]
    pub queue: pipeline::Config,
    #[serde(default)]
    pub inference: engine::Config,
    #[serde(rename = "camera")]
    pub cameras: Vec<Camera>,
    #[serde(default)]
    pub output: Output,
    pub ledger: ledger::Config,
    /// Without it no pictures of rejects are kept.
    pub archive: Option<archive::Config>,
}

/// `[line]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// What the log calls this line.
    pub name: String,
    /// The model, a folder made by `inspectd teach`; cameras may name their own.
    pub bundle: PathBuf,
}

/// `[[camera]]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Camera {
    /// What log, ledger and PLC call it.
    pub name: String,
    /// The model of this camera where it is not the line's.
    pub bundle: Option<PathBuf>,
    pub source: camera::Config,
    /// Where the source's pictures are rows of a line scan, of which parts are made.
    pub line_scan: Option<camera::line_scan::Config>,
    /// Where pictures are inspected tile by tile.
    pub tiles: Option<tiles::Config>,
    pub deadline: tracker::Config,
    #[serde(default)]
    pub limits: verdict::Config,
    /// What makes a part.
    #[serde(default)]
    pub trigger: trigger::Config,
}

/// `[output]`: the wires. The log is always one of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    pub modbus: Option<modbus::Config>,
    pub s7: Option<s7::Config>,
    pub ethernet_ip: Option<ethernet_ip::Config>,
    pub mqtt: Option<mqtt::Config>,
    pub opcua: Option<opcua::Config>,
    pub gate: Option<gate::Config>,
}

impl Output {
    fn hears_a_plc(&self) -> bool {
        self.modbus.is_some()
            || self.s7.is_some()
            || self.ethernet_ip.is_some()
            || self.opcua.is_some()
    }
}

impl Config {
    /// Reads and checks the file. Paths in it count from the file's folder.
    pub fn read(path: &Path) -> Result<Config> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Config::parse(&text, folder).with_context(|| path.display().to_string())
    }

    fn parse(text: &str, folder: &Path) -> Result<Config> {
        let mut config: Config =
            toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
        config.check()?;
        config.place(folder);
        Ok(config)
    }

    /// The bundle that camera `index` is judged by.
    pub fn bundle_of(&self, index: usize) -> &Path {
        self.cameras[index].bundle.as_deref().unwrap_or(&self.line.bundle)
    }

    /// True where only what may change on a running line differs from `other`.
    pub fn same_but_for_limits(&self, other: &Config) -> bool {
        let mut adapted = self.clone();
        for (camera, theirs) in adapted.cameras.iter_mut().zip(&other.cameras) {
            camera.limits = theirs.limits.clone();
            camera.deadline = theirs.deadline.clone();
        }
        adapted == *other
    }

    fn place(&mut self, folder: &Path) {
        let place = |path: &mut PathBuf| *path = folder.join(&*path);
        place(&mut self.line.bundle);
        for camera in &mut self.cameras {
            camera.bundle.as_mut().map(place);
            if let camera::Config::Folder(source) = &mut camera.source {
                place(&mut source.path);
            }
        }
        place(&mut self.ledger.folder);
        if let Some(archive) = &mut self.archive {
            place(&mut archive.folder);
        }
        if let Some(mqtt) = &mut self.output.mqtt {
            mqtt.password_file.as_mut().map(place);
        }
        if let Some(opcua) = &mut self.output.opcua {
            place(&mut opcua.pki_folder);
            opcua.users.iter_mut().for_each(|user| place(&mut user.password_file));
        }
    }

    fn check(&self) -> Result<()> {
        self.queue.check()?;
        self.inference.check()?;
        self.ledger.check()?;
        if let Some(archive) = &self.archive {
            archive.check()?;
        }
        if let Some(modbus) = &self.output.modbus {
            modbus.check()?;
        }
        if let Some(s7) = &self.output.s7 {
            s7.check()?;
        }
        if let Some(ethernet_ip) = &self.output.ethernet_ip {
            ethernet_ip.check()?;
        }
        if let Some(mqtt) = &self.output.mqtt {
            mqtt.check()?;
        }
        if let Some(opcua) = &self.output.opcua {
            opcua.check()?;
        }
        if let Some(gate) = &self.output.gate {
            gate.check()?;
        }
        if self.cameras.is_empty() {
            bail!("there is no [[camera]]; a line needs at least one");
        }
        check_name("line.name", &self.line.name)?;
        let mut names = BTreeSet::new();
        for camera in &self.cameras {
            let name = &camera.name;
            check_name("camera.name", name)?;
            if !names.insert(name) {
                bail!("camera.name = \"{name}\" is given twice; the log could not tell them apart");
            }
            let camera_key = |table: &str| format!("camera \"{name}\", [camera.{table}]");
            camera.source.check().with_context(|| camera_key("source"))?;
            if let Some(line_scan) = &camera.line_scan {
                line_scan.check().with_context(|| camera_key("line_scan"))?;
            }
            if let Some(tiles) = &camera.tiles {
                tiles.check().with_context(|| camera_key("tiles"))?;
            }
            camera.deadline.check().with_context(|| camera_key("deadline"))?;
            camera.limits.check().with_context(|| camera_key("limits"))?;
            camera.trigger.check().with_context(|| camera_key("trigger"))?;
            match camera.trigger {
                trigger::Config::Input(_) if self.output.gate.is_none() => bail!(
                    "camera \"{name}\", [camera.trigger]: kind = \"input\" is an input of \
                     [output.gate.io], which is not there"
                ),
                trigger::Config::Plc(_) if !self.output.hears_a_plc() => bail!(
                    "camera \"{name}\", [camera.trigger]: kind = \"plc\" needs a wire that a PLC \
                     triggers through: [output.modbus], [output.s7], [output.ethernet_ip] or [output.opcua]"
                ),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Names stand unquoted in log lines.
fn check_name(key: &str, name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        bail!("{key} = \"{name}\" must be made of letters, digits, '-', '_' and '.'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../config.toml");

    fn error(text: &str) -> String {
        format!("{:#}", Config::parse(text, Path::new("")).unwrap_err())
    }

    #[test]
    fn the_shipped_file_is_read_and_its_paths_count_from_its_folder() {
        let config = Config::parse(SHIPPED, Path::new("/etc/inspectd")).unwrap();
        assert!(config.bundle_of(0).starts_with("/etc/inspectd"));
        assert!(config.output.modbus.is_some());
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key() {
        struct Case {
            find: &'static str,
            put: &'static str,
            says: &'static [&'static str],
        }
        for case in [
            Case {
                find: "batch = 4",
                put: "batch = 64",
                says: &["queue.batch = 64", "queue.frames = 32"],
            },
            Case { find: "batch = 4", put: "bach = 4", says: &["bach"] },
            Case { find: "batch = 4", put: "batch = 0", says: &["queue.batch = 0"] },
            Case {
                find: "travel_ms = 500",
                put: "travel_ms = 5",
                says: &["camera \"station\"", "travel_ms = 5"],
            },
            Case {
                find: "[camera.deadline]",
                put: "[camera.line_scan]\nmode = 'fixed'\npart_rows = 0\n[camera.deadline]",
                says: &["camera \"station\"", "[camera.line_scan]", "part_rows = 0"],
            },
            Case {
                find: "[camera.deadline]",
                put: "[camera.trigger]\nkind = 'input'\ninput = 3\n[camera.deadline]",
                says: &["camera \"station\"", "[output.gate.io]"],
            },
            Case {
                find: "[camera.deadline]",
                put: "[camera.tiles]\nsize_px = 8\npicture_px = [99, 99]\n[camera.deadline]",
                says: &["camera \"station\"", "[camera.tiles]", "size_px = 8"],
            },
            Case { find: "name = \"station\"", put: "name = \"two words\"", says: &["two words"] },
            Case {
                find: "rate_hz = 5",
                put: "rate_hz = -1",
                says: &["camera \"station\"", "rate_hz = -1"],
            },
        ] {
            assert!(SHIPPED.contains(case.find), "{}", case.find);
            let text = error(&SHIPPED.replace(case.find, case.put));
            for word in case.says {
                assert!(text.contains(word), "{}: {text}", case.put);
            }
        }
    }

    #[cfg(not(feature = "opcua"))]
    #[test]
    fn a_wire_that_is_not_built_is_refused_and_not_left_out() {
        let table = "[output.opcua]\nanonymous = true\npki_folder = 'opcua'\n[ledger]";
        assert!(SHIPPED.contains("\n[ledger]\n"));
        let text = error(&SHIPPED.replace("\n[ledger]\n", &format!("\n{table}\n")));
        assert!(text.contains("[output.opcua]") && text.contains("--features opcua"), "{text}");
    }
}
