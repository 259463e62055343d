//! Defects of a web: what was found in blocks that follow one another, put together, so that a defect
//! on the border of two is told of once and with its whole length.
//!
//! Rows count from the first one inspected. Each block begins with the last `overlap_rows` of the one
//! before. Two regions of neighbouring blocks are one defect where their boxes touch. What lies in a
//! block that nobody inspected is not known: there, a defect ends and another begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Anomaly;
use crate::frame::{PartId, Position};

/// How a camera's parts hang together.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows of a block.
    pub part_rows: u32,
    /// Of them, those of the block before.
    pub overlap_rows: u32,
    /// A defect longer than this is told of in pieces.
    pub max_defect_rows: u64,
    /// Millimetres of belt a count.
    pub mm_per_count: Option<f64>,
}

/// One block on its way out.
#[derive(Clone, Debug)]
pub struct Block {
    pub part: PartId,
    /// `None`: there is no picture, and nobody knows how much is missing.
    pub height: Option<u32>,
    pub position: Option<Position>,
    /// `None`: it was not inspected.
    pub found: Option<Found>,
}

/// What an inspection found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The block was rejected for anomaly. Regions of others count only as the continuation of such.
    pub is_rejected: bool,
    /// In pixels of the block.
    pub anomalies: Vec<Anomaly>,
}

/// A defect, or a piece of a long one.
#[derive(Clone, Debug, PartialEq)]
pub struct WebDefect {
    pub camera: Arc<str>,
    /// Counts from 1; the pieces of a defect have the same.
    pub number: u64,
    /// The part in which it is worst.
    pub part: PartId,
    /// There is more of it than was told so far; another piece will follow.
    pub goes_on: bool,
    /// Across the web, pixels.
    pub x: u32,
    pub width: u32,
    /// Along it.
    pub row: u64,
    pub rows: u64,
    /// The largest map value in it.
    pub peak: f32,
    /// Encoder counts at its beginning and its end.
    pub counts: Option<[i64; 2]>,
    /// The same in millimetres.
    pub mm: Option<[f64; 2]>,
}

/// The web under one camera.
pub struct Web {
    config: Config,
    camera: Arc<str>,
    /// The block that is next, and those that came before their turn: what the queue turns away is
    /// known earlier than what the detector has.
    next: u64,
    early: BTreeMap<u64, Block>,
    /// The row behind the last block, and how many of its rows the next repeats.
    end: u64,
    repeated: u32,
    open: Vec<Open>,
    /// Defects told of.
    told: u64,
}

/// A defect that reaches the last block's end.
struct Open {
    /// Of one that was told of in part.
    number: Option<u64>,
    part: PartId,
    extent: Extent,
    peak: f32,
    is_rejected: bool,
    /// Its regions in the last block, and in the one that is being looked at.
    before: Vec<Extent>,
    now: Vec<Extent>,
}

/// A box; the right and the bottom are behind it.
#[derive(Clone, Copy)]
struct Extent {
    left: u32,
    right: u32,
    top: Place,
    bottom: Place,
}

/// A row and the encoder's count there.
#[derive(Clone, Copy)]
struct Place {
    row: u64,
    count: Option<i64>,
}

impl Web {
    pub fn new(config: Config, camera: Arc<str>) -> Web {
        let early = BTreeMap::new();
        Web { config, camera, next: 0, early, end: 0, repeated: 0, open: Vec::new(), told: 0 }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes block number `seq` of the camera, in any order but each once, and returns the defects
    /// that are known to be over, and pieces of long ones.
    pub fn take(&mut self, seq: u64, block: Block) -> Vec<WebDefect> {
        self.early.insert(seq, block);
        let mut defects = Vec::new();
        while let Some(block) = self.early.remove(&self.next) {
            self.next += 1;
            self.follow(&block, &mut defects);
        }
        defects
    }

    /// The web ends here: what was open.
    pub fn finish(&mut self) -> Vec<WebDefect> {
        let mut defects = Vec::new();
        self.break_off(&mut defects);
        defects
    }

    fn follow(&mut self, block: &Block, defects: &mut Vec<WebDefect>) {
        let Some(height) = block.height else {
            self.break_off(defects);
            self.repeated = 0;
            return;
        };
        let first = self.end - u64::from(self.repeated);
        self.end = first + u64::from(height);
        self.repeated = self.config.overlap_rows.min(height);
        match &block.found {
            Some(found) => self.merge(first, block, found, defects),
            None => self.break_off(defects),
        }
    }

    fn break_off(&mut self, defects: &mut Vec<WebDefect>) {
        for open in std::mem::take(&mut self.open) {
            self.tell(&open, false, defects);
        }
    }

    /// Puts what was found in a block that begins at row `first` to what is open.
    fn merge(&mut self, first: u64, block: &Block, found: &Found, defects: &mut Vec<WebDefect>) {
        for anomaly in &found.anomalies {
            let extent = Extent::of(anomaly, first, block.position);
            let touches = |open: &Open| open.before.iter().any(|before| before.touches(&extent));
            let mut whole = Open {
                number: None,
                part: block.part,
                extent,
                peak: anomaly.peak,
                is_rejected: found.is_rejected,
                before: Vec::new(),
                now: vec![extent],
            };
            for touched in self.open.extract_if(.., |open| touches(open)) {
                whole.absorb(touched);
            }
            self.open.push(whole);
        }
        // The next block sees these rows again, or the one behind them.
        let border = self.end - u64::from(self.repeated);
        for mut open in std::mem::take(&mut self.open) {
            open.before = std::mem::take(&mut open.now);
            open.before.retain(|extent| extent.bottom.row >= border);
            if open.before.is_empty() {
                self.tell(&open, false, defects);
                continue;
            }
            if open.extent.rows() > self.config.max_defect_rows && open.is_rejected {
                open.number = self.tell(&open, true, defects);
                let rest = open.before.iter().copied().reduce(Extent::around);
                open.extent = rest.unwrap_or(open.extent);
            }
            self.open.push(open);
        }
    }

    /// Its number; `None`: no block of it was rejected, so it is no defect.
    fn tell(&mut self, open: &Open, goes_on: bool, defects: &mut Vec<WebDefect>) -> Option<u64> {
        let Open { number, part, extent, peak, is_rejected, .. } = open;
        if !is_rejected {
            return None;
        }
        let number = number.unwrap_or_else(|| {
            self.told += 1;
            self.told
        });
        let Extent { left, right, top, bottom } = extent;
        let counts = top.count.zip(bottom.count).map(|(top, bottom)| [top, bottom]);
        let mm = |per_count: f64, counts: [i64; 2]| counts.map(|count| count as f64 * per_count);
        defects.push(WebDefect {
            camera: self.camera.clone(),
            number,
            part: *part,
            goes_on,
            x: *left,
            width: right - left,
            row: top.row,
            rows: extent.rows(),
            peak: *peak,
            counts,
            mm: self
                .config
                .mm_per_count
                .zip(counts)
                .map(|(per_count, counts)| mm(per_count, counts)),
        });
        Some(number)
    }
}

impl Open {
    /// Makes one of two.
    fn absorb(&mut self, other: Open) {
        // Two that were told of in part go on under the first one's number.
        self.number = match (self.number, other.number) {
            (Some(own), Some(other)) => Some(own.min(other)),
            (own, other) => own.or(other),
        };
        self.extent = self.extent.around(other.extent);
        if other.peak > self.peak {
            (self.peak, self.part) = (other.peak, other.part);
        }
        self.is_rejected |= other.is_rejected;
        self.before.extend(other.before);
        self.now.extend(other.now);
    }
}

impl Extent {
    /// In a block that begins at row `first`, with the belt at `position`.
    fn of(anomaly: &Anomaly, first: u64, position: Option<Position>) -> Extent {
        let region = anomaly.region;
        let place = |y: u32| Place {
            row: first + u64::from(y),
            count: position.map(|Position { count, per_row }| {
                count.saturating_add((f64::from(y) * per_row).round() as i64)
            }),
        };
        Extent {
            left: region.x,
            right: region.x + region.width,
            top: place(region.y),
            bottom: place(region.y + region.height),
        }
    }

    fn rows(&self) -> u64 {
        self.bottom.row - self.top.row
    }

    /// Whether they overlap, or lie side by side or corner to corner.
    fn touches(&self, other: &Extent) -> bool {
        self.left <= other.right
            && other.left <= self.right
            && self.top.row <= other.bottom.row
            && other.top.row <= self.bottom.row
    }

    fn around(self, other: Extent) -> Extent {
        Extent {
            left: self.left.min(other.left),
            right: self.right.max(other.right),
            top: if other.top.row < self.top.row { other.top } else { self.top },
            bottom: if other.bottom.row > self.bottom.row { other.bottom } else { self.bottom },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::verdict::Region;

    const ROWS: u32 = 10;

    fn web(overlap_rows: u32, max_defect_rows: u64) -> Web {
        let mm_per_count = Some(0.5);
        let config = Config { part_rows: ROWS, overlap_rows, max_defect_rows, mm_per_count };
        Web::new(config, "web".into())
    }

    /// Columns and rows of the whole web.
    #[derive(Clone, Copy, Debug)]
    struct Planted {
        x: [u32; 2],
        rows: [u64; 2],
    }

    /// Block `seq` of a web with these defects; the encoder counts two a row from 1000.
    fn block(seq: u64, overlap: u32, planted: &[Planted]) -> Block {
        let first = seq * u64::from(ROWS - overlap);
        let anomalies: Vec<Anomaly> = planted
            .iter()
            .filter_map(|&Planted { x: [left, right], rows: [top, bottom] }| {
                let top = top.max(first);
                let bottom = bottom.min(first + u64::from(ROWS));
                (top < bottom).then(|| Anomaly {
                    region: Region {
                        x: left,
                        y: (top - first) as u32,
                        width: right - left,
                        height: (bottom - top) as u32,
                    },
                    peak: 1.0 + seq as f32,
                })
            })
            .collect();
        Block {
            part: PartId(seq + 1),
            height: Some(ROWS),
            position: Some(Position { count: 1000 + 2 * first as i64, per_row: 2.0 }),
            found: Some(Found { is_rejected: !anomalies.is_empty(), anomalies }),
        }
    }

    fn play(web: &mut Web, blocks: impl IntoIterator<Item = Block>) -> Vec<WebDefect> {
        let mut defects = Vec::new();
        for (seq, block) in (0..).zip(blocks) {
            defects.extend(web.take(seq, block));
        }
        defects.extend(web.finish());
        defects
    }

    fn expected(planted: Planted) -> (u32, u32, u64, u64, Option<[i64; 2]>) {
        let Planted { x: [left, right], rows: [top, bottom] } = planted;
        let count = |row: u64| 1000 + 2 * row as i64;
        (left, right - left, top, bottom - top, Some([count(top), count(bottom)]))
    }

    fn told(defect: &WebDefect) -> (u32, u32, u64, u64, Option<[i64; 2]>) {
        (defect.x, defect.width, defect.row, defect.rows, defect.counts)
    }

    #[test]
    fn a_defect_is_one_wherever_the_blocks_are_cut() {
        for overlap in [0, 1, 4, 5] {
            for top in 0..40 {
                for length in [1, 2, 4, 5, 9, 10, 23] {
                    let planted = Planted { x: [7, 12], rows: [top, top + length] };
                    let blocks = (0..16).map(|seq| block(seq, overlap, &[planted]));
                    let defects = play(&mut web(overlap, 1000), blocks);
                    assert_eq!(defects.len(), 1, "overlap {overlap}, {planted:?}: {defects:?}");
                    assert_eq!(told(&defects[0]), expected(planted), "overlap {overlap}");
                    assert!(!defects[0].goes_on);
                    let mm = expected(planted).4.unwrap().map(|count| count as f64 * 0.5);
                    assert_eq!(defects[0].mm, Some(mm));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn defects_apart_from_each_other_stay_apart(
            overlap in 0..=5u32,
            // Column by column, with a gap between neighbours.
            rows in prop::collection::vec((0..60u64, 1..30u64), 1..8),
        ) {
            let planted: Vec<Planted> = (0..)
                .zip(&rows)
                .map(|(i, &(top, length))| Planted { x: [10 * i, 10 * i + 8], rows: [top, top + length] })
                .collect();
            let blocks = (0..24).map(|seq| block(seq, overlap, &planted));
            let mut defects = play(&mut web(overlap, 1000), blocks);
            defects.sort_by_key(|defect| defect.x);
            let expected: Vec<_> = planted.iter().map(|&planted| expected(planted)).collect();
            prop_assert_eq!(defects.iter().map(told).collect::<Vec<_>>(), expected);
            let mut numbers: Vec<u64> = defects.iter().map(|defect| defect.number).collect();
            numbers.sort_unstable();
            prop_assert!(numbers.into_iter().eq(1..=planted.len() as u64));
        }
    }

    #[test]
    fn a_defect_that_is_over_is_told_at_once() {
        let mut web = web(4, 1000);
        let inner = Planted { x: [0, 3], rows: [1, 5] };
        let border = Planted { x: [8, 9], rows: [3, 8] };
        let first = web.take(0, block(0, 4, &[inner, border]));
        assert_eq!(first.iter().map(told).collect::<Vec<_>>(), [expected(inner)]);
        let second = web.take(1, block(1, 4, &[inner, border]));
        assert_eq!(second.iter().map(told).collect::<Vec<_>>(), [expected(border)]);
        assert_eq!((second[0].part, second[0].peak), (PartId(2), 2.0), "the worse of its blocks");
        assert_eq!(web.finish(), []);
    }

    #[test]
    fn two_arms_that_meet_in_the_next_block_are_one() {
        let mut web = web(0, 1000);
        let arms = [[0, 3], [8, 11]].map(|x| Planted { x, rows: [6, 10] });
        assert_eq!(web.take(0, block(0, 0, &arms)), []);
        let bridge = Planted { x: [0, 11], rows: [10, 12] };
        let defects = web.take(1, block(1, 0, &[bridge]));
        let whole = Planted { x: [0, 11], rows: [6, 12] };
        assert_eq!(defects.iter().map(told).collect::<Vec<_>>(), [expected(whole)]);
    }

    #[test]
    fn a_long_defect_is_told_in_pieces_of_one_number() {
        let long = Planted { x: [2, 4], rows: [3, 95] };
        let other = Planted { x: [20, 24], rows: [97, 98] };
        let blocks = (0..12).map(|seq| block(seq, 0, &[long, other]));
        let defects = play(&mut web(0, 25), blocks);
        let pieces: Vec<_> = defects.iter().map(|d| (d.number, d.goes_on, d.row, d.rows)).collect();
        assert_eq!(
            pieces,
            [
                (1, true, 3, 27),
                (1, true, 20, 30),
                (1, true, 40, 30),
                (1, true, 60, 30),
                (1, false, 80, 15),
                (2, false, 97, 1)
            ]
        );
    }

    #[test]
    fn what_was_not_inspected_cuts_a_defect() {
        let long = Planted { x: [2, 4], rows: [3, 27] };
        let unseen = |height| Block { height, position: None, found: None, ..block(1, 0, &[]) };
        let mut blocks: Vec<Block> = (0..4).map(|seq| block(seq, 0, &[long])).collect();
        blocks[1] = unseen(Some(ROWS));
        let defects = play(&mut web(0, 1000), blocks.clone());
        let rows: Vec<_> = defects.iter().map(|d| (d.row, d.rows)).collect();
        assert_eq!(rows, [(3, 7), (20, 7)]);
        // Nobody knows how much is missing: only the encoder does.
        blocks[1] = unseen(None);
        let defects = play(&mut web(0, 1000), blocks);
        let rows: Vec<_> = defects.iter().map(|d| (d.row, d.rows, d.counts)).collect();
        assert_eq!(rows, [(3, 7, Some([1006, 1020])), (10, 7, Some([1040, 1054]))]);
    }

    #[test]
    fn a_shorter_block_is_followed_by_its_last_rows() {
        let mut web = web(4, 1000);
        let short = Block { height: Some(7), ..block(0, 4, &[]) };
        let at = |y, height| Anomaly { region: Region { x: 0, y, width: 3, height }, peak: 2.0 };
        let found = |anomaly| Some(Found { is_rejected: true, anomalies: vec![anomaly] });
        assert_eq!(web.take(0, Block { found: found(at(5, 2)), ..short }), []);
        let next = Block { found: found(at(2, 3)), ..block(1, 4, &[]) };
        let defects = web.take(1, next);
        assert_eq!(defects.iter().map(|d| (d.row, d.rows)).collect::<Vec<_>>(), [(5, 3)]);
    }

    #[test]
    fn blocks_may_come_before_their_turn() {
        let planted = Planted { x: [2, 4], rows: [8, 12] };
        let mut web = web(0, 1000);
        assert_eq!(web.take(1, block(1, 0, &[planted])), []);
        assert_eq!(web.take(2, block(2, 0, &[planted])), []);
        let defects = web.take(0, block(0, 0, &[planted]));
        assert_eq!(defects.iter().map(told).collect::<Vec<_>>(), [expected(planted)]);
    }

    #[test]
    fn regions_of_accepted_blocks_are_no_defects_but_belong_to_one() {
        let planted = Planted { x: [2, 4], rows: [8, 12] };
        let accepted = |seq| {
            let mut block = block(seq, 0, &[planted]);
            block.found.as_mut().unwrap().is_rejected = false;
            block
        };
        assert_eq!(play(&mut web(0, 1000), (0..3).map(accepted)), []);
        let defects = play(&mut web(0, 1000), [accepted(0), block(1, 0, &[planted]), accepted(2)]);
        assert_eq!(defects.iter().map(told).collect::<Vec<_>>(), [expected(planted)]);
    }
}
