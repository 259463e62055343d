//! Extended anomalies: a seen anomaly in other colours, turned, sheared and elsewhere (PRN, Zhang et
//! al. 2023, section 3.4; section 4 of `anomaly-generation.md`).
//!
//! The mask is moved beside the picture and never told from colours: a black pixel of a defect is a
//! defect too.

use anyhow::{Result, ensure};
use image::RgbImage;
use image::buffer::ConvertBuffer;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::affine::Affine;
use super::blend::{self, Opacity};
use super::simulated::recolour;
use super::target_area::{self, keep_within};
use super::{SampleKey, Synthetic, Tag, foreground};
use crate::dataset::mask::Mask;

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// PRN's (G-2).
    pub opacity: Opacity,
    pub target_area: target_area::Config,
    /// Turned by up to this, either way. PRN gives no magnitudes (G-6).
    pub rotation_deg: f64,
    /// Sheared along each axis by up to this, either way (G-6).
    pub shear_deg: f64,
    /// The chance of the seen anomaly as it is, picture and mask, instead of one made of it: PRN's
    /// code mixes such in, its paper does not.
    pub identity_prob: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            opacity: Opacity::PRN,
            target_area: target_area::Config::default(),
            rotation_deg: 180.0,
            shear_deg: 15.0,
            identity_prob: 0.0,
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<()> {
        ensure!(
            (0.0..=180.0).contains(&self.rotation_deg),
            "rotation_deg = {}: must be from 0 to 180",
            self.rotation_deg
        );
        ensure!(
            (0.0..=MOST_SHEAR_DEG).contains(&self.shear_deg),
            "shear_deg = {}: must be from 0 to {MOST_SHEAR_DEG}; at 45 an anomaly may become a line",
            self.shear_deg
        );
        ensure!(
            (0.0..=1.0).contains(&self.identity_prob),
            "identity_prob = {}: must be from 0 (never) to 1 (always)",
            self.identity_prob
        );
        self.target_area.check()
    }
}

/// An anomaly made of a `seen` one, picture and mask, on the `normal` picture. The middle of its
/// bounding box comes anywhere into that of a target area, and what is outside the area is cut off.
/// Where less than 16 pixels are left (or none, of an anomaly smaller than that), it is moved again,
/// up to 50 times; then to another target area, up to 5 times; then the whole picture is the target
/// area.
///
/// Draws, of [`Tag::Extended`]: one u of [0, 1), below `identity_prob` the seen anomaly as it is; 2 of
/// [`Menu::Prn`](super::augment::Menu::Prn); then for each move the rotation, the shear along x and y in degrees, and the x and y
/// that the middle comes to, all uniform. Of [`Tag::TargetArea`] what [`target_area::draw`] draws, of
/// [`Tag::Blend`] the opacity. Which anomaly and which normal picture are the caller's draws.
///
/// # Errors
/// Pictures of different sizes; a seen anomaly without an anomalous pixel.
pub fn make(
    normal: &RgbImage,
    foreground: &Mask,
    seen: (&RgbImage, &Mask),
    config: &Config,
    key: SampleKey,
) -> Result<Synthetic> {
    let (picture, mask) = seen;
    let size = |mask: &Mask| (mask.width as u32, mask.height as u32);
    blend::same_size(normal, "the foreground", size(foreground))?;
    blend::same_size(normal, "the seen anomaly", picture.dimensions())?;
    blend::same_size(normal, "the seen anomaly's mask", size(mask))?;
    ensure!(
        mask.inside.contains(&true),
        "the seen anomaly has no anomalous pixel in its mask; take another, or a larger size"
    );
    let mut rng = key.rng(Tag::Extended);
    if rng.random::<f64>() < config.identity_prob {
        return Ok(Synthetic { image: picture.convert(), mask: mask.clone() });
    }
    let recoloured = recolour(picture, &mut rng);
    let (moved, mask) = place(mask, foreground, config, &mut rng, &mut key.rng(Tag::TargetArea));
    let opacity = config.opacity.draw(&mut key.rng(Tag::Blend));
    Ok(blend::lay(normal, &moved.warp_rgb(&recoloured), mask, opacity))
}

/// Below 45, where two shears may leave a line.
const MOST_SHEAR_DEG: f64 = 40.0;

/// Fewer pixels of an anomaly are no anomaly.
const LEAST: usize = 16;

/// Moves that are tried for one target area.
const MOVES: u32 = 50;

/// Target areas that are drawn after the first.
const REDRAWS: u32 = 5;

/// How a seen anomaly is moved, and its mask, moved and cut.
fn place(
    seen: &Mask,
    foreground: &Mask,
    config: &Config,
    rng: &mut impl Rng,
    areas: &mut impl Rng,
) -> (Affine, Mask) {
    let least = if seen.area() < LEAST { 1 } else { LEAST };
    let mut largest = (Affine::IDENTITY, Mask::empty(seen.width, seen.height));
    for area in 0..=REDRAWS + 1 {
        let area = if area <= REDRAWS {
            target_area::draw(foreground, &config.target_area, areas)
        } else {
            foreground::whole(seen.width, seen.height)
        };
        let (Some(from), Some(to)) = (Bounds::of(seen), Bounds::of(&area)) else { continue };
        for _ in 0..MOVES {
            let moved = draw_move(&from, &to, config, rng);
            let mask = keep_within(&moved.warp_mask(seen), &area);
            let (pixels, most) = (mask.area(), largest.1.area());
            if pixels > most {
                largest = (moved, mask);
            }
            if pixels >= least {
                return largest;
            }
        }
    }
    largest
}

/// Turned and sheared about the middle of `from`, which comes somewhere into `to`.
fn draw_move(from: &Bounds, to: &Bounds, config: &Config, rng: &mut impl Rng) -> Affine {
    let mut either_way = |most: f64| rng.random_range(-most..=most);
    let rotation = Affine::rotation(either_way(config.rotation_deg));
    let shear = Affine::shear(either_way(config.shear_deg), either_way(config.shear_deg));
    let (x, y) = (rng.random_range(to.left..=to.right), rng.random_range(to.top..=to.bottom));
    let (middle_x, middle_y) = ((from.left + from.right) / 2.0, (from.top + from.bottom) / 2.0);
    shear
        .then(&rotation)
        .about((middle_x, middle_y))
        .then(&Affine::translation(x - middle_x, y - middle_y))
}

/// The outermost pixels of a mask.
#[derive(Debug, PartialEq)]
struct Bounds {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Bounds {
    /// `None` of an empty mask.
    fn of(mask: &Mask) -> Option<Bounds> {
        let rows = mask.inside.chunks_exact(mask.width);
        let top = rows.clone().position(|row| row.contains(&true))?;
        let bottom = mask.height - 1 - rows.clone().rev().position(|row| row.contains(&true))?;
        let left = rows.clone().filter_map(|row| row.iter().position(|&inside| inside)).min()?;
        let right = rows.filter_map(|row| row.iter().rposition(|&inside| inside)).max()?;
        let [left, right, top, bottom] = [left, right, top, bottom].map(|at| at as f64);
        Some(Bounds { left, right, top, bottom })
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, Rgb32FImage};
    use rayon::prelude::*;

    use super::*;

    const SIDE: usize = 64;

    fn key(index: u64) -> SampleKey {
        SampleKey { seed: 7, epoch: 1, index }
    }

    fn mask(inside: impl Fn(i32, i32) -> bool) -> Mask {
        let places = (0..(SIDE * SIDE) as i32).map(|at| inside(at % SIDE as i32, at / SIDE as i32));
        Mask { width: SIDE, height: SIDE, inside: places.collect() }
    }

    fn picture(red: u8) -> RgbImage {
        RgbImage::from_fn(64, 64, |x, y| Rgb([red, 2 * x as u8, 3 * y as u8]))
    }

    /// A black scratch near a corner.
    fn seen() -> (RgbImage, Mask) {
        let mask = mask(|x, y| (4..24).contains(&x) && (6..10).contains(&y));
        let mut picture = picture(200);
        for (pixel, _) in picture.pixels_mut().zip(&mask.inside).filter(|(_, inside)| **inside) {
            *pixel = Rgb([0; 3]);
        }
        (picture, mask)
    }

    fn disc() -> Mask {
        mask(|x, y| (x - 40).pow(2) + (y - 30).pow(2) < 300)
    }

    #[test]
    fn anomalies_come_on_the_part_and_change_nothing_else() {
        let ((seen, scratch), normal) = (seen(), picture(100));
        let before: Rgb32FImage = normal.convert();
        for index in 0..60 {
            let config = Config::default();
            let made = make(&normal, &disc(), (&seen, &scratch), &config, key(index)).unwrap();
            let pixels = made.mask.area();
            // The scratch has 80 pixels, and a shear of 15° both ways leaves 1 ± 0.072 of an area.
            assert!((LEAST..=92).contains(&pixels), "{pixels}");
            assert!(made.mask.inside.iter().zip(&disc().inside).all(|(made, part)| !made || *part));
            for ((before, after), inside) in
                before.pixels().zip(made.image.pixels()).zip(&made.mask.inside)
            {
                assert!(*inside || before == after);
                assert!(after.0.iter().all(|level| (0.0..=1.0).contains(level)), "{after:?}");
            }
        }
    }

    #[test]
    fn a_black_pixel_of_a_defect_is_a_defect() {
        let config = Config { rotation_deg: 0.0, shear_deg: 0.0, ..Config::default() };
        let ((_, scratch), black) = (seen(), RgbImage::new(64, 64));
        let whole = foreground::whole(SIDE, SIDE);
        let off = target_area::Config { on: false, ..Default::default() };
        let config = Config { target_area: off, ..config };
        for index in 0..20 {
            let made = make(&picture(9), &whole, (&black, &scratch), &config, key(index)).unwrap();
            assert!(made.mask.area() >= LEAST);
        }
    }

    #[test]
    fn the_middle_comes_into_the_target() {
        let scratch = seen().1;
        let (from, to) = (Bounds::of(&scratch).unwrap(), Bounds::of(&disc()).unwrap());
        assert_eq!(from, Bounds { left: 4.0, right: 23.0, top: 6.0, bottom: 9.0 });
        let mut rng = key(0).rng(Tag::Extended);
        let (mut sum_x, mut sum_y) = (0.0, 0.0);
        for _ in 0..400 {
            let moved = draw_move(&from, &to, &Config::default(), &mut rng);
            let (x, y) = moved.apply((13.5, 7.5));
            assert!((to.left..=to.right).contains(&x) && (to.top..=to.bottom).contains(&y));
            (sum_x, sum_y) = (sum_x + x, sum_y + y);
        }
        // Uniform over 34 pixels: the mean of 400 is within half a pixel, at one sigma.
        assert!((sum_x / 400.0 - 40.0).abs() < 2.0 && (sum_y / 400.0 - 30.0).abs() < 2.0);
        assert_eq!(Bounds::of(&Mask::empty(5, 4)), None);
    }

    #[test]
    fn a_part_too_small_for_it_is_given_up() {
        let (seen, scratch) = seen();
        let speck = mask(|x, y| (x, y) == (32, 32));
        let normal = picture(100);
        let made = make(&normal, &speck, (&seen, &scratch), &Config::default(), key(1)).unwrap();
        assert!(made.mask.area() >= LEAST, "the whole picture is the target area");
        let made = make(&normal, &disc(), (&seen, &speck), &Config::default(), key(1)).unwrap();
        assert!(made.mask.area() > 0, "an anomaly of one pixel stays one");
    }

    #[test]
    fn the_seen_anomaly_itself_where_it_is_asked_for() {
        let (seen, scratch) = seen();
        let config = Config { identity_prob: 1.0, ..Config::default() };
        let made = make(&picture(9), &disc(), (&seen, &scratch), &config, key(0)).unwrap();
        assert!(made == Synthetic { image: seen.convert(), mask: scratch });
    }

    #[test]
    fn threads_change_nothing() {
        let ((seen, scratch), normal, part) = (seen(), picture(100), disc());
        let one = |index| {
            make(&normal, &part, (&seen, &scratch), &Config::default(), key(index)).unwrap()
        };
        let in_order: Vec<Synthetic> = (0..24).map(one).collect();
        let at_once: Vec<Synthetic> = (0..24).into_par_iter().map(one).collect();
        assert!(in_order == at_once);
        assert!(in_order[0] != in_order[1]);
    }

    #[test]
    fn draws_are_pinned() {
        let ((seen, scratch), normal) = (seen(), picture(100));
        let pinned: Vec<(usize, usize)> = (0..6)
            .map(|index| {
                let config = Config::default();
                let made = make(&normal, &disc(), (&seen, &scratch), &config, key(index)).unwrap();
                (made.mask.area(), made.mask.inside.iter().position(|&inside| inside).unwrap())
            })
            .collect();
        let want = [(49, 2152), (35, 2208), (27, 1589), (77, 1903), (80, 1831), (50, 1306)];
        assert_eq!(pinned, want);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let ((seen, scratch), normal) = (seen(), picture(100));
        let whole = foreground::whole(SIDE, SIDE);
        let make = |foreground: &Mask, seen: &RgbImage, mask: &Mask| {
            make(&normal, foreground, (seen, mask), &Config::default(), key(0)).map(|_| ())
        };
        assert!(make(&whole, &seen, &scratch).is_ok());
        for (result, words) in [
            (make(&Mask::empty(32, 64), &seen, &scratch), "the foreground is 32×64"),
            (make(&whole, &RgbImage::new(64, 32), &scratch), "the seen anomaly is 64×32"),
            (make(&whole, &seen, &Mask::empty(32, 32)), "the seen anomaly's mask is 32×32"),
            (make(&whole, &seen, &Mask::empty(SIDE, SIDE)), "no anomalous pixel"),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_config_that_cannot_be_meant_is_refused() {
        let config: Config = toml::from_str("identity_prob = 0.1").unwrap();
        assert!(config.check().is_ok());
        assert!(toml::from_str::<Config>("identity = 0.1").is_err());
        for (wrong, key) in [
            (Config { rotation_deg: 181.0, ..config }, "rotation_deg"),
            (Config { shear_deg: 45.0, ..config }, "shear_deg"),
            (Config { identity_prob: -0.1, ..config }, "identity_prob"),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
