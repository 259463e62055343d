//! How far apart the cosines of a map lie, and how many of them have no level: what says whether
//! [`LevelRule::Paper`] suits a network (M-2 of `../shared/spec/mlff.md`).

use super::LevelRule;

/// Of one cosine map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// The largest cosine less the smallest, averaged over the regions.
    pub range: f64,
    /// Share of the places that no level takes, from 0 to 1.
    pub without_level: f64,
}

/// `cosines` [1, H, W] of `size` (H, W) in `regions` × `regions` regions, each with `levels` levels of
/// its own.
///
/// # Panics
/// If the map is empty or not of that size, does not fall into that many regions, or has fewer than two
/// levels.
pub fn reach(
    cosines: &[f32],
    (height, width): (usize, usize),
    regions: usize,
    levels: usize,
    rule: LevelRule,
) -> Reach {
    assert!(levels > 1, "{levels} levels");
    assert!(
        !cosines.is_empty() && cosines.len() == height * width,
        "cosines of {height} × {width}"
    );
    let fits = height.is_multiple_of(regions) && width.is_multiple_of(regions);
    assert!(fits, "{height} × {width} in {regions} × {regions} regions");
    let (h, w) = (height / regions, width / regions);
    let (mut ranges, mut without) = (0.0, 0_usize);
    for (y, x) in (0..regions).flat_map(|y| (0..regions).map(move |x| (y * h, x * w))) {
        let own = || (0..h * w).map(|i| cosines[(y + i / w) * width + x + i % w]);
        let low = own().fold(f32::INFINITY, f32::min);
        let high = own().fold(f32::NEG_INFINITY, f32::max);
        ranges += f64::from(high - low);
        let level = |n: usize| rule.level(n, levels, (low, high));
        let spacing = level(1) - level(0);
        let has_level =
            |value: f32| (0..levels).any(|n| rule.takes(level(n) - value, levels, spacing));
        without += own().filter(|&value| !has_level(value)).count();
    }
    Reach {
        range: ranges / (regions * regions) as f64,
        without_level: without as f64 / cosines.len() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_range_leaves_places_without_a_level_and_a_narrow_one_none() {
        // −1 to 1 in steps of 1/8: of two levels, 0 and 1, the paper's takes what is in (−¼, ¼] and
        // (¾, 1¼], which is 4 and 2 of the 17 values.
        let wide: Vec<f32> = (0..17).map(|i| (i as f32 - 8.0) / 8.0).collect();
        let got = reach(&wide, (1, 17), 1, 2, LevelRule::Paper);
        assert_eq!(got, Reach { range: 2.0, without_level: 11.0 / 17.0 });
        // The reference's two levels, −½ and ½, take what is less than 1 away.
        let got = reach(&wide, (1, 17), 1, 2, LevelRule::Reference);
        assert_eq!(got, Reach { range: 2.0, without_level: 0.0 });
        let narrow: Vec<f32> = wide.iter().map(|x| x / 8.0).collect();
        let got = reach(&narrow, (17, 1), 1, 2, LevelRule::Paper);
        assert_eq!(got, Reach { range: 0.25, without_level: 0.0 });
    }

    #[test]
    fn each_region_has_its_own_range() {
        // Left column 0, 2 | 0, 2, right column 5, 6 | 7, 7.
        let map = [0.0, 5.0, 2.0, 6.0, 0.0, 7.0, 2.0, 7.0];
        let got = reach(&map, (4, 2), 2, 4, LevelRule::Paper);
        // Of 0 and 2 with levels ½, 1, 1½, 2 one has none; so has 5 beside 6; equal ones have all.
        assert_eq!(got, Reach { range: (2.0 + 1.0 + 2.0 + 0.0) / 4.0, without_level: 3.0 / 8.0 });
    }
}
