//! Plays picture files as if they came from a camera, and decodes picture files for everybody.
//!
//! A folder's pictures are its regular files ending in png, jpg, jpeg, tif, tiff or bmp (any case);
//! names that begin with a dot are left out. They are listed once, when the source is opened.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::{CameraFault, FrameSource, Grab, Picture, period};
use crate::frame::Image;

/// A folder of pictures that stands in for a camera.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder; a relative path in a config file counts from that file's folder.
    pub path: PathBuf,
    /// Parts per second.
    #[serde(default = "default_rate_hz")]
    pub rate_hz: f64,
    #[serde(default)]
    pub order: Order,
    /// Of the shuffle; only with `order = "shuffled"`, 0 where it is not given.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Start again after the last picture (shuffled anew) instead of ending.
    #[serde(default)]
    pub repeat: bool,
    /// Take the pictures of subfolders too. Linked folders are not entered.
    #[serde(default)]
    pub recursive: bool,
    /// How many low bits of a 16-bit sample carry the picture, 8 to 16: 12 for the files of a
    /// 12-bit camera that stores 0..=4095.
    #[serde(default = "default_significant_bits")]
    pub significant_bits: u32,
}

/// The order in which a folder's pictures are played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// By the bytes of the path relative to the folder: `10.png` comes before `9.png`.
    #[default]
    Name,
    Shuffled,
}

impl Config {
    /// A folder played once, in name order, with the documented defaults.
    pub fn new(path: impl Into<PathBuf>) -> Config {
        Config {
            path: path.into(),
            rate_hz: default_rate_hz(),
            order: Order::Name,
            seed: None,
            repeat: false,
            recursive: false,
            significant_bits: default_significant_bits(),
        }
    }

    /// Refuses values that cannot be meant. Whether the folder is there is seen when it is opened.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.path.as_os_str().is_empty(), "path is empty; name the folder of pictures");
        period(self.rate_hz)?;
        check_significant_bits(self.significant_bits)?;
        ensure!(
            self.seed.is_none() || self.order == Order::Shuffled,
            "seed has no meaning with order = \"name\"; leave it out or set order = \"shuffled\""
        );
        Ok(())
    }
}

/// The opened folder.
pub struct Folder {
    config: Config,
    period: Duration,
    /// Relative to the folder; in name order, or as the last shuffle left them.
    names: Vec<PathBuf>,
    next: usize,
    rng: ChaCha8Rng,
}

impl Folder {
    pub fn open(config: &Config) -> Result<Folder, CameraFault> {
        let fault = |error: anyhow::Error| CameraFault(format!("{error:#}"));
        config.check().map_err(fault)?;
        let names = list(&config.path, config.recursive).map_err(fault)?;
        let mut folder = Folder {
            period: period(config.rate_hz).map_err(fault)?,
            names,
            next: 0,
            rng: ChaCha8Rng::seed_from_u64(config.seed.unwrap_or(0)),
            config: config.clone(),
        };
        folder.begin();
        Ok(folder)
    }

    fn begin(&mut self) {
        self.next = 0;
        if self.config.order == Order::Shuffled {
            self.names.shuffle(&mut self.rng);
        }
    }
}

impl FrameSource for Folder {
    /// Reads and decodes the next file; a file that cannot be read is a part too.
    fn grab(&mut self, _patience: Duration) -> Result<Grab, CameraFault> {
        if self.next == self.names.len() {
            if !self.config.repeat {
                return Ok(Grab::End);
            }
            self.begin();
        }
        let relative = &self.names[self.next];
        self.next += 1;
        let name = relative.display().to_string();
        let path = self.config.path.join(relative);
        Ok(match read(&path, self.config.significant_bits) {
            Ok(image) => Grab::Picture(Picture {
                image,
                name,
                captured_at: None,
                position: None,
                truth: None,
            }),
            Err(error) => Grab::Bad { name, reason: format!("{error:#}") },
        })
    }

    fn period(&self) -> Option<Duration> {
        Some(self.period)
    }
}

/// The picture files of a folder, as paths relative to it, in the order of their bytes. Fails
/// where there is none.
pub fn list(folder: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    let mut subfolders = Vec::new();
    let mut ahead = vec![PathBuf::new()];
    while let Some(inside) = ahead.pop() {
        let at = folder.join(&inside);
        let entries =
            fs::read_dir(&at).with_context(|| format!("reading folder {}", at.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("reading folder {}", at.display()))?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let relative = inside.join(&name);
            let is_folder = entry
                .file_type()
                .with_context(|| format!("reading folder {}", at.display()))?
                .is_dir();
            if is_folder {
                subfolders.push(relative.clone());
                if recursive {
                    ahead.push(relative);
                }
            } else if is_picture(&entry.path()) {
                names.push(relative);
            }
        }
    }
    if names.is_empty() {
        let hint = match subfolders.iter().min() {
            Some(one) if !recursive => {
                format!("; it has subfolders ({}): set recursive = true", one.display())
            }
            _ => String::new(),
        };
        bail!("folder {} holds no png, jpeg, tiff or bmp picture{hint}", folder.display());
    }
    names.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(names)
}

/// The endings of picture files.
pub const PICTURES: [&str; 6] = ["png", "jpg", "jpeg", "tif", "tiff", "bmp"];

/// Whether a path is called as a picture and is a file, or a broken link: that stays in the list, as
/// a part that is bad. A pipe or device that merely looks like a picture would be waited for without
/// end.
pub fn is_picture(path: &Path) -> bool {
    let is_special = || fs::metadata(path).is_ok_and(|about| !about.is_file());
    path.extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| PICTURES.iter().any(|known| ending.eq_ignore_ascii_case(known)))
        && !is_special()
}

/// Reads and decodes one picture file; see [`decode`].
pub fn read(path: &Path, significant_bits: u32) -> Result<Image> {
    let bytes = fs::metadata(path)
        .and_then(|about| {
            // The largest picture we decode is no larger on the disk than in memory.
            if about.len() > MAX_BYTES {
                return Err(std::io::Error::other(format!(
                    "{} MiB are more than a picture may have ({} MiB)",
                    about.len() >> 20,
                    MAX_BYTES >> 20
                )));
            }
            fs::read(path)
        })
        .with_context(|| format!("reading {}", path.display()))?;
    decode(&bytes, significant_bits).with_context(|| format!("decoding {}", path.display()))
}

/// Decodes a PNG, JPEG, TIFF or BMP (told by its first bytes, not by a name) to 8 bits a sample.
///
/// Grey stays grey, colour becomes RGB, transparency is dropped, the EXIF orientation is applied.
/// 16-bit samples keep the upper 8 of their `significant_bits` (8..=16); a sample that needs more
/// bits is an error, never cut off. Refused too: more than 512 megapixels or 2 GiB of samples,
/// floating point samples, a JPEG that ends before its end mark.
pub fn decode(bytes: &[u8], significant_bits: u32) -> Result<Image> {
    check_significant_bits(significant_bits)?;
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    match reader.format() {
        Some(ImageFormat::Jpeg) => {
            ensure!(jpeg_is_complete(bytes), "the JPEG ends in the middle of the picture");
        }
        Some(ImageFormat::Png | ImageFormat::Tiff | ImageFormat::Bmp) => {}
        _ => bail!("it is neither a PNG nor a JPEG, TIFF or BMP"),
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    ensure!(width > 0 && height > 0, "the picture is empty ({width}×{height})");
    let pixels = u64::from(width) * u64::from(height);
    ensure!(
        pixels <= MAX_PIXELS && decoder.total_bytes() <= MAX_BYTES,
        "{width}×{height} {:?} is more than a picture may have ({} megapixels, {} MiB)",
        decoder.color_type(),
        MAX_PIXELS >> 20,
        MAX_BYTES >> 20
    );
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    reduce(picture, significant_bits)
}

const MAX_PIXELS: u64 = 512 << 20;
const MAX_BYTES: u64 = 2 << 30;

fn default_rate_hz() -> f64 {
    5.0
}

fn default_significant_bits() -> u32 {
    16
}

fn check_significant_bits(significant_bits: u32) -> Result<()> {
    ensure!(
        (8..=16).contains(&significant_bits),
        "significant_bits = {significant_bits} cannot be; a 16-bit sample carries 8 to 16"
    );
    Ok(())
}

fn reduce(picture: DynamicImage, significant_bits: u32) -> Result<Image> {
    let (width, height) = (picture.width(), picture.height());
    let whole = || anyhow!("a decoder gave too few samples for {width}×{height}");
    Ok(match picture {
        DynamicImage::ImageLuma8(gray) => Image::Gray(gray),
        DynamicImage::ImageLumaA8(_) => Image::Gray(picture.into_luma8()),
        DynamicImage::ImageRgb8(rgb) => Image::Rgb(rgb),
        DynamicImage::ImageRgba8(_) => Image::Rgb(picture.into_rgb8()),
        DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) => {
            let samples = upper_bits(&picture.into_luma16().into_raw(), significant_bits)?;
            Image::Gray(GrayImage::from_raw(width, height, samples).ok_or_else(whole)?)
        }
        DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => {
            let samples = upper_bits(&picture.into_rgb16().into_raw(), significant_bits)?;
            Image::Rgb(RgbImage::from_raw(width, height, samples).ok_or_else(whole)?)
        }
        other => bail!("samples of kind {:?} are not taken; save 8 or 16 bits", other.color()),
    })
}

fn upper_bits(samples: &[u16], significant_bits: u32) -> Result<Vec<u8>> {
    if let Some(&most) = samples.iter().max()
        && u32::from(most) >> significant_bits != 0
    {
        bail!(
            "a sample of {most} does not fit significant_bits = {significant_bits}, which ends at \
             {}; {} would do",
            (1u32 << significant_bits) - 1,
            u16::BITS - most.leading_zeros()
        );
    }
    let shift = significant_bits - 8;
    Ok(samples.iter().map(|&sample| (sample >> shift) as u8).collect())
}

/// Whether the end mark (EOI) comes after the picture's own samples (ITU T.81, annex B). The
/// decoder fills what is missing with grey and says nothing, and half a picture is none.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    let mut in_samples = false;
    loop {
        let Some(&[first, second]) = bytes.get(at..at + 2) else { return false };
        match (first, second) {
            (0xff, 0xd9) => return in_samples,
            (0xff, 0xff) => at += 1,
            // In the samples 0xff is followed by 0, or by one of the restart marks.
            (0xff, 0x00 | 0xd0..=0xd7) => at += 2,
            (0xff, mark) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                in_samples |= mark == 0xda;
            }
            _ if in_samples => at += 1,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    use super::*;

    /// 5×3, so that a turned picture is told by its shape; corners differ.
    fn gray() -> GrayImage {
        GrayImage::from_fn(5, 3, |x, y| Luma([(10 + 40 * x + 7 * y) as u8]))
    }

    fn rgb() -> RgbImage {
        RgbImage::from_fn(5, 3, |x, y| Rgb([(40 * x) as u8, (60 * y) as u8, 200]))
    }

    fn encode(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// The APP1 segment of EXIF 2.3: a little-endian TIFF directory with the one tag 0x0112.
    fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0".to_vec();
        exif.extend([0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0]);
        exif.extend([0; 4]);
        let length = (exif.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
    }

    fn error_of(bytes: &[u8], significant_bits: u32) -> String {
        format!("{:#}", decode(bytes, significant_bits).unwrap_err())
    }

    #[test]
    fn lossless_kinds_give_their_exact_samples() {
        for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Bmp] {
            assert_eq!(
                decode(&encode(rgb(), format), 16).unwrap(),
                Image::Rgb(rgb()),
                "{format:?}"
            );
        }
        for format in [ImageFormat::Png, ImageFormat::Tiff] {
            assert_eq!(
                decode(&encode(gray(), format), 16).unwrap(),
                Image::Gray(gray()),
                "{format:?}"
            );
        }
        // A grey BMP is a palette; the decoder gives it in colour.
        let bmp = decode(&encode(gray(), ImageFormat::Bmp), 16).unwrap();
        assert_eq!(bmp.to_rgb(), Image::Gray(gray()).to_rgb());
    }

    #[test]
    fn jpeg_comes_close_and_keeps_gray_gray() {
        let Image::Gray(decoded) = decode(&encode(gray(), ImageFormat::Jpeg), 16).unwrap() else {
            panic!("a grey JPEG is grey")
        };
        assert_eq!(decoded.dimensions(), (5, 3));
        // Quality 75 quantises the slowest waves in steps of up to 16 levels (T.81, annex K.1).
        for (a, b) in decoded.as_raw().iter().zip(gray().as_raw()) {
            assert!(a.abs_diff(*b) <= 16, "{a} {b}");
        }
        assert!(matches!(decode(&encode(rgb(), ImageFormat::Jpeg), 16).unwrap(), Image::Rgb(_)));
    }

    #[test]
    fn transparency_is_dropped_not_blended() {
        let clear = ImageBuffer::from_fn(5, 3, |x, y| {
            let Rgb([r, g, b]) = *rgb().get_pixel(x, y);
            Rgba([r, g, b, (50 * x) as u8])
        });
        assert_eq!(decode(&encode(clear, ImageFormat::Png), 16).unwrap(), Image::Rgb(rgb()));
        let clear =
            ImageBuffer::from_fn(5, 3, |x, y| LumaA([gray().get_pixel(x, y).0[0], (50 * x) as u8]));
        assert_eq!(decode(&encode(clear, ImageFormat::Png), 16).unwrap(), Image::Gray(gray()));
    }

    #[test]
    fn sixteen_bit_samples_keep_the_upper_8_of_their_significant_bits() {
        struct Case {
            sample: u16,
            significant_bits: u32,
            gives: u8,
        }
        for Case { sample, significant_bits, gives } in [
            Case { sample: 0xabcd, significant_bits: 16, gives: 0xab },
            Case { sample: 0xffff, significant_bits: 16, gives: 0xff },
            Case { sample: 0x0fff, significant_bits: 12, gives: 0xff },
            Case { sample: 0x0abc, significant_bits: 12, gives: 0xab },
            Case { sample: 0x0abc, significant_bits: 16, gives: 0x0a },
            Case { sample: 0x03ff, significant_bits: 10, gives: 0xff },
            Case { sample: 0x0004, significant_bits: 10, gives: 0x01 },
            Case { sample: 0x00a7, significant_bits: 8, gives: 0xa7 },
        ] {
            for format in [ImageFormat::Png, ImageFormat::Tiff] {
                let gray = ImageBuffer::from_pixel(2, 2, Luma([sample]));
                assert_eq!(
                    decode(&encode(gray, format), significant_bits).unwrap(),
                    Image::Gray(GrayImage::from_pixel(2, 2, Luma([gives]))),
                    "{sample:#x} of {significant_bits} bits as {format:?}"
                );
                let color = ImageBuffer::from_pixel(2, 2, Rgb([sample, 0, 16]));
                let Image::Rgb(color) = decode(&encode(color, format), significant_bits).unwrap()
                else {
                    panic!("colour stays colour")
                };
                assert_eq!(color.get_pixel(1, 1).0[..2], [gives, 0]);
            }
        }
    }

    #[test]
    fn a_sample_beyond_its_significant_bits_is_refused_with_the_bits_that_would_do() {
        let bytes = encode(ImageBuffer::from_pixel(2, 2, Luma([4096u16])), ImageFormat::Png);
        let error = error_of(&bytes, 12);
        assert!(error.contains("4096") && error.contains("ends at 4095; 13 would do"), "{error}");
    }

    #[test]
    fn exif_orientation_turns_the_picture_upright() {
        let jpeg = encode(gray(), ImageFormat::Jpeg);
        let Image::Gray(plain) = decode(&jpeg, 16).unwrap() else { panic!("grey") };
        use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate180, rotate270};
        // EXIF 2.3, tag 0x0112: where row 0 and column 0 of the file lie in the upright picture.
        let upright = [
            plain.clone(),
            flip_horizontal(&plain),
            rotate180(&plain),
            flip_vertical(&plain),
            flip_horizontal(&rotate90(&plain)),
            rotate90(&plain),
            flip_horizontal(&rotate270(&plain)),
            rotate270(&plain),
        ];
        for (orientation, upright) in (1..).zip(upright) {
            let decoded = decode(&with_orientation(&jpeg, orientation), 16).unwrap();
            assert_eq!(decoded, Image::Gray(upright), "orientation {orientation}");
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let large = RgbImage::from_fn(64, 48, |x, y| Rgb([(x * 4) as u8, (y * 5) as u8, 90]));
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Tiff, ImageFormat::Bmp] {
            let whole = encode(large.clone(), format);
            assert!(decode(&whole, 16).is_ok());
            for part in 0..10 {
                let cut = &whole[..whole.len() * part / 10];
                assert!(decode(cut, 16).is_err(), "{format:?} cut to {part} tenths");
            }
        }
    }

    #[test]
    fn a_jpeg_is_whole_only_with_an_end_mark_of_its_own() {
        let jpeg = encode(rgb(), ImageFormat::Jpeg);
        let thumbnail = [&[0xff, 0xe1, 0, 4, 0xff, 0xd9], &jpeg[2..jpeg.len() - 2]].concat();
        assert!(jpeg_is_complete(&jpeg));
        assert!(jpeg_is_complete(&[&jpeg[..], b"camera's own trailer"].concat()));
        assert!(!jpeg_is_complete(&[&jpeg[..2], &thumbnail].concat()), "a thumbnail's end mark");
        assert!(!jpeg_is_complete(&[0xff, 0xd8, 0xff, 0xd9]), "no samples");
    }

    #[test]
    fn what_is_no_picture_is_refused_in_words() {
        assert!(error_of(b"shift report, line 4", 16).contains("neither a PNG"));
        assert!(error_of(b"", 16).contains("neither a PNG"));
        let float = ImageBuffer::from_pixel(2, 2, Rgb([0.5f32, 0.5, 0.5]));
        assert!(error_of(&encode(float, ImageFormat::Tiff), 16).contains("8 or 16 bits"));
    }

    #[test]
    fn a_header_that_promises_too_many_pixels_is_refused_before_memory_is_taken() {
        // A BMP's width and height stand at bytes 18 and 22, little-endian.
        let mut bmp = encode(rgb(), ImageFormat::Bmp);
        bmp[18..22].copy_from_slice(&30_000u32.to_le_bytes());
        bmp[22..26].copy_from_slice(&30_000u32.to_le_bytes());
        let error = error_of(&bmp, 16);
        assert!(error.contains("30000×30000") && error.contains("512 megapixels"), "{error}");
    }

    fn write(folder: &Path, name: &str, bytes: &[u8]) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn names(folder: &mut Folder, most: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < most {
            match folder.grab(Duration::ZERO).unwrap() {
                Grab::Picture(Picture { name, .. }) | Grab::Bad { name, .. } => names.push(name),
                Grab::Idle => panic!("a folder is never idle"),
                Grab::End => break,
            }
        }
        names
    }

    fn ten_pictures() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for n in 0..10 {
            write(folder.path(), &format!("{n}.png"), &encode(gray(), ImageFormat::Png));
        }
        folder
    }

    #[test]
    fn pictures_come_by_the_bytes_of_their_names_and_then_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let png = encode(gray(), ImageFormat::Png);
        for name in ["b.png", "10.png", "9.PNG", "a.jpg", "Z.Tiff", ".hidden.png", "notes.txt"] {
            write(folder.path(), name, &png);
        }
        write(folder.path(), "scratch/1.png", &png);
        let mut flat = Folder::open(&Config::new(folder.path())).unwrap();
        assert_eq!(names(&mut flat, 99), ["10.png", "9.PNG", "Z.Tiff", "a.jpg", "b.png"]);
        assert!(matches!(flat.grab(Duration::ZERO), Ok(Grab::End)));

        let config = Config { recursive: true, ..Config::new(folder.path()) };
        let mut deep = Folder::open(&config).unwrap();
        let all = ["10.png", "9.PNG", "Z.Tiff", "a.jpg", "b.png", "scratch/1.png"];
        assert_eq!(names(&mut deep, 99), all);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_bad_part_and_the_next_one_comes() {
        let folder = tempfile::tempdir().unwrap();
        let png = encode(gray(), ImageFormat::Png);
        write(folder.path(), "1.png", b"not a picture");
        write(folder.path(), "2.png", &png[..png.len() - 20]);
        write(folder.path(), "3.png", &png);
        write(folder.path(), "4.png", &png);
        let mut source = Folder::open(&Config::new(folder.path())).unwrap();
        fs::remove_file(folder.path().join("4.png")).unwrap();
        for (name, word) in [("1.png", "neither a PNG"), ("2.png", "decoding")] {
            let Ok(Grab::Bad { name: bad, reason }) = source.grab(Duration::ZERO) else {
                panic!("{name} is bad")
            };
            assert_eq!(bad, name);
            assert!(reason.contains(word), "{reason}");
        }
        let Ok(Grab::Picture(picture)) = source.grab(Duration::ZERO) else { panic!("3 is good") };
        assert_eq!((picture.name.as_str(), picture.image), ("3.png", Image::Gray(gray())));
        assert!(matches!(source.grab(Duration::ZERO), Ok(Grab::Bad { .. })), "4 is gone");
        assert!(matches!(source.grab(Duration::ZERO), Ok(Grab::End)));
    }

    #[test]
    fn shuffling_is_by_seed_alone_and_each_round_has_every_picture_once() {
        let folder = ten_pictures();
        let shuffled = |seed| {
            let config = Config {
                order: Order::Shuffled,
                seed: Some(seed),
                repeat: true,
                ..Config::new(folder.path())
            };
            names(&mut Folder::open(&config).unwrap(), 20)
        };
        let order = shuffled(7);
        assert_eq!(order, shuffled(7));
        assert_ne!(order, shuffled(8));
        assert_ne!(order[..10], order[10..]);
        let by_name: Vec<_> = (0..10).map(|n| format!("{n}.png")).collect();
        for round in order.chunks(10) {
            let mut sorted = round.to_vec();
            sorted.sort();
            assert_eq!(sorted, by_name);
            assert_ne!(round, by_name);
        }
    }

    #[test]
    fn repeat_begins_again_without_an_end() {
        let folder = ten_pictures();
        let config = Config { repeat: true, ..Config::new(folder.path()) };
        let played = names(&mut Folder::open(&config).unwrap(), 25);
        assert_eq!(played.len(), 25);
        assert_eq!(played[..10], played[10..20]);
        assert_eq!(played[20], "0.png");
    }

    #[test]
    fn the_period_is_one_over_the_rate() {
        let folder = ten_pictures();
        let config = Config { rate_hz: 8.0, ..Config::new(folder.path()) };
        let period = Folder::open(&config).unwrap().period();
        assert_eq!(period, Some(Duration::from_millis(125)));
    }

    #[test]
    fn a_folder_without_pictures_is_a_fault_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let fault = |path: &Path| match Folder::open(&Config::new(path)) {
            Ok(_) => panic!("{} has no pictures", path.display()),
            Err(CameraFault(text)) => text,
        };
        assert!(fault(folder.path()).contains("holds no png, jpeg, tiff or bmp picture"));
        write(folder.path(), "good/1.png", &encode(gray(), ImageFormat::Png));
        assert!(fault(folder.path()).contains("(good): set recursive = true"));
        let missing = folder.path().join("missing");
        assert!(fault(&missing).contains(&format!("reading folder {}", missing.display())));
    }
}
