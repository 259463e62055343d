//! Losses with their gradients, on numbers of all pictures of a batch in a row. Sums are taken in f64.

/// A loss and its gradient by each number.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    pub value: f64,
    pub gradient: Vec<f32>,
}

/// Focal loss (Lin et al. 2017) without α: the mean of −(1 − p)^γ ln p with p the probability given to
/// what is true, ln no smaller than −100 as in PyTorch's cross entropy. `probabilities` are of an
/// anomaly.
pub fn focal(probabilities: &[f32], truth: &[bool], gamma: i32) -> Loss {
    let n = probabilities.len() as f64;
    mean(probabilities, truth, |y, anomalous| {
        let (p, sign) = if anomalous { (y, 1.0) } else { (1.0 - y, -1.0) };
        let log = p.ln().max(LEAST_LOG);
        let missing = 1.0 - p;
        let by_p = f64::from(gamma) * missing.powi(gamma - 1) * log
            - missing.powi(gamma) / p.max(LEAST_PROBABILITY);
        (-missing.powi(gamma) * log, sign * by_p / n)
    })
}

/// Focal loss with both classes' weights: the mean of −α (1 − p)^γ ln p with p the probability given to
/// what is true, held between 10⁻⁵ and 1 − 10⁻⁵, and 1 − α in the place of α where nothing is anomalous.
pub fn weighted_focal(probabilities: &[f32], truth: &[bool], alpha: f64, gamma: i32) -> Loss {
    const LEAST: f64 = 1e-5;
    let n = probabilities.len() as f64;
    mean(probabilities, truth, |y, anomalous| {
        let (p, sign, weight) =
            if anomalous { (y, 1.0, alpha) } else { (1.0 - y, -1.0, 1.0 - alpha) };
        let held = p.clamp(LEAST, 1.0 - LEAST);
        let (missing, log) = (1.0 - held, held.ln());
        let by_p = f64::from(gamma) * missing.powi(gamma - 1) * log - missing.powi(gamma) / held;
        // Where it is held it has no slope.
        let slope = if held == p { sign * weight * by_p / n } else { 0.0 };
        (-weight * missing.powi(gamma) * log, slope)
    })
}

/// The mean of d² / 2β where d = |y − truth| is below β, and of d − β/2 elsewhere (Girshick 2015).
pub fn smooth_l1(probabilities: &[f32], truth: &[bool], beta: f64) -> Loss {
    let n = probabilities.len() as f64;
    mean(probabilities, truth, |y, anomalous| {
        let away = y - f64::from(u8::from(anomalous));
        let d = away.abs();
        if d < beta {
            (d * d / (2.0 * beta), away / beta / n)
        } else {
            (d - beta / 2.0, away.signum() / n)
        }
    })
}

/// The mean of |y − truth|.
pub fn l1(probabilities: &[f32], truth: &[bool]) -> Loss {
    let n = probabilities.len() as f64;
    mean(probabilities, truth, |y, anomalous| {
        let away = y - f64::from(u8::from(anomalous));
        let slope = if away == 0.0 { 0.0 } else { away.signum() };
        (away.abs(), slope / n)
    })
}

impl Loss {
    pub fn times(mut self, factor: f64) -> Loss {
        self.value *= factor;
        self.gradient.iter_mut().for_each(|slope| *slope = (f64::from(*slope) * factor) as f32);
        self
    }

    /// The sum of two losses of the same numbers.
    pub fn plus(mut self, other: &Loss) -> Loss {
        self.value += other.value;
        for (own, other) in self.gradient.iter_mut().zip(&other.gradient) {
            *own += other;
        }
        self
    }
}

const LEAST_LOG: f64 = -100.0;
const LEAST_PROBABILITY: f64 = 1e-12;

fn mean(probabilities: &[f32], truth: &[bool], of_one: impl Fn(f64, bool) -> (f64, f64)) -> Loss {
    assert_eq!(probabilities.len(), truth.len(), "a truth for each place");
    let mut sum = 0.0;
    let gradient = probabilities.iter().zip(truth).map(|(&y, &anomalous)| {
        let (value, slope) = of_one(f64::from(y), anomalous);
        sum += value;
        slope as f32
    });
    let gradient = gradient.collect();
    Loss { value: sum / probabilities.len() as f64, gradient }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::vectors::{Vector, flat};

    #[test]
    fn segmentation_losses_are_the_vectors() {
        let Some(vector) = Vector::open("destseg_seg_losses") else { return };
        let probabilities = flat(&vector.input("prob"));
        let truth: Vec<bool> =
            flat(&vector.expected("mask_binary")).iter().map(|&m| m == 1.0).collect();
        let (focal, l1) = (focal(&probabilities, &truth, 4), l1(&probabilities, &truth));
        let close = |got: f64, want: f32| (got - f64::from(want)).abs() <= 1e-6 + 1e-5 * got.abs();
        for (name, loss) in [("focal", &focal), ("l1", &l1)] {
            assert!(close(loss.value, flat(&vector.expected(name))[0]), "{name} {}", loss.value);
            let want = flat(&vector.expected(&format!("grad_{name}")));
            for (got, want) in loss.gradient.iter().zip(want) {
                assert!(close(f64::from(*got), want), "{name} gradient: {got} {want}");
            }
        }
        assert!(close(focal.plus(&l1).value, flat(&vector.expected("total"))[0]));
    }

    #[test]
    fn weighted_losses_are_the_vectors() {
        let Some(vector) = Vector::open("prn_losses") else { return };
        let probabilities = flat(&vector.input("prob"));
        let truth: Vec<bool> = flat(&vector.input("mask")).iter().map(|&m| m == 1.0).collect();
        let smooth = smooth_l1(&probabilities, &truth, 1.0);
        let focal = weighted_focal(&probabilities, &truth, 0.5, 4);
        let total = smooth.clone().plus(&focal.clone().times(5.0));
        let close = |got: f64, want: f32| (got - f64::from(want)).abs() <= 1e-6 + 1e-4 * got.abs();
        for (name, loss) in [("smooth_l1", &smooth), ("focal", &focal), ("total", &total)] {
            assert!(close(loss.value, flat(&vector.expected(name))[0]), "{name} {}", loss.value);
        }
        for (got, want) in total.gradient.iter().zip(flat(&vector.expected("grad_total"))) {
            assert!(close(f64::from(*got), want), "gradient: {got} {want}");
        }
    }

    #[test]
    fn a_smooth_l1_is_one_where_it_is_steep() {
        let loss = smooth_l1(&[0.9, 0.1, 0.1, 0.5], &[true, false, true, false], 0.5);
        // d = 0.1, 0.1, 0.9, 0.5
        let want = (0.01 + 0.01 + (0.9 - 0.25) + (0.5 - 0.25)) / 4.0;
        assert!((loss.value - want).abs() < 1e-7, "{}", loss.value);
        for (got, want) in loss.gradient.iter().zip([-0.2, 0.2, -1.0, 1.0]) {
            assert!((got - want / 4.0).abs() < 1e-7, "{got} {want}");
        }
    }

    #[test]
    fn certainty_in_the_wrong_is_finite() {
        let loss = focal(&[0.0, 1.0], &[true, false], 4);
        assert_eq!(loss.value, 100.0);
        assert!(loss.gradient.iter().all(|slope| slope.is_finite()), "{loss:?}");
        let loss = weighted_focal(&[0.0, 1.0], &[true, false], 0.25, 4);
        // ln 10⁻⁵ is −11.51, once by α and once by 1 − α.
        assert!((loss.value - 11.5129 * 0.5 * (1.0_f64 - 1e-5).powi(4)).abs() < 1e-4, "{loss:?}");
        assert_eq!(loss.gradient, [0.0, 0.0]);
    }
}
