//! Losses with their gradients, on numbers of all pictures of a batch in a row. Sums are taken in f64.

pub mod mlff;

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
    fn certainty_in_the_wrong_is_finite() {
        let loss = focal(&[0.0, 1.0], &[true, false], 4);
        assert_eq!(loss.value, 100.0);
        assert!(loss.gradient.iter().all(|slope| slope.is_finite()), "{loss:?}");
    }
}
