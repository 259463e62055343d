//! The pixels of a data set that outgrows memory, counted by the upper 24 bits of their score's
//! order-preserving key (specification of metrics, section 7): bins are as fine as 2⁻¹⁵ of the
//! score whatever its scale, which bins of equal width are not.
//!
//! What a figure may be off is computed beside it. A bin that has seen one score only costs nothing,
//! so that maps of few levels are exact here too.

use super::components;
use super::pixels::{AUPRO_LIMIT, Bounds, CURVE_POINTS, PixelFigures};
use super::regions::{Pixels, RegionPixel, mean, precision_at};
use super::sort::key;
use super::steps::{Gain, Step, Totals, WHOLE};

/// Up to 2²⁴ bins of 32 bytes, of which only blocks that a score fell into take memory.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    blocks: Vec<Option<Box<[Bin]>>>,
    /// The key of each instance's score; see [`super::regions::PixelRanking`].
    instances: Vec<u32>,
    totals: Totals,
}

#[derive(Clone, Copy, Debug)]
struct Bin {
    normal: u64,
    anomalous: u64,
    /// In parts of [`WHOLE`] a region.
    overlap: u64,
    /// Of the lower bits seen.
    lowest: u8,
    highest: u8,
}

/// A bin that is not empty.
#[derive(Clone, Copy)]
struct Filled {
    step: Step,
    /// It holds one score only, so that nothing in it is out of order.
    is_sharp: bool,
}

impl Histogram {
    fn new() -> Histogram {
        Histogram {
            blocks: vec![None; 1 << (32 - LOWER_BITS - BLOCK_BITS)],
            instances: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// With the pixels that were kept one by one so far.
    pub fn of(pixels: Pixels) -> Histogram {
        let mut histogram = Histogram::new();
        for key in pixels.normal {
            histogram.bin(key).normal += 1;
            histogram.totals.negatives += 1;
        }
        histogram.add_regions(pixels.anomalous);
        histogram
    }

    /// Adds one picture; what may be added was checked.
    pub fn add(&mut self, scores: &[f32], mask: &[bool], width: usize) {
        let (labels, _) = components::label(mask, width);
        let mut anomalous = Vec::new();
        for (&score, &label) in scores.iter().zip(&labels) {
            if label == 0 {
                self.bin(key(score)).normal += 1;
                self.totals.negatives += 1;
            } else {
                anomalous.push(RegionPixel { key: key(score), region: label });
            }
        }
        self.add_regions(anomalous);
    }

    /// Whole regions.
    fn add_regions(&mut self, mut pixels: Vec<RegionPixel>) {
        // each region from its highest score down
        pixels.sort_unstable_by_key(|pixel| (pixel.region, !pixel.key));
        for region in pixels.chunk_by(|a, b| a.region == b.region) {
            self.totals.regions += 1;
            self.totals.positives += region.len() as u64;
            self.instances.push(region[region.len() / 2].key);
            let mut gain = Gain::new(region.len() as u32);
            for same in region.chunk_by(|a, b| a.key == b.key) {
                let bin = self.bin(same[0].key);
                bin.anomalous += same.len() as u64;
                bin.overlap += gain.find(same.len() as u32);
            }
        }
    }

    /// The bin that a score of this key falls into; it is then counted there.
    fn bin(&mut self, key: u32) -> &mut Bin {
        let block = &mut self.blocks[(key >> (LOWER_BITS + BLOCK_BITS)) as usize];
        let empty = Bin { normal: 0, anomalous: 0, overlap: 0, lowest: u8::MAX, highest: 0 };
        let bins = block.get_or_insert_with(|| vec![empty; 1 << BLOCK_BITS].into());
        let bin = &mut bins[(key >> LOWER_BITS) as usize & ((1 << BLOCK_BITS) - 1)];
        bin.lowest = bin.lowest.min(key as u8);
        bin.highest = bin.highest.max(key as u8);
        bin
    }

    /// The bins that are not empty, from the highest scores down.
    fn filled(&self) -> Vec<Filled> {
        let mut filled = Vec::new();
        for (at, block) in self.blocks.iter().enumerate().rev() {
            for (i, bin) in block.iter().flat_map(|bins| bins.iter().enumerate()).rev() {
                if bin.lowest > bin.highest {
                    continue;
                }
                let upper = ((at << BLOCK_BITS) | i) as u32;
                let step = Step {
                    key: (upper << LOWER_BITS) | u32::from(bin.lowest),
                    positives: bin.anomalous,
                    negatives: bin.normal,
                    overlap: bin.overlap,
                };
                filled.push(Filled { step, is_sharp: bin.lowest == bin.highest });
            }
        }
        filled
    }

    pub fn figures(self) -> PixelFigures {
        let bins = self.filled();
        let totals = self.totals;
        let steps = || bins.iter().map(|bin| bin.step);
        let mut instances = self.instances;
        instances.sort_unstable();
        let found = Precisions::of(&instances, &bins);
        let bounds = Bounds {
            auroc: auroc_bound(totals, &bins),
            average_precision: average_precision_bound(totals, &bins),
            aupro: aupro_bound(totals, &bins),
            iap: found.bound(mean),
            iap_90: found.bound(|precisions| precision_at(precisions, 90)),
        };
        PixelFigures {
            pixels: totals.positives + totals.negatives,
            regions: totals.regions,
            auroc: totals.auroc(steps()),
            average_precision: totals.average_precision(steps()),
            aupro: totals.aupro(AUPRO_LIMIT, steps()),
            iap: mean(&found.said),
            iap_90: precision_at(&found.said, 90),
            roc: totals.roc(CURVE_POINTS, steps()),
            precision_recall: totals.precision_recall(CURVE_POINTS, steps()),
            pro: totals.pro_curve(AUPRO_LIMIT, CURVE_POINTS, steps()),
            bounds: Some(bounds),
        }
    }
}

/// Half of the share of pairs (anomalous, normal) that share a bin: such a pair counts a half, and
/// is worth 0 or 1.
fn auroc_bound(totals: Totals, bins: &[Filled]) -> f64 {
    if !totals.has_both_classes() {
        return 0.0;
    }
    let blurred = bins.iter().filter(|bin| !bin.is_sharp);
    let pairs: u128 =
        blurred.map(|bin| u128::from(bin.step.positives) * u128::from(bin.step.negatives)).sum();
    pairs as f64 / (2.0 * totals.positives as f64 * totals.negatives as f64)
}

/// In a bin, each anomalous pixel's precision lies between that of the first with all normal ones
/// before it and that of the last with none.
fn average_precision_bound(totals: Totals, bins: &[Filled]) -> f64 {
    let (mut hits, mut wrong, mut below, mut above) = (0.0_f64, 0.0_f64, 0.0, 0.0);
    for Filled { step, is_sharp } in bins {
        let (positives, negatives) = (step.positives as f64, step.negatives as f64);
        if !is_sharp && positives > 0.0 && negatives > 0.0 {
            let said = (hits + positives) / (hits + positives + wrong + negatives);
            let first = (hits + 1.0) / (hits + 1.0 + wrong + negatives);
            let last = (hits + positives) / (hits + positives + wrong);
            below += positives * (said - first);
            above += positives * (last - said);
        } else if !is_sharp && positives > 0.0 {
            // No normal pixel, but the anomalous ones count one after the other.
            let said = (hits + positives) / (hits + positives + wrong);
            below += positives * (said - (hits + 1.0) / (hits + 1.0 + wrong));
        }
        hits += positives;
        wrong += negatives;
    }
    if totals.positives == 0 { 0.0 } else { f64::max(below, above) / totals.positives as f64 }
}

/// The curve crosses a bin somewhere in the box between its corners, where its chord is at most half
/// of the box off; and all of it where the limit cuts the box.
fn aupro_bound(totals: Totals, bins: &[Filled]) -> f64 {
    if totals.regions == 0 || totals.negatives == 0 {
        return 0.0;
    }
    let (mut wrong, mut off) = (0_u64, 0.0);
    for Filled { step, is_sharp } in bins {
        let from = wrong as f64 / totals.negatives as f64;
        wrong += step.negatives;
        let to = wrong as f64 / totals.negatives as f64;
        if from >= AUPRO_LIMIT {
            break;
        }
        if !is_sharp {
            let gained = step.overlap as f64 / (totals.regions as f64 * WHOLE as f64);
            off += if to <= AUPRO_LIMIT {
                (to - from) * gained / 2.0
            } else {
                (AUPRO_LIMIT - from) * gained
            };
        }
    }
    off / AUPRO_LIMIT
}

/// Of each instance, lowest score first: the best precision at this or a higher recall.
struct Precisions {
    said: Vec<f64>,
    least: Vec<f64>,
    most: Vec<f64>,
}

impl Precisions {
    /// `instances` are the keys of their scores, ascending.
    fn of(instances: &[u32], bins: &[Filled]) -> Precisions {
        let mut at_each = Vec::with_capacity(instances.len());
        let mut left = instances;
        let (mut hits, mut wrong) = (0_u64, 0_u64);
        for Filled { step, is_sharp } in bins {
            let before = (hits, wrong);
            hits += step.positives;
            wrong += step.negatives;
            let said = precision(hits, wrong);
            let range = if *is_sharp {
                (said, said)
            } else {
                // The instance's own pixel is there in any case.
                (precision(before.0 + 1, wrong), precision(hits, before.1))
            };
            while let Some((_, rest)) =
                left.split_last().filter(|(last, _)| **last >> LOWER_BITS == step.key >> LOWER_BITS)
            {
                at_each.push((range.0, said, range.1));
                left = rest;
            }
        }
        at_each.reverse();
        let best = |of: fn(&(f64, f64, f64)) -> f64| {
            let mut best = 0.0_f64;
            at_each
                .iter()
                .map(|one| {
                    best = best.max(of(one));
                    best
                })
                .collect()
        };
        Precisions { least: best(|one| one.0), said: best(|one| one.1), most: best(|one| one.2) }
    }

    /// How far a figure of the precisions may be off.
    fn bound(&self, figure: impl Fn(&[f64]) -> Option<f64>) -> f64 {
        let [least, said, most] =
            [&self.least, &self.said, &self.most].map(|of| figure(of).unwrap_or(0.0));
        f64::max(said - least, most - said)
    }
}

fn precision(hits: u64, wrong: u64) -> f64 {
    hits as f64 / (hits + wrong) as f64
}

/// Of a key, not looked at.
const LOWER_BITS: u32 = 8;
/// 4096 blocks of 4096 bins.
const BLOCK_BITS: u32 = 12;
