//! GigE Vision cameras, area and line scan, known by their address.
//!
//! Here are the keys. `camera` is the trait that a library is put behind. `source` makes parts
//! of what arrives and knows no hardware; nor do the rooms it asks: `continuity` (are all frames
//! there?), `silence` (does the camera still deliver?), `pixels`, `chunks` and `encoder`
//! (where did the belt stand?), [`features`] (is the camera set as the file says?). `opening`
//! keeps the camera thread going until the camera is there. Only `stream` talks to the library.

use std::net::Ipv4Addr;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use super::{CameraFault, FrameSource};

#[cfg(any(feature = "gige", test))]
mod camera;
#[cfg(any(feature = "gige", test))]
mod chunks;
#[cfg(any(feature = "gige", test))]
mod clock;
#[cfg(any(feature = "gige", test))]
mod continuity;
#[cfg(any(feature = "gige", test))]
mod encoder;
pub mod features;
#[cfg(any(feature = "gige", test))]
mod opening;
#[cfg(any(feature = "gige", test))]
mod pixels;
#[cfg(any(feature = "gige", test))]
mod silence;
#[cfg(any(feature = "gige", test))]
mod source;
#[cfg(feature = "gige")]
mod stream;

use features::Setting;

/// A GigE Vision camera and how it is set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Cameras are never searched for: a broadcast would reach whatever else is on the network.
    pub address: Ipv4Addr,
    #[serde(default)]
    pub trigger: Trigger,
    /// `[name, value]` pairs, written in this order; each is read back.
    #[serde(default)]
    pub features: Vec<Setting>,
    /// In milliseconds: how long a frame that is due may stay away before the camera is lost.
    /// `None`: two periods of the camera's own rate in free run, else one second.
    pub silence_ms: Option<u64>,
    /// In milliseconds: camera and host take each other for lost without a sign of life for so
    /// long.
    #[serde(default = "default_heartbeat_ms")]
    pub heartbeat_ms: u32,
    /// Largest packet in bytes, headers of IP and UDP included. `None`: the largest that passes.
    pub packet_bytes: Option<u16>,
    /// Pause between packets in microseconds. `None`: as the camera is set.
    pub packet_delay_us: Option<f64>,
    /// Of the socket, in MiB; the kernel may give less (`net.core.rmem_max`).
    #[serde(default = "default_receive_buffer_mib")]
    pub receive_buffer_mib: u32,
    /// Frames that have memory of their own, taken at the start.
    #[serde(default = "default_buffers")]
    pub buffers: usize,
    pub encoder: Option<Encoder>,
    pub line_status: Option<LineStatus>,
}

/// What makes the camera take a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// Its own clock: each frame is a part.
    #[default]
    Free,
    /// The line asks for each picture: [`FrameSource::trigger`].
    Software,
    /// A light barrier or an encoder on the camera's inputs, as `features` says.
    Hardware,
}

/// The encoder whose count the camera sends with each frame.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// The feature that names the chunk, as in the camera's description.
    #[serde(default = "default_chunk")]
    pub chunk: String,
    /// Counts from one row to the next; 0 for an area camera.
    pub per_row: f64,
    /// After how many bits the counter begins again.
    #[serde(default = "default_bits")]
    pub bits: u32,
}

/// What the camera's digital lines must have been when a frame was taken, by what it sends with the
/// frame: a light whose fault output is wired to the camera, a guard.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineStatus {
    /// The feature that names the chunk, as in the camera's description.
    #[serde(default = "default_line_status_chunk")]
    pub chunk: String,
    /// Lines that must be high, from 0: bits of the number.
    #[serde(default)]
    pub high: Vec<u8>,
    /// Lines that must be low.
    #[serde(default)]
    pub low: Vec<u8>,
}

impl LineStatus {
    fn check(&self) -> Result<()> {
        let Self { chunk, high, low } = self;
        ensure!(
            !chunk.is_empty(),
            "line_status.chunk is empty; leave it away for {DEFAULT_LINE_STATUS_CHUNK}"
        );
        ensure!(
            !high.is_empty() || !low.is_empty(),
            "line_status asks for no line; name some in line_status.high or line_status.low"
        );
        if let Some(line) = high.iter().chain(low).find(|line| **line > 63) {
            bail!("line_status: there is no line {line}; give 0 to 63");
        }
        if let Some(line) = high.iter().find(|line| low.contains(line)) {
            bail!("line_status: line {line} can't be high and low; leave it out of one of both");
        }
        Ok(())
    }

    /// Which line is not as it must be, in `lines`, a bit each.
    #[cfg(any(feature = "gige", test))]
    fn wrong(&self, lines: u64) -> Option<String> {
        let is_high = |line: &u8| lines >> line & 1 == 1;
        let low = self.high.iter().find(|line| !is_high(line)).map(|line| (line, "low", "high"));
        let high = self.low.iter().find(|line| is_high(line)).map(|line| (line, "high", "low"));
        let (line, is, must) = low.or(high)?;
        Some(format!("the camera's line {line} was {is} and must be {must} (line_status)"))
    }
}

impl Config {
    /// Refuses values that cannot be meant. What the camera can do is seen when it is opened.
    pub fn check(&self) -> Result<()> {
        let address = self.address;
        ensure!(
            !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast(),
            "address = \"{address}\" is no single camera's; give the camera's own"
        );
        if let Some(silence_ms) = self.silence_ms {
            ensure!(
                self.trigger != Trigger::Hardware,
                "silence_ms = {silence_ms} means nothing with trigger = \"hardware\": an empty \
                 belt is silent too; leave it away (heartbeat_ms finds a lost camera)"
            );
            ensure!(
                (2..=600_000).contains(&silence_ms),
                "silence_ms = {silence_ms} cannot be; give 2 to 600000"
            );
        }
        ensure!(
            (200..=60_000).contains(&self.heartbeat_ms),
            "heartbeat_ms = {} cannot be; give 200 to 60000",
            self.heartbeat_ms
        );
        if let Some(bytes) = self.packet_bytes {
            ensure!(
                bytes >= 576 && bytes.is_multiple_of(4),
                "packet_bytes = {bytes} cannot be; give a multiple of 4 from 576, or leave it away \
                 to have the largest found out that passes"
            );
        }
        if let Some(delay) = self.packet_delay_us {
            ensure!(
                (0.0..=10_000.0).contains(&delay),
                "packet_delay_us = {delay} cannot be; give 0 to 10000"
            );
        }
        ensure!(
            (1..=512).contains(&self.receive_buffer_mib),
            "receive_buffer_mib = {} cannot be; give 1 to 512",
            self.receive_buffer_mib
        );
        ensure!(
            (2..=256).contains(&self.buffers),
            "buffers = {} cannot be; give 2 to 256",
            self.buffers
        );
        if let Some(Encoder { chunk, per_row, bits }) = &self.encoder {
            ensure!(!chunk.is_empty(), "encoder.chunk is empty; leave it away for {DEFAULT_CHUNK}");
            ensure!(
                per_row.is_finite(),
                "encoder.per_row = {per_row} cannot be; give counts from row to row, 0 for an area \
                 camera"
            );
            ensure!(
                (8..=64).contains(bits),
                "encoder.bits = {bits} cannot be; give 8 to 64: after so many the counter begins \
                 again"
            );
        }
        self.line_status.as_ref().map_or(Ok(()), LineStatus::check)?;
        self.check_features()
    }

    fn check_features(&self) -> Result<()> {
        for (nth, Setting(name, value)) in self.features.iter().enumerate() {
            let nth = nth + 1;
            ensure!(!name.trim().is_empty(), "features: the name of pair {nth} is empty");
            ensure!(
                value.is_finite(),
                "features: {name} = {value} (pair {nth}) is not a number a camera can be set to"
            );
            if self.trigger == Trigger::Software && name == "TriggerSource" {
                bail!(
                    "features: TriggerSource = {value} (pair {nth}), but trigger = \"software\" \
                     sets it; leave the pair away or say trigger = \"hardware\""
                );
            }
        }
        Ok(())
    }
}

/// Begins to take control of the camera, to set it and to start its frames. What it says to that
/// comes with the first grabs.
#[cfg(feature = "gige")]
pub fn open(config: &Config) -> Result<Box<dyn FrameSource>, CameraFault> {
    config.check().map_err(|error| CameraFault(format!("{error:#}")))?;
    Ok(Box::new(opening::Opening::start(config, stream::open)?))
}

/// This build cannot: the feature `gige` is off.
#[cfg(not(feature = "gige"))]
pub fn open(_config: &Config) -> Result<Box<dyn FrameSource>, CameraFault> {
    Err(CameraFault(
        "this inspectd was built without GigE cameras: build with --features gige".to_owned(),
    ))
}

fn default_heartbeat_ms() -> u32 {
    2000
}

fn default_receive_buffer_mib() -> u32 {
    32
}

fn default_buffers() -> usize {
    8
}

/// The name in the Standard Features Naming Convention.
const DEFAULT_CHUNK: &str = "ChunkEncoderValue";

/// Likewise.
const DEFAULT_LINE_STATUS_CHUNK: &str = "ChunkLineStatusAll";

fn default_line_status_chunk() -> String {
    DEFAULT_LINE_STATUS_CHUNK.to_owned()
}

fn default_chunk() -> String {
    DEFAULT_CHUNK.to_owned()
}

fn default_bits() -> u32 {
    32
}

#[cfg(test)]
mod tests {
    use super::*;
    use features::Value;

    fn read(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn features_keep_their_order_types_and_repetitions() {
        let config = read(
            "address = '10.0.0.5'\nfeatures = [\n['TriggerSelector', 'LineStart'], ['Width', 1024],\n\
             ['Gain', 1.5], ['ReverseX', true], ['TriggerSelector', 'FrameStart'],\n]",
        );
        let text = |text: &str| Value::Text(text.to_owned());
        let wanted = [
            ("TriggerSelector", text("LineStart")),
            ("Width", Value::Integer(1024)),
            ("Gain", Value::Float(1.5)),
            ("ReverseX", Value::Bool(true)),
            ("TriggerSelector", text("FrameStart")),
        ];
        let wanted: Vec<_> = wanted.map(|(name, value)| Setting(name.to_owned(), value)).into();
        assert_eq!(config.features, wanted);
        config.check().unwrap();
    }

    #[test]
    fn defaults_are_those_documented() {
        let config = read("address = '10.0.0.5'\nencoder = { per_row = 2 }");
        assert_eq!(config.trigger, Trigger::Free);
        assert_eq!((config.heartbeat_ms, config.receive_buffer_mib, config.buffers), (2000, 32, 8));
        assert_eq!(
            (config.silence_ms, config.packet_bytes, config.packet_delay_us),
            (None, None, None)
        );
        let encoder = config.encoder.unwrap();
        assert_eq!((encoder.chunk.as_str(), encoder.bits), ("ChunkEncoderValue", 32));
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused_with_key_and_value() {
        for (text, says) in [
            ("address = '255.255.255.255'", "255.255.255.255"),
            ("address = '0.0.0.0'", "0.0.0.0"),
            ("address = '239.1.1.1'", "239.1.1.1"),
            ("address = '10.0.0.5'\nsilence_ms = 1", "silence_ms = 1"),
            ("address = '10.0.0.5'\nsilence_ms = 90\ntrigger = 'hardware'", "silence_ms = 90"),
            ("address = '10.0.0.5'\nheartbeat_ms = 10", "heartbeat_ms = 10"),
            ("address = '10.0.0.5'\npacket_bytes = 1501", "packet_bytes = 1501"),
            ("address = '10.0.0.5'\npacket_delay_us = -1", "packet_delay_us = -1"),
            ("address = '10.0.0.5'\nreceive_buffer_mib = 0", "receive_buffer_mib = 0"),
            ("address = '10.0.0.5'\nbuffers = 1", "buffers = 1"),
            ("address = '10.0.0.5'\nencoder = { per_row = nan }", "encoder.per_row = NaN"),
            ("address = '10.0.0.5'\nencoder = { per_row = 1, bits = 65 }", "encoder.bits = 65"),
            ("address = '10.0.0.5'\nencoder = { per_row = 1, chunk = '' }", "encoder.chunk"),
            ("address = '10.0.0.5'\nline_status = {}", "line_status asks for no line"),
            ("address = '10.0.0.5'\nline_status = { high = [64] }", "no line 64"),
            (
                "address = '10.0.0.5'\nline_status = { high = [0, 3], low = [3] }",
                "line 3 can't be high and low",
            ),
            (
                "address = '10.0.0.5'\nline_status = { chunk = '', low = [1] }",
                "line_status.chunk is empty",
            ),
            ("address = '10.0.0.5'\nfeatures = [['Gain', nan]]", "Gain = NaN (pair 1)"),
            ("address = '10.0.0.5'\nfeatures = [['', 1]]", "pair 1"),
            (
                "address = '10.0.0.5'\ntrigger = 'software'\nfeatures = [['TriggerSource', 'Line0']]",
                "TriggerSource = \"Line0\"",
            ),
        ] {
            let error = read(text).check().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[cfg(not(feature = "gige"))]
    #[test]
    fn without_the_feature_the_fault_says_how_to_build() {
        let Err(CameraFault(text)) = open(&read("address = '10.0.0.5'")) else {
            panic!("there is no GigE in this build")
        };
        assert!(text.ends_with("build with --features gige"), "{text}");
    }
}
