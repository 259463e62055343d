//! Structures and numbers of V4L2 as `linux/videodev2.h` has them, as far as a capture needs them.
//!
//! Sizes are those of 64-bit machines, where `struct v4l2_buffer` holds a 64-bit time: what the kernel
//! copies is told by the size within an ioctl's number, so a wrong size is refused, not overrun.

/// `V4L2_BUF_TYPE_VIDEO_CAPTURE`
pub const CAPTURE: u32 = 1;
/// `V4L2_MEMORY_MMAP`
pub const MMAP: u32 = 1;
/// `V4L2_FIELD_NONE`: whole frames, no interlacing.
pub const PROGRESSIVE: u32 = 1;

// V4L2_CAP_*
pub const CAP_VIDEO_CAPTURE: u32 = 0x0000_0001;
pub const CAP_VIDEO_CAPTURE_MPLANE: u32 = 0x0000_1000;
pub const CAP_STREAMING: u32 = 0x0400_0000;
pub const CAP_DEVICE_CAPS: u32 = 0x8000_0000;

/// `V4L2_CAP_TIMEPERFRAME`, of [`CaptureParm::capability`].
pub const CAP_TIME_PER_FRAME: u32 = 0x1000;

// V4L2_BUF_FLAG_*
pub const BUF_ERROR: u32 = 0x0000_0040;
pub const BUF_TIMESTAMP_MASK: u32 = 0x0000_e000;
pub const BUF_TIMESTAMP_MONOTONIC: u32 = 0x0000_2000;

// V4L2_CTRL_FLAG_*
pub const CTRL_DISABLED: u32 = 0x0001;
pub const CTRL_READ_ONLY: u32 = 0x0004;
pub const CTRL_INACTIVE: u32 = 0x0010;
pub const CTRL_WRITE_ONLY: u32 = 0x0040;
pub const CTRL_NEXT: u32 = 0x8000_0000;

// V4L2_CTRL_TYPE_*: those that a 32-bit value sets.
pub const CTRL_INTEGER: u32 = 1;
pub const CTRL_BOOLEAN: u32 = 2;
pub const CTRL_MENU: u32 = 3;
pub const CTRL_CLASS: u32 = 6;
pub const CTRL_BITMASK: u32 = 8;
pub const CTRL_INTEGER_MENU: u32 = 9;

/// `V4L2_FRMSIZE_TYPE_DISCRETE`, `V4L2_FRMIVAL_TYPE_DISCRETE`; the others are ranges.
pub const DISCRETE: u32 = 1;

/// `v4l2_fourcc`
pub const fn four_cc(letters: [u8; 4]) -> u32 {
    u32::from_le_bytes(letters)
}

/// `struct v4l2_capability`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Capability {
    pub driver: [u8; 16],
    pub card: [u8; 32],
    pub bus_info: [u8; 32],
    pub version: u32,
    pub capabilities: u32,
    pub device_caps: u32,
    pub reserved: [u32; 3],
}

/// `struct v4l2_pix_format`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PixFormat {
    pub width: u32,
    pub height: u32,
    pub pixel_format: u32,
    pub field: u32,
    pub bytes_per_line: u32,
    pub size_image: u32,
    pub colorspace: u32,
    pub private: u32,
    pub flags: u32,
    pub ycbcr_encoding: u32,
    pub quantization: u32,
    pub transfer: u32,
}

/// `struct v4l2_format`; the union is as long as its longest member, and aligned for pointers.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Format {
    pub kind: u32,
    pub hole: u32,
    pub pix: PixFormat,
    pub rest: [u32; 38],
}

impl Format {
    pub fn of(pix: PixFormat) -> Format {
        Format { kind: CAPTURE, hole: 0, pix, rest: [0; 38] }
    }
}

/// `struct v4l2_fract`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fract {
    pub numerator: u32,
    pub denominator: u32,
}

/// `struct v4l2_captureparm`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct CaptureParm {
    pub capability: u32,
    pub mode: u32,
    pub time_per_frame: Fract,
    pub extended_mode: u32,
    pub read_buffers: u32,
    pub reserved: [u32; 4],
}

/// `struct v4l2_streamparm`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StreamParm {
    pub kind: u32,
    pub capture: CaptureParm,
    pub rest: [u32; 40],
}

impl StreamParm {
    pub fn of(capture: CaptureParm) -> StreamParm {
        StreamParm { kind: CAPTURE, capture, rest: [0; 40] }
    }
}

/// `struct v4l2_requestbuffers`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct RequestBuffers {
    pub count: u32,
    pub kind: u32,
    pub memory: u32,
    pub capabilities: u32,
    pub flags: u32,
}

/// `struct v4l2_buffer`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Buffer {
    pub index: u32,
    pub kind: u32,
    pub bytes_used: u32,
    pub flags: u32,
    pub field: u32,
    pub hole: u32,
    pub seconds: i64,
    pub microseconds: i64,
    pub timecode: [u32; 4],
    pub sequence: u32,
    pub memory: u32,
    /// The union `m`; for mapped memory its lower half.
    pub offset: u64,
    pub length: u32,
    pub reserved: u32,
    pub request: u32,
    pub end: u32,
}

/// `struct v4l2_fmtdesc`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FormatDescription {
    pub index: u32,
    pub kind: u32,
    pub flags: u32,
    pub description: [u8; 32],
    pub pixel_format: u32,
    pub mbus_code: u32,
    pub reserved: [u32; 3],
}

/// `struct v4l2_frmsizeenum`. `range` is width and height if discrete, else the least, most and step
/// of the width and then of the height.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FrameSize {
    pub index: u32,
    pub pixel_format: u32,
    pub kind: u32,
    pub range: [u32; 6],
    pub reserved: [u32; 2],
}

/// `struct v4l2_frmivalenum`. `range` is one interval if discrete, else the shortest, longest and step.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FrameInterval {
    pub index: u32,
    pub pixel_format: u32,
    pub width: u32,
    pub height: u32,
    pub kind: u32,
    pub range: [Fract; 3],
    pub reserved: [u32; 2],
}

/// `struct v4l2_queryctrl`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QueryControl {
    pub id: u32,
    pub kind: u32,
    pub name: [u8; 32],
    pub minimum: i32,
    pub maximum: i32,
    pub step: i32,
    pub default: i32,
    pub flags: u32,
    pub reserved: [u32; 2],
}

/// `struct v4l2_control`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Control {
    pub id: u32,
    pub value: i32,
}

/// A text of the kernel up to its first zero.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
