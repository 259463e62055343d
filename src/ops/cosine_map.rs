//! How alike two feature maps are, place by place: the cosine between the channel vectors of teacher
//! and student. With n(F) = F/(√Σ_c F² + 10⁻¹²) (DeSTSeg, `../shared/spec/destseg.md`):
//! the distance 1 − Σ_c n(a)·n(b) or ½‖n(a) − n(b)‖², and the product −n(a)·n(b) channel by channel.
//! Letters: C channels, H × W places.

use super::feature_map::{FeatureMap, Shape, Shared};
use super::rows::{Rows, helping};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Keeps the norm of a zero vector from dividing by zero.
const LEAST: f32 = 1e-12;

/// Places that are worked on together, so that the end of it is done in lanes.
const TILE: usize = LANES;

/// How far two directions are apart. The two differ only where a vector is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// 1 − Σ_c n(a)·n(b), which is 1 for a zero vector (DeSTSeg).
    OneMinusCosine,
    /// ½‖n(a) − n(b)‖², which is ½ for one zero vector and 0 for two (STFPM, NTSNet).
    HalfSquared,
}

/// Two maps [C, H, W] and where their distance goes, [1, H, W].
#[derive(Clone, Copy)]
pub struct Level<'a> {
    pub a: FeatureMap<'a>,
    pub b: FeatureMap<'a>,
    pub to: FeatureMap<'a>,
}

/// The distance of each level, all of them in one piece of work.
///
/// # Panics
/// If shapes do not fit, or a result overlaps any other map.
pub fn cosine_distances(team: &Team, isa: Isa, distance: Distance, levels: &[Level<'_>]) {
    let (mut count, mut len) = (0, 0);
    for (i, Level { a, b, to }) in levels.iter().enumerate() {
        assert_eq!(to.shape(), Shape { channels: 1, ..a.shape() }, "a cosine distance");
        check(*a, *b, *to);
        // Threads work on several levels at once.
        for (_, other) in levels.iter().enumerate().filter(|(j, _)| *j != i) {
            let apart = [other.a, other.b, other.to].iter().all(|map| !to.overlaps(map));
            assert!(apart, "the result overlaps a map of another level");
        }
        let rows = Rows::of_images(a.shape()).count();
        count += rows;
        len += 2 * rows * a.shape().width * a.shape().blocks() * LANES;
    }
    if count == 0 {
        return;
    }
    let levels = Shared(levels);
    team.chunks(count, helping(team, count, len / count), |_, first, end| {
        let mut before = 0;
        for level in levels.get() {
            let rows = Rows::of_images(level.a.shape());
            // The part of this helping that lies in this level.
            let from = first.max(before) - before;
            let to = end.clamp(before, before + rows.count()) - before;
            if from < to {
                isa.run(DistanceRows { distance, level, rows, first: from, end: to });
            }
            before += rows.count();
        }
    });
}

/// −n(a)·n(b), channel by channel: [C, H, W].
///
/// # Panics
/// If the shapes differ, or the result overlaps an argument.
pub fn cosine_product(
    team: &Team,
    isa: Isa,
    a: FeatureMap<'_>,
    b: FeatureMap<'_>,
    to: FeatureMap<'_>,
) {
    assert_eq!(to.shape(), a.shape(), "a cosine product");
    check(a, b, to);
    let rows = Rows::of_images(a.shape());
    let len = 3 * a.shape().width * a.shape().blocks() * LANES;
    let level = Level { a, b, to };
    let shared = Shared(&level);
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        isa.run(ProductRows { level: shared.get(), rows, first, end });
    });
}

fn check(a: FeatureMap<'_>, b: FeatureMap<'_>, to: FeatureMap<'_>) {
    assert_eq!(a.shape(), b.shape(), "the cosine between two maps");
    assert!(!to.overlaps(&a) && !to.overlaps(&b), "the result overlaps an argument");
}

/// Up to [`TILE`] places of a row.
#[derive(Clone, Copy)]
struct Tile {
    /// The first of them in plane 0 of each argument.
    a: *const f32,
    b: *const f32,
    /// Numbers from plane to plane.
    plane: usize,
    blocks: usize,
    count: usize,
}

impl Tile {
    /// Σ a·b, 1/((√Σa² + ε)(√Σb² + ε)), and ½ for each of a, b that is not zero, of its places, a
    /// lane each.
    ///
    /// # Safety
    /// The pointers are as described, with `count` places in each of `blocks` planes.
    #[inline(always)]
    unsafe fn cosines<S: Simd>(self, s: S) -> (S::F, S::F, S::F) {
        let mut sums = [[0.0; TILE]; 3];
        let mut i = 0;
        // As many together as there are registers for.
        let together = if S::ISA == Isa::Avx512 { 4 } else { 2 };
        while i < self.count {
            // SAFETY: as the caller promises; i + N ≤ count.
            i += unsafe {
                if i + together > self.count {
                    self.sums::<S, 1>(s, i, &mut sums)
                } else if together == 4 {
                    self.sums::<S, 4>(s, i, &mut sums)
                } else {
                    self.sums::<S, 2>(s, i, &mut sums)
                }
            };
        }
        let [dots, aa, bb] = [s.load_array(sums[0]), s.load_array(sums[1]), s.load_array(sums[2])];
        let (norm_a, norm_b) =
            (s.add(s.sqrt(aa), s.splat(LEAST)), s.add(s.sqrt(bb), s.splat(LEAST)));
        // By the one norm before the other: a product of two small ones is no normal number.
        let scales = s.div(s.div(s.splat(1.0), norm_a), norm_b);
        let half = |squares: S::F| s.select(s.lt(s.zero(), squares), s.splat(0.5), s.zero());
        (dots, scales, s.add(half(aa), half(bb)))
    }

    /// Σ a·b, Σ a² and Σ b² of places `i`..`i + N`; N.
    ///
    /// # Safety
    /// As in [`Tile::cosines`], and these places are below `count`.
    #[inline(always)]
    unsafe fn sums<S: Simd, const N: usize>(
        self,
        s: S,
        i: usize,
        sums: &mut [[f32; TILE]; 3],
    ) -> usize {
        let mut own = [[s.zero(); 3]; N];
        for block in 0..self.blocks {
            for (j, [dot, aa, bb]) in own.iter_mut().enumerate() {
                let offset = block * self.plane + (i + j) * LANES;
                // SAFETY: as the caller promises.
                let (a, b) = unsafe { (s.load(self.a.add(offset)), s.load(self.b.add(offset))) };
                *dot = s.mul_add(a, b, *dot);
                *aa = s.mul_add(a, a, *aa);
                *bb = s.mul_add(b, b, *bb);
            }
        }
        for (j, own) in own.into_iter().enumerate() {
            for (sums, own) in sums.iter_mut().zip(own) {
                sums[i + j] = s.sum(own);
            }
        }
        N
    }
}

impl Level<'_> {
    /// The places of row (image, y) from `x` on, at most [`TILE`].
    #[inline(always)]
    fn tile(&self, image: usize, y: usize, x: usize) -> Tile {
        let shape = self.a.shape();
        let place = |map: &FeatureMap<'_>| map.place(image, 0, y as isize, x as isize);
        Tile {
            a: place(&self.a),
            b: place(&self.b),
            plane: self.a.plane_len(),
            blocks: shape.blocks(),
            count: (shape.width - x).min(TILE),
        }
    }
}

struct DistanceRows<'a> {
    distance: Distance,
    level: &'a Level<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for DistanceRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.first..self.end {
            let (image, _, y) = self.rows.at(row);
            for x in (0..self.level.a.shape().width).step_by(TILE) {
                let tile = self.level.tile(image, y, x);
                let to = self.level.to.place(image, 0, y as isize, x as isize);
                // SAFETY: the tile's places are in the row of both maps; the result's row has as
                // many, and no other thread has it.
                unsafe {
                    let (dots, scales, halves) = tile.cosines(s);
                    let most = match self.distance {
                        Distance::OneMinusCosine => s.splat(1.0),
                        Distance::HalfSquared => halves,
                    };
                    let distances = s.to_array(s.neg_mul_add(dots, scales, most));
                    for (i, distance) in distances.into_iter().enumerate().take(tile.count) {
                        s.store(to.add(i * LANES), s.zero());
                        *to.add(i * LANES) = distance;
                    }
                }
            }
        }
    }
}

struct ProductRows<'a> {
    level: &'a Level<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for ProductRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.first..self.end {
            let (image, _, y) = self.rows.at(row);
            for x in (0..self.level.a.shape().width).step_by(TILE) {
                let tile = self.level.tile(image, y, x);
                let to = self.level.to.place(image, 0, y as isize, x as isize);
                // SAFETY: as for distances; the result has as many planes as the arguments, as far
                // from each other.
                unsafe {
                    let scales = s.to_array(tile.cosines(s).1);
                    for block in 0..tile.blocks {
                        for (i, scale) in scales.into_iter().enumerate().take(tile.count) {
                            let offset = block * tile.plane + i * LANES;
                            let (a, b) = (s.load(tile.a.add(offset)), s.load(tile.b.add(offset)));
                            // Scaled before the product, which may be too small a number.
                            let value = s.mul(s.mul(a, s.splat(-scale)), b);
                            s.store(to.add(offset), value);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::{assert_holds, everywhere, filled, used};
    use super::super::feature_map::Buffer;
    use super::*;
    use crate::shared::shared;

    /// −n(a)·n(b) [B, C, H, W] and 1 − Σ n(a)·n(b) [B, 1, H, W], f64.
    fn plain(a: &[f32], b: &[f32], shape: Shape) -> (Vec<f32>, Vec<f32>) {
        let (places, channels) = (shape.places(), shape.channels);
        let (mut product, mut distance) = (vec![0.0; a.len()], Vec::new());
        for (image, place) in (0..shape.images).flat_map(|b| (0..places).map(move |i| (b, i))) {
            let at = |c: usize| (image * channels + c) * places + place;
            let norm = |x: &[f32]| {
                (0..channels).map(|c| f64::from(x[at(c)]).powi(2)).sum::<f64>().sqrt() + 1e-12
            };
            let (norm_a, norm_b) = (norm(a), norm(b));
            let mut sum = 0.0;
            for c in 0..channels {
                let value = f64::from(a[at(c)]) / norm_a * (f64::from(b[at(c)]) / norm_b);
                product[at(c)] = -value as f32;
                sum += value;
            }
            distance.push((1.0 - sum) as f32);
        }
        (product, distance)
    }

    #[test]
    fn equal_their_scalar_twins() {
        let shapes = [(1, 16, 4, 4), (3, 21, 5, 7), (1, 64, 3, 33), (2, 40, 1, 1), (1, 3, 17, 18)];
        let shapes = shapes.map(|(b, c, h, w)| Shape::new(b, c, h, w));
        let maps = shapes.map(|shape| (filled(shape, 12), filled(shape, 13)));
        let mut wants = Vec::new();
        for (shape, ((a_map, a), (b_map, b))) in shapes.iter().zip(&maps) {
            let (product, distance) = plain(a, b, *shape);
            everywhere(|team, isa| {
                let out = used(*shape);
                let to = out.map(*shape, 0);
                cosine_product(team, isa, a_map.map(*shape, 0), b_map.map(*shape, 0), to);
                // Sums of ≤ 64 squares, square roots and divisions, on numbers up to 1.
                assert_holds(to, &product, (1e-6, 1e-6), "product");
            });
            wants.push(distance);
        }
        everywhere(|team, isa| {
            let single = shapes.map(|shape| Shape { channels: 1, ..shape });
            let outs = single.map(used);
            let levels: [Level<'_>; 5] = std::array::from_fn(|i| Level {
                a: maps[i].0.0.map(shapes[i], 0),
                b: maps[i].1.0.map(shapes[i], 0),
                to: outs[i].map(single[i], 0),
            });
            cosine_distances(team, isa, Distance::OneMinusCosine, &levels);
            for (level, want) in levels.iter().zip(&wants) {
                assert_holds(level.to, want, (1e-6, 1e-6), "distance");
            }
        });
    }

    #[test]
    fn zero_and_tiny_vectors_give_numbers_and_nan_stays() {
        let shape = Shape::new(1, 16, 1, 3);
        let single = Shape { channels: 1, ..shape };
        everywhere(|team, isa| {
            let (a, b) = (Buffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
            let (a, b) = (a.map(shape, 0), b.map(shape, 0));
            a.set(0, 0, 0, 0, 1e-3);
            b.set(0, 0, 0, 0, 1e-3);
            a.set(0, 5, 0, 2, f32::NAN);
            let (out, product) = (used(single), used(shape));
            let to = out.map(single, 0);
            cosine_distances(team, isa, Distance::OneMinusCosine, &[Level { a, b, to }]);
            cosine_product(team, isa, a, b, product.map(shape, 0));
            let got = to.read();
            assert!(got[0].abs() < 1e-6 && got[1] == 1.0 && got[2].is_nan(), "{got:?}");
            let product = product.map(shape, 0);
            assert!((product.get(0, 0, 0, 0) + 1.0).abs() < 1e-6);
            assert!(product.get(0, 0, 0, 1) == 0.0 && product.get(0, 5, 0, 2).is_nan());
        });
    }

    /// Maps and distances of a file of vectors; names as the file has them.
    fn check_vectors(
        name: &str,
        levels: usize,
        (rule, distance): (Distance, &str),
        product: Option<&str>,
    ) {
        let Some(path) = shared(&format!("spec/vectors/{name}.json")) else { return };
        let file: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let list = |value: &serde_json::Value| -> Vec<f32> {
            serde_json::from_value(value["data"].clone()).unwrap()
        };
        for level in 1..=levels {
            let (teacher, student) = (
                &file["inputs"][format!("teacher{level}")],
                &file["inputs"][format!("student{level}")],
            );
            let side = |i: usize| teacher["shape"][i].as_u64().unwrap() as usize;
            let shape = Shape::new(side(0), side(1), side(2), side(3));
            let single = Shape { channels: 1, ..shape };
            let (a, b) = (Buffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
            let (a, b) = (a.map(shape, 0), b.map(shape, 0));
            a.write(&list(teacher));
            b.write(&list(student));
            let want: Vec<f32> = list(&file["expected"][format!("{distance}{level}")]);
            everywhere(|team, isa| {
                let (out, out_product) = (used(single), used(shape));
                let to = out.map(single, 0);
                cosine_distances(team, isa, rule, &[Level { a, b, to }]);
                // The file's own tolerance.
                assert_holds(to, &want, (2e-5, 1e-4), name);
                if let Some(product) = product {
                    let want = list(&file["expected"][format!("{product}{level}")]);
                    let want: Vec<f32> = want.iter().map(|x| -x).collect();
                    cosine_product(team, isa, a, b, out_product.map(shape, 0));
                    assert_holds(out_product.map(shape, 0), &want, (2e-5, 1e-4), name);
                }
            });
        }
    }

    #[test]
    fn equal_the_vectors() {
        check_vectors("destseg_features", 3, (Distance::OneMinusCosine, "D"), Some("X"));
        check_vectors("ntsnet_loss_maps", 2, (Distance::HalfSquared, "M"), None);
    }

    #[test]
    #[should_panic(expected = "another level")]
    fn levels_with_one_result_are_refused() {
        let shape = Shape::new(1, 16, 2, 2);
        let [a, b, to] = [(); 3].map(|()| Buffer::zeroed(shape.len()));
        let (a, b, to) = (a.map(shape, 0), b.map(shape, 0), to.map(shape, 0).channels(0, 1));
        let level = Level { a, b, to };
        let rule = Distance::OneMinusCosine;
        cosine_distances(&Team::alone(), Isa::Portable, rule, &[level, level]);
    }
}
