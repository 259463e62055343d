//! All products of rows with one another. Letters: N rows of D numbers.

use rayon::prelude::*;

use super::simd::{Isa, Kernel, LANES, Simd};

/// Columns that all rows are gone through for before the next: N rows of them stay in the cache.
const COLUMNS: usize = 2048;

/// Rows of the matrix that a thread makes at once.
const BAND: usize = 8;

/// Rows whose products are in registers: these of the band with those.
const OWN: usize = 2;
const OTHER: usize = 4;

/// R·Rᵀ [N, N] of `rows` [N, D]. Sums are f32 along 2048 columns, sixteen side by side, and f64 from
/// there on; they are the same whatever the threads, and of equal rows equal.
///
/// # Panics
/// If there are no rows, or not as many numbers.
pub fn gram(isa: Isa, rows: &[f32], count: usize) -> Vec<f64> {
    assert!(count > 0 && rows.len().is_multiple_of(count), "{} numbers, {count} rows", rows.len());
    let len = rows.len() / count;
    let mut products = vec![0.0; count * count];
    for from in (0..len).step_by(COLUMNS) {
        let columns = from..(from + COLUMNS).min(len);
        products.par_chunks_mut(BAND * count).enumerate().for_each(|(band, products)| {
            let cut = |row: usize| &rows[row * len..][columns.clone()];
            isa.run(Band { row: &cut, first: band * BAND, products, count });
        });
    }
    for i in 0..count {
        for j in i + 1..count {
            products[i * count + j] = products[j * count + i];
        }
    }
    products
}

/// Adds the products of a band's rows with those before and in it, along some columns.
struct Band<'a, R> {
    /// The columns of a row.
    row: &'a R,
    first: usize,
    products: &'a mut [f64], // [rows of the band, N]
    count: usize,
}

impl<'a, R: Fn(usize) -> &'a [f32]> Kernel for Band<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let last = self.count - 1;
        let own_rows = self.products.len() / self.count;
        for i in (0..own_rows).step_by(OWN) {
            let at = self.first + i;
            let own = [(self.row)(at), (self.row)((at + 1).min(last))];
            for j in (0..(at + OWN).min(self.count)).step_by(OTHER) {
                // Past the last row that one again; what is made of it is not written.
                let other = [
                    (self.row)(j),
                    (self.row)((j + 1).min(last)),
                    (self.row)((j + 2).min(last)),
                    (self.row)((j + 3).min(last)),
                ];
                let sums = products(s, own, other);
                for (sums, row) in sums.iter().zip(i..own_rows) {
                    for (sum, column) in sums.iter().zip(j..self.count) {
                        self.products[row * self.count + column] += sum;
                    }
                }
            }
        }
    }
}

/// The products of each row of `a` with each of `b`.
#[inline(always)]
fn products<S: Simd>(s: S, a: [&[f32]; OWN], b: [&[f32]; OTHER]) -> [[f64; OTHER]; OWN] {
    let mut sums = [[s.zero(); OTHER]; OWN];
    let whole = a[0].len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let mut own = [s.zero(); OWN];
        for (own, row) in own.iter_mut().zip(&a) {
            *own = load(s, row, at);
        }
        for (j, row) in b.iter().enumerate() {
            let other = load(s, row, at);
            for (sums, own) in sums.iter_mut().zip(&own) {
                sums[j] = s.mul_add(*own, other, sums[j]);
            }
        }
    }
    let mut all = [[0.0; OTHER]; OWN];
    for (i, own) in a.iter().enumerate() {
        for (j, other) in b.iter().enumerate() {
            let lanes: f64 = s.to_array(sums[i][j]).iter().map(|&lane| f64::from(lane)).sum();
            let tail = own[whole..].iter().zip(&other[whole..]);
            all[i][j] = lanes + tail.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
        }
    }
    all
}

#[inline(always)]
fn load<S: Simd>(s: S, row: &[f32], at: usize) -> S::F {
    s.load_array(*row[at..].first_chunk().expect("a whole sixteen is left"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_plain_loops_on_every_path() {
        // Ragged in rows and columns, and more columns than are gone through at once.
        for (count, len) in [(1, 1), (2, 16), (3, 31), (9, 33), (21, COLUMNS + 37)] {
            let number = |i: usize| ((i * 37 + i / 11 * 5) % 101) as f32 / 50.0 - 1.0;
            let rows: Vec<f32> = (0..count * len).map(number).collect();
            let plain = |i: usize, j: usize| -> f64 {
                let pairs = rows[i * len..][..len].iter().zip(&rows[j * len..][..len]);
                pairs.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
            };
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                let got = gram(isa, &rows, count);
                for (i, j) in (0..count).flat_map(|i| (0..count).map(move |j| (i, j))) {
                    let (got, want) = (got[i * count + j], plain(i, j));
                    // 128 additions in f32 a lane.
                    let close = (got - want).abs() <= 1e-5 * (len as f64).sqrt();
                    assert!(close, "{} {count}×{len} {i} {j}: {got} {want}", isa.word());
                }
            }
        }
    }

    #[test]
    fn equal_rows_have_equal_products() {
        let row: Vec<f32> = (0..5000).map(|i| (i as f32).sin()).collect();
        let products = gram(Isa::detect().unwrap(), &row.repeat(7), 7);
        assert!(products.iter().all(|&product| product == products[0]));
    }
}
