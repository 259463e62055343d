//! What teaching will take, before the work starts: pictures, prototypes, memory.

use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;

use super::{BATCH, Config, Draw, Good, LEAST_PICTURES, LEAST_TAUGHT, PROJECTED_DIMS, folds};
use crate::detector::patch_prototypes::{self, LoadedBackbone};
use crate::detector::tiles::Layout;

/// What teaching these pictures will take; made before the work starts.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order drawn, which is what folds are cut from.
    pub(super) taught: Vec<Good>,
    /// Empty where the thresholds come from folds.
    pub(super) held_out: Vec<Good>,
    /// How many folds the taught pictures are cut into, each scored by the others' memory bank.
    pub(super) folds: Option<usize>,
    /// P, a picture, of all its tiles.
    pub(super) patches: usize,
    /// Tiles of a picture; 1 where it is taught as a whole.
    pub(super) tiles: usize,
    /// D.
    dims: usize,
    /// Of the backbone's tensors that the bundle will carry.
    backbone_bytes: u64,
    pub prototypes: usize,
}

impl Config {
    /// Draws who is held out, or the order of the folds, and counts what is coming.
    ///
    /// # Errors
    /// Too few pictures, or a memory bank larger than they can fill.
    pub fn plan(&self, mut goods: Vec<Good>, loaded: &LoadedBackbone) -> Result<Plan> {
        self.check()?;
        let total = goods.len();
        ensure!(
            total >= LEAST_PICTURES,
            "{total} pictures of good parts: at least {LEAST_PICTURES} are needed, 50 and more \
             are sensible"
        );
        goods.sort_by(|a, b| a.name().cmp(b.name()));
        ensure!(
            goods.windows(2).all(|pair| pair[0].name() != pair[1].name()),
            "two pictures have the same name"
        );
        goods.shuffle(&mut self.rng(Draw::Split));
        let folds = self.holdout.folds(total);
        let held_out = if let Some(folds) = folds {
            folds::check(total, folds)?;
            Vec::new()
        } else {
            let share = self.holdout.share();
            // two is what it takes to see a spread at all
            let held_out = ((total as f64 * share).round() as usize).max(2);
            ensure!(
                total - held_out >= LEAST_TAUGHT,
                "holdout = {share} leaves {} of {total} pictures to teach with: hold out fewer",
                total - held_out
            );
            goods.split_off(total - held_out)
        };
        let (rows, columns) = patch_prototypes::grid(self.input);
        let tiles = self.tiles.map_or(Ok(1), |layout| self.tiles_of(layout, &goods))?;
        let patches = rows * columns * tiles;
        // the smallest memory bank to be made, which is a fold's where there are folds
        let least = folds.map_or(goods.len(), |folds| goods.len() - goods.len().div_ceil(folds));
        for pictures in [least, goods.len()] {
            let all = pictures * patches;
            let prototypes = self.bank.prototypes(all)?;
            ensure!(
                (patch_prototypes::NEIGHBOURS..=all).contains(&prototypes),
                "{prototypes} prototypes: must be from {} to the {all} patches of {pictures} \
                 pictures{}",
                patch_prototypes::NEIGHBOURS,
                if folds.is_some() { ", one fold left out" } else { "" }
            );
        }
        Ok(Plan {
            prototypes: self.bank.prototypes(goods.len() * patches)?,
            taught: goods,
            held_out,
            folds,
            patches,
            tiles,
            dims: patch_prototypes::dims(&loaded.backbone),
            backbone_bytes: loaded.tensors.values().map(|t| t.elem_count() as u64 * 4).sum(),
        })
    }

    /// Tiles of the first picture that can be read; teaching finds out whether others have as many.
    fn tiles_of(&self, layout: Layout, goods: &[Good]) -> Result<usize> {
        let first = goods.iter().find_map(|good| good.read(self.significant_bits).ok());
        let (first, _) = first.context("none of the pictures can be read")?;
        Ok(layout.count(first.width(), first.height()))
    }
}

impl Plan {
    pub fn pictures(&self) -> usize {
        self.taught.len() + self.held_out.len()
    }

    /// Pictures that the finished memory bank is made without; 0 where there are folds.
    pub fn held_out(&self) -> usize {
        self.held_out.len()
    }

    /// K, where the thresholds come from cross-fitting.
    pub fn folds(&self) -> Option<usize> {
        self.folds
    }

    /// Bytes that the work needs at its peak.
    pub fn bytes(&self) -> u64 {
        self.parts().iter().sum()
    }

    /// The arithmetic behind [`Plan::bytes`], for people.
    pub fn arithmetic(&self) -> String {
        let all = self.taught.len() * self.patches;
        let [features, projected, bank, work] = self.parts().map(mib);
        format!(
            "{:.0} MiB: features {} pictures × {} patches × {} channels × 4 bytes = {features:.0}, \
             projected {all} × ({} + 2) × 4 = {projected:.0}, memory bank {} × {} × 4 × 2 = {bank:.0}, \
             program and backbone {work:.0}",
            mib(self.bytes()),
            self.taught.len(),
            self.patches,
            self.dims,
            PROJECTED_DIMS,
            self.prototypes,
            self.dims,
        )
    }

    /// # Errors
    /// The work does not fit into `available` bytes; with the arithmetic.
    pub fn check_memory(&self, available: u64) -> Result<()> {
        ensure!(
            self.bytes() <= available,
            "teaching does not fit into memory: it needs {}, and {:.0} MiB are there; teach with \
             fewer pictures, a smaller --size, or a larger --max-memory-gib if you know better",
            self.arithmetic(),
            mib(available)
        );
        Ok(())
    }

    /// Features, projected features with the nearest centre of each and its distance, the memory
    /// bank twice (as rows and as tiles of the search), and what does not grow with the pictures:
    /// the backbone twice (as the bundle keeps it and folded), a batch under way, the program.
    ///
    /// Folds add nothing: they share the features, each has its memory bank for itself and gives
    /// it back before the next, and none is larger than the one made of all pictures at the end.
    fn parts(&self) -> [u64; 4] {
        let patches = (self.taught.len() * self.patches) as u64;
        [
            patches * self.dims as u64 * 4,
            patches * (PROJECTED_DIMS as u64 + 2) * 4,
            (self.prototypes * self.dims) as u64 * 4 * 2,
            self.backbone_bytes * 2
                + WORK_BYTES_A_PATCH * (self.patches * BATCH) as u64
                + PROGRAM_BYTES,
        ]
    }
}

/// Activations and unfolded convolutions that live at once, bytes a patch of a batch. With
/// [`PROGRAM_BYTES`] it covers the peaks seen at 256 × 256: 80 MiB beside the features for
/// `compact`, 117 for `resnet18`, 249 for `resnet50`.
const WORK_BYTES_A_PATCH: u64 = 16 << 10;

/// The program and its libraries.
const PROGRAM_BYTES: u64 = 64 << 20;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
