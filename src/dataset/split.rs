//! PRN's supervised split (Zhang et al. 2023, section 4.1; the general setting of Ding et al. 2022):
//! a few defects are drawn to learn from and are then no longer in the test set.
//!
//! All defects that may be drawn are brought into one order from the seed; the first `count` of it are
//! seen. With the same seed a smaller count therefore sees a part of what a larger one sees. The order
//! starts from the bytes of the names, so that threads and file systems have no say in it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Category, Layout, Sample};

/// Which defects are learned from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenAnomalies {
    /// v; 10 in the paper.
    pub count: usize,
    pub seed: u64,
    pub draw: Draw,
    pub pool: Pool,
}

/// How they are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Each defect as likely as any other.
    Pooled,
    /// One of each kind in turn, as long as a kind has some.
    Stratified,
    /// The first ones of a text file with a [`Sample::name`] a line; an empty line and one that
    /// begins with `#` count for nothing. The seed has no say.
    List(PathBuf),
}

/// Where they may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    Test,
    /// The training half's own defects; the test set stays as it is.
    Train,
    /// Either. Defects of the training half that are not drawn are tested with.
    Both,
}

/// What is learned from and what is tested with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// In the order of the draw.
    pub seen: Vec<Sample>,
    pub test: Vec<Sample>,
}

impl Pool {
    /// As PRN's protocol has it for a layout: DAGM 2007 pools its halves; of KolektorSDD2 as of all
    /// others the test half alone is drawn from.
    pub fn usual(layout: Layout) -> Pool {
        if layout == Layout::Dagm { Pool::Both } else { Pool::Test }
    }
}

impl SeenAnomalies {
    /// # Errors
    /// Fewer defects than wanted; a list that can't be read or names what may not be drawn.
    pub fn split(&self, category: &Category) -> Result<Split> {
        let from_test = category.test.iter().filter(|_| self.pool != Pool::Train);
        let from_train = category.train_defects.iter().filter(|_| self.pool != Pool::Test);
        let mut pool: Vec<&Sample> =
            from_test.chain(from_train).filter(|sample| sample.defect.is_some()).collect();
        pool.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        let half = match self.pool {
            Pool::Test => "to test with",
            Pool::Train => "to learn from",
            Pool::Both => "in its two halves",
        };
        ensure!(
            self.count <= pool.len(),
            "{} defects are to be learned from, but {} has {} {half}",
            self.count,
            category.name,
            pool.len()
        );
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let order = match &self.draw {
            Draw::Pooled => {
                pool.shuffle(&mut rng);
                pool
            }
            Draw::Stratified => stratified(pool, &mut rng),
            Draw::List(file) => listed(&pool, file, self.count)
                .with_context(|| format!("the list {} for {}", file.display(), category.name))?,
        };
        let seen: Vec<Sample> = order.into_iter().take(self.count).cloned().collect();
        let mut test = category.test.clone();
        if self.pool == Pool::Both {
            test.extend(category.train_defects.iter().cloned());
            test.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        }
        without(&mut test, &seen.iter().map(|sample| sample.name.clone()).collect::<Vec<_>>());
        Ok(Split { seen, test })
    }
}

impl Split {
    /// What the card of a bundle keeps of it, to be given to [`without`].
    pub fn names(&self) -> Vec<String> {
        self.seen.iter().map(|sample| sample.name.clone()).collect()
    }
}

/// Takes what was `seen` in training out of a test set; how many pictures that were. Fewer than were
/// seen, if some came from the training half or the model was made from another set.
pub fn without(test: &mut Vec<Sample>, seen: &[String]) -> usize {
    let seen: HashSet<&str> = seen.iter().map(String::as_str).collect();
    let before = test.len();
    test.retain(|sample| !(sample.defect.is_some() && seen.contains(sample.name.as_str())));
    before - test.len()
}

/// The kinds in an order from the seed, one sample of each in turn, each kind's in an order from the
/// seed.
fn stratified<'a>(pool: Vec<&'a Sample>, rng: &mut ChaCha8Rng) -> Vec<&'a Sample> {
    let mut by_kind: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    for sample in pool {
        by_kind.entry(sample.defect.as_deref().unwrap_or_default()).or_default().push(sample);
    }
    let mut kinds: VecDeque<Vec<&Sample>> = by_kind.into_values().collect();
    kinds.make_contiguous().shuffle(rng);
    for kind in &mut kinds {
        kind.shuffle(rng);
    }
    let mut order = Vec::new();
    while let Some(mut kind) = kinds.pop_front() {
        if let Some(sample) = kind.pop() {
            order.push(sample);
            kinds.push_back(kind);
        }
    }
    order
}

fn listed<'a>(pool: &[&'a Sample], file: &PathBuf, count: usize) -> Result<Vec<&'a Sample>> {
    let by_name: HashMap<&str, &Sample> =
        pool.iter().map(|sample| (sample.name.as_str(), *sample)).collect();
    let text = fs::read_to_string(file).context("reading it")?;
    let mut order = Vec::new();
    let mut before = HashSet::new();
    for (i, line) in text.lines().enumerate() {
        let name = line.trim();
        if name.is_empty() || name.starts_with('#') {
            continue;
        }
        let Some(sample) = by_name.get(name) else {
            bail!(
                "line {}: {name} is no defect that may be drawn; names are as {}",
                i + 1,
                pool.first().map_or("<defect>/<file>", |sample| sample.name.as_str())
            );
        };
        ensure!(before.insert(name), "line {}: {name} comes twice", i + 1);
        order.push(*sample);
    }
    ensure!(order.len() >= count, "it names {} defects where {count} are wanted", order.len());
    Ok(order)
}
