//! Cameras through V4L2, spoken to directly: USB (UVC) and CSI cameras, grey ones with 8 to 16 bits too.
//!
//! The driver fills mapped buffers, and the camera thread waits for them with a time limit. It numbers
//! its frames, so what it drops is seen; [`Policy`] says what becomes of that. Nothing is guessed: what
//! the driver would change (size, format, rate, a control's value) is refused when the camera is opened.
//!
//! `negotiate`, `stream`, `unpack` and `jpeg` know no hardware; `device` is the ioctls.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rustix::io::Errno;
use serde::Deserialize;

use super::video_node::{VideoNode, path_of};
use super::{CameraFault, FrameSource};
use device::Device;
use negotiate::Agreed;
use stream::{Settings, Stream};
use unpack::Unpacker;

/// `unsafe` for the ioctls and the mapped buffers of the driver; the other cameras' rooms need none.
#[allow(unsafe_code)]
mod device;
mod jpeg;
mod negotiate;
mod stream;
mod uapi;
mod unpack;

/// A camera and the one format it is asked for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub device: VideoNode,
    /// In pixels.
    #[serde(default = "default_width")]
    pub width: u32,
    #[serde(default = "default_height")]
    pub height: u32,
    /// Frames per second; without it the camera's own, which a trigger of its own may give.
    pub rate_hz: Option<f64>,
    #[serde(default)]
    pub format: Format,
    /// How many low bits of a sample of [`Format::Y16`] carry the picture, 8 to 16.
    pub significant_bits: Option<u32>,
    #[serde(default)]
    pub policy: Policy,
    /// Frames that may wait in the driver.
    #[serde(default = "default_buffers")]
    pub buffers: u32,
    /// A camera that delivers no frame for so long, in milliseconds, is lost; 0: never.
    #[serde(default = "default_silence_ms")]
    pub silence_ms: u64,
    /// V4L2 controls by the names of `v4l2-ctl`: set at each opening and read back.
    #[serde(default)]
    pub controls: BTreeMap<String, ControlValue>,
}

/// How the camera packs its pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// 8 bits, grey.
    Grey,
    /// 10 bits in the low ones of 16, grey.
    Y10,
    /// 12 bits in the low ones of 16, grey.
    Y12,
    /// 16 bits, grey; in truth often fewer.
    Y16,
    /// Colour, 16 bits a pixel.
    #[default]
    Yuyv,
    /// A JPEG per frame: higher rates, but compression can hide fine defects.
    Mjpeg,
}

/// Which frames become parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Each frame is a part; one that the driver dropped is a bad part.
    #[default]
    Every,
    /// The newest frame is the part, those before it are passed over; with a trigger, the first frame
    /// after it. For cameras that run freely and see more than parts.
    Newest,
}

/// What a control is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ControlValue {
    Switch(bool),
    Number(i32),
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Grey => "grey",
            Format::Y10 => "y10",
            Format::Y12 => "y12",
            Format::Y16 => "y16",
            Format::Yuyv => "yuyv",
            Format::Mjpeg => "mjpeg",
        }
    }

    /// `V4L2_PIX_FMT_*`
    fn four_cc(self) -> u32 {
        uapi::four_cc(match self {
            Format::Grey => *b"GREY",
            Format::Y10 => *b"Y10 ",
            Format::Y12 => *b"Y12 ",
            Format::Y16 => *b"Y16 ",
            Format::Yuyv => *b"YUYV",
            Format::Mjpeg => *b"MJPG",
        })
    }
}

impl ControlValue {
    fn number(self) -> i32 {
        match self {
            ControlValue::Switch(on) => on.into(),
            ControlValue::Number(number) => number,
        }
    }
}

impl Config {
    /// Refuses values that cannot be meant. What the camera can do is seen when it is opened.
    pub fn check(&self) -> Result<()> {
        for (key, pixels) in [("width", self.width), ("height", self.height)] {
            ensure!(
                (1..=65536).contains(&pixels),
                "{key} = {pixels} is no camera's; give 1 to 65536 pixels"
            );
        }
        ensure!(
            self.format != Format::Yuyv || self.width.is_multiple_of(2),
            "width = {} cannot be with format = \"yuyv\", which packs pixels in pairs",
            self.width
        );
        match self.significant_bits {
            Some(_) if self.format != Format::Y16 => bail!(
                "significant_bits is for format = \"y16\"; \"{}\" says how many it has",
                self.format.name()
            ),
            Some(bits) => ensure!(
                (8..=16).contains(&bits),
                "significant_bits = {bits} cannot be; a 16-bit sample carries 8 to 16"
            ),
            None => {}
        }
        ensure!(
            (2..=32).contains(&self.buffers),
            "buffers = {} cannot be; a driver fills one while another is read, and has at most 32",
            self.buffers
        );
        let mut least_ms = 1;
        if let Some(rate_hz) = self.rate_hz {
            ensure!(
                (0.01..=100_000.0).contains(&rate_hz),
                "rate_hz = {rate_hz} is no camera's; give frames per second from 0.01 to 100000"
            );
            least_ms = (2000.0 / rate_hz).ceil() as u64;
        }
        ensure!(
            self.silence_ms == 0 || (least_ms..=600_000).contains(&self.silence_ms),
            "silence_ms = {} cannot be; give at least two frame periods ({least_ms} ms) and at most \
             600000, or 0 for a camera that may be silent for ever",
            self.silence_ms
        );
        self.device.check()
    }
}

/// Opens the camera, sets what the config asks for and starts the stream. A fault says what the camera
/// refused.
pub fn open(config: &Config) -> Result<Box<dyn FrameSource>, CameraFault> {
    config.check().map_err(|error| CameraFault(format!("{error:#}")))?;
    let path = path_of(config.device.find()?);
    let name = path.display().to_string();
    let fault = |what: String| CameraFault(format!("{name}: {what}"));
    let mut device = Device::open(&path).map_err(|error| {
        fault(match error {
            Errno::ACCESS => format!("{error}; who runs inspectd must be in the group video"),
            error => format!("opening it: {error}"),
        })
    })?;
    let Agreed { pix, rate_hz } = negotiate::negotiate(&mut device, config).map_err(fault)?;
    let significant_bits = config.significant_bits.unwrap_or(16);
    let unpacker = Unpacker::new(config.format, significant_bits, &pix).map_err(fault)?;
    let camera = device.stream(config.buffers).map_err(|error| {
        fault(match error {
            Errno::BUSY => "another program streams from it".to_owned(),
            error => format!("starting the stream: {error}"),
        })
    })?;
    let settings = Settings {
        device: name.clone(),
        policy: config.policy,
        silence: (config.silence_ms > 0).then(|| Duration::from_millis(config.silence_ms)),
        period: rate_hz.map(|rate_hz| Duration::from_secs_f64(1.0 / rate_hz)),
    };
    Ok(Box::new(Stream::new(camera, unpacker, settings)))
}

fn default_width() -> u32 {
    640
}

fn default_height() -> u32 {
    480
}

fn default_buffers() -> u32 {
    4
}

fn default_silence_ms() -> u64 {
    2000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(&format!("device = 0\n{text}")).unwrap()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = config("");
        config.check().unwrap();
        assert_eq!((config.width, config.height, config.buffers), (640, 480, 4));
        assert_eq!((config.format, config.policy), (Format::Yuyv, Policy::Every));
        assert_eq!((config.rate_hz, config.silence_ms), (None, 2000));
        assert!(config.controls.is_empty());
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused_with_key_and_value() {
        for (text, says) in [
            ("width = 0", "width = 0 is no camera's"),
            ("width = 641", "width = 641 cannot be with format = \"yuyv\""),
            ("height = 65537", "height = 65537"),
            ("rate_hz = 0", "rate_hz = 0"),
            ("rate_hz = nan", "rate_hz = NaN"),
            ("buffers = 1", "buffers = 1"),
            ("rate_hz = 4\nsilence_ms = 499", "at least two frame periods (500 ms)"),
            ("silence_ms = 600001", "silence_ms = 600001"),
            ("significant_bits = 12", "significant_bits is for format = \"y16\""),
            ("format = 'y16'\nsignificant_bits = 17", "significant_bits = 17"),
        ] {
            let error = config(text).check().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        for fine in [
            "format = 'grey'\nwidth = 641",
            "silence_ms = 0",
            "rate_hz = 4\nsilence_ms = 500",
            "format = 'y16'\nsignificant_bits = 12",
            "policy = 'newest'",
        ] {
            config(fine).check().unwrap();
        }
    }

    #[test]
    fn controls_are_numbers_or_switches() {
        let config = config("[controls]\nexposure = -3\nhorizontal_flip = true");
        let values: Vec<_> = config.controls.values().map(|value| value.number()).collect();
        assert_eq!(values, [-3, 1]);
        for bad in ["exposure = 1.5", "exposure = 'auto'", "exposure = 3000000000"] {
            assert!(toml::from_str::<Config>(&format!("device = 0\n[controls]\n{bad}")).is_err());
        }
    }

    #[test]
    fn a_camera_that_is_not_there_is_named() {
        let Err(CameraFault(text)) = open(&toml::from_str("device = 987").unwrap()) else {
            panic!("no machine has /dev/video987")
        };
        assert!(text.contains("there is no camera /dev/video987"), "{text}");
    }
}
