//! Nearest-prototype search: for each query patch the prototypes of a bank closest to it, by squared
//! L2 distance, exactly. Letters: Q queries, N prototypes, D dimensions.
//!
//! A scan gives each prototype a value that is cheap and nearly right, a few queries and a panel of
//! prototypes at a time; the Q×N matrix is nowhere. Bounds of the scan's error say which prototypes
//! can't be among the nearest; every other one is measured as Σ(q − p)², and that decides. So the
//! answer is the same whatever the scan and the machine, to the bit.
//!
//! Queries are searched in runs, each beginning with what its neighbour found: neighbouring patches
//! look alike, so nearly all prototypes are ruled out from the start.

mod bytes;
mod panels;
mod sketch;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

use super::feature_map::Shared;
use super::simd::{Isa, Kernel};
use super::team::Team;
use bytes::{Bytes, Dot8};
use panels::{Bar, Hit, MOST_VECTORS, Panels, Values, WIDEST};
use sketch::{Drawn, Sketch};

/// Half an ulp of 1 in f32.
const UNIT: f32 = 1.0 / (1u32 << 24) as f32;

/// Largest |q|² and |p|²: below it no sum of the search overflows.
const LARGEST_NORM2: f64 = f32::MAX as f64 / 16.0;

/// A prototype found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Its row in the bank.
    pub index: u32,
    /// Squared L2 distance Σ(a − b)².
    pub distance2: f32,
}

impl Nearest {
    fn comes_before(&self, other: &Self) -> bool {
        self.distance2 < other.distance2
            || self.distance2 == other.distance2 && self.index < other.index
    }
}

/// How the prototypes that matter are found; the answer is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// All dimensions in f32.
    F32,
    /// Sketches of fewer dimensions, one byte a dimension, on machines with 8-bit dot products
    /// (VNNI); in f32 on others.
    Int8,
}

impl Scan {
    /// What suits `count` prototypes of `dim` dimensions. Sketching a query costs as much as
    /// measuring it against some hundred prototypes; from a thousand on it always pays.
    pub fn usual(count: usize, dim: usize) -> Self {
        if count >= 1024 && dim >= 64 { Self::Int8 } else { Self::F32 }
    }
}

/// Prototypes with what the search needs of them, computed once.
#[derive(Debug)]
pub struct PrototypeBank {
    dim: usize,
    rows: Vec<f32>, // [N, D]
    isa: Isa,
    codes: Codes,
    bound: Bound,
}

/// What a scan goes through instead of the prototypes.
#[derive(Debug)]
enum Codes {
    Whole(Panels),
    Sketches(Sketch, Panels),
    Bytes(Sketch, Bytes),
}

/// Between the value of a scan and ½d², with d the distance of prototype and query.
///
/// With c the code of the query, off by ρ, a prototype is ruled out where its value is above
/// ½r² − ½|c|² + E: r is the distance that counts plus ρ plus `slack`, and E bounds the rounding of
/// values and of this limit, `per_norm`·|c| + `constant` + `per_reach`·r.
#[derive(Clone, Copy, Debug)]
struct Bound {
    per_norm: f64,
    constant: f64,
    per_reach: f64,
    /// Largest error of a prototype's code where the scan has none for each.
    slack: f64,
}

impl Bound {
    /// For values ½|p|² − q·p in f32, after Higham (2002), section 3.1: a dot product of `dim` terms,
    /// summed in any order, is off by at most dim·u·|q||p| (u = 2⁻²⁴; a little more for u²); ½|p|² is
    /// rounded once, and so is the difference.
    fn of_f32(dim: usize, largest_norm: f64, slack: f64) -> Self {
        let unit = f64::from(UNIT);
        Self {
            per_norm: relative(dim) * largest_norm,
            constant: 2.0 * unit * largest_norm.powi(2) + underflow(dim),
            per_reach: 0.0,
            slack,
        }
    }

    /// For values of [`bytes`]: whole sums are exact, what follows is rounded fewer than 16 times.
    fn of_bytes(largest_norm: f64, largest_error: f64) -> Self {
        let unit = 16.0 * f64::from(UNIT);
        Self {
            per_norm: unit * largest_norm,
            constant: unit * (largest_norm.powi(2) + largest_error.powi(2)) + underflow(1),
            per_reach: unit * largest_error,
            slack: 0.0,
        }
    }
}

/// Bound of the relative error of Σ(a − b)² (dim + 2 roundings) and, over |q||p|, of q·p.
fn relative(dim: usize) -> f64 {
    (dim + 8) as f64 * f64::from(UNIT)
}

/// More than products too small for f32 can lose in a sum of `dim`.
fn underflow(dim: usize) -> f64 {
    (dim + 8) as f64 * f64::from(f32::MIN_POSITIVE)
}

impl PrototypeBank {
    /// `rows` [N, D] with D = `dim`; N ≥ 1, finite. Scanned as [`Scan::usual`] says, with the widest
    /// instructions of this machine.
    pub fn new(rows: Vec<f32>, dim: usize) -> Result<Self> {
        let scan = Scan::usual(rows.len() / dim.max(1), dim);
        Self::scanned_by(scan, rows, dim, Isa::detect()?)
    }

    /// As [`PrototypeBank::new`], with a scan of one's own choice.
    pub fn scanned_by(scan: Scan, rows: Vec<f32>, dim: usize, isa: Isa) -> Result<Self> {
        let dot = match isa {
            Isa::Portable => None,
            Isa::Avx2 => Some(Dot8::Vnni256),
            Isa::Avx512 => Some(Dot8::Vnni512),
        };
        Self::coded(scan, rows, dim, isa, dot.filter(|dot| dot.is_here()))
    }

    fn coded(scan: Scan, rows: Vec<f32>, dim: usize, isa: Isa, dot: Option<Dot8>) -> Result<Self> {
        ensure!(
            dim > 0 && !rows.is_empty() && rows.len().is_multiple_of(dim),
            "{} numbers are no prototypes of {dim} dimensions",
            rows.len()
        );
        ensure!(u32::try_from(rows.len() / dim).is_ok(), "more than 2^32 prototypes");
        let norms2: Vec<f64> = rows.chunks(dim).map(norm2).collect();
        if let Some(bad) = norms2.iter().position(|norm2| !(*norm2 <= LARGEST_NORM2)) {
            anyhow::bail!("prototype {bad} is not finite or too large");
        }
        let (codes, bound) = match scan {
            Scan::F32 => {
                let panels = Panels::new(&rows, dim, halves(&norms2), isa);
                (Codes::Whole(panels), Bound::of_f32(dim, largest(norms2).sqrt(), 0.0))
            }
            Scan::Int8 => sketched(&rows, dim, isa, dot),
        };
        Ok(Self { dim, rows, isa, codes, bound })
    }

    /// Number of prototypes N.
    pub fn len(&self) -> usize {
        self.rows.len() / self.dim
    }

    /// Never: a bank holds at least one prototype.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Prototype `index`, `[D]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.dim..][..self.dim]
    }

    /// All prototypes, [N, D].
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// How many dimensions the scan goes through: fewer than D where few of them hold nearly all
    /// of the prototypes' variance.
    pub fn scanned_dims(&self) -> usize {
        match &self.codes {
            Codes::Whole(panels) | Codes::Sketches(_, panels) => panels.dim(),
            Codes::Bytes(_, bytes) => bytes.dims(),
        }
    }

    /// The closest prototype of each query: `queries` `[Q, D]` → `[Q]`. Ties: lowest index.
    pub fn nearest(&self, team: &Team, queries: &[f32]) -> Result<Vec<Nearest>> {
        self.top(team, queries, 1)
    }

    /// The min(k, N) closest prototypes of each query, nearest first, ties by lowest index:
    /// `queries` [Q, D] → [Q, min(k, N)], flat. A query that is not finite is an error.
    pub fn top(&self, team: &Team, queries: &[f32], k: usize) -> Result<Vec<Nearest>> {
        let k = k.min(self.len());
        let mut out = vec![NOTHING; queries.len() / self.dim * k];
        if k > 0 {
            self.top_into(team, queries, k, &mut out, &mut Scratch::default())?;
        }
        Ok(out)
    }

    /// As [`PrototypeBank::nearest`], into `out` [Q], without allocation where `scratch` has seen
    /// this bank and a team as large.
    pub fn nearest_into(
        &self,
        team: &Team,
        queries: &[f32],
        out: &mut [Nearest],
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.top_into(team, queries, 1, out, scratch)
    }

    /// As [`PrototypeBank::top`] with 1 ≤ `k` ≤ N, into `out` [Q, k].
    pub fn top_into(
        &self,
        team: &Team,
        queries: &[f32],
        k: usize,
        out: &mut [Nearest],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let task = Task { queries, order: None, seeded: false, panels: 0..self.panels(), k };
        self.search(team, &task, out, scratch)
    }

    /// The query whose nearest prototype is farthest, and that prototype: what an image score
    /// without a map needs. Ties: lowest query. `queries` [Q, D], Q ≥ 1.
    ///
    /// The first prototypes of a coreset already cover all others roughly, so a scan of them bounds
    /// every query's distance; then queries are searched in order of that bound, until it falls
    /// below a distance found.
    pub fn farthest_nearest(
        &self,
        team: &Team,
        queries: &[f32],
        scratch: &mut Scratch,
    ) -> Result<(usize, Nearest)> {
        let mut order = std::mem::take(&mut scratch.order);
        let mut bounds = std::mem::take(&mut scratch.bounds);
        let mut found = std::mem::take(&mut scratch.found);
        let farthest =
            self.farthest_of(team, queries, scratch, (&mut order, &mut bounds, &mut found));
        (scratch.order, scratch.bounds, scratch.found) = (order, bounds, found);
        farthest
    }

    fn farthest_of(
        &self,
        team: &Team,
        queries: &[f32],
        scratch: &mut Scratch,
        (order, bounds, found): (&mut Vec<u32>, &mut Vec<Nearest>, &mut Vec<Nearest>),
    ) -> Result<(usize, Nearest)> {
        let count = queries.len() / self.dim;
        ensure!(u32::try_from(count).is_ok_and(|count| count > 0), "{count} queries");
        let first = self.panels().div_ceil(FIRST_SHARE);
        bounds.clear();
        bounds.resize(count, NOTHING);
        let task = Task { queries, order: None, seeded: false, panels: 0..first, k: 1 };
        self.search(team, &task, bounds, scratch)?;
        order.clear();
        order.extend(0..count as u32);
        let bound = |query: u32| bounds[query as usize].distance2;
        order.sort_unstable_by(|&a, &b| bound(b).total_cmp(&bound(a)).then(a.cmp(&b)));
        let mut farthest: Option<(u32, Nearest)> = None;
        for group in order.chunks(self.slots() / 2 * team.threads()) {
            // Not below it: one as far may have a lower number.
            let open = |query: &u32| farthest.is_none_or(|(_, far)| bound(*query) >= far.distance2);
            let group = &group[..group.partition_point(open)];
            if group.is_empty() {
                break;
            }
            found.clear();
            found.extend(group.iter().map(|&query| bounds[query as usize]));
            let order = Some(group);
            let task = Task { queries, order, seeded: true, panels: first..self.panels(), k: 1 };
            self.search(team, &task, found, scratch)?;
            for (&query, &nearest) in group.iter().zip(&*found) {
                let further = farthest.is_none_or(|(other, far)| {
                    nearest.distance2 > far.distance2
                        || nearest.distance2 == far.distance2 && query < other
                });
                if further {
                    farthest = Some((query, nearest));
                }
            }
        }
        let (query, nearest) = farthest.expect("there is a query, and the first group is open");
        Ok((query as usize, nearest))
    }

    fn search(
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
        let piece = count.div_ceil(pieces).next_multiple_of(self.vectors());
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
                desk.slots[used] = Slot { at, query, ..Slot::default() };
                used += 1;
            }
            if !self.encode(task.queries, &mut desk.slots[..used], &mut desk.table) {
                return false;
            }
            desk.bars.fill(Bar { limit: f32::NEG_INFINITY, reach: 0.0, scale: 0.0 });
            for (slot, bar) in desk.slots[..used].iter().zip(&mut desk.bars) {
                *bar = slot.bar(out[slot.at * k + k - 1].distance2, self);
            }
            self.scan_step(task, used, desk, out);
        }
        true
    }

    /// Scans for the slots in use, a group of panels at a time that stays in a core's cache.
    fn scan_step(&self, task: &Task<'_>, used: usize, desk: &mut Desk, out: &mut [Nearest]) {
        let (k, vectors) = (task.k, self.vectors());
        let panels = task.panels.clone();
        let group = (GROUP_BYTES / self.panel_bytes()).max(1);
        let mut values = [[0.0; WIDEST]; MOST_VECTORS];
        for from in panels.clone().step_by(group) {
            let to = (from + group).min(panels.end);
            for first in (0..used).step_by(vectors) {
                let mut from = from;
                while let Some(hit) = self.scan(from..to, first, desk, &mut values) {
                    for r in (0..vectors).filter(|r| hit.vectors >> r & 1 == 1) {
                        let Some(slot) = desk.slots[..used].get(first + r) else { continue };
                        let x = &task.queries[slot.query * self.dim..][..self.dim];
                        let best = &mut out[slot.at * k..][..k];
                        let bar = &mut desk.bars[first + r];
                        self.offer(x, slot, hit.panel, &values[r], bar, best);
                    }
                    from = hit.panel + 1;
                }
            }
        }
    }

    /// Measures the prototypes of a panel whose values are not above the limit.
    fn offer(
        &self,
        x: &[f32],
        slot: &Slot,
        panel: usize,
        values: &[f32],
        bar: &mut Bar,
        best: &mut [Nearest],
    ) {
        let width = self.width();
        let first = panel * width;
        let lanes = width.min(self.len() - first);
        for (&value, index) in values[..lanes].iter().zip(first as u32..) {
            // The limit falls; the value of a smaller reach would be larger still.
            if value > bar.limit || best.iter().any(|near| near.index == index) {
                continue;
            }
            let found = Nearest { index, distance2: self.distance2(x, index) };
            let at = best.partition_point(|near| near.comes_before(&found));
            if at < best.len() {
                best[at..].rotate_right(1);
                best[at] = found;
                *bar = slot.bar(best[best.len() - 1].distance2, self);
            }
        }
    }

    /// Codes of the queries of `slots`, and what the limit needs of each. False where one is not
    /// finite.
    fn encode(&self, queries: &[f32], slots: &mut [Slot], table: &mut Table) -> bool {
        let row = |slot: &Slot| &queries[slot.query * self.dim..][..self.dim];
        let vectors = self.vectors();
        let (sketch, dims) = match &self.codes {
            Codes::Whole(_) => {
                for (i, slot) in slots.iter_mut().enumerate() {
                    slot.code(norm2(row(slot)), 0.0, 1.0);
                    place_f32(&mut table.vectors, i, vectors, row(slot));
                }
                return slots.iter().all(Slot::is_finite);
            }
            Codes::Sketches(sketch, panels) => (sketch, panels.dim()),
            Codes::Bytes(sketch, bytes) => (sketch, bytes.dims()),
        };
        let desk = table.sketch.as_mut().expect("made for this bank");
        let mut drawn = [Drawn::default(); MOST_VECTORS];
        for (group, slots) in slots.chunks_mut(sketch.vectors()).enumerate() {
            let out = &mut table.sketches;
            sketch.draw(slots.iter().map(row), desk, out, dims, &mut drawn);
            for (r, (slot, drawn)) in slots.iter_mut().zip(drawn).enumerate() {
                let i = group * sketch.vectors() + r;
                slot.code(drawn.norm2, drawn.error, 1.0);
                if !slot.is_finite() {
                    return false;
                }
                let own = &out[r * dims..][..dims];
                match &self.codes {
                    Codes::Bytes(_, bytes) => {
                        let code = bytes::encode(own, &mut table.code);
                        slot.code(code.norm2, drawn.error + code.error, code.scale);
                        bytes.place(i, &table.code, &mut table.bytes);
                    }
                    _ => place_f32(&mut table.vectors, i, vectors, own),
                }
            }
        }
        true
    }

    fn scan(
        &self,
        panels: Range<usize>,
        first: usize,
        desk: &Desk,
        values: &mut Values,
    ) -> Option<Hit> {
        let (vectors, dims) = (self.vectors(), self.scanned_dims());
        let bars = &desk.bars[first..first + vectors];
        match &self.codes {
            Codes::Whole(codes) | Codes::Sketches(_, codes) => {
                let own = &desk.table.vectors[first * dims..][..vectors * dims];
                codes.scan(panels, own, bars, values)
            }
            Codes::Bytes(_, codes) => {
                let own = &desk.table.bytes[first * dims / 4..][..vectors * dims / 4];
                codes.scan(panels, own, bars, values)
            }
        }
    }

    fn distance2(&self, x: &[f32], index: u32) -> f32 {
        self.isa.run(Distance { a: x, b: self.row(index as usize) })
    }

    fn panels(&self) -> usize {
        match &self.codes {
            Codes::Whole(panels) | Codes::Sketches(_, panels) => panels.count(),
            Codes::Bytes(_, bytes) => bytes.count(),
        }
    }

    fn panel_bytes(&self) -> usize {
        match &self.codes {
            Codes::Whole(panels) | Codes::Sketches(_, panels) => panels.panel_bytes(),
            Codes::Bytes(_, bytes) => bytes.panel_bytes(),
        }
    }

    /// Prototypes of a panel.
    fn width(&self) -> usize {
        match &self.codes {
            Codes::Whole(panels) | Codes::Sketches(_, panels) => panels.grain().width,
            Codes::Bytes(..) => WIDEST,
        }
    }

    /// Queries of one product.
    fn vectors(&self) -> usize {
        match &self.codes {
            Codes::Whole(panels) | Codes::Sketches(_, panels) => panels.grain().vectors,
            Codes::Bytes(_, bytes) => bytes.vectors(),
        }
    }

    /// Queries that are searched side by side: a bank of f32 is read from far away, and so is read
    /// for many.
    fn slots(&self) -> usize {
        match &self.codes {
            Codes::Whole(_) => 96,
            Codes::Sketches(..) => 48,
            Codes::Bytes(..) => 24,
        }
    }
}

/// Bytes of the panels that are gone through again and again: a part of a core's second cache.
const GROUP_BYTES: usize = 192 << 10;

/// One in so many panels is looked through for the first bound of [`PrototypeBank::farthest_nearest`].
const FIRST_SHARE: usize = 16;

const NOTHING: Nearest = Nearest { index: 0, distance2: f32::INFINITY };

/// Codes of the sketches of `rows` [N, D], and the bound that they give.
fn sketched(rows: &[f32], dim: usize, isa: Isa, dot: Option<Dot8>) -> (Codes, Bound) {
    let sketch = Sketch::new(rows, dim, isa);
    let dims = sketch.dims().next_multiple_of(4);
    let dot = dot.filter(|_| dims <= bytes::MOST_DIMS);
    let count = rows.len() / dim;
    let mut sketches = vec![0f32; count.next_multiple_of(sketch.vectors()) * dims];
    let mut drawn = vec![Drawn::default(); count.next_multiple_of(sketch.vectors())];
    let mut desk = sketch.desk();
    let group = sketch.vectors();
    let groups = sketches.chunks_mut(group * dims).zip(drawn.chunks_mut(group));
    for ((out, drawn), rows) in groups.zip(rows.chunks(group * dim)) {
        sketch.draw(rows.chunks_exact(dim), &mut desk, out, dims, drawn);
    }
    sketches.truncate(count * dims);
    drawn.truncate(count);
    let norms2: Vec<f64> = drawn.iter().map(|drawn| drawn.norm2).collect();
    let errors: Vec<f64> = drawn.iter().map(|drawn| drawn.error).collect();
    let slack = largest(errors.iter().copied());
    if let Some(dot) = dot {
        let bytes = Bytes::new(&sketches, dims, &errors, dot);
        let (norm, error) = bytes.largest();
        return (Codes::Bytes(sketch, bytes), Bound::of_bytes(norm, error));
    }
    let panels = Panels::new(&sketches, dims, halves(&norms2), isa);
    (Codes::Sketches(sketch, panels), Bound::of_f32(dims, largest(norms2).sqrt(), slack))
}

fn halves(norms2: &[f64]) -> Vec<f32> {
    norms2.iter().map(|norm2| (0.5 * norm2) as f32).collect()
}

fn largest(xs: impl IntoIterator<Item = f64>) -> f64 {
    xs.into_iter().fold(0.0, f64::max)
}

/// What is looked for.
struct Task<'a> {
    queries: &'a [f32],
    /// Only these queries, in this order.
    order: Option<&'a [u32]>,
    /// The output holds k prototypes of each query already.
    seeded: bool,
    panels: Range<usize>,
    k: usize,
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
    order: Vec<u32>,
    bounds: Vec<Nearest>,
    found: Vec<Nearest>,
}

impl Scratch {
    fn fit(&mut self, bank: &PrototypeBank, threads: usize) {
        let sketch_dims = match &bank.codes {
            Codes::Whole(_) => 0,
            Codes::Sketches(sketch, _) | Codes::Bytes(sketch, _) => sketch.dims(),
        };
        let shape = [bank.dim, bank.scanned_dims(), bank.slots(), bank.vectors(), sketch_dims];
        if self.shape != shape {
            self.desks.clear();
            self.shape = shape;
        }
        while self.desks.len() < threads {
            self.desks.push(Desk::new(bank));
        }
    }
}

/// One thread's part.
#[derive(Debug)]
struct Desk {
    slots: Vec<Slot>,
    bars: Vec<Bar>, // [slots]
    table: Table,
}

/// Where queries become codes.
#[derive(Debug)]
struct Table {
    /// [slots/R][dims][R], by what is scanned.
    vectors: Vec<f32>,
    bytes: Vec<i32>,
    sketch: Option<sketch::Desk>,
    sketches: Vec<f32>, // [R, dims]
    code: Vec<i8>,      // [dims]
}

impl Desk {
    fn new(bank: &PrototypeBank) -> Self {
        let (slots, dims) = (bank.slots(), bank.scanned_dims());
        let (mut vectors, mut bytes) = (Vec::new(), Vec::new());
        let sketch = match &bank.codes {
            Codes::Whole(_) => None,
            Codes::Sketches(sketch, _) | Codes::Bytes(sketch, _) => Some(sketch),
        };
        match &bank.codes {
            Codes::Bytes(..) => bytes.resize(slots * dims / 4, 0),
            _ => vectors.resize(slots * dims, 0.0),
        }
        Self {
            slots: vec![Slot::default(); slots],
            bars: vec![Bar { limit: f32::NEG_INFINITY, reach: 0.0, scale: 0.0 }; slots],
            table: Table {
                vectors,
                bytes,
                sketches: vec![0.0; sketch.map_or(0, |sketch| sketch.vectors() * dims)],
                sketch: sketch.map(Sketch::desk),
                code: vec![0; dims],
            },
        }
    }
}

/// Puts `x` [dims] where vector `i` stands in [·/R][dims][R].
fn place_f32(vectors: &mut [f32], i: usize, at_once: usize, x: &[f32]) {
    let group = &mut vectors[i / at_once * at_once * x.len()..][..at_once * x.len()];
    let places = group[i % at_once..].iter_mut().step_by(at_once);
    places.zip(x).for_each(|(place, x)| *place = *x);
}

/// A query that is being searched for.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Its place in the piece, and its number.
    at: usize,
    query: usize,
    /// |c|², ρ and scale of its code.
    norm2: f64,
    error: f64,
    scale: f32,
}

impl Slot {
    fn code(&mut self, norm2: f64, error: f64, scale: f32) {
        (self.norm2, self.error, self.scale) = (norm2, error, scale);
    }

    fn is_finite(&self) -> bool {
        self.norm2 <= LARGEST_NORM2
    }

    /// What a prototype must not be above to be as near as `distance2`, a squared distance measured.
    fn bar(&self, distance2: f32, bank: &PrototypeBank) -> Bar {
        let bound = &bank.bound;
        // Whoever is measured no farther is, with the true t² ≤ measured/(1 − relative), within:
        let near2 = f64::from(distance2) * (1.0 + 2.0 * relative(bank.dim)) + underflow(bank.dim);
        let reach = (near2.sqrt() + self.error + bound.slack) * (1.0 + 1e-12);
        // The norm is a sum of fewer than 2²⁰ terms in f64.
        let half = 0.5 * self.norm2 * (1.0 - 1e-9);
        let error = bound.per_norm * self.norm2.sqrt() + bound.constant + bound.per_reach * reach;
        let limit = 0.5 * reach * reach - half + 1.01 * error;
        Bar { limit: (limit as f32).next_up(), reach: (reach as f32).next_up(), scale: self.scale }
    }
}

struct Distance<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Distance<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: super::simd::Simd>(self, _: S) -> f32 {
        squared_distance(self.a, self.b)
    }
}

/// Σ(a − b)², f32: sixteen sums side by side, then added in a fixed order, so that the result is
/// the same on every machine.
#[inline(always)]
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += (a[i] - b[i]) * (a[i] - b[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b)).sum();
    sums.iter().sum::<f32>() + rest
}

/// |a|², summed in f64.
fn norm2(a: &[f32]) -> f64 {
    let (eights, rest) = a.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for eight in eights {
        for i in 0..8 {
            sums[i] += f64::from(eight[i]) * f64::from(eight[i]);
        }
    }
    let rest: f64 = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The definition: all distances, sorted; flat [Q, min(k, N)].
    fn plain_top(rows: &[f32], queries: &[f32], dim: usize, k: usize) -> Vec<Nearest> {
        let mut out = Vec::new();
        for query in queries.chunks(dim) {
            let mut all: Vec<Nearest> = rows
                .chunks(dim)
                .zip(0..)
                .map(|(row, index)| Nearest { index, distance2: squared_distance(query, row) })
                .collect();
            all.sort_by(|a, b| a.distance2.total_cmp(&b.distance2).then(a.index.cmp(&b.index)));
            out.extend(all.into_iter().take(k));
        }
        out
    }

    /// A bank for every scan, set of instructions and 8-bit dot product of this machine.
    fn banks(rows: &[f32], dim: usize) -> Vec<PrototypeBank> {
        let mut banks = Vec::new();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let mut bank = |scan, dot| {
                let rows = rows.to_vec();
                banks.push(PrototypeBank::coded(scan, rows, dim, isa, dot).unwrap());
            };
            bank(Scan::F32, None);
            bank(Scan::Int8, None);
            for dot in Dot8::ALL.into_iter().filter(|dot| dot.is_here()) {
                bank(Scan::Int8, Some(dot));
            }
        }
        banks
    }

    fn draw(n: usize, offset: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
        (0..n).map(|_| offset + rng.random::<f32>()).collect()
    }

    /// Vectors that vary in four directions much and in the others a little, as features do.
    fn flat_draw(n: usize, dim: usize, offset: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let mut axes = ChaCha8Rng::seed_from_u64(5);
        let axes: Vec<f32> = (0..4 * dim).map(|_| axes.random::<f32>() - 0.5).collect();
        let mut out = Vec::with_capacity(n * dim);
        for _ in 0..n {
            let along: [f32; 4] = std::array::from_fn(|_| 3.0 * rng.random::<f32>());
            out.extend((0..dim).map(|i| {
                let axis = axes[4 * i..].iter();
                let sum: f32 = along.iter().zip(axis).map(|(a, b)| a * b).sum();
                offset + sum + 0.1 * rng.random::<f32>()
            }));
        }
        out
    }

    #[test]
    fn squared_distance_equals_the_f64_sum() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for dim in [1, 15, 16, 31, 33, 384, 1025] {
            let (a, b) = (draw(dim, 0.0, &mut rng), draw(dim, 0.0, &mut rng));
            let terms = a.iter().zip(&b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
            let want = terms.sum::<f64>();
            let got = f64::from(squared_distance(&a, &b));
            assert!((got - want).abs() <= (dim + 2) as f64 * f64::from(UNIT) * want, "{dim}");
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                assert_eq!(f64::from(isa.run(Distance { a: &a, b: &b })), got, "{}", isa.word());
            }
        }
    }

    #[test]
    fn prototype_equal_to_the_query_has_distance_zero() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        // Far from the origin, where |q|² + |p|² − 2q·p in f32 would be off by more than the
        // distances themselves.
        let rows = draw(300 * 33, 1000.0, &mut rng);
        for bank in banks(&rows, 33) {
            let found = bank.nearest(&Team::alone(), &rows).unwrap();
            for (found, index) in found.iter().zip(0..) {
                assert_eq!(*found, Nearest { index, distance2: 0.0 });
            }
        }
    }

    #[test]
    fn tie_goes_to_the_lowest_index() {
        for bank in banks(&[5.0, 1.0, 3.0, 1.0, 3.0], 1) {
            let found = bank.top(&Team::alone(), &[2.0], 4).unwrap();
            assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [1, 2, 3, 4]);
            assert_eq!(bank.top(&Team::alone(), &[2.0], 9).unwrap().len(), 5);
        }
        // All distances are too small for f32.
        for bank in banks(&[2e-23, 1e-23, 1e-24], 1) {
            let found = bank.top(&Team::alone(), &[0.0], 3).unwrap();
            assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [0, 1, 2]);
        }
    }

    #[test]
    fn nan_is_refused() {
        let team = Team::alone();
        assert!(PrototypeBank::new(vec![1.0, f32::NAN], 1).is_err());
        assert!(PrototypeBank::new(Vec::new(), 4).is_err());
        for bank in banks(&[1.0, 2.0, 3.0, 5.0], 2) {
            assert!(bank.nearest(&team, &[1.0, f32::NAN]).is_err());
            assert!(bank.nearest(&team, &[1.0, 1.0, 1.0, f32::INFINITY]).is_err());
            assert!(bank.nearest(&team, &[1.0]).is_err());
            assert!(bank.nearest(&team, &[]).unwrap().is_empty());
            assert_eq!(bank.nearest(&team, &[1.0, 3.0]).unwrap()[0].index, 0);
        }
    }

    #[test]
    fn the_farthest_query_is_that_of_the_full_search() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let rows = flat_draw(1500, 96, 0.0, &mut rng);
        let mut queries = flat_draw(150, 96, 0.0, &mut rng);
        // The farthest one twice.
        let far = plain_top(&rows, &queries, 96, 1);
        let far = (0..150).max_by(|&a, &b| far[a].distance2.total_cmp(&far[b].distance2)).unwrap();
        queries.copy_within(far * 96..(far + 1) * 96, 140 * 96);
        let nearest = plain_top(&rows, &queries, 96, 1);
        let want =
            (0..150).rev().max_by(|&a, &b| nearest[a].distance2.total_cmp(&nearest[b].distance2));
        let want = want.unwrap();
        for bank in banks(&rows, 96) {
            for threads in [1, 2] {
                let team = Team::new(threads, false).unwrap();
                let got = bank.farthest_nearest(&team, &queries, &mut Scratch::default()).unwrap();
                assert_eq!(got, (want, nearest[want]), "{:?}", bank.codes);
            }
        }
    }

    #[test]
    fn what_varies_in_few_directions_is_sketched_in_few_dimensions() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let few = PrototypeBank::new(flat_draw(1100, 130, 7.0, &mut rng), 130).unwrap();
        assert_eq!(few.scanned_dims(), 32);
        let many = PrototypeBank::new(draw(1100 * 130, 7.0, &mut rng), 130).unwrap();
        assert_eq!(many.scanned_dims(), 132);
    }

    #[test]
    fn scratch_may_go_from_bank_to_bank() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut scratch = Scratch::default();
        let rows = flat_draw(70, 80, 0.0, &mut rng);
        let queries = flat_draw(53, 80, 0.0, &mut rng);
        let want = plain_top(&rows, &queries, 80, 2);
        for bank in banks(&rows, 80) {
            for threads in [2, 1, 3] {
                let team = Team::new(threads, false).unwrap();
                let mut out = vec![NOTHING; 2 * 53];
                bank.top_into(&team, &queries, 2, &mut out, &mut scratch).unwrap();
                assert_eq!(out, want);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn equals_the_definition(
            q in prop::sample::select(vec![1usize, 33, 130]),
            n in prop::sample::select(vec![1usize, 31, 33, 1025, 2049]),
            dim in prop::sample::select(vec![1usize, 31, 33, 128]),
            k in 1usize..=9,
            offset in prop::sample::select(vec![-0.5f32, 0.0, 300.0]),
            flat in any::<bool>(),
            threads in 1usize..=2,
            seed in any::<u64>(),
        ) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let vectors = |n: usize, rng: &mut ChaCha8Rng| {
                if flat { flat_draw(n, dim, offset, rng) } else { draw(n * dim, offset, rng) }
            };
            let mut rows = vectors(n, &mut rng);
            // Near and exact doubles, far apart in the bank.
            let copy = rows[..dim].to_vec();
            let last = rows.len() - dim;
            rows[last..].copy_from_slice(&copy);
            let middle = (n / 2) * dim;
            rows[middle..middle + dim].iter_mut().zip(&copy).for_each(|(x, c)| *x = c * (1.0 + 2.0 * UNIT));
            let mut queries = vectors(q, &mut rng);
            queries[..dim].copy_from_slice(&copy);
            let team = Team::new(threads, false).unwrap();
            let want = plain_top(&rows, &queries, dim, k);
            for bank in banks(&rows, dim) {
                // Both measure by the same sum, so index and distance are equal to the bit.
                prop_assert_eq!(&bank.top(&team, &queries, k).unwrap(), &want, "{:?}", bank.isa);
            }
        }
    }
}
