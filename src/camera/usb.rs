//! USB (UVC) cameras through V4L2. Such a camera has no trigger: it delivers frames at its own
//! pace, and each frame is a part.
//!
//! The driver's wait for a frame has no time limit, and frames wait in its buffers if they are not
//! fetched. So one reader thread per camera does nothing but fetch, and hands over through a slot
//! for one frame: a newer frame replaces one that was not taken in time. Nothing is lost in
//! silence: frames are numbered, and each replaced one comes out of [`FrameSource::grab`] as a bad
//! part. A camera that is silent for `silence_ms` is a fault.

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::{CameraFault, FrameSource, VideoNode};

#[cfg(feature = "usb")]
mod device;
#[cfg(any(feature = "usb", test))]
mod reader;

/// A USB camera and the one format it is asked for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub device: VideoNode,
    /// In pixels.
    #[serde(default = "default_width")]
    pub width: u32,
    #[serde(default = "default_height")]
    pub height: u32,
    /// Frames per second, a whole number as the camera lists it. Each frame is a part.
    #[serde(default = "default_rate_hz")]
    pub rate_hz: u32,
    #[serde(default)]
    pub format: Format,
    /// A camera that delivers no frame for so long, in milliseconds, is lost.
    #[serde(default = "default_silence_ms")]
    pub silence_ms: u64,
}

/// How the camera packs its pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain, 16 bits a pixel.
    #[default]
    Yuyv,
    /// A JPEG per frame: higher rates, but compression can hide fine defects.
    Mjpeg,
    /// Plain, 12 bits a pixel.
    Nv12,
}

impl Config {
    /// Refuses values that cannot be meant. What the camera can do is seen when it is opened.
    pub fn check(&self) -> Result<()> {
        for (key, pixels) in [("width", self.width), ("height", self.height)] {
            ensure!(
                (2..=16384).contains(&pixels) && pixels % 2 == 0,
                "{key} = {pixels} is no camera's; give an even number from 2 to 16384"
            );
        }
        ensure!(
            (1..=1000).contains(&self.rate_hz),
            "rate_hz = {} is no camera's; give frames per second from 1 to 1000",
            self.rate_hz
        );
        let period_ms = 1000_u64.div_ceil(u64::from(self.rate_hz));
        ensure!(
            (2 * period_ms..=600_000).contains(&self.silence_ms),
            "silence_ms = {} cannot be; give at least two frame periods ({} ms at rate_hz = {}) and \
             at most 600000",
            self.silence_ms,
            2 * period_ms,
            self.rate_hz
        );
        self.device.check()
    }
}

/// Opens the camera and starts its reader.
#[cfg(feature = "usb")]
pub fn open(config: &Config) -> Result<Box<dyn FrameSource>, CameraFault> {
    config.check().map_err(|error| CameraFault(format!("{error:#}")))?;
    Ok(Box::new(device::open(config)?))
}

/// This build cannot: the feature `usb` is off.
#[cfg(not(feature = "usb"))]
pub fn open(_config: &Config) -> Result<Box<dyn FrameSource>, CameraFault> {
    Err(CameraFault(
        "this inspectd was built without USB cameras: build with --features usb".to_owned(),
    ))
}

fn default_width() -> u32 {
    640
}

fn default_height() -> u32 {
    480
}

fn default_rate_hz() -> u32 {
    30
}

fn default_silence_ms() -> u64 {
    2000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "usb"))]
    #[test]
    fn without_the_feature_the_fault_says_how_to_build() {
        let Err(CameraFault(text)) = open(&toml::from_str("device = 0").unwrap()) else {
            panic!("there is no USB in this build")
        };
        assert!(text.ends_with("build with --features usb"), "{text}");
    }

    #[cfg(feature = "usb")]
    #[test]
    fn a_camera_that_is_not_there_is_named() {
        let Err(CameraFault(text)) = open(&toml::from_str("device = 987").unwrap()) else {
            panic!("no machine has /dev/video987")
        };
        assert!(text.contains("/dev/video987"), "{text}");
    }
}
