//! The search of many queries: who scans what, and what is measured.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

use super::codes::{Coded, Table};
use super::panels::{Bar, MOST_VECTORS, WIDEST};
use super::{Nearest, PrototypeBank, squared_distance};
use crate::ops::feature_map::Shared;
use crate::ops::simd::{Kernel, Simd};
use crate::ops::team::Team;

/// Bytes of the panels that are gone through again and again: a part of a core's second cache.
const GROUP_BYTES: usize = 192 << 10;

/// Prototypes that wait for one another before one is measured: the first ones that pass a limit are
/// mostly not the nearest, and a near one rules out others.
const WAITING: usize = 8;

/// What is looked for.
pub(super) struct Task<'a> {
    pub queries: &'a [f32],
    /// Only these queries, in this order.
    pub order: Option<&'a [u32]>,
    /// The output holds k prototypes of each query already.
    pub seeded: bool,
    pub panels: Range<usize>,
    pub k: usize,
}

impl Task<'_> {
    fn query(&self, at: usize) -> usize {
        self.order.map_or(at, |order| order[at] as usize)
    }
}

/// Memory of searches: of the same bank and size of team, it is allocated once.
#[derive(Debug, Default)]
pub struct Scratch {
    desks: Vec<Desk>,
    /// What the desks were made for.
    shape: [usize; 5],
    pub(super) order: Vec<u32>,
    pub(super) bounds: Vec<Nearest>,
    pub(super) found: Vec<Nearest>,
}

/// One thread's part.
#[derive(Debug)]
struct Desk {
    slots: Vec<Slot>,
    coded: Vec<Coded>, // [slots]
    bars: Vec<Bar>,    // [slots]
    table: Table,
    waiting: Vec<Vec<(f32, u32)>>, // [slots]: value and number of prototypes to be measured
}

/// A query that is being searched for: its place in the piece, and its number.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    at: usize,
    query: usize,
}

/// Nothing is below it.
const CLOSED: Bar = Bar { limit: f32::NEG_INFINITY, reach: 0.0, scale: 0.0 };

impl Scratch {
    fn fit(&mut self, bank: &PrototypeBank, threads: usize) {
        let [a, b, c, d] = bank.codes.shape();
        let shape = [bank.dim, a, b, c, d];
        if self.shape != shape {
            self.desks.clear();
            self.shape = shape;
        }
        let slots = bank.codes.slots();
        while self.desks.len() < threads {
            self.desks.push(Desk {
                slots: vec![Slot::default(); slots],
                coded: vec![Coded::default(); slots],
                bars: vec![CLOSED; slots],
                table: bank.codes.table(),
                waiting: (0..slots).map(|_| Vec::with_capacity(WAITING)).collect(),
            });
        }
    }
}

impl PrototypeBank {
    pub(super) fn search(
        &self,
        team: &Team,
        task: &Task<'_>,
        out: &mut [Nearest],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Task { queries, k, .. } = *task;
        ensure!(
            queries.len().is_multiple_of(self.dim),
            "{} numbers are no queries of {} dimensions",
            queries.len(),
            self.dim
        );
        let count = task.order.map_or(queries.len() / self.dim, <[u32]>::len);
        assert!((1..=self.len()).contains(&k), "{k} of {} prototypes", self.len());
        assert_eq!(out.len(), count * k, "{count} queries, {k} prototypes each");
        scratch.fit(self, team.threads());
        // Some pieces more than threads, as another program may have one of the cores.
        let pieces = if team.threads() == 1 { 1 } else { 2 * team.threads() };
        let piece = count.div_ceil(pieces).next_multiple_of(self.codes.vectors());
        let refused = AtomicBool::new(false);
        let (desks, out) = (Shared(scratch.desks.as_mut_ptr()), Shared(out.as_mut_ptr()));
        team.chunks(count, piece, |thread, from, to| {
            // SAFETY: `fit` made one desk a thread, and a thread does one piece at a time; pieces
            // do not overlap, and `out` has k places for each of `count` queries.
            let (desk, out) = unsafe {
                let out = out.get().add(from * k);
                (
                    &mut *desks.get().add(thread),
                    std::slice::from_raw_parts_mut(out, (to - from) * k),
                )
            };
            if !self.search_piece(task, from..to, desk, out) {
                refused.store(true, Ordering::Relaxed);
            }
        });
        let refused = refused.load(Ordering::Relaxed);
        ensure!(!refused, "a feature of the picture is not finite or too large");
        Ok(())
    }

    /// The piece's queries are cut into as many runs as there are slots; all slots step through
    /// their runs together. False where a query is not finite.
    fn search_piece(
        &self,
        task: &Task<'_>,
        piece: Range<usize>,
        desk: &mut Desk,
        out: &mut [Nearest],
    ) -> bool {
        let (k, count) = (task.k, piece.len());
        let run = count.div_ceil(desk.slots.len());
        for step in 0..run {
            let mut used = 0;
            for at in (step..count).step_by(run) {
                let query = task.query(piece.start + at);
                let x = &task.queries[query * self.dim..][..self.dim];
                if !task.seeded {
                    let (before, own) = out[..(at + 1) * k].split_at_mut(at * k);
                    if step > 0 {
                        own.copy_from_slice(&before[(at - 1) * k..]);
                    } else {
                        own.iter_mut().zip(0..).for_each(|(own, index)| own.index = index);
                    }
                    for own in &mut *own {
                        own.distance2 = self.distance2(x, own.index);
                    }
                    own.sort_unstable_by(|a, b| {
                        a.distance2.total_cmp(&b.distance2).then(a.index.cmp(&b.index))
                    });
                }
                desk.slots[used] = Slot { at, query };
                used += 1;
            }
            let x = |slot: &Slot| &task.queries[slot.query * self.dim..][..self.dim];
            let queries = desk.slots[..used].iter().map(x);
            if !self.codes.encode(queries, &mut desk.coded[..used], &mut desk.table) {
                return false;
            }
            desk.bars.fill(CLOSED);
            for ((slot, coded), bar) in
                desk.slots[..used].iter().zip(&desk.coded).zip(&mut desk.bars)
            {
                let farthest = out[slot.at * k + k - 1].distance2;
                *bar = coded.bar(farthest, self.dim, &self.bound);
            }
            self.scan_step(task, used, desk, out);
        }
        true
    }

    /// Scans for the slots in use, a group of panels at a time that stays in a core's cache.
    fn scan_step(&self, task: &Task<'_>, used: usize, desk: &mut Desk, out: &mut [Nearest]) {
        let (k, vectors) = (task.k, self.codes.vectors());
        let (panels, width) = (task.panels.clone(), self.codes.width());
        let group = (GROUP_BYTES / self.codes.panel_bytes()).max(1);
        let mut values = [[0.0; WIDEST]; MOST_VECTORS];
        for from in panels.clone().step_by(group) {
            let to = (from + group).min(panels.end);
            for first in (0..used).step_by(vectors) {
                let own = first..(first + vectors).min(used);
                let mut from = from;
                while let Some(hit) = self.codes.scan(
                    from..to,
                    &desk.table,
                    first,
                    &desk.bars[first..first + vectors],
                    &mut values,
                ) {
                    for (i, values) in own.clone().zip(&values) {
                        if hit.vectors >> (i - first) & 1 == 1 {
                            let Slot { at, query } = desk.slots[i];
                            let mut search = self.one(task.queries, query, desk, i);
                            search.offer(
                                hit.panel * width,
                                &values[..width],
                                &mut out[at * k..][..k],
                            );
                        }
                    }
                    from = hit.panel + 1;
                }
                for i in own {
                    let Slot { at, query } = desk.slots[i];
                    self.one(task.queries, query, desk, i).settle(0, &mut out[at * k..][..k]);
                }
            }
        }
    }

    fn one<'a>(
        &'a self,
        queries: &'a [f32],
        query: usize,
        desk: &'a mut Desk,
        i: usize,
    ) -> One<'a> {
        One {
            bank: self,
            x: &queries[query * self.dim..][..self.dim],
            coded: &desk.coded[i],
            bar: &mut desk.bars[i],
            waiting: &mut desk.waiting[i],
        }
    }

    fn distance2(&self, x: &[f32], index: u32) -> f32 {
        self.isa.run(Distance { a: x, b: self.row(index as usize) })
    }
}

/// The search of one query.
struct One<'a> {
    bank: &'a PrototypeBank,
    x: &'a [f32], // [D]
    coded: &'a Coded,
    bar: &'a mut Bar,
    waiting: &'a mut Vec<(f32, u32)>,
}

impl One<'_> {
    /// Notes the prototypes from `first` on whose values are not above the limit. `best` `[k]`: the
    /// nearest so far.
    fn offer(&mut self, first: usize, values: &[f32], best: &mut [Nearest]) {
        let lanes = values.len().min(self.bank.len() - first);
        for (&value, index) in values[..lanes].iter().zip(first as u32..) {
            // The limit falls; the value of a smaller reach would be larger still.
            if value > self.bar.limit || best.iter().any(|near| near.index == index) {
                continue;
            }
            if self.waiting.len() == WAITING {
                self.settle(WAITING - 1, best);
            }
            self.waiting.push((value, index));
        }
    }

    /// Measures those that wait, the nearest by its value first, until no more than `most` are left
    /// whose values are not above the limit.
    fn settle(&mut self, most: usize, best: &mut [Nearest]) {
        while self.waiting.len() > most {
            let values = self.waiting.iter().enumerate();
            let Some((at, _)) = values.min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0)) else { return };
            let (value, index) = self.waiting.swap_remove(at);
            if value > self.bar.limit {
                self.waiting.clear();
                return;
            }
            let found = Nearest { index, distance2: self.bank.distance2(self.x, index) };
            let at = best.partition_point(|near| near.comes_before(&found));
            if at < best.len() {
                best[at..].rotate_right(1);
                best[at] = found;
                let farthest = best[best.len() - 1].distance2;
                *self.bar = self.coded.bar(farthest, self.bank.dim, &self.bank.bound);
                let limit = self.bar.limit;
                self.waiting.retain(|(value, _)| *value <= limit);
            }
        }
    }
}

/// [`squared_distance`] with the instructions of the scan.
pub(super) struct Distance<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
}

impl Kernel for Distance<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f32 {
        squared_distance(self.a, self.b)
    }
}
