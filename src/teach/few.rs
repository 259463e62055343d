//! A few of the good parts, drawn by the seed: what `teach --few-shot` takes and what
//! [`crate::eval::few_shot`] measures the worth of.

use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Draw, Good, LEAST_PICTURES};

/// The order in which `parts` good parts, sorted by name, are drawn: of a seed, four are two more
/// than its two.
pub fn order(parts: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(Draw::FewShot.stream());
    let mut order: Vec<usize> = (0..parts).collect();
    order.shuffle(&mut rng);
    order
}

/// So many of `goods`, by the seed; in the order drawn.
///
/// # Errors
/// More than there are, fewer than a threshold takes.
pub fn draw(mut goods: Vec<Good>, count: usize, seed: u64) -> Result<Vec<Good>> {
    ensure!(
        count >= LEAST_PICTURES,
        "few-shot = {count}: a threshold takes at least {LEAST_PICTURES} good parts; how well fewer \
         tell defects from good parts, without a threshold, shows inspectd eval --few-shot"
    );
    ensure!(
        count <= goods.len(),
        "few-shot = {count}, and there are {} pictures of good parts",
        goods.len()
    );
    goods.sort_by(|a, b| a.name().cmp(b.name()));
    let order = order(goods.len(), seed);
    Ok(order[..count].iter().map(|&i| goods[i].clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goods(count: usize) -> Vec<Good> {
        let good = |i| Good::File { name: format!("{i:03}.png"), path: format!("/{i}.png").into() };
        // Not in the order of their names.
        (0..count).rev().map(good).collect()
    }

    fn names(goods: &[Good]) -> Vec<String> {
        goods.iter().map(|good| good.name().to_owned()).collect()
    }

    #[test]
    fn fewer_parts_are_the_first_of_more() {
        let eight = names(&draw(goods(30), 8, 7).unwrap());
        assert_eq!(names(&draw(goods(30), 5, 7).unwrap()), eight[..5]);
        assert_ne!(names(&draw(goods(30), 8, 8).unwrap()), eight);
        let by_order: Vec<String> =
            order(30, 7)[..8].iter().map(|i| format!("{i:03}.png")).collect();
        assert_eq!(eight, by_order);
    }

    #[test]
    fn too_few_and_too_many_are_refused() {
        for (count, says) in [(4, "at least 5 good parts"), (31, "there are 30 pictures")] {
            let error = draw(goods(30), count, 0).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
