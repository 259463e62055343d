//! Cross-fitting: thresholds from every good part where there are too few to hold any out.
//!
//! The parts are cut into K folds. The parts of a fold are scored by a memory bank made of the
//! other folds, so that each part is scored once and by a bank that it is not in. The finished
//! memory bank is made of all parts; what the scores can promise of it is said in
//! [`crate::calibrate`].

use std::ops::Range;

use anyhow::{Result, ensure};

use super::{Config, Draw, LEAST_TAUGHT, Step, memory_bank, worst};
use crate::detector::patch_prototypes::{PatchFeatures, PatchPrototypes};

/// # Errors
/// So few pictures that a fold would be empty, or the others too few for a memory bank.
pub(super) fn check(pictures: usize, folds: usize) -> Result<()> {
    let others = pictures - pictures.div_ceil(folds);
    ensure!(
        folds <= pictures && others >= LEAST_TAUGHT,
        "folds = {folds} of {pictures} pictures: every fold needs a picture and {LEAST_TAUGHT} \
         others to be scored with"
    );
    Ok(())
}

/// The image score and the largest value of the anomaly map of every picture, in order; of its
/// `tiles` the largest of each. `features` [pictures · P, D] are theirs and come back as they were.
pub(super) fn cross_fit(
    config: &Config,
    (folds, tiles): (usize, usize),
    mut extractor: PatchFeatures,
    features: &mut [f32],
    progress: &mut dyn FnMut(Step, usize, usize),
) -> Result<(PatchFeatures, Vec<(f32, f32)>)> {
    let (rows, columns) = extractor.grid();
    let picture = tiles * rows * columns * extractor.dims(); // numbers of one
    let pictures = features.len() / picture;
    check(pictures, folds)?;
    let mut judged = Vec::with_capacity(pictures);
    for (fold, held_out) in ranges(pictures, folds).enumerate() {
        let own = held_out.len() * picture;
        // The fold whose turn it is lies in front and goes to the end: the others are then in one
        // piece without being copied, and after the last fold all lie as they did at first.
        features.rotate_left(own);
        let (others, own) = features.split_at(features.len() - own);
        let mut rng = config.rng(Draw::Fold(fold));
        let step = Step::Fold { fold: fold + 1, folds };
        let bank =
            memory_bank(config.bank, others, extractor.dims(), &mut rng, &mut |done, total| {
                progress(step, done, total);
            })?;
        let mut detector = PatchPrototypes::new(extractor, bank)?;
        for features in own.chunks_exact(picture) {
            judged.push(worst(&detector.detect_features(features)?));
        }
        extractor = detector.into_features();
    }
    Ok((extractor, judged))
}

/// Cuts `pictures` into `folds` pieces whose sizes differ by one at most.
fn ranges(pictures: usize, folds: usize) -> impl Iterator<Item = Range<usize>> {
    (0..folds).map(move |fold| fold * pictures / folds..(fold + 1) * pictures / folds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn folds_cover_every_picture_once_and_are_of_one_size(
            (pictures, folds) in (5usize..300).prop_flat_map(|n| (Just(n), 2..=n)),
        ) {
            let cut: Vec<Range<usize>> = ranges(pictures, folds).collect();
            prop_assert_eq!(cut.len(), folds);
            let seen: Vec<usize> = cut.iter().cloned().flatten().collect();
            prop_assert_eq!(seen, (0..pictures).collect::<Vec<_>>());
            let size = pictures / folds;
            prop_assert!(cut.iter().all(|fold| fold.len() == size || fold.len() == size + 1));
        }
    }

    #[test]
    fn folds_without_a_picture_or_without_enough_others_are_refused() {
        for (pictures, folds) in [(5, 6), (5, 2), (3, 3)] {
            let error = check(pictures, folds).unwrap_err().to_string();
            assert!(error.contains(&format!("folds = {folds} of {pictures}")), "{error}");
        }
        for (pictures, folds) in [(5, 5), (6, 2), (4, 4)] {
            check(pictures, folds).unwrap();
        }
    }
}
