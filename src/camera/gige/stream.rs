//! The camera itself, through telegenic: the only file that knows the library.
//!
//! telegenic has two threads a camera: one keeps control of it (heartbeat) and carries what is
//! asked of it, one puts packets together into the frames' own memory. Both end when the camera
//! is dropped.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use telegenic::genicam::NodeKind;
use telegenic::gige::proto::{bootstrap, gvcp, gvsp};
use telegenic::gige::{GigeConfig, GvcpStatus};
use telegenic::{
    CameraError, Frame, FrameChannel, FrameStatus, GenICamera, GenicamError, PacketSize,
    PayloadKind, SocketOption, StreamChannel, StreamConfig, StreamStats,
};

use super::camera::{Camera, Delivery, Opened};
use super::features::{self, Features, Kind, Setting, Value};
use super::pixels::Format;
use super::{Config, Trigger, chunks};
use crate::journal::plain;

/// A camera answers within a millisecond or says that it takes longer. Four tries of this long
/// also bound how long the camera thread stands still for one that is gone.
const ANSWER: Duration = Duration::from_millis(200);
const RETRIES: u8 = 3;
/// How long giving back control may take.
const GOODBYE: Duration = Duration::from_millis(500);
/// The bit of the register `Timestamp control` that keeps the camera's clock to be read.
const LATCH: u32 = 2;
/// The features that say how often a camera delivers, the truest first.
const FRAME_RATES: [&str; 5] = [
    "AcquisitionResultingFrameRate",
    "ResultingFrameRate",
    "ResultingFrameRateAbs",
    "AcquisitionFrameRate",
    "AcquisitionFrameRateAbs",
];
const LINE_RATES: [&str; 4] =
    ["ResultingLineRate", "ResultingLineRateAbs", "AcquisitionLineRate", "AcquisitionLineRateAbs"];

/// A camera that streams to us.
pub struct Streaming {
    camera: GenICamera,
    /// Taken only when it ends.
    stream: Option<StreamChannel>,
    frames: FrameChannel,
    payload_bytes: usize,
    packet_bytes: usize,
    /// Losses that were told already.
    told: StreamStats,
    /// Its clock's ticks in a second; 0: it does not say, and frames carry no time.
    tick_hz: u64,
    /// It can be asked for its clock.
    latches: bool,
}

/// Opens the camera, sets it and starts it. Takes seconds at most.
pub fn open(config: &Config) -> Result<(Streaming, Opened), String> {
    let mut control = GigeConfig::new(config.address);
    control.gvcp_timeout = ANSWER;
    control.retries = RETRIES;
    control.heartbeat_timeout_ms = config.heartbeat_ms;
    let mut camera = GenICamera::with_config(control);
    camera.connect().map_err(|error| no_connection(&error, config))?;
    // Whoever controlled it before may have crashed and left it running and locked. A camera that
    // stands still may refuse to be stopped.
    let _ = camera.execute("AcquisitionStop");
    let _ = lock(&mut camera, false);

    features::apply(&mut camera, &config.features)?;
    set_trigger(&mut camera, config)?;
    let format = camera.get_enum("PixelFormat").map_err(|error| format!("PixelFormat: {error}"))?;
    let format = Format::named(&format)?;
    let rate_hz = (config.trigger == Trigger::Free).then(|| rate_hz(&mut camera)).flatten();
    let mut place = |key: &str, chunk: &str| {
        let xml = camera.transport_mut().genicam_xml().map_err(|error| error.to_string())?;
        chunks::place(&String::from_utf8_lossy(&xml), key, chunk)
    };
    let encoder = config.encoder.as_ref().map(|set| place("encoder.chunk", &set.chunk));
    let lines = config.line_status.as_ref().map(|set| place("line_status.chunk", &set.chunk));
    let (encoder, line_status) = (encoder.transpose()?, lines.transpose()?);
    let opened = Opened { format, rate_hz, encoder, line_status };

    let mut streaming = start(camera, config)?;
    streaming.try_clock(config.address);
    streaming.announce(config, &opened);
    Ok((streaming, opened))
}

fn no_connection(error: &GenicamError, config: &Config) -> String {
    let denied = match error {
        GenicamError::Camera(CameraError::ControlDenied) => true,
        // Some cameras do not even answer a second controller.
        GenicamError::Camera(CameraError::ConnectTimeout) => is_controlled(config.address),
        _ => false,
    };
    match error {
        _ if denied => format!(
            "another program controls this camera, and only one can; end it, or wait for the \
             camera's heartbeat to run out after a crash ({} ms where that was inspectd)",
            config.heartbeat_ms
        ),
        GenicamError::Camera(CameraError::ConnectTimeout) => format!(
            "no camera answers; is it on, and is its address in the subnet of a network card here? \
             (ping {})",
            config.address
        ),
        error => format!("connecting: {error}"),
    }
}

/// Asks for the register that says whether somebody controls the camera. Anybody may.
fn is_controlled(address: Ipv4Addr) -> bool {
    let ask = || -> io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((address, gvcp::GVCP_PORT))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.send(&gvcp::encode_read_reg(&[bootstrap::CONTROL_CHANNEL_PRIVILEGE], 1))?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        Ok(gvcp::Ack::parse(&answer[..length]).is_some_and(|ack| {
            let held = bootstrap::CCP_CONTROL | bootstrap::CCP_EXCLUSIVE;
            ack.status == GvcpStatus::ACCESS_DENIED
                || ack.register_values().next().is_some_and(|value| value & held != 0)
        }))
    };
    ask().unwrap_or(false)
}

fn set_trigger(camera: &mut GenICamera, config: &Config) -> Result<(), String> {
    let mentioned = |name: &str| config.features.iter().any(|setting| setting.0 == name);
    let mut settings = Vec::new();
    let mut set = |name: &str, value: &str| {
        settings.push(Setting(name.to_owned(), Value::Text(value.to_owned())));
    };
    if camera.has_feature("AcquisitionMode") && !mentioned("AcquisitionMode") {
        set("AcquisitionMode", "Continuous");
    }
    match config.trigger {
        Trigger::Free => {
            if camera.has_feature("TriggerMode") && !mentioned("TriggerMode") {
                set("TriggerMode", "Off");
            }
        }
        Trigger::Software => {
            let selectors = camera.enum_entries("TriggerSelector").unwrap_or_default();
            if selectors.iter().any(|selector| selector == "FrameStart") {
                set("TriggerSelector", "FrameStart");
            }
            set("TriggerMode", "On");
            set("TriggerSource", "Software");
        }
        // With selectors there are several modes; those the file sets are taken as meant.
        Trigger::Hardware if mentioned("TriggerMode") => {}
        Trigger::Hardware => {
            let mode = camera.get_enum("TriggerMode").map_err(|error| {
                format!("trigger = \"hardware\", but the camera's TriggerMode: {error}")
            })?;
            if mode != "On" {
                return Err(format!(
                    "trigger = \"hardware\", but the camera has TriggerMode = {mode:?}; set \
                     TriggerSelector, TriggerSource and TriggerMode in features"
                ));
            }
        }
    }
    features::apply(camera, &settings)
}

/// `None`: the camera doesn't say.
fn rate_hz(camera: &mut GenICamera) -> Option<f64> {
    let mut first = |names: &[&str]| {
        names
            .iter()
            .filter_map(|name| camera.get_float(name).ok())
            .find(|rate| rate.is_finite() && *rate > 0.0)
    };
    let (frames, lines) = (first(&FRAME_RATES), first(&LINE_RATES));
    let scan = camera.get_enum("DeviceScanType").unwrap_or_default();
    if !scan.eq_ignore_ascii_case("linescan") {
        return frames;
    }
    let rows = camera.get_integer("Height").ok().filter(|rows| *rows > 0)?;
    lines.map(|lines| lines / rows as f64)
}

fn lock(camera: &mut GenICamera, locked: bool) -> Result<(), GenicamError> {
    if camera.has_feature("TLParamsLocked") {
        camera.set_integer("TLParamsLocked", i64::from(locked))?;
    }
    Ok(())
}

fn start(mut camera: GenICamera, config: &Config) -> Result<Streaming, String> {
    let payload_bytes = camera
        .get_integer("PayloadSize")
        .ok()
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|bytes| *bytes > 0)
        .ok_or("it does not say how large a frame is (PayloadSize)")?;
    let mut settings = StreamConfig::new();
    settings.payload_size = Some(payload_bytes);
    settings.n_buffers = config.buffers;
    settings.packet_size = config.packet_bytes.map_or(PacketSize::Auto, PacketSize::Fixed);
    settings.packet_delay =
        config.packet_delay_us.map(|delay_us| ticks(&camera, delay_us)).transpose()?;
    let receive_buffer = config.receive_buffer_mib as usize * 1024 * 1024;
    settings.stream_socket = vec![SocketOption::RecvBuffer(receive_buffer)];
    let stream = camera
        .transport()
        .open_stream(settings)
        .map_err(|error| format!("opening its stream: {error}"))?;
    // As many places as buffers: a frame that got a buffer gets a place.
    let frames = stream.subscribe(config.buffers);
    let packet_bytes = usize::from(stream.packet_size());
    let mut streaming = Streaming {
        camera,
        stream: Some(stream),
        frames,
        payload_bytes,
        packet_bytes,
        told: StreamStats::default(),
        tick_hz: 0,
        latches: false,
    };
    let camera = &mut streaming.camera;
    lock(camera, true)
        .and_then(|()| camera.execute("AcquisitionStart"))
        .map_err(|error| format!("starting it: {error}"))?;
    Ok(streaming)
}

/// The packet delay that a camera takes is in ticks of its clock.
fn ticks(camera: &GenICamera, delay_us: f64) -> Result<u32, String> {
    match tick_frequency(camera) {
        0 => Err(format!(
            "packet_delay_us = {delay_us}: this camera does not say how fast its clock ticks; \
             leave it away and set [\"GevSCPD\", ticks] in features"
        )),
        frequency_hz => Ok((delay_us * frequency_hz as f64 / 1e6).round() as u32),
    }
}

/// Hz; 0: it does not say.
fn tick_frequency(camera: &GenICamera) -> u64 {
    let at = [bootstrap::TIMESTAMP_TICK_FREQUENCY_HIGH, bootstrap::TIMESTAMP_TICK_FREQUENCY_LOW];
    read_long(camera, at).unwrap_or(0)
}

/// A number in two registers.
fn read_long(camera: &GenICamera, at: [u32; 2]) -> Option<u64> {
    let words = camera.transport().read_registers(at.to_vec()).ok()?;
    match words.wait_timeout(ANSWER).as_deref() {
        Ok(&[high, low]) => Some(u64::from(high) << 32 | u64::from(low)),
        _ => None,
    }
}

/// What the camera's clock shows, ns, no later than the moment given with it; `None`: it does not
/// say.
fn sight(camera: &GenICamera, frequency_hz: u64) -> Option<(u64, Instant)> {
    let latch = camera.transport().write_register(bootstrap::TIMESTAMP_CONTROL, LATCH).ok()?;
    latch.wait_timeout(ANSWER).ok()?;
    let by = clock();
    let at = [bootstrap::TIMESTAMP_LATCHED_HIGH, bootstrap::TIMESTAMP_LATCHED_LOW];
    Some((gvsp::timestamp_to_ns(read_long(camera, at)?, frequency_hz), by))
}

impl Streaming {
    fn announce(&self, config: &Config, opened: &Opened) {
        let address = config.address;
        let (model, serial) = match self.camera.transport().device_info() {
            Ok(device) => (format!("{} {}", device.manufacturer, device.model), &*device.serial),
            Err(_) => (String::new(), ""),
        };
        log::info!(
            "gige_open address={address} model=\"{}\" serial=\"{}\" format={} packet_bytes={} \
             frame_bytes={} rate_hz={}",
            plain(model),
            plain(serial),
            opened.format.name(),
            self.packet_bytes,
            self.payload_bytes,
            opened.rate_hz.map_or("unknown".to_owned(), |rate| format!("{rate:.3}"))
        );
        let Some(stream) = &self.stream else { return };
        let adjusted = stream.tuning_report().socket.adjusted.iter();
        for bytes in adjusted.filter_map(|adjusted| match adjusted.effective {
            SocketOption::RecvBuffer(bytes) => Some(bytes),
            _ => None,
        }) {
            let wanted = config.receive_buffer_mib as usize * 1024 * 1024;
            log::warn!(
                "gige_receive_buffer_small address={address} wanted_bytes={wanted} \
                 given_bytes={bytes} do=\"sysctl -w net.core.rmem_max={wanted}\""
            );
        }
    }

    /// Whether the camera has a clock, and one that can be asked for.
    fn try_clock(&mut self, address: Ipv4Addr) {
        self.tick_hz = tick_frequency(&self.camera);
        if self.tick_hz == 0 {
            log::warn!("gige_no_clock address={address} do=\"keep this machine from hesitating\"");
            return;
        }
        let sight = || Some(sight(&self.camera, self.tick_hz)?.0);
        // A register that nothing is kept in shows the same again.
        self.latches = sight().zip(sight()).is_some_and(|(first, then)| first < then);
        if !self.latches {
            log::info!("gige_no_latch address={address}");
        }
    }

    fn stats(&self) -> StreamStats {
        self.stream.as_ref().map(StreamChannel::stats).unwrap_or_default()
    }

    /// What is wrong with a frame; `None`: nothing.
    fn incomplete(&self, frame: &Frame) -> Option<String> {
        match frame.status {
            FrameStatus::Complete => match frame.payload {
                PayloadKind::Image { .. } => None,
                other => Some(format!("it carries {other:?}, not an image")),
            },
            FrameStatus::MissingPackets | FrameStatus::Timeout => {
                let header = gvsp::packet_protocol_overhead(frame.frame_id > u16::MAX.into());
                let block = self.packet_bytes.saturating_sub(header).max(1);
                let all = self.payload_bytes.div_ceil(block);
                let missing =
                    self.payload_bytes.saturating_sub(frame.received_size).div_ceil(block);
                // The first packet tells where the others belong; without it none is placed.
                Some(match (frame.width, all - missing) {
                    (0, came) if came == all => "its leader never came".to_owned(),
                    (_, came) if came == all => "its trailer never came".to_owned(),
                    (_, 0) => "its first packet never came".to_owned(),
                    (_, came) => format!("{came} of {all} packets came"),
                })
            }
            FrameStatus::Aborted => Some("the stream ended in the middle of it".to_owned()),
            FrameStatus::WrongPacketId => Some("its packets don't fit each other".to_owned()),
            FrameStatus::PayloadUnsupported => Some("its kind of payload is unknown".to_owned()),
        }
    }
}

impl Camera for Streaming {
    type Payload = Payload;

    fn next(&mut self, wait: Duration) -> Option<Delivery<Payload>> {
        let frame = self.frames.wait_for(wait)?;
        // Without a leader there is no time in it.
        let stamped = self.tick_hz > 0 && frame.timestamp_ticks > 0;
        Some(Delivery {
            id: frame.frame_id,
            incomplete: self.incomplete(&frame),
            width: frame.width,
            height: frame.height,
            row_padding: frame.x_padding.into(),
            format: frame.pixel_format.0,
            stamp_ns: stamped.then_some(frame.timestamp_ns),
            payload: Payload(frame),
        })
    }

    fn trigger(&mut self) -> Result<(), String> {
        self.camera.execute("TriggerSoftware").map_err(|error| format!("TriggerSoftware: {error}"))
    }

    fn sight(&mut self) -> Option<(u64, Instant)> {
        self.latches.then(|| sight(&self.camera, self.tick_hz)).flatten()
    }

    fn lost(&self) -> Option<String> {
        if self.camera.is_connected() {
            return None;
        }
        Some("control of the camera was lost: it does not answer, or it was taken over".to_owned())
    }

    fn own_losses(&mut self) -> String {
        let stats = self.stats();
        // The kernel counts its drops in 32 bits.
        let drops = stats.socket_drops.saturating_sub(self.told.socket_drops);
        let underruns = stats.underruns - self.told.underruns;
        self.told = stats;
        let mut text = String::new();
        if drops > 0 {
            text += &format!(
                "; {drops} packets found the receive buffer full (receive_buffer_mib, \
                 net.core.rmem_max)"
            );
        }
        if underruns > 0 {
            text += &format!("; {underruns} frames found all buffers taken");
        }
        text
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let stopped = self.camera.is_connected()
            && self.camera.execute("AcquisitionStop").is_ok()
            && lock(&mut self.camera, false).is_ok();
        if !stopped {
            // Each further word to a camera that does not answer would be waited for.
            self.camera.disconnect(Duration::ZERO);
        }
        self.stream = None;
        self.camera.disconnect(GOODBYE);
    }
}

/// A frame's memory, which goes back for reuse when it is dropped.
pub struct Payload(Arc<Frame>);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.0.data()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what the camera's clock shows holds for the moment at which it answered"
)]
fn clock() -> Instant {
    Instant::now()
}

impl Features for GenICamera {
    fn kind(&mut self, name: &str) -> Option<Kind> {
        match self.node_kind(name).ok()? {
            NodeKind::Boolean => Some(Kind::Bool),
            NodeKind::Integer => Some(Kind::Integer),
            NodeKind::Float => Some(Kind::Float),
            NodeKind::Enumeration => Some(Kind::Choice),
            NodeKind::String => Some(Kind::Text),
            NodeKind::Command => Some(Kind::Command),
            NodeKind::Category | NodeKind::Other => None,
        }
    }

    fn write(&mut self, name: &str, value: &Value) -> Result<(), String> {
        match (self.kind(name), value) {
            (Some(Kind::Command), _) => self.execute(name),
            (Some(Kind::Choice), Value::Text(entry)) => self.set_enum(name, entry),
            (_, Value::Bool(value)) => self.set_boolean(name, *value),
            (_, Value::Integer(value)) => self.set_integer(name, *value),
            (_, Value::Float(value)) => self.set_float(name, *value),
            (_, Value::Text(text)) => self.set_string(name, text),
        }
        .map_err(|error| error.to_string())
    }

    fn read(&mut self, name: &str) -> Result<Value, String> {
        // The library remembers what it wrote; asked is what the camera has.
        self.invalidate_caches()
            .and_then(|()| match self.kind(name) {
                Some(Kind::Bool) => self.get_boolean(name).map(Value::Bool),
                Some(Kind::Integer) => self.get_integer(name).map(Value::Integer),
                Some(Kind::Float) => self.get_float(name).map(Value::Float),
                Some(Kind::Choice) => self.get_enum(name).map(Value::Text),
                _ => self.get_string(name).map(Value::Text),
            })
            .map_err(|error| error.to_string())
    }

    fn allowed(&mut self, name: &str) -> Option<String> {
        match self.kind(name)? {
            Kind::Integer => {
                let (low, high) = self.integer_bounds(name).ok()?;
                let step = self.integer_increment(name).unwrap_or(1);
                let steps = if step > 1 { format!(" in steps of {step}") } else { String::new() };
                (low != i64::MIN || high != i64::MAX).then(|| format!("{low} to {high}{steps}"))
            }
            Kind::Float => {
                let (low, high) = self.float_bounds(name).ok()?;
                (low != f64::MIN || high != f64::MAX).then(|| format!("{low} to {high}"))
            }
            Kind::Choice => Some(format!("one of {}", self.enum_entries(name).ok()?.join(", "))),
            Kind::Bool | Kind::Text | Kind::Command => None,
        }
    }

    fn like(&self, name: &str) -> Vec<String> {
        const MOST: usize = 5;
        let wanted = name.to_lowercase();
        let alike = |other: &String| {
            let other = other.to_lowercase();
            other.contains(&wanted) || (other.len() > 3 && wanted.contains(&other))
        };
        let is_feature = |name: &String| {
            self.node_kind(name)
                .is_ok_and(|kind| !matches!(kind, NodeKind::Other | NodeKind::Category))
        };
        let names = self.feature_names().unwrap_or_default();
        names.into_iter().filter(|name| alike(name) && is_feature(name)).take(MOST).collect()
    }
}
