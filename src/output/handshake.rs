//! The two handshakes of a PLC that triggers and takes results one by one, after Cognex In-Sight:
//! level driven, so that a write that comes twice does nothing twice. Apart from any wire.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::registers::{Entry, map};
use crate::trigger::{Answer, Port};

/// Trigger enable, trigger, trigger ready, trigger acknowledge, acquisition id, missed.
#[derive(Default)]
pub(super) struct TriggerHandshake {
    enabled: bool,
    /// The trigger bits as they were last written.
    bits: u16,
    /// Those of them that were triggers: they rose while triggers were enabled.
    taken: u16,
    cameras: Vec<Triggered>,
}

#[derive(Default)]
struct Triggered {
    /// `None`: something else triggers this camera.
    port: Option<Port>,
    /// The newest trigger's.
    answer: Option<Arc<Answer>>,
}

impl TriggerHandshake {
    /// `ports` by camera.
    pub fn new(ports: &[Option<Port>]) -> TriggerHandshake {
        let cameras = ports.iter().take(usize::from(map::CAMERAS_TRIGGERED));
        let cameras = cameras.map(|port| Triggered { port: port.clone(), answer: None }).collect();
        TriggerHandshake { cameras, ..TriggerHandshake::default() }
    }

    /// The PLC's bits as they stand now. What rises while triggers are enabled is a trigger, whether
    /// the camera waits for it or not.
    pub fn write(&mut self, enabled: bool, bits: u16, line_ready: bool, now: Instant) {
        let rising = bits & !self.bits;
        let mut taken = self.taken & bits;
        for (n, camera) in self.cameras.iter_mut().enumerate() {
            if let Some(port) = &camera.port
                && enabled
                && rising & (1 << n) != 0
            {
                camera.answer = port.ask(now, None, line_ready);
                taken |= 1 << n;
            }
        }
        (self.enabled, self.bits, self.taken) = (enabled, bits, taken);
    }

    /// Cameras that would take a trigger now.
    pub fn ready(&self, line_ready: bool) -> u16 {
        let ready = |n: usize, camera: &Triggered| {
            let port = camera.port.as_ref();
            line_ready && self.enabled && self.bits & (1 << n) == 0 && port.is_some_and(Port::ready)
        };
        self.word(ready)
    }

    /// Cameras whose trigger stands and was taken up; each one's part number is there.
    pub fn acks(&self) -> u16 {
        self.word(|n, camera| {
            self.enabled && self.taken & (1 << n) != 0 && answered(camera).is_some()
        })
    }

    /// Cameras that were not waiting for their last trigger.
    pub fn missed(&self) -> u16 {
        self.word(|_, camera| answered(camera).is_some_and(Answer::missed))
    }

    /// Cameras whose last part may move on.
    pub fn exposed(&self) -> u16 {
        self.word(|_, camera| answered(camera).is_some_and(Answer::exposed))
    }

    /// The part of a camera's last trigger; 0: none.
    pub fn part(&self, camera: usize) -> u64 {
        let answer = self.cameras.get(camera).and_then(answered);
        answer.and_then(Answer::part).map_or(0, |part| part.0)
    }

    /// Triggers that found a camera not waiting, since the start, over all cameras.
    pub fn missed_ever(&self) -> u64 {
        self.cameras.iter().filter_map(|camera| camera.port.as_ref()).map(Port::missed).sum()
    }

    fn word(&self, holds: impl Fn(usize, &Triggered) -> bool) -> u16 {
        let cameras = self.cameras.iter().enumerate();
        cameras.fold(0, |word, (n, camera)| word | (u16::from(holds(n, camera)) << n))
    }
}

fn answered(camera: &Triggered) -> Option<&Answer> {
    camera.answer.as_deref().filter(|answer| answer.part().is_some())
}

/// As many results as In-Sight holds.
const HELD: usize = 8;

/// Results valid and its acknowledge: one result stands until the PLC has taken it, more wait.
#[derive(Default)]
pub(super) struct ResultHandshake {
    holding: bool,
    ack: bool,
    shown: Option<Entry>,
    waiting: VecDeque<Entry>,
    completed: bool,
    overrun: bool,
}

impl ResultHandshake {
    pub fn publish(&mut self, entry: Entry) {
        self.completed = !self.completed;
        if !self.holding {
            return;
        }
        // The one that is shown is one of the eight.
        if self.waiting.len() + usize::from(self.shown.is_some()) >= HELD {
            self.overrun = true;
            return;
        }
        self.waiting.push_back(entry);
        self.show();
    }

    /// The PLC's bits as they stand now. Holding begins empty.
    pub fn write(&mut self, holding: bool, ack: bool) {
        if holding && ack && !self.ack {
            self.shown = None;
        }
        if !holding {
            self.shown = None;
            self.waiting.clear();
        }
        (self.holding, self.ack) = (holding, ack);
        self.show();
    }

    /// The next one comes when the acknowledge of the last has fallen.
    fn show(&mut self) {
        if self.shown.is_none() && !self.ack {
            self.shown = self.waiting.pop_front();
        }
    }

    /// What stands for the PLC to take.
    pub fn valid(&self) -> Option<&Entry> {
        self.shown.as_ref()
    }

    /// Held behind the one that is valid.
    pub fn waiting(&self) -> u16 {
        self.waiting.len() as u16
    }

    /// Turns over with each result, held or not.
    pub fn completed(&self) -> bool {
        self.completed
    }

    /// A result found all places taken. It is in the ring all the same.
    pub fn overrun(&self) -> bool {
        self.overrun
    }

    pub fn clear_overrun(&mut self) {
        self.overrun = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::PartId;
    use crate::trigger::{self, Triggers, Wait};

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    fn now() -> Instant {
        Instant::now()
    }

    fn triggered() -> (TriggerHandshake, Triggers) {
        let (port, triggers) =
            trigger::port(Wait { picture_within_ms: 50.0, picture_before_ms: 0.0 });
        triggers.set_ready(true);
        (TriggerHandshake::new(&[None, Some(port)]), triggers)
    }

    const BIT: u16 = 1 << 1;

    #[test]
    fn a_trigger_is_acknowledged_with_its_part_and_only_once() {
        let (mut hand, triggers) = triggered();
        hand.write(true, 0, true, now());
        assert_eq!((hand.ready(true), hand.ready(false), hand.acks()), (BIT, 0, 0));
        hand.write(true, BIT, true, now());
        hand.write(true, BIT, true, now());
        assert_eq!((hand.ready(true), hand.acks()), (0, 0));
        let asked = triggers.asked.try_recv().unwrap();
        assert!(asked.in_time && triggers.asked.try_recv().is_err(), "a write again is no trigger");
        asked.answer(PartId(9));
        assert_eq!((hand.acks(), hand.missed(), hand.exposed(), hand.part(1)), (BIT, 0, 0, 9));
        asked.exposed();
        triggers.set_ready(true);
        assert_eq!((hand.exposed(), hand.ready(true)), (BIT, 0));
        hand.write(true, 0, true, now());
        assert_eq!((hand.acks(), hand.ready(true), hand.part(1), hand.part(0)), (0, BIT, 9, 0));
    }

    #[test]
    fn a_trigger_that_nobody_waits_for_is_a_part_all_the_same() {
        let (mut hand, triggers) = triggered();
        triggers.set_ready(false);
        hand.write(true, BIT, true, now());
        let asked = triggers.asked.try_recv().unwrap();
        assert!(!asked.in_time);
        triggers.count_missed();
        asked.answer(PartId(3));
        assert_eq!((hand.acks(), hand.missed(), hand.missed_ever()), (BIT, BIT, 1));
    }

    #[test]
    fn without_enable_and_on_other_cameras_nothing_is_triggered() {
        let (mut hand, triggers) = triggered();
        hand.write(false, BIT, true, now());
        // It stands already when triggers are enabled: no edge.
        hand.write(true, BIT, true, now());
        hand.write(true, BIT | 1, true, now());
        assert!(triggers.asked.try_recv().is_err());
        assert_eq!((hand.acks(), hand.part(1)), (0, 0));
    }

    #[test]
    fn a_bit_that_was_no_trigger_is_not_acknowledged_with_the_part_before() {
        let (mut hand, triggers) = triggered();
        hand.write(true, BIT, true, now());
        triggers.asked.try_recv().unwrap().answer(PartId(9));
        assert_eq!(hand.acks(), BIT);
        hand.write(true, 0, true, now());
        hand.write(false, BIT, true, now());
        hand.write(true, BIT, true, now());
        assert_eq!(hand.acks(), 0);
    }

    fn entry(nth: u16) -> Entry {
        let mut words = [0; map::ENTRY as usize];
        words[0] = nth;
        Entry(words)
    }

    #[test]
    fn eight_are_held_and_the_ninth_is_an_overrun() {
        let mut held = ResultHandshake::default();
        held.publish(entry(1));
        assert!(held.valid().is_none() && held.completed(), "nobody asked for it to be held");
        held.write(true, false);
        (2..10).for_each(|nth| held.publish(entry(nth)));
        assert_eq!((held.valid(), held.waiting(), held.overrun()), (Some(&entry(2)), 7, false));
        held.publish(entry(10));
        assert!(held.overrun());
        held.clear_overrun();
        assert!(!held.overrun());
        held.write(false, false);
        assert!(held.valid().is_none() && held.waiting() == 0);
    }

    proptest! {
        /// Whatever the PLC does with its acknowledge, twice, late or never: what it takes is in
        /// order, each once, and without an overrun nothing is left out.
        #[test]
        fn each_result_is_taken_once_and_in_order(steps in prop::collection::vec(0u8..4, 1..200)) {
            let mut held = ResultHandshake::default();
            held.write(true, false);
            let (mut published, mut taken, mut ack) = (0, Vec::new(), false);
            for step in steps {
                match step {
                    0 => {
                        published += 1;
                        held.publish(entry(published));
                    }
                    1 => held.write(true, ack),
                    _ => {
                        let valid = held.valid().map(|entry| entry.0[0]);
                        ack = !ack;
                        if ack && let Some(nth) = valid {
                            taken.push(nth);
                        }
                        held.write(true, ack);
                        if ack {
                            prop_assert!(held.valid().is_none());
                        }
                    }
                }
            }
            prop_assert!(taken.is_sorted_by(|a, b| a < b));
            if !held.overrun() {
                let first: Vec<u16> = (1..=taken.len() as u16).collect();
                prop_assert_eq!(taken, first);
            }
        }
    }
}
