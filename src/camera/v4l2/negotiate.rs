//! What the device is asked for before it streams, and what it says. A driver changes what it does not
//! like (size, format, rate, a control's value) and reports success; here that is refused, with what
//! the camera offers instead.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use rustix::io::Errno;

use super::uapi::{
    CAP_DEVICE_CAPS, CAP_STREAMING, CAP_TIME_PER_FRAME, CAP_VIDEO_CAPTURE,
    CAP_VIDEO_CAPTURE_MPLANE, CAPTURE, CTRL_BITMASK, CTRL_BOOLEAN, CTRL_CLASS, CTRL_DISABLED,
    CTRL_INACTIVE, CTRL_INTEGER, CTRL_INTEGER_MENU, CTRL_MENU, CTRL_NEXT, CTRL_READ_ONLY,
    CTRL_WRITE_ONLY, Capability, CaptureParm, Control, DISCRETE, Format, FormatDescription, Fract,
    FrameInterval, FrameSize, PROGRESSIVE, PixFormat, QueryControl, StreamParm, text,
};
use super::{Config, ControlValue};

/// The ioctls of a device that is not streaming yet. Each takes the structure with its question and
/// gives it with the answer.
pub trait Node {
    fn capability(&self) -> Result<Capability, Errno>;
    fn format(&self, description: FormatDescription) -> Result<FormatDescription, Errno>;
    fn frame_size(&self, size: FrameSize) -> Result<FrameSize, Errno>;
    fn frame_interval(&self, interval: FrameInterval) -> Result<FrameInterval, Errno>;
    fn set_format(&mut self, format: Format) -> Result<Format, Errno>;
    fn parm(&self, parm: StreamParm) -> Result<StreamParm, Errno>;
    fn set_parm(&mut self, parm: StreamParm) -> Result<StreamParm, Errno>;
    fn query_control(&self, query: QueryControl) -> Result<QueryControl, Errno>;
    fn control(&self, control: Control) -> Result<Control, Errno>;
    fn set_control(&mut self, control: Control) -> Result<Control, Errno>;
}

/// What the camera will deliver.
#[derive(Debug)]
pub struct Agreed {
    pub pix: PixFormat,
    /// Frames per second; `None`: the driver does not say.
    pub rate_hz: Option<f64>,
}

/// So many answers of a list are shown; the whole is `v4l2-ctl`'s.
const SHOWN: usize = 24;
/// A list that goes on after so many entries is a driver's mistake.
const LONGEST_LIST: u32 = 4096;
/// By how much a rate may differ from the one asked for: drivers count intervals in 100 ns or less, and
/// 29.97 is no 30.
const SAME_RATE: f64 = 5e-4;

/// Sets format, rate and controls. The error says what was refused, without the device's name.
pub fn negotiate(node: &mut impl Node, config: &Config) -> Result<Agreed, String> {
    let capability = node.capability().map_err(|error| match error {
        Errno::NOTTY => "it is no V4L2 device".to_owned(),
        error => format!("asking what it is: {error}"),
    })?;
    can_stream(&capability)?;
    let pix = set_format(node, config)?;
    let rate_hz = match config.rate_hz {
        Some(asked) => Some(set_rate(node, &pix, asked)?),
        None => node.parm(StreamParm::of(CaptureParm::default())).ok().and_then(|parm| rate(&parm)),
    };
    set_controls(node, &config.controls)?;
    Ok(Agreed { pix, rate_hz })
}

fn can_stream(capability: &Capability) -> Result<(), String> {
    let can = if capability.capabilities & CAP_DEVICE_CAPS == 0 {
        capability.capabilities
    } else {
        capability.device_caps
    };
    let card = text(&capability.card);
    if can & CAP_VIDEO_CAPTURE == 0 {
        return Err(if can & CAP_VIDEO_CAPTURE_MPLANE == 0 {
            format!("{card:?} takes no pictures; cameras often have a second node for other things")
        } else {
            format!("{card:?} delivers pictures in several planes, which is not supported")
        });
    }
    if can & CAP_STREAMING == 0 {
        return Err(format!("{card:?} cannot stream into mapped buffers"));
    }
    Ok(())
}

fn set_format(node: &mut impl Node, config: &Config) -> Result<PixFormat, String> {
    let asked = PixFormat {
        width: config.width,
        height: config.height,
        pixel_format: config.format.four_cc(),
        field: PROGRESSIVE,
        ..PixFormat::default()
    };
    let got = node.set_format(Format::of(asked)).map_err(|error| match error {
        Errno::BUSY => "another program streams from it".to_owned(),
        error => {
            format!(
                "setting format {}: {error}; it offers {}",
                config.format.name(),
                formats(node).join(", ")
            )
        }
    })?;
    let got = got.pix;
    if got.pixel_format != asked.pixel_format {
        return Err(format!(
            "format = \"{}\" ({}) is not what it delivers, but {}; it offers {}",
            config.format.name(),
            FourCc(asked.pixel_format),
            FourCc(got.pixel_format),
            formats(node).join(", ")
        ));
    }
    if (got.width, got.height) != (asked.width, asked.height) {
        return Err(format!(
            "width = {}, height = {} is not what it delivers, but {}×{}; in {} it offers {}",
            asked.width,
            asked.height,
            got.width,
            got.height,
            FourCc(asked.pixel_format),
            sizes(node, asked.pixel_format).join(", ")
        ));
    }
    if got.field != PROGRESSIVE {
        return Err(format!(
            "it delivers interlaced frames (V4L2 field {}), which show a moving part twice",
            got.field
        ));
    }
    Ok(got)
}

fn set_rate(node: &mut impl Node, pix: &PixFormat, asked: f64) -> Result<f64, String> {
    // In thousandths of a frame per second: `Config::check` keeps it far below 2^32.
    let time_per_frame =
        Fract { numerator: 1000, denominator: (asked * 1000.0).round().max(1.0) as u32 };
    let parm = StreamParm::of(CaptureParm { time_per_frame, ..CaptureParm::default() });
    let cannot = || "it has no rate to set: leave rate_hz out".to_owned();
    let got = node.set_parm(parm).map_err(|error| match error {
        Errno::NOTTY | Errno::INVAL => cannot(),
        error => format!("setting rate_hz = {asked}: {error}"),
    })?;
    if got.capture.capability & CAP_TIME_PER_FRAME == 0 {
        return Err(cannot());
    }
    match rate(&got) {
        Some(got) if (got / asked - 1.0).abs() <= SAME_RATE => Ok(got),
        got => Err(format!(
            "rate_hz = {asked} is not what it delivers, but {}; in {} {}×{} it offers {}",
            got.map_or("nothing it can name".to_owned(), short),
            FourCc(pix.pixel_format),
            pix.width,
            pix.height,
            rates(node, pix).join(", ")
        )),
    }
}

fn rate(parm: &StreamParm) -> Option<f64> {
    hertz(parm.capture.time_per_frame)
}

fn hertz(interval: Fract) -> Option<f64> {
    let Fract { numerator, denominator } = interval;
    (numerator > 0 && denominator > 0).then(|| f64::from(denominator) / f64::from(numerator))
}

/// A rate with no more digits than it needs.
fn short(rate_hz: f64) -> String {
    format!("{}", (rate_hz * 1000.0).round() / 1000.0)
}

// ── what it offers ──

/// Asks with the index 0, 1 … until the driver has no more.
fn list<T>(ask: impl Fn(u32) -> Result<T, Errno>, tell: impl Fn(T) -> String) -> Vec<String> {
    let mut offers: Vec<String> =
        (0..LONGEST_LIST).map_while(|index| ask(index).ok()).map(tell).collect();
    if offers.is_empty() {
        return vec!["nothing it lists".to_owned()];
    }
    if offers.len() > SHOWN {
        let more = offers.len() - SHOWN;
        offers.truncate(SHOWN);
        offers.push(format!("and {more} more (v4l2-ctl --list-formats-ext shows all)"));
    }
    offers
}

fn formats(node: &impl Node) -> Vec<String> {
    list(
        |index| {
            node.format(FormatDescription { index, kind: CAPTURE, ..FormatDescription::default() })
        },
        |offer| FourCc(offer.pixel_format).to_string(),
    )
}

fn sizes(node: &impl Node, pixel_format: u32) -> Vec<String> {
    list(
        |index| {
            // A range is one answer, whatever the index.
            let offer =
                node.frame_size(FrameSize { index, pixel_format, ..FrameSize::default() })?;
            if offer.kind != DISCRETE && index > 0 { Err(Errno::INVAL) } else { Ok(offer) }
        },
        |FrameSize { kind, range: [a, b, c, d, e, f], .. }| match kind {
            DISCRETE => format!("{a}×{b}"),
            _ => format!("{a}×{d} to {b}×{e} in steps of {c}×{f}"),
        },
    )
}

fn rates(node: &impl Node, pix: &PixFormat) -> Vec<String> {
    let name = |interval| hertz(interval).map_or("no rate".to_owned(), short);
    list(
        |index| {
            let offer = node.frame_interval(FrameInterval {
                index,
                pixel_format: pix.pixel_format,
                width: pix.width,
                height: pix.height,
                ..FrameInterval::default()
            })?;
            if offer.kind != DISCRETE && index > 0 { Err(Errno::INVAL) } else { Ok(offer) }
        },
        |FrameInterval { kind, range: [shortest, longest, _], .. }| match kind {
            DISCRETE => name(shortest),
            _ => format!("{} to {}", name(longest), name(shortest)),
        },
    )
}

/// `GREY`, `Y16 -BE`: four letters, and the bit that means big-endian.
struct FourCc(u32);

impl Display for FourCc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = (self.0 & 0x7fff_ffff).to_le_bytes();
        let name: String = letters
            .iter()
            .map(|&letter| if letter.is_ascii_graphic() { char::from(letter) } else { ' ' })
            .collect();
        f.write_str(name.trim_end())?;
        if self.0 >> 31 == 1 { f.write_str("-BE") } else { Ok(()) }
    }
}

// ── controls ──

fn set_controls(
    node: &mut impl Node,
    wanted: &BTreeMap<String, ControlValue>,
) -> Result<(), String> {
    if wanted.is_empty() {
        return Ok(());
    }
    let there = controls(node);
    let mut found = Vec::with_capacity(wanted.len());
    for (name, value) in wanted {
        let control = there.iter().find(|(known, _)| known == name).map(|(_, control)| control);
        let control = control.ok_or_else(|| {
            let names: Vec<_> = there.iter().map(|(name, _)| name.as_str()).collect();
            format!("[controls] {name} is not a control of it; it has {}", names.join(", "))
        })?;
        let value = value.number();
        settable(name, control, value)?;
        found.push((name, control, value));
    }
    // Twice, since one may be settable only after another whose name comes later: the focus after the
    // automatic focus is off. So a refusal counts in the second round only.
    for (_, control, value) in &found {
        let _refused = node.set_control(Control { id: control.id, value: *value });
    }
    for (name, control, value) in &found {
        node.set_control(Control { id: control.id, value: *value }).map_err(|error| {
            format!("[controls] {name} = {value}: {error}; {}", may_be(&now(node, control)))
        })?;
    }
    for (name, control, value) in &found {
        if control.flags & CTRL_WRITE_ONLY != 0 {
            continue;
        }
        let got = node
            .control(Control { id: control.id, value: 0 })
            .map_err(|error| format!("[controls] reading {name} back: {error}"))?;
        if got.value != *value {
            return Err(format!(
                "[controls] {name} = {value} was set, but it is {}; {}",
                got.value,
                may_be(&now(node, control))
            ));
        }
    }
    Ok(())
}

/// The control as it is now: setting another may have changed its bounds, or freed it.
fn now(node: &impl Node, control: &QueryControl) -> QueryControl {
    let query = QueryControl { id: control.id, ..QueryControl::default() };
    node.query_control(query).unwrap_or(*control)
}

fn settable(name: &str, control: &QueryControl, value: i32) -> Result<(), String> {
    let by_number = [CTRL_INTEGER, CTRL_BOOLEAN, CTRL_MENU, CTRL_BITMASK, CTRL_INTEGER_MENU];
    if !by_number.contains(&control.kind) || control.flags & CTRL_READ_ONLY != 0 {
        return Err(format!("[controls] {name} cannot be set to a number"));
    }
    // A bitmask's bounds are bits.
    if control.kind != CTRL_BITMASK && !(control.minimum..=control.maximum).contains(&value) {
        return Err(format!("[controls] {name} = {value} is out of range; {}", may_be(control)));
    }
    Ok(())
}

fn may_be(control: &QueryControl) -> String {
    let QueryControl { minimum, maximum, step, flags, .. } = control;
    let mut text = format!("it may be {minimum} to {maximum}");
    if *step > 1 {
        let _written = write!(text, " in steps of {step}");
    }
    if flags & CTRL_INACTIVE != 0 {
        text.push_str(" once the control that sets it automatically is off");
    }
    text
}

/// All controls by the names that `v4l2-ctl` gives them.
fn controls(node: &impl Node) -> Vec<(String, QueryControl)> {
    let mut controls = Vec::new();
    let mut id = 0;
    for _ in 0..LONGEST_LIST {
        let query = QueryControl { id: id | CTRL_NEXT, ..QueryControl::default() };
        let Ok(control) = node.query_control(query) else { break };
        id = control.id;
        if control.kind != CTRL_CLASS && control.flags & CTRL_DISABLED == 0 {
            controls.push((key(&text(&control.name)), control));
        }
    }
    controls
}

/// `Exposure Time, Absolute` becomes `exposure_time_absolute`.
fn key(name: &str) -> String {
    name.split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect::<Vec<_>>()
        .join("_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::v4l2::uapi::four_cc;

    /// A camera of 640×480 and 1280×720 in GREY and YUYV at 15 and 30 Hz, with an exposure that can be
    /// set, in steps of 10, once `manual` is on.
    struct Fake {
        capability: Capability,
        field: u32,
        can_rate: u32,
        manual: i32,
        exposure: i32,
    }

    impl Fake {
        fn new() -> Fake {
            let mut capability = Capability {
                capabilities: CAP_DEVICE_CAPS,
                device_caps: CAP_VIDEO_CAPTURE | CAP_STREAMING,
                ..Capability::default()
            };
            capability.card[..4].copy_from_slice(b"Acme");
            Fake {
                capability,
                field: PROGRESSIVE,
                can_rate: CAP_TIME_PER_FRAME,
                manual: 0,
                exposure: 50,
            }
        }
    }

    const SIZES: [(u32, u32); 2] = [(640, 480), (1280, 720)];
    const FORMATS: [[u8; 4]; 2] = [*b"YUYV", *b"GREY"];
    const EXPOSURE: u32 = 20;
    const MANUAL: u32 = 30;

    impl Node for Fake {
        fn capability(&self) -> Result<Capability, Errno> {
            Ok(self.capability)
        }

        fn format(&self, mut asked: FormatDescription) -> Result<FormatDescription, Errno> {
            let letters = FORMATS.get(asked.index as usize).ok_or(Errno::INVAL)?;
            asked.pixel_format = four_cc(*letters);
            Ok(asked)
        }

        fn frame_size(&self, mut asked: FrameSize) -> Result<FrameSize, Errno> {
            let &(width, height) = SIZES.get(asked.index as usize).ok_or(Errno::INVAL)?;
            asked.kind = DISCRETE;
            asked.range[..2].copy_from_slice(&[width, height]);
            Ok(asked)
        }

        /// A range, which drivers give for each index.
        fn frame_interval(&self, mut asked: FrameInterval) -> Result<FrameInterval, Errno> {
            asked.kind = 3;
            asked.range[0] = Fract { numerator: 1, denominator: 30 };
            asked.range[1] = Fract { numerator: 1, denominator: 15 };
            Ok(asked)
        }

        fn set_format(&mut self, mut format: Format) -> Result<Format, Errno> {
            let pix = &mut format.pix;
            if !FORMATS.map(four_cc).contains(&pix.pixel_format) {
                pix.pixel_format = four_cc(FORMATS[0]);
            }
            if !SIZES.contains(&(pix.width, pix.height)) {
                (pix.width, pix.height) = SIZES[0];
            }
            pix.field = self.field;
            Ok(format)
        }

        fn parm(&self, mut parm: StreamParm) -> Result<StreamParm, Errno> {
            parm.capture.time_per_frame = Fract { numerator: 1001, denominator: 30000 };
            Ok(parm)
        }

        fn set_parm(&mut self, mut parm: StreamParm) -> Result<StreamParm, Errno> {
            parm.capture.capability = self.can_rate;
            if hertz(parm.capture.time_per_frame) != Some(15.0) {
                // As uvcvideo has 30 Hz, in units of 100 ns.
                parm.capture.time_per_frame = Fract { numerator: 333_333, denominator: 10_000_000 };
            }
            Ok(parm)
        }

        fn query_control(&self, mut query: QueryControl) -> Result<QueryControl, Errno> {
            let inactive = if self.manual == 1 { 0 } else { CTRL_INACTIVE };
            let there = [
                (1, CTRL_CLASS, "Camera Controls", [0, 0, 0], 0),
                (EXPOSURE, CTRL_INTEGER, "Exposure Time, Absolute", [10, 500, 10], inactive),
                (MANUAL, CTRL_BOOLEAN, "Manual", [0, 1, 1], 0),
                (40, 4, "Do White Balance", [0, 0, 0], CTRL_WRITE_ONLY),
            ];
            let asked = query.id & !CTRL_NEXT;
            let next = query.id & CTRL_NEXT != 0;
            let (id, kind, name, range, flags) = there
                .into_iter()
                .find(|(id, ..)| if next { *id > asked } else { *id == asked })
                .ok_or(Errno::INVAL)?;
            (query.id, query.kind, query.flags) = (id, kind, flags);
            [query.minimum, query.maximum, query.step] = range;
            query.name[..name.len()].copy_from_slice(name.as_bytes());
            Ok(query)
        }

        fn control(&self, mut control: Control) -> Result<Control, Errno> {
            control.value = if control.id == EXPOSURE { self.exposure } else { self.manual };
            Ok(control)
        }

        fn set_control(&mut self, control: Control) -> Result<Control, Errno> {
            match control.id {
                EXPOSURE if self.manual == 0 => return Err(Errno::IO),
                EXPOSURE => self.exposure = control.value / 10 * 10,
                _ => self.manual = control.value,
            }
            Ok(control)
        }
    }

    fn config(text: &str) -> Config {
        toml::from_str(&format!("device = 0\nformat = 'grey'\n{text}")).unwrap()
    }

    fn refusal(fake: &mut Fake, text: &str) -> String {
        negotiate(fake, &config(text)).unwrap_err()
    }

    #[test]
    fn what_the_camera_can_is_agreed() {
        let agreed = negotiate(&mut Fake::new(), &config("rate_hz = 30")).unwrap();
        assert_eq!((agreed.pix.width, agreed.pix.height), (640, 480));
        assert_eq!(agreed.pix.pixel_format, four_cc(*b"GREY"));
        assert!((agreed.rate_hz.unwrap() - 30.0).abs() < 1e-4);
        let agreed = negotiate(&mut Fake::new(), &config("")).unwrap();
        assert!((agreed.rate_hz.unwrap() - 29.97).abs() < 1e-4, "its own where none is asked for");
    }

    #[test]
    fn what_the_driver_changes_is_refused_with_what_it_offers() {
        for (text, says) in [
            (
                "width = 800",
                "width = 800, height = 480 is not what it delivers, but 640×480; in GREY it offers \
                 640×480, 1280×720",
            ),
            (
                "rate_hz = 29.97",
                "rate_hz = 29.97 is not what it delivers, but 30; in GREY 640×480 it offers 15 to 30",
            ),
        ] {
            assert_eq!(refusal(&mut Fake::new(), text), says);
        }
        let y10 = toml::from_str("device = 0\nformat = 'y10'").unwrap();
        assert_eq!(
            negotiate(&mut Fake::new(), &y10).unwrap_err(),
            "format = \"y10\" (Y10) is not what it delivers, but YUYV; it offers YUYV, GREY"
        );
        let mut interlaced = Fake { field: 4, ..Fake::new() };
        assert!(refusal(&mut interlaced, "").contains("interlaced"));
        let mut unpaced = Fake { can_rate: 0, ..Fake::new() };
        assert!(refusal(&mut unpaced, "rate_hz = 30").contains("leave rate_hz out"));
        negotiate(&mut unpaced, &config("")).unwrap();
    }

    #[test]
    fn a_node_that_takes_no_pictures_is_told_apart() {
        for (can, says) in [
            (CAP_STREAMING, "\"Acme\" takes no pictures"),
            (CAP_VIDEO_CAPTURE_MPLANE | CAP_STREAMING, "several planes"),
            (CAP_VIDEO_CAPTURE, "cannot stream"),
        ] {
            let mut fake = Fake::new();
            // What the whole device can says nothing of this node.
            fake.capability.capabilities = CAP_DEVICE_CAPS | CAP_VIDEO_CAPTURE | CAP_STREAMING;
            fake.capability.device_caps = can;
            assert!(refusal(&mut fake, "").contains(says), "{can:x}");
        }
    }

    #[test]
    fn controls_are_set_whatever_their_order_and_read_back() {
        let mut fake = Fake::new();
        let text = "[controls]\nexposure_time_absolute = 60\nmanual = true";
        negotiate(&mut fake, &config(text)).unwrap();
        assert_eq!((fake.manual, fake.exposure), (1, 60));

        for (text, says) in [
            (
                "manual = true\nexposure_time_absolute = 65",
                "= 65 was set, but it is 60; it may be 10 to 500 in steps of 10",
            ),
            (
                "exposure_time_absolute = 70",
                "(os error 5); it may be 10 to 500 in steps of 10 once",
            ),
            ("exposure_time_absolute = 501", "= 501 is out of range; it may be 10 to 500"),
            ("gain = 3", "gain is not a control of it; it has exposure_time_absolute, manual, do"),
            ("do_white_balance = 1", "do_white_balance cannot be set"),
        ] {
            let error = refusal(&mut Fake::new(), &format!("[controls]\n{text}"));
            assert!(error.starts_with("[controls] ") && error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_those_of_v4l2_ctl() {
        assert_eq!(key("Exposure Time, Absolute"), "exposure_time_absolute");
        assert_eq!(key("Y'CbCr Encoding"), "y_cbcr_encoding");
        assert_eq!(FourCc(four_cc(*b"Y16 ") | 1 << 31).to_string(), "Y16-BE");
    }
}
