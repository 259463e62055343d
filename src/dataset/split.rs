//! PRN's supervised split (Zhang et al. 2023, section 4.1; the general setting of Ding et al. 2022):
//! a few defects are drawn to learn from and are then no longer in the test set.
//!
//! All defects that may be drawn are brought into one order from the seed; the first `count` of it are
//! seen. With the same seed a smaller count therefore sees a part of what a larger one sees. The order
//! starts from the bytes of the names, so that threads and file systems have no say in it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

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
            add_train_defects(&mut test, category);
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

/// What a model is tested with that has learned from the defects `seen`, and how many of them were taken
/// out for it. Where PRN's protocol draws them from both halves, the training half's other defects are
/// tested with.
pub fn tested(category: &Category, seen: &[String]) -> (Vec<Sample>, usize) {
    let mut test = category.test.clone();
    if !seen.is_empty() && Pool::usual(category.layout) == Pool::Both {
        add_train_defects(&mut test, category);
    }
    let left_out = without(&mut test, seen);
    (test, left_out)
}

/// The defects of the training half come among those to test with, in the order of names.
fn add_train_defects(test: &mut Vec<Sample>, category: &Category) {
    test.extend(category.train_defects.iter().cloned());
    test.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
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

fn listed<'a>(pool: &[&'a Sample], file: &Path, count: usize) -> Result<Vec<&'a Sample>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, defect: Option<&str>) -> Sample {
        let (name, defect) = (name.to_owned(), defect.map(str::to_owned));
        Sample { path: PathBuf::from(&name), name, defect, mask: None }
    }

    /// 2 good test pictures, 12 dents, 3 stains, 1 crack; 4 defects to learn from.
    fn category() -> Category {
        let kinds = [(None, "good", 2), (Some("dent"), "dent", 12), (Some("stain"), "stain", 3)];
        let mut test = vec![sample("crack/0.png", Some("crack"))];
        for (kind, folder, count) in kinds {
            test.extend((0..count).map(|i| sample(&format!("{folder}/{i:02}.png"), kind)));
        }
        let train_defects =
            (0..4).map(|i| sample(&format!("Train/{i}.png"), Some("dent"))).collect();
        Category {
            name: "cap".into(),
            layout: Layout::Mvtec,
            root: PathBuf::new(),
            surface: None,
            train: vec![sample("train/good/0.png", None)],
            train_defects,
            test,
            oddities: Vec::new(),
        }
    }

    fn pooled(count: usize, seed: u64) -> SeenAnomalies {
        SeenAnomalies { count, seed, draw: Draw::Pooled, pool: Pool::Test }
    }

    fn kinds(split: &Split) -> Vec<&str> {
        split.seen.iter().map(|sample| sample.defect.as_deref().unwrap()).collect()
    }

    #[test]
    fn what_is_seen_is_not_tested_with() {
        let category = category();
        for pool in [Pool::Test, Pool::Train, Pool::Both] {
            for draw in [Draw::Pooled, Draw::Stratified] {
                let seen = SeenAnomalies { count: 4, pool, draw, ..pooled(0, 42) };
                let split = seen.split(&category).unwrap();
                let names: HashSet<String> = split.names().into_iter().collect();
                assert_eq!(names.len(), 4, "{seen:?}");
                assert!(split.seen.iter().all(|sample| sample.defect.is_some()), "{seen:?}");
                assert!(split.test.iter().all(|sample| !names.contains(&sample.name)), "{seen:?}");
                let goods = split.test.iter().filter(|sample| sample.defect.is_none()).count();
                assert_eq!(goods, 2, "{seen:?}");
                let from_train = names.iter().filter(|name| name.starts_with("Train/")).count();
                match pool {
                    Pool::Test => assert_eq!((split.test.len(), from_train), (18 - 4, 0)),
                    Pool::Train => assert_eq!((&split.test, from_train), (&category.test, 4)),
                    Pool::Both => assert_eq!(split.test.len(), 18 + 4 - 4),
                }
            }
        }
    }

    #[test]
    fn a_smaller_count_sees_a_part_of_what_a_larger_one_sees() {
        let category = category();
        for draw in [Draw::Pooled, Draw::Stratified] {
            let of = |count| SeenAnomalies { draw: draw.clone(), ..pooled(count, 7) };
            let ten = of(10).split(&category).unwrap();
            for count in [0, 1, 5, 10] {
                let split = of(count).split(&category).unwrap();
                assert_eq!(split.seen, ten.seen[..count]);
                assert_eq!(split.test.len(), 18 - count);
            }
        }
    }

    #[test]
    fn the_seed_alone_decides() {
        let category = category();
        let of = |seed| pooled(5, seed).split(&category).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1).seen, of(2).seen);
        // Neither the order in which a folder was listed, nor who asks.
        let mut turned = category.clone();
        turned.test.reverse();
        for draw in [Draw::Pooled, Draw::Stratified] {
            let seen = SeenAnomalies { draw, ..pooled(5, 1) };
            let want = seen.split(&category).unwrap().names();
            assert_eq!(seen.split(&turned).unwrap().names(), want);
            let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let others = threads.broadcast(|_| seen.split(&category).unwrap().names());
            assert!(others.iter().all(|names| *names == want));
        }
    }

    /// Part of what a seed means: a model's split is made again from it.
    #[test]
    fn what_a_seed_draws_stays() {
        let split = pooled(5, 42).split(&category()).unwrap();
        let want = ["dent/06.png", "dent/00.png", "dent/10.png", "dent/03.png", "dent/05.png"];
        assert_eq!(split.names(), want);
        let seen = SeenAnomalies { draw: Draw::Stratified, ..pooled(5, 42) };
        let names = seen.split(&category()).unwrap().names();
        let want = ["stain/02.png", "dent/02.png", "crack/0.png", "stain/01.png", "dent/00.png"];
        assert_eq!(names, want);
    }

    #[test]
    fn every_defect_is_as_likely() {
        let category = category();
        let draws = 2000;
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        for seed in 0..draws {
            for name in pooled(4, seed).split(&category).unwrap().names() {
                *times.entry(name).or_default() += 1;
            }
        }
        assert_eq!(times.len(), 16);
        // Binomial, p = 1/4: 500 ± 19.4; five standard deviations.
        assert!(times.values().all(|count| count.abs_diff(500) < 97), "{times:?}");
    }

    #[test]
    fn stratified_takes_kinds_in_turn_until_they_have_none_left() {
        for seed in 0..20 {
            let seen = SeenAnomalies { draw: Draw::Stratified, ..pooled(16, seed) };
            let split = seen.split(&category()).unwrap();
            let kinds = kinds(&split);
            let mut first = kinds[..3].to_vec();
            first.sort_unstable();
            assert_eq!(first, ["crack", "dent", "stain"]);
            let stains = kinds[..7].iter().filter(|kind| **kind == "stain").count();
            assert_eq!(stains, 3, "{kinds:?}");
            assert!(kinds[7..].iter().all(|kind| *kind == "dent"), "{kinds:?}");
        }
    }

    #[test]
    fn a_list_is_taken_in_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seen.txt");
        let of = |text: &str, count| {
            fs::write(&file, text).unwrap();
            let seen = SeenAnomalies { draw: Draw::List(file.clone()), ..pooled(count, 0) };
            seen.split(&category())
        };
        let text = "# by hand\nstain/02.png\n\n  crack/0.png\r\ndent/00.png\n";
        assert_eq!(of(text, 2).unwrap().names(), ["stain/02.png", "crack/0.png"]);
        let cases = [
            ("stain/02.png\nstain/2.png", 1, "line 2: stain/2.png is no defect that may be drawn"),
            ("good/00.png", 1, "line 1: good/00.png is no defect"),
            ("Train/0.png", 1, "line 1: Train/0.png is no defect"),
            ("crack/0.png\ncrack/0.png", 1, "line 2: crack/0.png comes twice"),
            ("crack/0.png", 2, "it names 1 defects where 2 are wanted"),
        ];
        for (text, count, says) in cases {
            let error = format!("{:#}", of(text, count).unwrap_err());
            assert!(error.contains(says) && error.contains("seen.txt for cap"), "{error}");
        }
    }

    #[test]
    fn more_than_there_are_is_refused() {
        let cases = [
            (Pool::Test, 17, "cap has 16 to test with"),
            (Pool::Train, 5, "cap has 4 to learn from"),
            (Pool::Both, 21, "cap has 20 in its two halves"),
        ];
        for (pool, count, says) in cases {
            let seen = SeenAnomalies { pool, ..pooled(count, 0) };
            let error = seen.split(&category()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_cards_list_is_left_out_of_a_test_set() {
        let category = category();
        let split = pooled(6, 3).split(&category).unwrap();
        let mut listed = split.names();
        listed.extend(["Train/0.png".to_owned(), "good/00.png".to_owned()]);
        let mut test = category.test.clone();
        assert_eq!(without(&mut test, &listed), 6);
        assert_eq!(test, split.test);
        assert_eq!(without(&mut test, &[]), 0);
    }

    #[test]
    fn halves_are_tested_as_the_protocol_draws_from_them() {
        let mut category = category();
        let nobody = (category.test.clone(), 0);
        assert_eq!(tested(&category, &[]), nobody);
        for layout in [Layout::Dagm, Layout::Ksdd2] {
            category.layout = layout;
            let seen = SeenAnomalies { pool: Pool::usual(layout), ..pooled(8, 1) };
            let split = seen.split(&category).unwrap();
            assert_eq!(tested(&category, &split.names()), (split.test, 8), "{layout}");
            assert_eq!(tested(&category, &[]), nobody, "{layout}");
        }
    }
}
