//! The camera itself, through nokhwa (V4L2). What nokhwa 0.10 cannot do is said in docs/cameras.md.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use image::RgbImage;
use nokhwa::utils::{
    CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType, Resolution,
    nv12_to_rgb, yuyv422_to_rgb,
};
use nokhwa::{Buffer, Camera};

use super::reader::{Fetch, Raw, Reader};
use super::{CameraFault, Config, Format};
use crate::camera::folder;
use crate::camera::video_node::path_of;
use crate::frame::Image;

/// Starts the camera's reader. What the camera says to the format comes with the first grab.
pub fn open(config: &Config) -> Result<Reader, CameraFault> {
    let number = config.device.find()?;
    let (width, height, format) = (config.width, config.height, config.format);
    let wanted = CameraFormat::new(Resolution::new(width, height), code(format), config.rate_hz);
    Reader::start(
        &path_of(number).display().to_string(),
        Duration::from_millis(config.silence_ms),
        move || start(number, wanted),
        Box::new(move |bytes| unpack(bytes, width, height, format)),
    )
}

fn start(number: u32, wanted: CameraFormat) -> Result<Fetch, String> {
    let codes = [wanted.format()];
    let request = RequestedFormat::with_formats(RequestedFormatType::Exact(wanted), &codes);
    let mut camera = Camera::new(CameraIndex::Index(number), request).map_err(|error| {
        format!(
            "it does not open as {wanted}: {error} (v4l2-ctl -d {number} --list-formats-ext lists \
             what it can)"
        )
    })?;
    camera.open_stream().map_err(|error| error.to_string())?;
    Ok(Box::new(move || {
        let buffer = camera.frame().map_err(|error| error.to_string())?;
        let captured_at = captured_at(&buffer);
        Ok(Raw { bytes: buffer.buffer().to_vec(), captured_at })
    }))
}

/// The driver's time stamp comes as wall clock, made a moment ago from the clock we want.
fn captured_at(buffer: &Buffer) -> Instant {
    // A frame older than this is a clock that jumped.
    const OLDEST: Duration = Duration::from_secs(10);
    #[expect(
        clippy::disallowed_methods,
        reason = "the moment of capture is read where the frame is fetched, on the reader's thread"
    )]
    let now = Instant::now();
    let age = || {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        wall.checked_sub(buffer.capture_timestamp()?).filter(|age| *age <= OLDEST)
    };
    age().and_then(|age| now.checked_sub(age)).unwrap_or(now)
}

fn code(format: Format) -> FrameFormat {
    match format {
        Format::Yuyv => FrameFormat::YUYV,
        Format::Mjpeg => FrameFormat::MJPEG,
        Format::Nv12 => FrameFormat::NV12,
    }
}

/// `bytes` is the driver's whole buffer; what follows the frame in it is left aside.
fn unpack(bytes: &[u8], width: u32, height: u32, format: Format) -> Result<Image, String> {
    let pixels = width as usize * height as usize;
    let frame = |length: usize| {
        bytes.get(..length).ok_or(format!("{} bytes, a frame has {length}", bytes.len()))
    };
    let rgb = match format {
        Format::Mjpeg => {
            let image = folder::decode(bytes, 16).map_err(|error| format!("{error:#}"))?;
            if (image.width(), image.height()) != (width, height) {
                return Err(format!(
                    "{}×{} instead of {width}×{height}",
                    image.width(),
                    image.height()
                ));
            }
            return Ok(image);
        }
        Format::Yuyv => yuyv422_to_rgb(frame(2 * pixels)?, false),
        Format::Nv12 => nv12_to_rgb(Resolution::new(width, height), frame(pixels * 3 / 2)?, false),
    };
    let rgb = rgb.map_err(|error| error.to_string())?;
    RgbImage::from_raw(width, height, rgb)
        .map(Image::Rgb)
        .ok_or_else(|| format!("too few samples for {width}×{height}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BT.601: Y 16 is black, Y 235 white, with U = V = 128.
    #[test]
    fn plain_formats_unpack_their_frame_and_leave_the_rest_of_the_buffer() {
        let yuyv = [235, 128, 16, 128, 16, 128, 235, 128, 99, 99];
        let nv12 = [235, 16, 16, 235, 128, 128, 99];
        for (bytes, format) in [(&yuyv[..], Format::Yuyv), (&nv12[..], Format::Nv12)] {
            let Ok(Image::Rgb(image)) = unpack(bytes, 2, 2, format) else { panic!("{format:?}") };
            let levels: Vec<_> = image.pixels().map(|pixel| pixel.0).collect();
            let [white, black] = [[255; 3], [0; 3]];
            for (level, expected) in levels.iter().zip([white, black, black, white]) {
                for (a, b) in level.iter().zip(expected) {
                    // nokhwa converts in whole numbers, scaled by 256.
                    assert!(a.abs_diff(b) <= 2, "{format:?} {levels:?}");
                }
            }
        }
    }

    #[test]
    fn a_short_frame_is_refused() {
        for format in [Format::Yuyv, Format::Nv12, Format::Mjpeg] {
            assert!(unpack(&[0xff, 0xd8, 0xff, 0xda, 0, 2], 4, 4, format).is_err(), "{format:?}");
        }
    }

    #[test]
    fn a_jpeg_of_another_size_is_refused() {
        let mut jpeg = std::io::Cursor::new(Vec::new());
        RgbImage::new(8, 8).write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        assert!(unpack(jpeg.get_ref(), 8, 8, Format::Mjpeg).is_ok());
        let error = unpack(jpeg.get_ref(), 16, 8, Format::Mjpeg).unwrap_err();
        assert!(error.contains("8×8 instead of 16×8"), "{error}");
    }
}
