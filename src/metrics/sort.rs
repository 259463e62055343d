//! Sorting millions of scores: `f32` as order-preserving integers, and a radix sort of those.

/// An integer that orders as the score does; −0 equals 0. NaN must be refused before.
pub fn key(score: f32) -> u32 {
    // Adding zero turns −0 into 0.
    let bits = (score + 0.0).to_bits();
    // Positive: set the sign bit. Negative: flip all, since larger magnitudes are smaller.
    if bits >> 31 == 0 { bits | SIGN } else { !bits }
}

/// The score of a [`key`].
pub fn score(key: u32) -> f32 {
    f32::from_bits(if key & SIGN != 0 { key & !SIGN } else { !key })
}

/// Sorts ascending.
pub fn sort_keys(keys: &mut Vec<u32>) {
    sort_by_key(keys, |&key| key);
}

/// Sorts ascending by key; items with equal keys keep their order.
pub fn sort_by_key<T: Copy>(items: &mut Vec<T>, key: impl Fn(&T) -> u32) {
    if items.len() < SMALL {
        items.sort_by_key(key);
        return;
    }
    let mut counts = vec![[0_usize; DIGITS]; PASSES];
    for item in items.iter() {
        for (pass, counts) in counts.iter_mut().enumerate() {
            counts[digit(key(item), pass)] += 1;
        }
    }
    let mut target = items.clone();
    for (pass, counts) in counts.iter_mut().enumerate() {
        // All in one bucket: this digit orders nothing.
        if counts.contains(&items.len()) {
            continue;
        }
        let mut start = 0;
        for count in counts.iter_mut() {
            start += std::mem::replace(count, start);
        }
        for item in items.iter() {
            let place = &mut counts[digit(key(item), pass)];
            target[*place] = *item;
            *place += 1;
        }
        std::mem::swap(items, &mut target);
    }
}

const SIGN: u32 = 1 << 31;
/// Below this the standard sort is faster than clearing the counters.
const SMALL: usize = 4096;
/// 11 bits a pass: three passes for 32 bits, and the counters fit the first-level cache.
const BITS: usize = 11;
const DIGITS: usize = 1 << BITS;
const PASSES: usize = 3;

fn digit(key: u32, pass: usize) -> usize {
    (key >> (pass * BITS)) as usize & (DIGITS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn keys_order_as_scores_do() {
        let scores = [
            f32::NEG_INFINITY,
            f32::MIN,
            -1.0,
            -f32::MIN_POSITIVE,
            -1e-45,
            0.0,
            1e-45,
            1.0,
            1.0_f32.next_up(),
            f32::MAX,
            f32::INFINITY,
        ];
        for pair in scores.windows(2) {
            assert!(key(pair[0]) < key(pair[1]), "{pair:?}");
        }
        for value in scores {
            assert_eq!(score(key(value)), value);
        }
        assert_eq!(key(-0.0), key(0.0));
    }

    #[test]
    fn radix_sort_is_the_stable_sort() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for spread in [u32::MAX, 5000, 7] {
            let items: Vec<(u32, usize)> =
                (0..3 * SMALL).map(|i| (rng.random_range(0..=spread), i)).collect();
            let (mut radix, mut standard) = (items.clone(), items);
            sort_by_key(&mut radix, |item| item.0);
            standard.sort_by_key(|item| item.0);
            assert_eq!(radix, standard);
        }
    }

    proptest! {
        #[test]
        fn any_two_floats_keep_their_order(a in any::<f32>(), b in any::<f32>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(Some(key(a).cmp(&key(b))), a.partial_cmp(&b));
        }
    }
}
