//! Pixels in: 8-bit pictures of any size to normalised planes of the network's, without a float
//! picture between.
//!
//! The size is changed by Pillow's `BILINEAR` rule (`Resample.c`): a triangle filter whose support
//! grows with the reduction, first along rows, then along columns, weights in fixed point of 22 bits,
//! rounded to 8 bits between the two and after them. Both passes give Pillow's very numbers: a weight
//! is split in two of 11 bits, whose sums of products are whole numbers that f32 holds exactly (up to
//! 32 weights, a reduction 16 times; beyond, a result may be off by one level).
//!
//! Lanes of the first pass are 16 rows of the source, turned so that a column of theirs is one load;
//! lanes of the second are 16 columns of the target. Letters: S samples a pixel, H × W the target.

use super::feature_map::{Buffer, Shared};
use super::rows::helping;
use super::simd::{Isa, Kernel, LANES, Simd};
use super::simd_math::round;
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
    columns: Weights,
    rows: Weights,
    /// What the first pass makes, `[source rows, rounded up to 16][S][W rounded up to 16]`.
    narrowed: Vec<u8>,
    /// For each thread, 16 rows of the source turned, then 16 rows of the first pass unturned.
    turned: Vec<[u8; LANES]>,
}

impl PixelsIn {
    /// To `planes`; a level p becomes (p/255 − mean)/std.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn new(planes: Planes, mean: [f32; 3], std: [f32; 3]) -> Self {
        assert!(planes.height * planes.width > 0, "{planes:?} have no pixels");
        let (columns, rows) = (Weights::default(), Weights::default());
        let (narrowed, turned) = (Vec::new(), Vec::new());
        Self { planes, mean, std, columns, rows, narrowed, turned }
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
            if (picture.height, picture.width) == (self.planes.height, self.planes.width) {
                self.copy(team, picture, to);
            } else {
                self.prepare(picture, team.threads());
                self.narrow(team, isa, picture);
                self.shorten(team, isa, picture.depth, to);
            }
        }
    }

    /// Weights and room for pictures like this one.
    fn prepare(&mut self, picture: &Pixels<'_>, threads: usize) {
        self.columns.fit(picture.width, self.planes.width);
        self.rows.fit(picture.height, self.planes.height);
        let narrowed = picture.height.next_multiple_of(LANES) * self.narrowed_row(picture.depth);
        let turned = threads * self.turned_len(picture);
        grow(&mut self.narrowed, narrowed, 0);
        grow(&mut self.turned, turned, [0; LANES]);
    }

    fn narrowed_row(&self, depth: usize) -> usize {
        depth * self.planes.width.next_multiple_of(LANES)
    }

    /// Of one thread: the source's columns, and those of the result.
    fn turned_len(&self, picture: &Pixels<'_>) -> usize {
        (picture.width * picture.depth).next_multiple_of(LANES) + self.narrowed_row(picture.depth)
    }

    /// The first pass.
    fn narrow(&mut self, team: &Team, isa: Isa, picture: &Pixels<'_>) {
        let (row, turned_len) = (self.narrowed_row(picture.depth), self.turned_len(picture));
        let narrowed = Shared(self.narrowed.as_mut_ptr());
        let turned = Shared(self.turned.as_mut_ptr());
        let bands = picture.height.div_ceil(LANES);
        let columns = &self.columns;
        let helping = helping(team, bands, LANES * picture.width * picture.depth);
        team.chunks(bands, helping, |thread, first, end| {
            // SAFETY: `prepare` made room for `turned_len` columns a thread, and for all bands of 16
            // rows; a thread has its columns, and bands that no other has.
            let (turned, to) = unsafe {
                (
                    std::slice::from_raw_parts_mut(
                        turned.get().add(thread * turned_len),
                        turned_len,
                    ),
                    std::slice::from_raw_parts_mut(
                        narrowed.get().add(first * LANES * row),
                        (end - first) * LANES * row,
                    ),
                )
            };
            let (source, result) = turned.split_at_mut(turned_len - row);
            let band = Narrow { picture, columns, source, result, to, first };
            match picture.depth {
                1 => isa.run(Depth::<_, 1>(band)),
                _ => isa.run(Depth::<_, 3>(band)),
            }
        });
    }

    /// The second pass, and normalisation.
    fn shorten(&self, team: &Team, isa: Isa, depth: usize, to: Shared<*mut f32>) {
        let row = self.narrowed_row(depth);
        let helping = helping(team, self.planes.height, 8 * row);
        team.chunks(self.planes.height, helping, |_, first, end| {
            isa.run(Shorten { own: self, depth, row, to: to.get(), first, end });
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

/// Pillow's weights along one side.
#[derive(Debug, Default)]
struct Weights {
    /// Sides before and after.
    sides: (usize, usize),
    taps: Vec<Taps>,
    /// Multiples of 2¹¹ and the rest, from −2¹⁰ to 2¹⁰: together the weight · 2²².
    pairs: Vec<[f32; 2]>,
}

/// Of a weight in fixed point.
const BITS: u32 = 22;
const HALF_BITS: u32 = BITS / 2;

impl Weights {
    /// `precompute_coeffs` and `normalize_coeffs_8bpc`.
    fn fit(&mut self, from: usize, to: usize) {
        if self.sides == (from, to) {
            return;
        }
        self.sides = (from, to);
        self.taps.clear();
        self.pairs.clear();
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let inverse = 1.0 / support;
        for i in 0..to {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let weight = |j: usize| {
                let away = ((j as f64 - centre + 0.5) * inverse).abs();
                (1.0 - away).max(0.0)
            };
            let sum: f64 = (first..end).map(weight).sum();
            self.taps.push(Taps {
                first,
                from: self.pairs.len(),
                to: self.pairs.len() + end - first,
            });
            self.pairs.extend((first..end).map(|j| {
                let fixed = (0.5 + weight(j) / sum * f64::from(1 << BITS)) as i32;
                let high = (fixed + (1 << (HALF_BITS - 1))) >> HALF_BITS;
                [high as f32, (fixed - (high << HALF_BITS)) as f32]
            }));
        }
    }

    fn get(&self, i: usize) -> (usize, &[[f32; 2]]) {
        let taps = self.taps[i];
        (taps.first, &self.pairs[taps.from..taps.to])
    }
}

/// A sum of levels times weights in halves; see [`Sum::level`].
#[derive(Clone, Copy)]
struct Sum<F> {
    high: F,
    low: F,
}

impl<F: Copy> Sum<F> {
    /// The highs are in units of 2¹¹ and begin at half a unit, the lows at what makes rounding them
    /// to whole units of 2¹¹ rounding down.
    #[inline(always)]
    fn new<S: Simd<F = F>>(s: S) -> Self {
        Self { high: s.splat(0.5), low: s.splat(0.5 - 1024.0) }
    }

    #[inline(always)]
    fn add<S: Simd<F = F>>(&mut self, s: S, levels: F, [high, low]: [F; 2]) {
        self.high = s.mul_add(levels, high, self.high);
        self.low = s.mul_add(levels, low, self.low);
    }

    /// (sum + 2²¹) >> 22. With h units of 2¹¹ and c = ⌊low/2¹¹⌋ more, that is ⌊(h + c + 2¹⁰)/2¹¹⌋,
    /// which is (h + c + ½)/2¹¹ rounded to the nearest: the ½ keeps it off the ties.
    #[inline(always)]
    fn level<S: Simd<F = F>>(self, s: S) -> F {
        let unit = s.splat(1.0 / (1 << HALF_BITS) as f32);
        let carry = round(s, s.mul(self.low, unit));
        round(s, s.mul(s.add(self.high, carry), unit))
    }
}

/// Fixes the samples a pixel while compiling.
struct Depth<K, const S: usize>(K);

struct Narrow<'a> {
    picture: &'a Pixels<'a>,
    columns: &'a Weights,
    /// Samples of 16 rows, column by column.
    source: &'a mut [[u8; LANES]],
    /// The same of the result, plane by plane of a sample.
    result: &'a mut [[u8; LANES]],
    /// Rows of the result, from band `first` on.
    to: &'a mut [u8],
    first: usize,
}

impl<const N: usize> Kernel for Depth<Narrow<'_>, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Narrow { picture, columns, source, result, to, first } = self.0;
        let row = result.len();
        let plane = row / N;
        for (band, to) in to.chunks_exact_mut(LANES * row).enumerate() {
            let last = picture.height - 1;
            let rows: [&[u8]; LANES] =
                std::array::from_fn(|i| picture.row(((first + band) * LANES + i).min(last)));
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
                let mut sums = [Sum::new(s); N];
                let pixels = source[first * N..][..weights.len() * N].chunks_exact(N);
                for (pixel, weight) in pixels.zip(weights) {
                    let weight = [s.splat(weight[0]), s.splat(weight[1])];
                    for c in 0..N {
                        sums[c].add(s, s.widen_u8(pixel[c]), weight);
                    }
                }
                for c in 0..N {
                    result[c * plane + i] = s.narrow_u8(sums[c].level(s));
                }
            }
            for (tile, columns) in result.as_chunks::<LANES>().0.iter().enumerate() {
                let mut pixels = [[0; LANES]; LANES];
                s.turn_u8(columns.each_ref(), &mut pixels);
                for (to, pixels) in to.chunks_exact_mut(row).zip(&pixels) {
                    to[tile * LANES..][..LANES].copy_from_slice(pixels);
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

struct Shorten<'a> {
    own: &'a PixelsIn,
    depth: usize,
    /// Of the first pass's result.
    row: usize,
    /// Place (0, 0) of the first plane.
    to: *mut f32,
    /// Rows of the target.
    first: usize,
    end: usize,
}

impl Kernel for Shorten<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let own = self.own;
        let plane = self.row / self.depth;
        for y in self.first..self.end {
            let (first, weights) = own.rows.get(y);
            let source = &own.narrowed[first * self.row..][..weights.len() * self.row];
            for sample in 0..self.depth {
                for x in (0..own.planes.width).step_by(LANES) {
                    let mut sum = Sum::new(s);
                    let at = sample * plane + x;
                    for (row, weight) in source.chunks_exact(self.row).zip(weights) {
                        if let Some(levels) = row[at..].first_chunk() {
                            let weight = [s.splat(weight[0]), s.splat(weight[1])];
                            sum.add(s, s.widen_u8(*levels), weight);
                        }
                    }
                    let level = s.div(sum.level(s), s.splat(255.0));
                    let channels = if self.depth == 1 { 0..3 } else { sample..sample + 1 };
                    for channel in channels {
                        let value = s.sub(level, s.splat(own.mean[channel]));
                        let value = s.div(value, s.splat(own.std[channel]));
                        let offset = channel * own.planes.plane() + y * own.planes.row() + x;
                        let count = (own.planes.width - x).min(LANES);
                        // SAFETY: `count` numbers from place (y, x) of that plane are within its row,
                        // which no other thread has.
                        unsafe {
                            let to = self.to.add(offset);
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
        }
    }
}

#[cfg(test)]
mod tests {
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

    /// Pillow's resize in integers, as its C does it: [H, W, S].
    fn pillow(picture: &Pixels<'_>, (height, width): (usize, usize)) -> Vec<u8> {
        let depth = picture.depth;
        let pass = |from: usize, to: usize, value: &dyn Fn(usize) -> u8| -> Vec<u8> {
            let scale = from as f64 / to as f64;
            let support = scale.max(1.0);
            let one = |i: usize| {
                let centre = (i as f64 + 0.5) * scale;
                let first = ((centre - support + 0.5) as i64).max(0) as usize;
                let end = ((centre + support + 0.5) as usize).min(from);
                let mut weights: Vec<f64> = (first..end)
                    .map(|j| (1.0 - ((j as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0))
                    .collect();
                let sum: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|weight| *weight /= sum);
                let mut total = 1i64 << 21;
                for (j, weight) in (first..end).zip(weights) {
                    total += i64::from(value(j)) * (0.5 + weight * f64::from(1 << 22)) as i64;
                }
                (total >> 22).clamp(0, 255) as u8
            };
            (0..to).map(one).collect()
        };
        let mut rows = Vec::new();
        for y in 0..picture.height {
            let row = picture.row(y);
            let samples: Vec<Vec<u8>> =
                (0..depth).map(|c| pass(picture.width, width, &|x| row[x * depth + c])).collect();
            rows.push(
                (0..width * depth).map(|i| samples[i % depth][i / depth]).collect::<Vec<_>>(),
            );
        }
        let columns: Vec<Vec<u8>> =
            (0..width * depth).map(|x| pass(picture.height, height, &|y| rows[y][x])).collect();
        (0..height).flat_map(|y| columns.iter().map(move |column| column[y])).collect()
    }

    #[test]
    fn equals_pillows_integers() {
        // Source (H, W), target: reductions, enlargements, ties (a half and a sixth), sides below a
        // tile, and one side kept.
        let cases = [
            ((37, 53), (16, 20)),
            ((64, 96), (32, 16)),
            ((5, 3), (9, 33)),
            ((100, 17), (7, 17)),
            ((16, 33), (16, 7)),
            ((1, 1), (3, 18)),
        ];
        everywhere(|team, isa| {
            for ((h, w), to) in cases {
                for depth in [1, 3] {
                    let samples = noise(h * w * depth);
                    let picture = Pixels::new(&samples, (h, w), depth);
                    let mut own = plain(to, 1);
                    let mut planes = Buffer::zeroed(own.planes.len(1));
                    own.run(team, isa, &[picture], &planes);
                    let want: Vec<u8> = pillow(&picture, to)
                        .chunks(depth)
                        .flat_map(|pixel| (0..3).map(move |c| pixel[c % depth]))
                        .collect();
                    let got = levels(&own, &mut planes, 0);
                    assert_eq!(got, want, "{} {h} × {w} × {depth} to {to:?}", isa.word());
                }
            }
        });
    }

    #[test]
    fn equals_the_vectors() {
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
            let mut own = plain(to, 0);
            let mut planes = Buffer::zeroed(own.planes.len(1));
            let isa = Isa::detect().unwrap();
            own.run(&Team::alone(), isa, &[Pixels::new(&samples, from, depth)], &planes);
            let got: Vec<u8> =
                levels(&own, &mut planes, 0).chunks(3).flat_map(|p| p[..depth].to_vec()).collect();
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn is_within_one_level_of_what_the_networks_are_taught_with() {
        use fast_image_resize::images::{Image, ImageRef};
        use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
        let (from, to) = ((83, 121), (32, 64));
        for (depth, kind) in [(1, PixelType::U8), (3, PixelType::U8x3)] {
            let samples = noise(from.0 * from.1 * depth);
            let source = ImageRef::new(from.1 as u32, from.0 as u32, &samples, kind).unwrap();
            let mut target = Image::new(to.1 as u32, to.0 as u32, kind);
            let options = ResizeOptions::new()
                .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
                .use_alpha(false);
            Resizer::new().resize(&source, &mut target, &options).unwrap();
            let mut own = plain(to, 0);
            let mut planes = Buffer::zeroed(own.planes.len(1));
            let picture = Pixels::new(&samples, from, depth);
            own.run(&Team::alone(), Isa::detect().unwrap(), &[picture], &planes);
            let got = levels(&own, &mut planes, 0);
            for (got, want) in got.chunks(3).zip(target.buffer().chunks(depth)) {
                assert!((0..depth).all(|c| got[c].abs_diff(want[c]) <= 1), "{got:?} {want:?}");
            }
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
