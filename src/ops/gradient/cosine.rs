//! Gradients of how alike two feature maps are ([`crate::ops::cosine_map`]), to one of the two; for
//! the other, call again with the maps exchanged.
//!
//! With n(F) = F/(‖F‖ + ε), ε = 10⁻¹²: ∂n(b)_c/∂b_k = δ_ck/(‖b‖ + ε) − b_c b_k/(‖b‖ (‖b‖ + ε)²). Where
//! b is zero, its gradient is zero by definition (DeSTSeg's D-6, `../shared/spec/destseg.md`), under
//! either rule. Letters: C channels, H × W places.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{FeatureMap, Shape, Shared};
use crate::ops::rows::{Rows, helping};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Keeps the norm of a zero vector from dividing by zero.
const LEAST: f32 = 1e-12;

/// Places whose ends are worked out together, in lanes.
const TILE: usize = LANES;

/// Places whose sums grow together.
const TOGETHER: usize = 4;

/// Of the distance between a and b, under either [`crate::ops::cosine_map::Distance`] (they differ by
/// what does not depend on b but where b is zero): db [C, H, W] (+)= what `dy` [1, H, W] gives.
///
/// # Panics
/// If shapes do not fit, or `db` overlaps an argument.
pub fn cosine_distance(
    team: &Team,
    isa: Isa,
    [a, b]: [FeatureMap<'_>; 2],
    dy: FeatureMap<'_>,
    into: Accumulate,
    db: FeatureMap<'_>,
) {
    assert_eq!(dy.shape(), Shape { channels: 1, ..a.shape() }, "a cosine distance's gradient");
    run::<false>(team, isa, Maps { a, b, dy, into, db });
}

/// Of the product −n(a)·n(b), channel by channel: db [C, H, W] (+)= what `dy` [C, H, W] gives.
///
/// # Panics
/// If shapes do not fit, or `db` overlaps an argument.
pub fn cosine_product(
    team: &Team,
    isa: Isa,
    [a, b]: [FeatureMap<'_>; 2],
    dy: FeatureMap<'_>,
    into: Accumulate,
    db: FeatureMap<'_>,
) {
    assert_eq!(dy.shape(), a.shape(), "a cosine product's gradient");
    run::<true>(team, isa, Maps { a, b, dy, into, db });
}

#[derive(Clone, Copy)]
struct Maps<'a> {
    a: FeatureMap<'a>,
    b: FeatureMap<'a>,
    dy: FeatureMap<'a>,
    into: Accumulate,
    db: FeatureMap<'a>,
}

fn run<const PRODUCT: bool>(team: &Team, isa: Isa, maps: Maps<'_>) {
    let Maps { a, b, dy, db, .. } = maps;
    assert_eq!((a.shape(), b.shape()), (db.shape(), db.shape()), "the cosine between two maps");
    assert!([a, b, dy].iter().all(|map| !db.overlaps(map)), "the gradient overlaps an argument");
    let rows = Rows::of_images(db.shape());
    let len = 3 * db.shape().width * db.shape().blocks() * LANES;
    let shared = Shared(maps);
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        isa.run(GradientRows::<PRODUCT> { maps: shared.get(), rows, first, end });
    });
}

/// `PRODUCT`: dy has a number for each channel, else one for all.
struct GradientRows<'a, const PRODUCT: bool> {
    maps: Maps<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

/// Up to [`TILE`] places of a row: the first of them in plane 0 of each map.
#[derive(Clone, Copy)]
struct Tile<'a> {
    maps: &'a Maps<'a>,
    a: *const f32,
    b: *const f32,
    dy: *const f32,
    db: *mut f32,
    count: usize,
}

impl<const PRODUCT: bool> Kernel for GradientRows<'_, PRODUCT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let maps = &self.maps;
        for row in self.first..self.end {
            let (image, _, y) = self.rows.at(row);
            for x in (0..maps.db.shape().width).step_by(TILE) {
                let (y, left) = (y as isize, x as isize);
                let tile = Tile {
                    maps,
                    a: maps.a.place(image, 0, y, left),
                    b: maps.b.place(image, 0, y, left),
                    dy: maps.dy.place(image, 0, y, left),
                    db: maps.db.place(image, 0, y, left),
                    count: (maps.db.shape().width - x).min(TILE),
                };
                // SAFETY: `count` places of the row in each of the maps; planes lie as far apart in
                // each, since their sides are equal; no other thread has this row of db.
                unsafe { tile.run::<S, PRODUCT>(s) };
            }
        }
    }
}

impl Tile<'_> {
    /// # Safety
    /// The pointers are as described.
    #[inline(always)]
    unsafe fn run<S: Simd, const PRODUCT: bool>(self, s: S) {
        let mut sums = [[0.0; TILE]; 3];
        let mut i = 0;
        while i < self.count {
            // SAFETY: as the caller promises; i + N ≤ count.
            i += unsafe {
                if i + TOGETHER > self.count {
                    self.sums::<S, PRODUCT, 1>(s, i, &mut sums)
                } else {
                    self.sums::<S, PRODUCT, TOGETHER>(s, i, &mut sums)
                }
            };
        }
        let [dots, aa, bb] = sums.map(|sums| s.load_array(sums));
        let (norm_a, norm_b) = (s.sqrt(aa), s.sqrt(bb));
        let (full_a, full_b) = (s.add(norm_a, s.splat(LEAST)), s.add(norm_b, s.splat(LEAST)));
        // By one norm before the other: a product of two small ones is no normal number.
        let scale = s.div(s.div(s.splat(1.0), full_a), full_b);
        let along = s.div(s.div(s.mul(dots, scale), full_b), norm_b);
        // A NaN is not below: it stays.
        let no_vector = s.lt(bb, s.splat(f32::from_bits(1)));
        let towards = s.to_array(s.select(no_vector, s.zero(), s.sub(s.zero(), scale)));
        let along = s.to_array(s.select(no_vector, s.zero(), along));
        let plane = self.maps.db.plane_len();
        for block in 0..self.maps.db.shape().blocks() {
            for i in 0..self.count {
                let offset = block * plane + i * LANES;
                // SAFETY: as the caller promises.
                unsafe {
                    let (a, b) = (s.load(self.a.add(offset)), s.load(self.b.add(offset)));
                    let (towards, along) = (s.splat(towards[i]), s.splat(along[i]));
                    // Scaled before the product, which may be too small a number.
                    let value = if PRODUCT {
                        let dy = s.load(self.dy.add(offset));
                        s.mul_add(b, along, s.mul(s.mul(a, towards), dy))
                    } else {
                        let dy = s.splat(*self.dy.add(i * LANES));
                        s.mul(s.mul_add(b, along, s.mul(a, towards)), dy)
                    };
                    self.maps.into.put(s, self.db.add(offset), value);
                }
            }
        }
    }

    /// Σ a·b (each times dy, for a product), Σ a² and Σ b² of places `i`..`i + N`; N.
    ///
    /// # Safety
    /// As in [`Tile::run`], and these places are below `count`.
    #[inline(always)]
    unsafe fn sums<S: Simd, const PRODUCT: bool, const N: usize>(
        self,
        s: S,
        i: usize,
        sums: &mut [[f32; TILE]; 3],
    ) -> usize {
        let mut own = [[s.zero(); 3]; N];
        for block in 0..self.maps.db.shape().blocks() {
            for (j, [dot, aa, bb]) in own.iter_mut().enumerate() {
                let offset = block * self.maps.db.plane_len() + (i + j) * LANES;
                // SAFETY: as the caller promises.
                unsafe {
                    let (a, b) = (s.load(self.a.add(offset)), s.load(self.b.add(offset)));
                    let weighted = if PRODUCT { s.mul(a, s.load(self.dy.add(offset))) } else { a };
                    *dot = s.mul_add(weighted, b, *dot);
                    *aa = s.mul_add(a, a, *aa);
                    *bb = s.mul_add(b, b, *bb);
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, used};
    use crate::ops::feature_map::Buffer;
    use crate::shared::shared;

    const SHAPES: [(usize, usize, usize, usize); 5] =
        [(1, 16, 4, 4), (3, 21, 5, 7), (1, 64, 3, 33), (2, 40, 1, 1), (1, 1, 2, 18)];

    /// n(F) of one place, f64.
    fn unit(x: &[f64]) -> Vec<f64> {
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-12;
        x.iter().map(|x| x / norm).collect()
    }

    /// The gradient of f at every place, by differences: f of a, b and dy of one place.
    fn differences(
        [a, b, dy]: [&[f32]; 3],
        shape: Shape,
        f: impl Fn(&[f64], &[f64], &[f64]) -> f64,
    ) -> Vec<f32> {
        let (places, channels) = (shape.places(), shape.channels);
        let mut db = vec![0.0; b.len()];
        for (image, place) in (0..shape.images).flat_map(|b| (0..places).map(move |i| (b, i))) {
            let of = |x: &[f32]| -> Vec<f64> {
                let channels = x.len() / shape.images / places;
                let at = |c: usize| (image * channels + c) * places + place;
                (0..channels).map(|c| f64::from(x[at(c)])).collect()
            };
            let (a, mut own, dy) = (of(a), of(b), of(dy));
            if own.iter().all(|b| *b == 0.0) {
                continue;
            }
            for c in 0..channels {
                let (value, step) = (own[c], 1e-6);
                own[c] = value + step;
                let above = f(&a, &own, &dy);
                own[c] = value - step;
                let below = f(&a, &own, &dy);
                own[c] = value;
                db[(image * channels + c) * places + place] = ((above - below) / 2e-6) as f32;
            }
        }
        db
    }

    /// Two maps; a few vectors of each, and one of both, are zero.
    fn maps(shape: Shape) -> [(Buffer, Vec<f32>); 2] {
        [(0, 12), (1, 13)].map(|(zero, seed)| {
            let (map, mut values) = filled(shape, seed);
            for (i, value) in values.iter_mut().enumerate() {
                let place = i % shape.places();
                if place % 5 == zero && shape.places() > 1 || place == 3 {
                    *value = 0.0;
                }
            }
            map.map(shape, 0).write(&values);
            (map, values)
        })
    }

    /// What f64 differences of a step of 10⁻⁶ leave, and f32.
    const BOUND: (f32, f32) = (2e-6, 1e-4);

    #[test]
    fn the_gradient_of_a_distance_is_what_differences_say() {
        for shape in SHAPES.map(|(b, c, h, w)| Shape::new(b, c, h, w)) {
            let single = Shape { channels: 1, ..shape };
            let [(a, a_values), (b, b_values)] = maps(shape);
            let (dy, dy_values) = filled(single, 14);
            let numbers = [&a_values[..], &b_values, &dy_values];
            let want = differences(numbers, shape, |a, b, dy| {
                let (a, b) = (unit(a), unit(b));
                dy[0] * (1.0 - a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>())
            });
            let half_squared = differences(numbers, shape, |a, b, dy| {
                let (a, b) = (unit(a), unit(b));
                dy[0] * 0.5 * a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
            });
            everywhere(|team, isa| {
                let out = used(shape);
                let (db, dy) = (out.map(shape, 0), dy.map(single, 0));
                let maps = [a.map(shape, 0), b.map(shape, 0)];
                cosine_distance(team, isa, maps, dy, Accumulate::Set, db);
                assert_holds(db, &want, BOUND, "distance");
                assert_holds(db, &half_squared, BOUND, "half the squared difference");
                cosine_distance(team, isa, maps, dy, Accumulate::Add, db);
                let twice: Vec<f32> = want.iter().map(|x| 2.0 * x).collect();
                assert_holds(db, &twice, BOUND, "distance, added");
            });
        }
    }

    #[test]
    fn the_gradient_of_a_product_is_what_differences_say() {
        for shape in SHAPES.map(|(b, c, h, w)| Shape::new(b, c, h, w)) {
            let [(a, a_values), (b, b_values)] = maps(shape);
            let (dy, dy_values) = filled(shape, 15);
            let want = differences([&a_values, &b_values, &dy_values], shape, |a, b, dy| {
                let (a, b) = (unit(a), unit(b));
                -a.iter().zip(&b).zip(dy).map(|((a, b), dy)| a * b * dy).sum::<f64>()
            });
            everywhere(|team, isa| {
                let out = used(shape);
                let (db, dy) = (out.map(shape, 0), dy.map(shape, 0));
                let maps = [a.map(shape, 0), b.map(shape, 0)];
                cosine_product(team, isa, maps, dy, Accumulate::Set, db);
                assert_holds(db, &want, BOUND, "product");
            });
        }
    }

    #[test]
    fn nan_stays() {
        let shape = Shape::new(1, 20, 1, 3);
        let single = Shape { channels: 1, ..shape };
        let [(a, _), (b, _), (dy, _)] =
            [(shape, 1), (shape, 2), (single, 3)].map(|(s, i)| filled(s, i));
        b.map(shape, 0).set(0, 17, 0, 1, f32::NAN);
        everywhere(|team, isa| {
            let out = used(shape);
            let (maps, db) = ([a.map(shape, 0), b.map(shape, 0)], out.map(shape, 0));
            cosine_distance(team, isa, maps, dy.map(single, 0), Accumulate::Set, db);
            assert!((0..20).all(|c| db.get(0, c, 0, 1).is_nan() && db.get(0, c, 0, 2).is_finite()));
        });
    }

    /// Of the sum over pictures of each level's mean distance.
    #[test]
    fn equals_the_vectors() {
        let Some(path) = shared("spec/vectors/destseg_features.json") else { return };
        let file: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let list = |value: &serde_json::Value| -> Vec<f32> {
            serde_json::from_value(value["data"].clone()).unwrap()
        };
        for level in 1..=3 {
            let (teacher, student) = (
                &file["inputs"][format!("teacher{level}")],
                &file["inputs"][format!("student{level}")],
            );
            let side = |i: usize| teacher["shape"][i].as_u64().unwrap() as usize;
            let shape = Shape::new(side(0), side(1), side(2), side(3));
            let single = Shape { channels: 1, ..shape };
            let [a, b, dy] = [shape, shape, single].map(|shape| Buffer::zeroed(shape.len()));
            let (a, b, dy) = (a.map(shape, 0), b.map(shape, 0), dy.map(single, 0));
            a.write(&list(teacher));
            b.write(&list(student));
            dy.write(&vec![1.0 / shape.places() as f32; shape.images * shape.places()]);
            let name = format!("grad_student{level}_of_loss_batchsum");
            let want = list(&file["expected"][&name]);
            everywhere(|team, isa| {
                let out = used(shape);
                let db = out.map(shape, 0);
                cosine_distance(team, isa, [a, b], dy, Accumulate::Set, db);
                // The file's own tolerance.
                assert_holds(db, &want, (2e-5, 1e-4), &name);
            });
        }
    }
}
