//! From the bytes of a frame, as V4L2 packs them, to a picture of 8 bits a sample.

use image::{GrayImage, RgbImage};

use super::uapi::PixFormat;
use super::{Format, jpeg};
use crate::camera::folder;
use crate::frame::Image;

/// How the frames of an open camera are packed.
pub struct Unpacker {
    width: u32,
    height: u32,
    packing: Packing,
}

enum Packing {
    /// Of a row that many bytes belong to the picture, and the next begins `stride` bytes after it.
    Rows {
        stride: usize,
        row: usize,
        samples: Samples,
    },
    Jpeg,
}

enum Samples {
    Grey,
    /// 16 bits, little-endian, of which the lower `bits` carry the picture.
    Deep {
        bits: u32,
    },
    Yuyv(Box<YcbcrToRgb>),
}

impl Unpacker {
    /// For frames of `format` as the driver has agreed to them in `pix`. `significant_bits`: of
    /// [`Format::Y16`].
    pub fn new(format: Format, significant_bits: u32, pix: &PixFormat) -> Result<Unpacker, String> {
        let samples = match format {
            Format::Grey => Samples::Grey,
            Format::Y10 => Samples::Deep { bits: 10 },
            Format::Y12 => Samples::Deep { bits: 12 },
            Format::Y16 => Samples::Deep { bits: significant_bits },
            Format::Yuyv => Samples::Yuyv(Box::new(YcbcrToRgb::of(pix)?)),
            Format::Mjpeg => {
                let (width, height) = (pix.width, pix.height);
                return Ok(Unpacker { width, height, packing: Packing::Jpeg });
            }
        };
        let bytes_per_pixel = if matches!(samples, Samples::Grey) { 1 } else { 2 };
        let row = pix.width as usize * bytes_per_pixel;
        let stride = match pix.bytes_per_line as usize {
            // Old drivers leave it out where rows lie close together.
            0 => row,
            stride if stride >= row => stride,
            stride => return Err(format!("its rows have {stride} bytes, but a row needs {row}")),
        };
        let packing = Packing::Rows { stride, row, samples };
        Ok(Unpacker { width: pix.width, height: pix.height, packing })
    }

    /// A picture of the bytes that the driver says to have filled, or why they are none.
    pub fn unpack(&self, bytes: &[u8]) -> Result<Image, String> {
        let (width, height) = (self.width, self.height);
        let Packing::Rows { stride, row, samples } = &self.packing else {
            let image = folder::decode(&jpeg::with_tables(bytes), 16)
                .map_err(|error| format!("{error:#}"))?;
            if (image.width(), image.height()) != (width, height) {
                return Err(format!(
                    "{}×{} instead of {width}×{height}",
                    image.width(),
                    image.height()
                ));
            }
            return Ok(image);
        };
        let whole = stride * (height as usize - 1) + row;
        if bytes.len() < whole {
            return Err(format!("{} bytes, a frame has {whole}", bytes.len()));
        }
        let rows = bytes.chunks(*stride).take(height as usize).map(|line| &line[..*row]);
        let pixels = width as usize * height as usize;
        let image = match samples {
            Samples::Grey => {
                let mut grey = Vec::with_capacity(pixels);
                rows.for_each(|row| grey.extend_from_slice(row));
                GrayImage::from_raw(width, height, grey).map(Image::Gray)
            }
            Samples::Deep { bits } => {
                GrayImage::from_raw(width, height, upper_bits(rows, *bits, pixels)?)
                    .map(Image::Gray)
            }
            Samples::Yuyv(convert) => {
                let mut rgb = vec![0; 3 * pixels];
                for (from, to) in rows.zip(rgb.chunks_exact_mut(3 * width as usize)) {
                    convert.row(from, to);
                }
                RgbImage::from_raw(width, height, rgb).map(Image::Rgb)
            }
        };
        image.ok_or_else(|| format!("too few samples for {width}×{height}"))
    }
}

/// The upper 8 of `bits`. A sample that has more is no picture's: it is never cut off.
fn upper_bits<'a>(
    rows: impl Iterator<Item = &'a [u8]>,
    bits: u32,
    pixels: usize,
) -> Result<Vec<u8>, String> {
    let mut grey = Vec::with_capacity(pixels);
    let mut most = 0;
    for row in rows {
        grey.extend(row.chunks_exact(2).map(|pair| {
            let sample = u16::from_le_bytes([pair[0], pair[1]]);
            most = most.max(sample);
            (sample >> (bits - 8)) as u8
        }));
    }
    if u32::from(most) >> bits != 0 {
        return Err(format!("a sample of {most} has more than the {bits} bits of the format"));
    }
    Ok(grey)
}

/// Y'CbCr of 8 bits to R'G'B' of 0 to 255, as sums in 1/65536.
struct YcbcrToRgb {
    /// Of a Y, with one half for rounding.
    luma: [i32; 256],
    red_of_cr: [i32; 256],
    green_of_cb: [i32; 256],
    green_of_cr: [i32; 256],
    blue_of_cb: [i32; 256],
}

// V4L2_COLORSPACE_*
const COLORSPACE_SMPTE240M: u32 = 2;
const COLORSPACE_REC709: u32 = 3;
const COLORSPACE_JPEG: u32 = 7;
const COLORSPACE_BT2020: u32 = 10;
const COLORSPACE_DCI_P3: u32 = 12;
// V4L2_YCBCR_ENC_*
const ENC_DEFAULT: u32 = 0;
const ENC_601: u32 = 1;
const ENC_709: u32 = 2;
const ENC_XV601: u32 = 3;
const ENC_XV709: u32 = 4;
const ENC_SYCC: u32 = 5;
const ENC_BT2020: u32 = 6;
const ENC_SMPTE240M: u32 = 8;
/// `V4L2_QUANTIZATION_FULL_RANGE`
const FULL_RANGE: u32 = 1;

impl YcbcrToRgb {
    /// What the driver says, and where it says "default" what V4L2 means by that for its colorspace
    /// (`V4L2_MAP_YCBCR_ENC_DEFAULT`, `V4L2_MAP_QUANTIZATION_DEFAULT` in `linux/videodev2.h`).
    fn of(pix: &PixFormat) -> Result<YcbcrToRgb, String> {
        let encoding = match (pix.ycbcr_encoding, pix.colorspace) {
            (ENC_DEFAULT, COLORSPACE_REC709 | COLORSPACE_DCI_P3) => ENC_709,
            (ENC_DEFAULT, COLORSPACE_BT2020) => ENC_BT2020,
            (ENC_DEFAULT, COLORSPACE_SMPTE240M) => ENC_SMPTE240M,
            (ENC_DEFAULT, _) => ENC_601,
            (told, _) => told,
        };
        // The weights of red and blue in Y', from the V4L2 documentation, "Detailed Colorspace
        // Descriptions".
        let (red, blue) = match encoding {
            ENC_601 | ENC_XV601 | ENC_SYCC => (0.299, 0.114),
            ENC_709 | ENC_XV709 => (0.2126, 0.0722),
            ENC_BT2020 => (0.2627, 0.0593),
            ENC_SMPTE240M => (0.212, 0.087),
            other => {
                return Err(format!(
                    "its colours are coded in a way that is not known (V4L2 Y'CbCr encoding {other})"
                ));
            }
        };
        let full = match (encoding, pix.quantization) {
            // xvYCC keeps colours beyond the primaries where limited range has room: it knows no other.
            (ENC_XV601 | ENC_XV709, _) => false,
            (_, 0) => pix.colorspace == COLORSPACE_JPEG,
            (_, told) => told == FULL_RANGE,
        };
        Ok(YcbcrToRgb::new(red, blue, full))
    }

    fn new(red: f64, blue: f64, full: bool) -> YcbcrToRgb {
        let green = 1.0 - red - blue;
        // Limited range: Y' from 16 to 235, chroma 112 to either side of 128.
        let (black, luma, chroma) =
            if full { (0.0, 1.0, 1.0) } else { (16.0, 255.0 / 219.0, 255.0 / 224.0) };
        let table = |zero: f64, factor: f64, offset: f64| {
            std::array::from_fn(|sample| {
                (((sample as f64 - zero) * factor + offset) * 65536.0).round() as i32
            })
        };
        let chroma = |factor: f64| table(128.0, factor * chroma, 0.0);
        YcbcrToRgb {
            luma: table(black, luma, 0.5),
            red_of_cr: chroma(2.0 * (1.0 - red)),
            green_of_cb: chroma(-2.0 * (1.0 - blue) * blue / green),
            green_of_cr: chroma(-2.0 * (1.0 - red) * red / green),
            blue_of_cb: chroma(2.0 * (1.0 - blue)),
        }
    }

    /// A row of Y0 Cb Y1 Cr to one of R G B. Both pixels of a pair have its chroma.
    fn row(&self, from: &[u8], to: &mut [u8]) {
        for (pair, rgb) in from.chunks_exact(4).zip(to.chunks_exact_mut(6)) {
            let [cb, cr] = [usize::from(pair[1]), usize::from(pair[3])];
            let red = self.red_of_cr[cr];
            let green = self.green_of_cb[cb] + self.green_of_cr[cr];
            let blue = self.blue_of_cb[cb];
            for (y, rgb) in [pair[0], pair[2]].into_iter().zip(rgb.chunks_exact_mut(3)) {
                let luma = self.luma[usize::from(y)];
                for (colour, sample) in [red, green, blue].into_iter().zip(rgb) {
                    *sample = ((luma + colour) >> 16).clamp(0, 255) as u8;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, Rgb};

    use super::*;

    fn pix(width: u32, height: u32, bytes_per_line: u32) -> PixFormat {
        PixFormat { width, height, bytes_per_line, colorspace: 8, ..PixFormat::default() }
    }

    fn unpack(format: Format, pix: &PixFormat, bytes: &[u8]) -> Result<Image, String> {
        Unpacker::new(format, 16, pix).unwrap().unpack(bytes)
    }

    fn grey(width: u32, height: u32, samples: &[u8]) -> Image {
        Image::Gray(GrayImage::from_raw(width, height, samples.to_vec()).unwrap())
    }

    #[test]
    fn grey_takes_the_rows_and_leaves_what_fills_them_up() {
        let bytes = [1, 2, 3, 99, 4, 5, 6];
        assert_eq!(
            unpack(Format::Grey, &pix(3, 2, 4), &bytes).unwrap(),
            grey(3, 2, &[1, 2, 3, 4, 5, 6])
        );
        for close in [0, 3] {
            let bytes = [1, 2, 3, 4, 5, 6, 99];
            let image = unpack(Format::Grey, &pix(3, 2, close), &bytes).unwrap();
            assert_eq!(image, grey(3, 2, &[1, 2, 3, 4, 5, 6]));
        }
    }

    #[test]
    fn deep_samples_keep_their_upper_8_bits_and_are_never_cut_off() {
        struct Case {
            format: Format,
            significant_bits: u32,
            samples: [u16; 2],
            gives: Result<[u8; 2], &'static str>,
        }
        let case = |format, significant_bits, samples, gives| Case {
            format,
            significant_bits,
            samples,
            gives,
        };
        for Case { format, significant_bits, samples, gives } in [
            case(Format::Y10, 16, [0x3ff, 0x1fc], Ok([255, 127])),
            case(Format::Y10, 16, [0, 0x400], Err("a sample of 1024 has more than the 10 bits")),
            case(Format::Y12, 16, [0xfff, 0x7f0], Ok([255, 127])),
            case(Format::Y12, 16, [0x1000, 0], Err("a sample of 4096 has more than the 12 bits")),
            case(Format::Y16, 16, [0xffff, 0x7f00], Ok([255, 127])),
            case(Format::Y16, 12, [0xfff, 0x7f0], Ok([255, 127])),
            case(Format::Y16, 12, [0x1fff, 0], Err("a sample of 8191 has more than the 12 bits")),
        ] {
            // Each row is filled up with 0xff, which is no sample.
            let mut bytes: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
            bytes.extend([0xff; 2]);
            let unpacker = Unpacker::new(format, significant_bits, &pix(2, 1, 6)).unwrap();
            match (unpacker.unpack(&bytes), gives) {
                (Ok(image), Ok(expected)) => assert_eq!(image, grey(2, 1, &expected)),
                (Err(error), Err(says)) => assert!(error.contains(says), "{error}"),
                (got, _) => panic!("{format:?} {samples:x?} gave {got:?}"),
            }
        }
    }

    fn colours(pix: &PixFormat, yuyv: [u8; 4]) -> [[u8; 3]; 2] {
        let Ok(Image::Rgb(image)) = unpack(Format::Yuyv, pix, &yuyv) else { panic!("no colour") };
        [image.get_pixel(0, 0).0, image.get_pixel(1, 0).0]
    }

    #[test]
    fn yuyv_gives_black_white_and_the_primaries_as_v4l2_names_the_range() {
        let limited = pix(2, 1, 4);
        assert_eq!(colours(&limited, [16, 128, 235, 128]), [[0; 3], [255; 3]]);
        assert_eq!(colours(&limited, [0, 128, 255, 128]), [[0; 3], [255; 3]], "beyond it: clamped");
        let full = PixFormat { quantization: FULL_RANGE, ..limited };
        let jpeg = PixFormat { colorspace: COLORSPACE_JPEG, ..limited };
        for full in [full, jpeg] {
            assert_eq!(colours(&full, [16, 128, 235, 128]), [[16; 3], [235; 3]]);
        }
        let told = PixFormat { colorspace: COLORSPACE_JPEG, quantization: 2, ..limited };
        let extended = PixFormat { ycbcr_encoding: ENC_XV601, quantization: FULL_RANGE, ..limited };
        for limited in [told, extended] {
            assert_eq!(colours(&limited, [16, 128, 235, 128]), [[0; 3], [255; 3]]);
        }

        // Rec. 601 and 709 codes of full red, green and blue at limited range (ITU-R BT.601-7 and
        // BT.709-6, rounded to whole numbers: so the result may be one off).
        let rec709 = PixFormat { colorspace: COLORSPACE_REC709, ..limited };
        for (pix, red, green, blue) in [
            (limited, [81, 90, 81, 240], [145, 54, 145, 34], [41, 240, 41, 110]),
            (rec709, [63, 102, 63, 240], [173, 42, 173, 26], [32, 240, 32, 118]),
        ] {
            for (at, yuyv) in [red, green, blue].into_iter().enumerate() {
                for got in colours(&pix, yuyv) {
                    let mut wanted = [0; 3];
                    wanted[at] = 255;
                    for (a, b) in got.into_iter().zip(wanted) {
                        assert!(a.abs_diff(b) <= 1, "{yuyv:?} gives {got:?}");
                    }
                }
            }
        }
    }

    /// Against the formula in floating point (R' = Y' + 2(1 − Kr)Cr and so on).
    #[test]
    fn yuyv_is_the_formula_rounded() {
        for full in [false, true] {
            let convert = YcbcrToRgb::new(0.299, 0.114, full);
            for step in 0..4096 {
                let [y, cb, cr] = [step * 7 % 256, step * 31 % 256, step * 97 % 256];
                let mut rgb = [0; 6];
                convert.row(&[y as u8, cb as u8, y as u8, cr as u8], &mut rgb);
                let (y, cb, cr) = (f64::from(y), f64::from(cb) - 128.0, f64::from(cr) - 128.0);
                let (y, cb, cr) = if full {
                    (y, cb, cr)
                } else {
                    ((y - 16.0) * 255.0 / 219.0, cb * 255.0 / 224.0, cr * 255.0 / 224.0)
                };
                let exact = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb];
                for (got, exact) in rgb.iter().zip(exact.into_iter().chain(exact)) {
                    // Half a level by rounding, and a little where the exact sum ends on a half.
                    let off = f64::from(*got) - exact.clamp(0.0, 255.0);
                    assert!(off.abs() <= 0.501, "{got} instead of {exact}");
                }
            }
        }
    }

    #[test]
    fn colours_of_an_unknown_coding_are_refused() {
        let constant_luminance = PixFormat { ycbcr_encoding: 7, ..pix(2, 1, 4) };
        let error = Unpacker::new(Format::Yuyv, 16, &constant_luminance).err().unwrap();
        assert!(error.ends_with("(V4L2 Y'CbCr encoding 7)"), "{error}");
    }

    #[test]
    fn rows_shorter_than_the_picture_are_refused() {
        let error = Unpacker::new(Format::Y10, 16, &pix(4, 2, 7)).err().unwrap();
        assert_eq!(error, "its rows have 7 bytes, but a row needs 8");
    }

    #[test]
    fn a_short_frame_is_none() {
        for (format, whole) in
            [(Format::Grey, 12 + 4), (Format::Y16, 12 + 8), (Format::Yuyv, 12 + 8)]
        {
            let pix = pix(4, 2, 12);
            assert!(unpack(format, &pix, &vec![0; whole]).is_ok());
            let error = unpack(format, &pix, &vec![0; whole - 1]).unwrap_err();
            assert_eq!(error, format!("{} bytes, a frame has {whole}", whole - 1));
            assert!(unpack(format, &pix, &[]).is_err());
        }
    }

    fn jpeg(width: u32) -> Vec<u8> {
        let mut jpeg = Cursor::new(Vec::new());
        let red = RgbImage::from_pixel(width, 8, Rgb([200, 30, 30]));
        red.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
        jpeg.into_inner()
    }

    #[test]
    fn a_jpeg_of_another_size_or_cut_short_is_none() {
        let whole = jpeg(8);
        assert!(unpack(Format::Mjpeg, &pix(8, 8, 0), &whole).is_ok());
        let filled_up = [&whole[..], &[0; 5]].concat();
        assert!(unpack(Format::Mjpeg, &pix(8, 8, 0), &filled_up).is_ok());
        assert!(unpack(Format::Mjpeg, &pix(8, 8, 0), &whole[..whole.len() - 2]).is_err());
        let error = unpack(Format::Mjpeg, &pix(16, 8, 0), &whole).unwrap_err();
        assert_eq!(error, "8×8 instead of 16×8");
    }
}
