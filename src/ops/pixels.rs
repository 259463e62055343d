//! Pixels in: 8-bit pictures of any size to normalised planes of the network's, without a float
//! picture between.
//!
//! The size is changed as the crate `fast_image_resize` changes it (`Convolution(Bilinear)`), number
//! for number: a triangle filter whose support grows with the reduction, first along columns, then
//! along rows, rounded to 8 bits between the two and after them; weights are whole numbers of 15
//! bits. That crate is what [`crate::detector::input`] resizes with, and what bundles were taught
//! with. Pillow's `BILINEAR` has the same filter, but goes along rows first and has weights of 22
//! bits: a pixel here is at most one level away from its. One level is enough to move a score by a
//! hundredth, past what a bundle's parity seal lets through; hence the crate's numbers and not
//! Pillow's.
//!
//! Lanes of the first pass are 16 bytes of a row. Those of the second are 16 rows of the first's
//! result, turned so that a column of theirs is one load, and turned back to be normalised. Letters:
//! S samples a pixel, H × W the target.

use super::feature_map::{Buffer, Shared};
use super::rows::helping;
use super::simd::{Isa, Kernel, LANES, Simd};
use super::stem_conv::Planes;
use super::team::Team;

/// An 8-bit picture, row by row, the samples of a pixel side by side.
#[derive(Clone, Copy, Debug)]
pub struct Pixels<'a> {
    samples: &'a [u8],
    width: usize,
    height: usize,
    depth: usize,
}

impl<'a> Pixels<'a> {
    /// `depth` samples a pixel: 1 for grey, 3 for red, green, blue.
    ///
    /// # Panics
    /// If there are no pixels, their number is another, or `depth` is neither.
    pub fn new(samples: &'a [u8], (height, width): (usize, usize), depth: usize) -> Self {
        assert!(depth == 1 || depth == 3, "{depth} samples a pixel");
        assert!(height * width > 0, "a picture of {width} × {height} has no pixels");
        assert_eq!(samples.len(), height * width * depth, "samples of {width} × {height}");
        Self { samples, width, height, depth }
    }

    pub fn samples(&self) -> &'a [u8] {
        self.samples
    }

    /// Height and width.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Samples a pixel.
    pub fn depth(&self) -> usize {
        self.depth
    }

    fn row(&self, y: usize) -> &'a [u8] {
        let len = self.width * self.depth;
        &self.samples[y * len..][..len]
    }
}

/// Fills planes of one target size; keeps the weights of the last source size.
#[derive(Debug)]
pub struct PixelsIn {
    planes: Planes,
    mean: [f32; 3],
    std: [f32; 3],
    rows: Weights,
    columns: Weights,
    /// What the first pass makes, `[H][source columns][S]`.
    shortened: Vec<u8>,
    /// For each thread, 16 rows of that turned, then 16 rows of the result unturned.
    turned: Vec<[u8; LANES]>,
}

impl PixelsIn {
    /// To `planes`; a level p becomes (p/255 − mean)/std.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn new(planes: Planes, mean: [f32; 3], std: [f32; 3]) -> Self {
        assert!(planes.height * planes.width > 0, "{planes:?} have no pixels");
        let (rows, columns) = (Weights::default(), Weights::default());
        let (shortened, turned) = (Vec::new(), Vec::new());
        Self { planes, mean, std, rows, columns, shortened, turned }
    }

    /// Writes the planes of `pictures`, one behind the other; what surrounds them in `planes` is left
    /// as it is: zeros, in a buffer that nothing else is written to. Grey goes to all three.
    ///
    /// Allocates only where a picture has another size than the one before, or the team has grown.
    ///
    /// # Panics
    /// If `planes` is too short.
    pub fn run(&mut self, team: &Team, isa: Isa, pictures: &[Pixels<'_>], planes: &Buffer) {
        let len = self.planes.len(pictures.len());
        assert!(planes.len() >= len, "{len} numbers in a buffer of {}", planes.len());
        for (i, picture) in pictures.iter().enumerate() {
            let first = i * 3 * self.planes.plane() + self.planes.pad * (self.planes.row() + 1);
            // SAFETY: within the picture's own planes, which end in the buffer, as just checked.
            let to = Shared(unsafe { planes.as_ptr().add(first) });
            let mut shortened = std::mem::take(&mut self.shortened);
            let picture = if picture.height == self.planes.height {
                *picture
            } else {
                self.shorten(team, isa, picture, &mut shortened)
            };
            if picture.width == self.planes.width {
                self.copy(team, &picture, to);
            } else {
                self.narrow(team, isa, &picture, to);
            }
            self.shortened = shortened;
        }
    }

    /// The first pass: `picture` with H rows, in `room`.
    fn shorten<'a>(
        &mut self,
        team: &Team,
        isa: Isa,
        picture: &Pixels<'_>,
        room: &'a mut Vec<u8>,
    ) -> Pixels<'a> {
        let (height, row) = (self.planes.height, picture.width * picture.depth);
        self.rows.fit(picture.height, height);
        grow(room, height * row, 0);
        let room = &mut room[..height * row];
        let to = Shared(room.as_mut_ptr());
        let rows = &self.rows;
        let helping = helping(team, height, row * picture.height.div_ceil(height));
        team.chunks(height, helping, |_, first, end| {
            // SAFETY: the rows from `first` to `end` are in the room, and no other thread has them.
            let to = unsafe {
                std::slice::from_raw_parts_mut(to.get().add(first * row), (end - first) * row)
            };
            isa.run(Shorten { picture, rows, to, first });
        });
        Pixels { samples: room, height, ..*picture }
    }

    /// The second pass, and normalisation; `picture` has H rows.
    fn narrow(&mut self, team: &Team, isa: Isa, picture: &Pixels<'_>, to: Shared<*mut f32>) {
        self.columns.fit(picture.width, self.planes.width);
        let result_len = picture.depth * self.planes.width.next_multiple_of(LANES);
        let len = (picture.width * picture.depth).next_multiple_of(LANES) + result_len;
        grow(&mut self.turned, team.threads() * len, [0; LANES]);
        let turned = Shared(self.turned.as_mut_ptr());
        let own = &*self;
        let bands = self.planes.height.div_ceil(LANES);
        let helping = helping(team, bands, LANES * len);
        team.chunks(bands, helping, |thread, first, end| {
            // SAFETY: there is room for `len` columns a thread, and a thread has its own.
            let turned =
                unsafe { std::slice::from_raw_parts_mut(turned.get().add(thread * len), len) };
            let (source, result) = turned.split_at_mut(len - result_len);
            let bands = Narrow { own, picture, source, result, to: to.get(), first, end };
            match picture.depth {
                1 => isa.run(Depth::<_, 1>(bands)),
                _ => isa.run(Depth::<_, 3>(bands)),
            }
        });
    }

    /// A picture that has the target's size.
    fn copy(&self, team: &Team, picture: &Pixels<'_>, to: Shared<*mut f32>) {
        let levels: [[f32; 256]; 3] = std::array::from_fn(|channel| {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            std::array::from_fn(|level| (level as f32 / 255.0 - mean) / std)
        });
        let helping = helping(team, self.planes.height, 3 * self.planes.width);
        team.chunks(self.planes.height, helping, |_, first, end| {
            for y in first..end {
                for (channel, levels) in levels.iter().enumerate() {
                    // SAFETY: row y of the plane begins there and has W numbers; no other thread has
                    // this row.
                    let row = unsafe {
                        let start =
                            to.get().add(channel * self.planes.plane() + y * self.planes.row());
                        std::slice::from_raw_parts_mut(start, self.planes.width)
                    };
                    let sample = if picture.depth == 1 { 0 } else { channel };
                    for (to, pixel) in row.iter_mut().zip(picture.row(y).chunks(picture.depth)) {
                        *to = levels[usize::from(pixel[sample])];
                    }
                }
            }
        });
    }
}

fn grow<T: Copy>(room: &mut Vec<T>, len: usize, filling: T) {
    if room.len() < len {
        room.resize(len, filling);
    }
}

/// Of one output place: the first input place and the weights from there on.
#[derive(Clone, Copy, Debug)]
struct Taps {
    first: usize,
    from: usize,
    to: usize,
}

/// Weights along one side, in fixed point.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// Sides before and after.
    sides: (usize, usize),
    taps: Vec<Taps>,
    /// Weights · 2ᵇ, from 0 to 2¹⁵ − 1.
    fixed: Vec<i32>,
    /// b, from 14 to 21: the most that leaves the largest weight in 15 bits. Those of one place sum
    /// up to 2ᵇ but for rounding, so that sums of levels stay in 2³⁰.
    bits: i32,
}

impl Weights {
    /// `precompute_coefficients` and `Normalizer16` of `fast_image_resize`, in their order of
    /// operations.
    pub(crate) fn fit(&mut self, from: usize, to: usize) {
        if self.sides == (from, to) {
            return;
        }
        self.sides = (from, to);
        self.taps.clear();
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let inverse = 1.0 / support;
        let mut weights: Vec<f64> = Vec::new();
        for i in 0..to {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - support).floor().max(0.0) as usize;
            let end = ((centre + support).ceil() as usize).min(from);
            let centre = centre - 0.5;
            let start = weights.len();
            weights.extend((first..end).map(|j| {
                let away = ((j as f64 - centre) * inverse).abs();
                (1.0 - away).max(0.0)
            }));
            let sum: f64 = weights[start..].iter().sum();
            weights[start..].iter_mut().for_each(|weight| *weight /= sum);
            self.taps.push(Taps { first, from: start, to: weights.len() });
        }
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let fixed = |weight: f64, bits: i32| (weight * f64::from(1 << bits)).round() as i32;
        self.bits = (0..21).find(|bits| fixed(largest, bits + 1) >= 1 << 15).unwrap_or(21);
        self.fixed.clear();
        self.fixed.extend(weights.iter().map(|weight| fixed(*weight, self.bits)));
    }

    /// b
    pub(crate) fn bits(&self) -> i32 {
        self.bits
    }

    /// Of output place `i`: the first input place, and the weights from there on.
    pub(crate) fn get(&self, i: usize) -> (usize, &[i32]) {
        let taps = self.taps[i];
        (taps.first, &self.fixed[taps.from..taps.to])
    }

    /// What sums begin at, so that shifting them rounds to the nearest.
    fn half(&self) -> i32 {
        1 << (self.bits - 1)
    }
}

struct Shorten<'a> {
    picture: &'a Pixels<'a>,
    rows: &'a Weights,
    /// Rows of the result, from `first` on.
    to: &'a mut [u8],
    first: usize,
}

/// Sums side by side: a cache line of each row.
const ABREAST: usize = 4;

impl Kernel for Shorten<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Shorten { picture, rows, to, first } = self;
        let len = picture.width * picture.depth;
        let (half, bits) = (s.splat_i32(rows.half()), s.splat_i32(rows.bits));
        for (i, to) in to.chunks_exact_mut(len).enumerate() {
            let (from, weights) = rows.get(first + i);
            let source = &picture.samples[from * len..][..weights.len() * len];
            let (lines, rest) = to.as_chunks_mut::<{ ABREAST * LANES }>();
            for (j, line) in lines.iter_mut().enumerate() {
                let mut sums = [half; ABREAST];
                for (row, weight) in source.chunks_exact(len).zip(weights) {
                    let weight = s.splat_i32(*weight);
                    let levels = &row[j * ABREAST * LANES..][..ABREAST * LANES];
                    let levels = levels.as_chunks::<LANES>().0;
                    for k in 0..ABREAST {
                        sums[k] = s.mul_add_u8(levels[k], weight, sums[k]);
                    }
                }
                let line = line.as_chunks_mut::<LANES>().0;
                for k in 0..ABREAST {
                    line[k] = s.shift_to_u8(sums[k], bits);
                }
            }
            let done = len - rest.len();
            for (j, to) in rest.chunks_mut(LANES).enumerate() {
                let mut sum = half;
                for (row, weight) in source.chunks_exact(len).zip(weights) {
                    let mut levels = [0; LANES];
                    levels[..to.len()].copy_from_slice(&row[done + j * LANES..][..to.len()]);
                    sum = s.mul_add_u8(levels, s.splat_i32(*weight), sum);
                }
                to.copy_from_slice(&s.shift_to_u8(sum, bits)[..to.len()]);
            }
        }
    }
}

/// Fixes the samples a pixel while compiling.
struct Depth<K, const S: usize>(K);

struct Narrow<'a> {
    own: &'a PixelsIn,
    /// Of H rows.
    picture: &'a Pixels<'a>,
    /// Samples of 16 rows, column by column.
    source: &'a mut [[u8; LANES]],
    /// The same of the result, plane by plane of a sample.
    result: &'a mut [[u8; LANES]],
    /// Place (0, 0) of the first plane.
    to: *mut f32,
    /// Bands of 16 rows.
    first: usize,
    end: usize,
}

impl<const N: usize> Kernel for Depth<Narrow<'_>, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Narrow { own, picture, source, result, to, first, end } = self.0;
        let columns = &own.columns;
        let (half, bits) = (s.splat_i32(columns.half()), s.splat_i32(columns.bits));
        let plane = result.len() / N;
        for top in (first..end).map(|band| band * LANES) {
            let last = picture.height - 1;
            let rows: [&[u8]; LANES] = std::array::from_fn(|i| picture.row((top + i).min(last)));
            for (tile, to) in source.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let at = tile * LANES;
                if let Some(tile) = tile_at(rows, at) {
                    s.turn_u8(tile, to);
                } else {
                    for (column, x) in to.iter_mut().zip(at..picture.width * N) {
                        *column = rows.map(|row| row[x]);
                    }
                }
            }
            for i in 0..columns.taps.len() {
                let (first, weights) = columns.get(i);
                let mut sums = [half; N];
                let pixels = source[first * N..][..weights.len() * N].chunks_exact(N);
                for (pixel, weight) in pixels.zip(weights) {
                    let weight = s.splat_i32(*weight);
                    for c in 0..N {
                        sums[c] = s.mul_add_u8(pixel[c], weight, sums[c]);
                    }
                }
                for c in 0..N {
                    result[c * plane + i] = s.shift_to_u8(sums[c], bits);
                }
            }
            let bottom = (top + LANES).min(picture.height);
            for sample in 0..N {
                let columns = result[sample * plane..][..plane].as_chunks::<LANES>().0;
                for (tile, columns) in columns.iter().enumerate() {
                    let mut levels = [[0; LANES]; LANES];
                    s.turn_u8(columns.each_ref(), &mut levels);
                    for (y, levels) in (top..bottom).zip(levels) {
                        // SAFETY: `to` is where the planes begin that `own` describes, and no other
                        // thread has rows of these bands.
                        unsafe { own.put(s, N, sample, to, (y, tile * LANES), levels) };
                    }
                }
            }
        }
    }
}

impl PixelsIn {
    /// Normalises up to 16 levels of one sample into the planes from (y, x) on.
    ///
    /// # Safety
    /// `to` is place (0, 0) of a picture's planes, (y, x) is in them, and nobody else uses row y.
    #[inline(always)]
    unsafe fn put<S: Simd>(
        &self,
        s: S,
        depth: usize,
        sample: usize,
        to: *mut f32,
        (y, x): (usize, usize),
        levels: [u8; LANES],
    ) {
        let level = s.div(s.widen_u8(levels), s.splat(255.0));
        let channels = if depth == 1 { 0..3 } else { sample..sample + 1 };
        for channel in channels {
            let value = s.sub(level, s.splat(self.mean[channel]));
            let value = s.div(value, s.splat(self.std[channel]));
            let offset = channel * self.planes.plane() + y * self.planes.row() + x;
            let count = (self.planes.width - x).min(LANES);
            // SAFETY: `count` numbers from place (y, x) of that plane are within its row.
            unsafe {
                let to = to.add(offset);
                if count == LANES {
                    s.store(to, value);
                } else {
                    let values = s.to_array(value);
                    to.copy_from_nonoverlapping(values.as_ptr(), count);
                }
            }
        }
    }
}

/// 16 samples of each row from `at` on, if there are so many.
#[inline(always)]
fn tile_at(rows: [&[u8]; LANES], at: usize) -> Option<[&[u8; LANES]; LANES]> {
    let mut tile = [&[0; LANES]; LANES];
    for (tile, row) in tile.iter_mut().zip(rows) {
        *tile = row.get(at..)?.first_chunk()?;
    }
    Some(tile)
}

#[cfg(test)]
mod tests {
    use fast_image_resize::images::{Image, ImageRef};
    use fast_image_resize::{
        CpuExtensions, FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    };

    use super::super::checks::everywhere;
    use super::*;
    use crate::shared::shared;

    /// Levels as they are, to look at what resizing does.
    fn plain(to: (usize, usize), pad: usize) -> PixelsIn {
        PixelsIn::new(Planes { height: to.0, width: to.1, pad }, [0.0; 3], [1.0 / 255.0; 3])
    }

    /// The levels of one picture [H, W, 3].
    fn levels(own: &PixelsIn, planes: &mut Buffer, picture: usize) -> Vec<u8> {
        let values = planes.as_mut_slice();
        let mut out = Vec::new();
        for (y, x) in
            (0..own.planes.height).flat_map(|y| (0..own.planes.width).map(move |x| (y, x)))
        {
            for c in 0..3 {
                let plane = (picture * 3 + c) * own.planes.plane();
                let value =
                    values[plane + (y + own.planes.pad) * own.planes.row() + x + own.planes.pad];
                // A division and its inverse are a last place or two away from the level.
                assert!((value - value.round()).abs() < 1e-4, "{value}");
                out.push(value.round() as u8);
            }
        }
        out
    }

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    /// The crate's resize, [H, W, S]: with its own lanes, or plain.
    fn twin(picture: &Pixels<'_>, to: (usize, usize), lanes: bool) -> Vec<u8> {
        let kind = if picture.depth == 1 { PixelType::U8 } else { PixelType::U8x3 };
        let (width, height) = (picture.width as u32, picture.height as u32);
        let source = ImageRef::new(width, height, picture.samples, kind).unwrap();
        let mut target = Image::new(to.1 as u32, to.0 as u32, kind);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .use_alpha(false);
        let mut resizer = Resizer::new();
        if !lanes {
            // SAFETY: plain loops run on every machine.
            unsafe { resizer.set_cpu_extensions(CpuExtensions::None) };
        }
        resizer.resize(&source, &mut target, &options).unwrap();
        target.into_vec()
    }

    /// Of one picture, [H, W, S].
    fn ours(team: &Team, isa: Isa, picture: &Pixels<'_>, to: (usize, usize)) -> Vec<u8> {
        let mut own = plain(to, 1);
        let mut planes = Buffer::zeroed(own.planes.len(1));
        own.run(team, isa, &[*picture], &planes);
        let levels = levels(&own, &mut planes, 0);
        if picture.depth == 1 {
            assert!(levels.chunks(3).all(|pixel| pixel == [pixel[0]; 3]));
        }
        levels.chunks(3).flat_map(|pixel| pixel[..picture.depth].to_vec()).collect()
    }

    #[test]
    fn equals_fast_image_resize() {
        // Source and target, (H, W).
        let mut cases = vec![
            // Once, twice, four and twelve times smaller, and a little; a side that is kept.
            ((37, 53), (16, 20)),
            ((64, 96), (32, 16)),
            ((70, 66), (67, 65)),
            ((96, 204), (8, 17)),
            ((100, 17), (7, 17)),
            ((16, 33), (16, 7)),
            // More weights than lanes of the crate: the largest in 2⁻⁶ and beyond.
            ((130, 128), (2, 1)),
            // Larger, and sides of one.
            ((5, 3), (9, 33)),
            ((1, 1), (3, 18)),
            ((1, 40), (20, 1)),
            ((40, 1), (1, 20)),
        ];
        let sides = noise(4 * 24);
        cases.extend(sides.chunks(4).map(|sides| {
            let side = |i: usize| 1 + usize::from(sides[i]) / if i < 2 { 2 } else { 5 };
            ((side(0), side(1)), (side(2), side(3)))
        }));
        everywhere(|team, isa| {
            for &(from, to) in &cases {
                for depth in [1, 3] {
                    let samples = noise(from.0 * from.1 * depth);
                    let picture = Pixels::new(&samples, from, depth);
                    let got = ours(team, isa, &picture, to);
                    for lanes in [false, true] {
                        let want = twin(&picture, to, lanes);
                        assert_eq!(got, want, "{} {from:?} × {depth} to {to:?}", isa.word());
                    }
                }
            }
        });
    }

    #[test]
    fn is_within_one_level_of_pillow() {
        let Some(path) = shared("spec/vectors/pil_resize.json") else { return };
        let file: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let read = |value: &serde_json::Value| -> (Vec<u8>, (usize, usize)) {
            let side = |axis: usize| value["shape"][axis].as_u64().unwrap() as usize;
            (serde_json::from_value(value["data"].clone()).unwrap(), (side(0), side(1)))
        };
        for (name, expected) in file["expected"].as_object().unwrap() {
            let (input, depth) =
                if name.starts_with("rgb") { ("input_rgb", 3) } else { ("input_l", 1) };
            let ((samples, from), (want, to)) = (read(&file[input]), read(expected));
            let picture = Pixels::new(&samples, from, depth);
            let got = ours(&Team::alone(), Isa::detect().unwrap(), &picture, to);
            assert_eq!(got.len(), want.len(), "{name}");
            let worst = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(1), "{name}: off by {worst:?}");
        }
    }

    #[test]
    fn a_batch_is_normalised_and_the_border_stays_zero() {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let (flat, same) = ([255, 0, 51].repeat(31 * 20), noise(20 * 24 * 3));
        let grey = vec![51; 50 * 40];
        let pictures = [
            Pixels::new(&flat, (31, 20), 3),
            Pixels::new(&same, (20, 24), 3),
            Pixels::new(&grey, (50, 40), 1),
        ];
        let level = |level: u8, c: usize| (f32::from(level) / 255.0 - mean[c]) / std[c];
        everywhere(|team, isa| {
            let mut own = PixelsIn::new(Planes { height: 20, width: 24, pad: 3 }, mean, std);
            let mut planes = Buffer::zeroed(own.planes.len(3));
            own.run(team, isa, &pictures, &planes);
            let (row_len, plane_len) = (own.planes.row(), own.planes.plane());
            for (i, value) in planes.as_mut_slice().iter().enumerate() {
                let (plane, y, x) = (i / plane_len, i % plane_len / row_len, i % row_len);
                let (picture, c) = (plane / 3, plane % 3);
                let inside = (3..23).contains(&y) && (3..27).contains(&x);
                let want = match picture {
                    _ if !inside => 0.0,
                    0 => level([255, 0, 51][c], c),
                    1 => level(same[((y - 3) * 24 + x - 3) * 3 + c], c),
                    _ => level(51, c),
                };
                assert_eq!(*value, want, "{} picture {picture}, {c}, ({y}, {x})", isa.word());
            }
        });
    }
}
