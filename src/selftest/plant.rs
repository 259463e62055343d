//! The belt with its parts, the gate on it, and what really became of each part.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{Fault, Shared, now};

/// Distances in encoder counts.
#[derive(Clone, Debug)]
pub struct Layout {
    /// From part to part.
    pub pitch: f64,
    /// From the camera to the gate.
    pub travel: f64,
    /// Half a part.
    pub half: f64,
    /// Counts per second.
    pub speed: f64,
    pub valve: Duration,
    /// The station's: then its outputs fall.
    pub watchdog: Duration,
}

impl Layout {
    /// For so many parts a second.
    pub fn at(rate_hz: f64) -> Layout {
        let pitch = 1000.0;
        let speed = pitch * rate_hz;
        Layout {
            pitch,
            // Long enough for a verdict at a quarter of it.
            travel: 0.8 * speed,
            half: 40.0,
            speed,
            valve: Duration::from_millis(4),
            watchdog: Duration::from_millis(12),
        }
    }
}

/// What became of the parts at the gate.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Yield {
    pub good_passed: u64,
    /// Not passed within reach of a fault.
    pub good_rejected_at_faults: u64,
    /// Not passed though nothing had gone wrong for a while.
    pub good_rejected_otherwise: u64,
    pub defects_rejected: u64,
    /// Parts without a whole picture, all kept from passing.
    pub uninspected_rejected: u64,
}

struct Part {
    /// Where the belt is when it is in front of the camera.
    at: f64,
    picture: usize,
    /// Its picture was delivered whole.
    whole: bool,
    shot: bool,
    /// The gate stood open at some instant while it was in it.
    open: bool,
    /// The gate stood open when its middle was in it.
    passed: bool,
}

/// A part in front of the camera.
pub struct Shot {
    pub part: u64,
    pub picture: usize,
    /// When it was there.
    pub at: Instant,
}

pub struct Plant {
    layout: Layout,
    /// By picture: does the daemon's model accept it?
    passable: Vec<bool>,
    rng: ChaCha8Rng,
    belt: f64,
    stepped_at: Instant,
    /// Of its speed: 1 forward, 0 standing, below 0 backward.
    pace: f64,
    /// What the encoder shows beyond where the belt is.
    encoder_off: i64,
    placing: bool,
    /// The next part's place at the camera.
    next_at: f64,
    parts: VecDeque<(u64, Part)>,
    placed: u64,
    shots: VecDeque<Shot>,
    /// When the station's gate output was set to what, oldest first; the watchdog's falls are in it.
    outputs: VecDeque<(Instant, bool)>,
    heard_at: Instant,
    fault: Option<Fault>,
    /// The last moment of the last fault.
    fault_until: Option<Instant>,
    pub faults: BTreeMap<&'static str, u64>,
    pub yields: Yield,
    pub broken: Vec<String>,
    /// What the camera does wrong with the next frames.
    pub camera: CameraTrouble,
    /// The station answers nobody.
    pub station_deaf: bool,
    /// The station drops its connections.
    pub station_cut: bool,
}

/// How many frames from now on go wrong in which way.
#[derive(Clone, Copy, Debug, Default)]
pub struct CameraTrouble {
    /// No frame at all, and no answer to commands.
    pub unplugged: bool,
    pub half: u32,
    pub missing: u32,
    pub repeated: u32,
    /// Such a frame comes after the one that follows it.
    pub out_of_order: u32,
    pub burst: u32,
    /// A part comes by and nothing triggers the camera.
    pub unseen: u32,
}

/// Rejects so long after a fault are its doing: the belt must run empty, the daemon start again.
const AFTERMATH: Duration = Duration::from_secs(4);

/// The first counts of the encoder, so that it wraps within seconds.
const ENCODER_START: u32 = u32::MAX - 20_000;

impl Plant {
    pub fn new(layout: Layout, passable: Vec<bool>, seed: u64, now: Instant) -> Plant {
        Plant {
            layout,
            passable,
            rng: ChaCha8Rng::seed_from_u64(seed),
            belt: 0.0,
            stepped_at: now,
            pace: 1.0,
            encoder_off: 0,
            placing: false,
            next_at: 0.0,
            parts: VecDeque::new(),
            placed: 0,
            shots: VecDeque::new(),
            outputs: VecDeque::from([(now, false)]),
            heard_at: now,
            fault: None,
            fault_until: None,
            faults: BTreeMap::new(),
            yields: Yield::default(),
            broken: Vec::new(),
            camera: CameraTrouble::default(),
            station_deaf: false,
            station_cut: false,
        }
    }

    pub fn begin(&mut self, now: Instant) {
        self.step(now);
        self.placing = true;
        self.next_at = self.belt + self.layout.pitch;
    }

    pub fn no_more_parts(&mut self) {
        self.placing = false;
    }

    pub fn parts(&self) -> u64 {
        self.placed
    }

    /// `pace`: of the belt's speed.
    pub fn run_belt(&mut self, pace: f64, now: Instant) {
        self.step(now);
        self.pace = pace;
    }

    /// As by a disturbance on its cable.
    pub fn make_encoder_leap(&mut self, counts: i64) {
        self.encoder_off += counts;
    }

    pub fn began(&mut self, fault: Fault, now: Instant) {
        *self.faults.entry(fault.word()).or_default() += 1;
        self.fault = Some(fault);
        self.fault_until = Some(now);
    }

    pub fn ended(&mut self, now: Instant) {
        self.fault_until = Some(now);
        self.fault = None;
    }

    /// The encoder's counter.
    pub fn encoder(&mut self, now: Instant) -> u32 {
        self.step(now);
        ENCODER_START.wrapping_add((self.belt as i64 + self.encoder_off) as u32)
    }

    /// The daemon has written its outputs.
    pub fn write_gate(&mut self, open: bool, now: Instant) {
        self.step(now);
        self.heard_at = now;
        if self.outputs.back().is_none_or(|&(_, last)| last != open) {
            self.outputs.push_back((now, open));
        }
    }

    /// Takes the parts that came in front of the camera.
    pub fn take_shot(&mut self) -> Option<Shot> {
        self.shots.pop_front()
    }

    /// The picture of a part has left the camera whole.
    pub fn delivered(&mut self, part: u64) {
        if let Some((_, found)) = self.parts.iter_mut().find(|(id, _)| *id == part) {
            found.whole = true;
        }
    }

    /// Moves the belt up to `now`, in steps so small that no part gets through unseen.
    pub fn step(&mut self, now: Instant) {
        const STEP: Duration = Duration::from_micros(500);
        while self.stepped_at < now {
            let until = (self.stepped_at + STEP).min(now);
            let seconds = until.duration_since(self.stepped_at).as_secs_f64();
            self.stepped_at = until;
            let watchdog = self.heard_at + self.layout.watchdog;
            if until >= watchdog && self.outputs.back().is_some_and(|&(_, open)| open) {
                self.outputs.push_back((watchdog, false));
            }
            if self.pace != 0.0 {
                self.belt += seconds * self.layout.speed * self.pace;
                self.move_parts(until);
            }
        }
        while self.outputs.len() > 2
            && now.saturating_duration_since(self.outputs[1].0) > Duration::from_secs(1)
        {
            self.outputs.pop_front();
        }
    }

    fn move_parts(&mut self, now: Instant) {
        while self.placing && self.belt >= self.next_at {
            let picture = self.rng.random_range(0..self.passable.len());
            let part = Part {
                at: self.next_at,
                picture,
                whole: false,
                shot: false,
                open: false,
                passed: false,
            };
            self.placed += 1;
            self.parts.push_back((self.placed, part));
            // Parts are not put down quite evenly.
            self.next_at += self.layout.pitch * self.rng.random_range(1.0..1.05);
        }
        let open = self.gate_open(now);
        let gate = self.belt - self.layout.travel;
        let moved = self.layout.speed * 0.0005;
        for (id, part) in &mut self.parts {
            if !part.shot && self.belt >= part.at {
                part.shot = true;
                self.shots.push_back(Shot { part: *id, picture: part.picture, at: now });
            }
            if (gate - part.at).abs() < self.layout.half {
                part.open |= open;
            }
            if gate >= part.at && gate - part.at <= moved {
                part.passed = open;
            }
        }
        while self.parts.front().is_some_and(|(_, part)| gate > part.at + 3.0 * self.layout.half) {
            if let Some((id, part)) = self.parts.pop_front() {
                self.judge(id, &part, now);
            }
        }
    }

    /// Where the valve is: it follows the output.
    fn gate_open(&self, now: Instant) -> bool {
        let told = self.outputs.iter().rev().find(|(at, _)| *at + self.layout.valve <= now);
        told.is_some_and(|&(_, open)| open)
    }

    fn judge(&mut self, id: u64, part: &Part, now: Instant) {
        let good = self.passable[part.picture];
        let at_fault = self.fault.is_some()
            || self.fault_until.is_some_and(|at| now.saturating_duration_since(at) < AFTERMATH);
        if part.open && !(good && part.whole) {
            let kind = if part.whole { "a defect" } else { "a part without a whole picture" };
            let fault = self.fault.map_or("no fault", Fault::word);
            self.broken.push(format!("{kind} (part {id}) met an open gate during {fault}"));
            return;
        }
        let yields = &mut self.yields;
        let counter = match (good, part.whole) {
            (_, false) => &mut yields.uninspected_rejected,
            (false, true) => &mut yields.defects_rejected,
            (true, true) if part.passed => &mut yields.good_passed,
            (true, true) if at_fault => &mut yields.good_rejected_at_faults,
            (true, true) => &mut yields.good_rejected_otherwise,
        };
        *counter += 1;
    }
}

/// Keeps the belt moving.
pub fn run(shared: &Shared) {
    while !shared.over() {
        shared.plant().step(now());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gate that follows `open` for each part, judged by the plant.
    fn played(open_for: impl Fn(u64) -> bool, whole: impl Fn(u64) -> bool) -> Plant {
        let start = now();
        let mut plant = Plant::new(Layout::at(20.0), vec![true], 1, start);
        plant.begin(start);
        for ms in 1..3000 {
            let at = start + Duration::from_millis(ms);
            plant.step(at);
            while let Some(shot) = plant.take_shot() {
                if whole(shot.part) {
                    plant.delivered(shot.part);
                }
            }
            let gate = plant.belt - plant.layout.travel;
            let near = plant
                .parts
                .iter()
                .find(|(_, part)| (gate - part.at).abs() < 4.0 * plant.layout.half);
            let open = near.is_some_and(|&(id, _)| open_for(id));
            plant.write_gate(open, at);
        }
        plant
    }

    #[test]
    fn a_part_that_must_not_pass_and_meets_an_open_gate_is_a_violation() {
        let careful = played(|part| part % 3 != 0, |part| part % 3 != 0);
        assert!(careful.broken.is_empty(), "{:?}", careful.broken);
        assert!(careful.yields.good_passed > 20 && careful.yields.uninspected_rejected > 10);
        let careless = played(|_| true, |part| part % 3 != 0);
        assert!(careless.broken.len() > 10);
    }

    #[test]
    fn a_station_that_hears_nothing_closes_the_gate() {
        let start = now();
        let mut plant = Plant::new(Layout::at(20.0), vec![true], 1, start);
        plant.write_gate(true, start);
        let at = |ms| start + Duration::from_millis(ms);
        plant.step(at(10));
        assert!(plant.gate_open(at(10)));
        plant.step(at(30));
        assert!(!plant.gate_open(at(30)));
    }
}
