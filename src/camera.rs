//! Where frames come from. A source hands over one picture a part; the camera thread of
//! [`crate::pipeline`] numbers, times and queues them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Deserialize;

use crate::frame::{Image, Position, Truth};

pub mod folder;
pub mod gige;
pub mod line_scan;
pub mod pattern;
pub mod usb;
pub mod v4l2;
mod video_node;

pub use video_node::VideoNode;

/// Which source to open; in the file a table with `kind = "folder" | "pattern" | "usb" |
/// "gige" | "v4l2"` and the keys of that kind (docs/cameras.md).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Config {
    Folder(folder::Config),
    Pattern(pattern::Config),
    Usb(usb::Config),
    Gige(gige::Config),
    V4l2(v4l2::Config),
}

impl Config {
    /// Refuses values that cannot be meant. The caller adds file and table to the message.
    pub fn check(&self) -> Result<()> {
        match self {
            Config::Folder(config) => config.check(),
            Config::Pattern(config) => config.check(),
            Config::Usb(config) => config.check(),
            Config::Gige(config) => config.check(),
            Config::V4l2(config) => config.check(),
        }
    }
}

/// Opens the source. Called on the camera thread that will own it; called again, with back-off,
/// after a [`CameraFault`].
pub fn open(config: &Config) -> Result<Box<dyn FrameSource>, CameraFault> {
    config.check().map_err(|error| CameraFault(format!("{error:#}")))?;
    Ok(match config {
        Config::Folder(config) => Box::new(folder::Folder::open(config)?),
        Config::Pattern(config) => Box::new(pattern::Pattern::open(config)?),
        Config::Usb(config) => usb::open(config)?,
        Config::Gige(config) => gige::open(config)?,
        Config::V4l2(config) => v4l2::open(config)?,
    })
}

/// One picture as a source delivers it, not yet a [`crate::frame::Frame`].
#[derive(Clone, Debug)]
pub struct Picture {
    pub image: Image,
    /// What the source calls it: a file name, a frame number.
    pub name: String,
    /// When the picture was taken, if the source knows better than "now".
    pub captured_at: Option<Instant>,
    /// Where the belt stood, if the source has an encoder.
    pub position: Option<Position>,
    pub truth: Option<Truth>,
}

/// What became of one wait for a part.
#[derive(Clone, Debug)]
pub enum Grab {
    Picture(Picture),
    /// A part came by but its picture is unusable: rejected as `BadFrame`.
    Bad {
        name: String,
        reason: String,
    },
    /// No part came within the patience given. Nothing is wrong.
    Idle,
    /// The source has no more parts and never will.
    End,
}

/// The source is gone (unplugged, silent, refused). The part that may have been in front of it is
/// rejected as `CameraLost`; the source is dropped and opened again with back-off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CameraFault(pub String);

/// A camera, or what stands in for one. Made, used and dropped on its own camera thread.
pub trait FrameSource {
    /// Waits for the next part, at most about `patience`.
    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault>;

    /// False while the source is still being opened: it is no use yet, and no fault either.
    fn ready(&self) -> bool {
        true
    }

    /// Takes a picture of the part that is in front of it now, which the next [`FrameSource::grab`]s
    /// wait for. A source that is triggered otherwise, or runs freely, has nothing to do.
    fn trigger(&mut self) -> Result<(), CameraFault> {
        Ok(())
    }

    /// The time between two parts where the source has no clock of its own (files, rendered
    /// parts): the camera thread then triggers at this pace. `None`: the camera sets the pace.
    fn period(&self) -> Option<Duration> {
        None
    }
}

/// The time between two parts at `rate_hz` parts per second.
fn period(rate_hz: f64) -> Result<Duration> {
    // The bounds keep the period within 1 ms .. 17 min: beyond them a digit is wrong.
    ensure!(
        (0.001..=1000.0).contains(&rate_hz),
        "rate_hz = {rate_hz} is not a rate of parts; 0.001 to 1000 parts per second can be played"
    );
    Ok(Duration::from_secs_f64(1.0 / rate_hz))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn config_names_its_kind_and_fills_the_documented_defaults() {
        let Config::Folder(folder) = read("kind = 'folder'\npath = 'parts'").unwrap() else {
            panic!("a folder was asked for")
        };
        assert_eq!(folder.rate_hz, 5.0);
        assert_eq!(folder.significant_bits, 16);
        assert!(!folder.repeat && !folder.recursive);
        let Config::Pattern(pattern) = read("kind = 'pattern'\nrate_hz = 20").unwrap() else {
            panic!("a pattern was asked for")
        };
        assert_eq!(pattern, pattern::Config { rate_hz: 20.0, ..Default::default() });
        let Config::Usb(usb) = read("kind = 'usb'\ndevice = 2").unwrap() else {
            panic!("a usb camera was asked for")
        };
        assert_eq!((usb.width, usb.height, usb.rate_hz), (640, 480, 30));
        let Config::V4l2(v4l2) = read("kind = 'v4l2'\ndevice = 2").unwrap() else {
            panic!("a v4l2 camera was asked for")
        };
        assert_eq!(v4l2.device, VideoNode::Number(2));
    }

    #[test]
    fn the_examples_of_the_docs_are_read() {
        #[derive(Deserialize)]
        struct File {
            camera: Table,
        }
        #[derive(Deserialize)]
        struct Table {
            source: Option<Config>,
            line_scan: Option<line_scan::Config>,
            tiles: Option<crate::detector::tiles::Config>,
        }
        let page = include_str!("../docs/cameras.md");
        let examples = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let mut read = 0;
        for example in examples {
            let table = if example.starts_with("[camera.") {
                toml::from_str::<File>(example).map(|file| file.camera)
            } else {
                let source = |source| Table { source: Some(source), line_scan: None, tiles: None };
                toml::from_str(example).map(source)
            };
            let table = table.unwrap_or_else(|error| panic!("{error}\n{example}"));
            let Table { source, line_scan, tiles } = &table;
            read += usize::from(source.is_some() || line_scan.is_some() || tiles.is_some());
            source.iter().for_each(|source| source.check().unwrap());
            line_scan.iter().for_each(|scan| scan.check().unwrap());
            tiles.iter().for_each(|tiles| tiles.check().unwrap());
        }
        assert_eq!(read, page.matches("```toml").count(), "each says something");
        assert!(read >= 8, "one of each kind, line scans, tiles");
    }

    #[test]
    fn unknown_keys_and_kinds_are_refused_by_name() {
        for (text, word) in [
            ("kind = 'folder'\npath = 'x'\nrate = 5", "rate"),
            ("kind = 'pattern'\npath = 'x'", "path"),
            ("kind = 'usb'\ndevice = 0\nfps = 5", "fps"),
            ("kind = 'gige'", "address"),
            ("kind = 'gige'\naddress = '10.0.0.5'\nexposure = 5", "exposure"),
            ("kind = 'firewire'", "firewire"),
            ("kind = 'v4l2'\ndevice = 0\nfps = 5", "fps"),
            ("kind = 'v4l2'\ndevice = 0\npolicy = 'fastest'", "fastest"),
            ("path = 'x'", "kind"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(&format!("`{word}`")), "{text}: {error}");
        }
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused_with_key_and_value() {
        for (text, says) in [
            ("kind = 'folder'\npath = 'x'\nrate_hz = 0", "rate_hz = 0"),
            ("kind = 'folder'\npath = 'x'\nrate_hz = nan", "rate_hz = NaN"),
            ("kind = 'folder'\npath = ''", "path"),
            ("kind = 'folder'\npath = 'x'\nsignificant_bits = 7", "significant_bits = 7"),
            ("kind = 'folder'\npath = 'x'\nsignificant_bits = 17", "significant_bits = 17"),
            ("kind = 'folder'\npath = 'x'\nseed = 3", "seed"),
            ("kind = 'pattern'\nrate_hz = 1e9", "rate_hz = 1000000000"),
            ("kind = 'pattern'\ndefect_rate = 1.5", "defect_rate = 1.5"),
            ("kind = 'pattern'\ndefects = []", "defects"),
            ("kind = 'pattern'\nwidth = 8", "width = 8"),
            ("kind = 'usb'\ndevice = 0\nwidth = 0", "width = 0"),
            ("kind = 'usb'\ndevice = '/dev/camera'", "/dev/camera"),
            ("kind = 'usb'\ndevice = 0\nrate_hz = 0", "rate_hz = 0"),
            ("kind = 'usb'\ndevice = 0\nsilence_ms = 20", "silence_ms = 20"),
            ("kind = 'v4l2'\ndevice = '/dev/camera'", "/dev/camera"),
            ("kind = 'v4l2'\ndevice = 0\nbuffers = 1", "buffers = 1"),
        ] {
            let error = read(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
