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
