//! The transforms of F(4×4, 3×3) at the points 0, ±3/4, ±3/2 and ∞, of columns and rows of 16 lanes.

use super::super::simd::Simd;

/// The points ±A and ±B.
const A: f64 = 0.75;
const B: f64 = 1.5;

/// The numbers of the transforms.
#[derive(Clone, Copy)]
pub(in super::super) struct Points<F> {
    a: F,
    b: F,
    a2: F,
    b2: F,
    a3: F,
    b3: F,
    a2_plus_b2: F,
    a2_b2: F,
}

impl<F: Copy> Points<F> {
    #[inline(always)]
    pub fn new<S: Simd<F = F>>(s: S) -> Self {
        let of = |x: f64| s.splat(x as f32);
        Self {
            a: of(A),
            b: of(B),
            a2: of(A * A),
            b2: of(B * B),
            a3: of(A * A * A),
            b3: of(B * B * B),
            a2_plus_b2: of(A * A + B * B),
            a2_b2: of(A * A * B * B),
        }
    }

    /// Bᵀ x.
    #[inline(always)]
    pub fn input<S: Simd<F = F>>(&self, s: S, x: [F; 6]) -> [F; 6] {
        let first = s.neg_mul_add(self.a2_plus_b2, x[2], x[4]);
        let last = s.neg_mul_add(self.a2_plus_b2, x[3], x[5]);
        let (even_a, odd_a) =
            (s.neg_mul_add(self.b2, x[2], x[4]), s.neg_mul_add(self.b2, x[1], x[3]));
        let (even_b, odd_b) =
            (s.neg_mul_add(self.a2, x[2], x[4]), s.neg_mul_add(self.a2, x[1], x[3]));
        [
            s.mul_add(self.a2_b2, x[0], first),
            s.mul_add(self.a, odd_a, even_a),
            s.neg_mul_add(self.a, odd_a, even_a),
            s.mul_add(self.b, odd_b, even_b),
            s.neg_mul_add(self.b, odd_b, even_b),
            s.mul_add(self.a2_b2, x[1], last),
        ]
    }

    /// Aᵀ m.
    #[inline(always)]
    pub fn output<S: Simd<F = F>>(&self, s: S, m: [F; 6]) -> [F; 4] {
        let (sum_a, difference_a) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
        let (sum_b, difference_b) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
        [
            s.add(m[0], s.add(sum_a, sum_b)),
            s.mul_add(self.a, difference_a, s.mul(self.b, difference_b)),
            s.mul_add(self.a2, sum_a, s.mul(self.b2, sum_b)),
            s.mul_add(self.a3, difference_a, s.mul_add(self.b3, difference_b, m[5])),
        ]
    }

    /// A y.
    #[inline(always)]
    pub fn output_gradient<S: Simd<F = F>>(&self, s: S, y: [F; 4]) -> [F; 6] {
        let (even_a, odd_a) =
            (s.mul_add(self.a2, y[2], y[0]), s.mul_add(self.a3, y[3], s.mul(self.a, y[1])));
        let (even_b, odd_b) =
            (s.mul_add(self.b2, y[2], y[0]), s.mul_add(self.b3, y[3], s.mul(self.b, y[1])));
        [
            y[0],
            s.add(even_a, odd_a),
            s.sub(even_a, odd_a),
            s.add(even_b, odd_b),
            s.sub(even_b, odd_b),
            y[3],
        ]
    }
}

/// The numbers of the kernel's transform G: `at_0` and, at ±A and ±B, the even and odd ones.
#[derive(Clone, Copy)]
pub(in super::super) struct KernelPoints<F> {
    at_0: F,
    a: [F; 3],
    b: [F; 3],
}

impl<F: Copy> KernelPoints<F> {
    #[inline(always)]
    pub fn new<S: Simd<F = F>>(s: S) -> Self {
        let rows = kernel_rows();
        let of = |row: [f64; 3]| row.map(|x| s.splat(x as f32));
        Self { at_0: s.splat(rows[0][0] as f32), a: of(rows[1]), b: of(rows[3]) }
    }

    /// G g.
    #[inline(always)]
    pub fn kernel<S: Simd<F = F>>(&self, s: S, g: [F; 3]) -> [F; 6] {
        let even = |at: [F; 3]| s.mul_add(at[2], g[2], s.mul(at[0], g[0]));
        let (even_a, even_b) = (even(self.a), even(self.b));
        [
            s.mul(self.at_0, g[0]),
            s.mul_add(self.a[1], g[1], even_a),
            s.neg_mul_add(self.a[1], g[1], even_a),
            s.mul_add(self.b[1], g[1], even_b),
            s.neg_mul_add(self.b[1], g[1], even_b),
            g[2],
        ]
    }

    /// Gᵀ m.
    #[inline(always)]
    pub fn kernel_gradient<S: Simd<F = F>>(&self, s: S, m: [F; 6]) -> [F; 3] {
        let (sum_a, difference_a) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
        let (sum_b, difference_b) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
        let both = |a: F, b: F, i: usize| s.mul_add(self.a[i], a, s.mul(self.b[i], b));
        [
            s.mul_add(self.at_0, m[0], both(sum_a, sum_b, 0)),
            both(difference_a, difference_b, 1),
            s.add(both(sum_a, sum_b, 2), m[5]),
        ]
    }
}

/// G [6, 3].
fn kernel_rows() -> [[f64; 3]; 6] {
    let (a, b) = (A, B);
    let (at_a, at_b) = (2.0 * a * a * (a * a - b * b), 2.0 * b * b * (b * b - a * a));
    [
        [1.0 / (a * a * b * b), 0.0, 0.0],
        [1.0 / at_a, a / at_a, a * a / at_a],
        [1.0 / at_a, -a / at_a, a * a / at_a],
        [1.0 / at_b, b / at_b, b * b / at_b],
        [1.0 / at_b, -b / at_b, b * b / at_b],
        [0.0, 0.0, 1.0],
    ]
}

/// G g Gᵀ [6, 6] of `g` [3, 3].
pub(super) fn transformed(g: &[f32]) -> [f64; super::SPOTS] {
    let rows = kernel_rows();
    let mut half = [[0.0; 3]; 6];
    for (half, row) in half.iter_mut().zip(&rows) {
        for (j, value) in half.iter_mut().enumerate() {
            *value = (0..3).map(|l| row[l] * f64::from(g[l * 3 + j])).sum();
        }
    }
    std::array::from_fn(|spot| (0..3).map(|l| half[spot / 6][l] * rows[spot % 6][l]).sum())
}
