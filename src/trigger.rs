//! What makes a part: the picture itself, a PLC's trigger bit, a digital input. Where it is not the
//! picture, a wire asks through a [`Port`] and the camera thread gives the part its number, whether
//! a picture comes or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Deserialize;

use crate::frame::PartId;

/// `[camera.trigger]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Config {
    /// Each picture is a part.
    #[default]
    Picture,
    /// A PLC's trigger bit (docs/plc.md, "Trigger").
    Plc(Wait),
    /// The rising edge of a digital input of `[output.gate.io]`.
    Input(Input),
}

/// How a picture belongs to its trigger.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// The picture must be here so soon after the trigger; a part without one is rejected.
    #[serde(default = "default_picture_within_ms")]
    pub picture_within_ms: f64,
    /// A picture taken longer than this before the trigger is of another part. Above 0 only where
    /// the trigger's way to here is slower than the camera's.
    #[serde(default)]
    pub picture_before_ms: f64,
}

/// `kind = "input"`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Of the station's inputs, from 0.
    pub input: u8,
    /// As of [`Wait`].
    #[serde(default = "default_picture_within_ms")]
    pub picture_within_ms: f64,
    /// As of [`Wait`].
    #[serde(default)]
    pub picture_before_ms: f64,
}

fn default_picture_within_ms() -> f64 {
    200.0
}

impl Config {
    /// `None`: each picture is a part.
    pub fn wait(&self) -> Option<Wait> {
        match *self {
            Config::Picture => None,
            Config::Plc(wait) => Some(wait),
            Config::Input(Input { picture_within_ms, picture_before_ms, .. }) => {
                Some(Wait { picture_within_ms, picture_before_ms })
            }
        }
    }

    /// Refuses values that cannot be meant; the text names the key below `[camera.trigger]`.
    pub fn check(&self) -> Result<()> {
        if let Config::Input(Input { input, .. }) = self {
            ensure!(*input < 32, "input = {input}: a station has inputs 0 to 31");
        }
        let Some(Wait { picture_within_ms, picture_before_ms }) = self.wait() else {
            return Ok(());
        };
        ensure!(
            (1.0..=60_000.0).contains(&picture_within_ms),
            "picture_within_ms = {picture_within_ms} must lie between 1 and 60000"
        );
        ensure!(
            (0.0..=1000.0).contains(&picture_before_ms),
            "picture_before_ms = {picture_before_ms} must lie between 0 and 1000"
        );
        Ok(())
    }
}

/// Triggers that may wait for the camera thread, which looks every few milliseconds. Whoever asks
/// when it is full waits; it is a wire's own thread.
const ROOM: usize = 64;

/// What a wire triggers a camera by. All clones are of one camera.
#[derive(Clone, Debug)]
pub struct Port {
    asked: Sender<Asked>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The camera waits for a trigger.
    ready: AtomicBool,
    /// Triggers that found it not ready, since the start.
    missed: AtomicU64,
}

/// A trigger on its way to the camera thread.
#[derive(Debug)]
pub struct Asked {
    pub at: Instant,
    /// Where the belt stood, in encoder counts.
    pub count: Option<i64>,
    /// The camera was waiting for it. Where not, the part is rejected.
    pub in_time: bool,
    answer: Arc<Answer>,
}

/// What became of a trigger.
#[derive(Debug, Default)]
pub struct Answer {
    /// 0: none yet.
    part: AtomicU64,
    missed: AtomicBool,
    exposed: AtomicBool,
}

/// The camera thread's end.
#[derive(Debug)]
pub struct Triggers {
    pub asked: Receiver<Asked>,
    pub picture_within: Duration,
    pub picture_before: Duration,
    shared: Arc<Shared>,
}

/// Both ends for one camera.
pub fn port(wait: Wait) -> (Port, Triggers) {
    let (give, asked) = bounded(ROOM);
    let shared = Arc::new(Shared::default());
    let triggers = Triggers {
        asked,
        picture_within: Duration::from_secs_f64(wait.picture_within_ms / 1000.0),
        picture_before: Duration::from_secs_f64(wait.picture_before_ms / 1000.0),
        shared: shared.clone(),
    };
    (Port { asked: give, shared }, triggers)
}

impl Port {
    /// A part is in front of the camera. `line_ready`: whether whoever asks has told the outside
    /// that it may trigger. `None`: the line has ended.
    pub fn ask(&self, at: Instant, count: Option<i64>, line_ready: bool) -> Option<Arc<Answer>> {
        let waited = self.shared.ready.swap(false, Ordering::SeqCst);
        let answer = Arc::new(Answer::default());
        let in_time = waited && line_ready;
        if waited && !in_time {
            self.shared.ready.store(true, Ordering::SeqCst);
        }
        let asked = Asked { at, count, in_time, answer: answer.clone() };
        self.asked.send(asked).ok()?;
        Some(answer)
    }

    pub fn ready(&self) -> bool {
        self.shared.ready.load(Ordering::SeqCst)
    }

    /// Triggers that found the camera not ready, since the start; each is a rejected part.
    pub fn missed(&self) -> u64 {
        self.shared.missed.load(Ordering::SeqCst)
    }
}

impl Triggers {
    /// Whether the next trigger will be taken.
    pub fn set_ready(&self, ready: bool) {
        self.shared.ready.store(ready, Ordering::SeqCst);
    }

    /// For a part that was triggered and found nobody waiting.
    pub fn count_missed(&self) {
        self.shared.missed.fetch_add(1, Ordering::SeqCst);
    }
}

impl Asked {
    /// Tells whoever asked which part it is.
    pub fn answer(&self, part: PartId) {
        self.answer.missed.store(!self.in_time, Ordering::SeqCst);
        self.answer.part.store(part.0, Ordering::SeqCst);
    }

    /// The picture is taken, or none will be: the part may move on.
    pub fn exposed(&self) {
        self.answer.exposed.store(true, Ordering::SeqCst);
    }
}

impl Answer {
    /// `None`: the camera thread has not taken the trigger up yet.
    pub fn part(&self) -> Option<PartId> {
        Some(self.part.load(Ordering::SeqCst)).filter(|&part| part != 0).map(PartId)
    }

    /// The camera was not waiting; the part is rejected. Meaningful with a part.
    pub fn missed(&self) -> bool {
        self.missed.load(Ordering::SeqCst)
    }

    pub fn exposed(&self) -> bool {
        self.exposed.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    fn only_the_first_of_two_triggers_finds_the_camera_waiting() {
        let now = Instant::now();
        let (port, triggers) = port(Wait { picture_within_ms: 50.0, picture_before_ms: 0.0 });
        assert!(!port.ready());
        triggers.set_ready(true);
        let first = port.ask(now, None, true).unwrap();
        let second = port.ask(now, Some(7), true).unwrap();
        let asked: Vec<Asked> = triggers.asked.try_iter().collect();
        assert_eq!(asked.iter().map(|asked| asked.in_time).collect::<Vec<_>>(), [true, false]);
        assert_eq!(asked[1].count, Some(7));
        assert_eq!((first.part(), second.part()), (None, None));
        asked.iter().zip([4, 5]).for_each(|(asked, part)| asked.answer(PartId(part)));
        assert_eq!((first.part(), first.missed()), (Some(PartId(4)), false));
        assert_eq!((second.part(), second.missed()), (Some(PartId(5)), true));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    fn a_line_that_is_not_ready_does_not_use_up_the_cameras_readiness() {
        let (port, triggers) = port(Wait { picture_within_ms: 50.0, picture_before_ms: 0.0 });
        triggers.set_ready(true);
        port.ask(Instant::now(), None, false).unwrap();
        assert!(!triggers.asked.try_recv().unwrap().in_time);
        assert!(port.ready());
        drop(triggers);
        assert!(port.ask(Instant::now(), None, true).is_none());
    }

    #[test]
    fn config_is_read_and_refused_by_key() {
        let read = |text: &str| toml::from_str::<Config>(text).map_err(|error| error.to_string());
        assert_eq!(read("kind = 'picture'").unwrap(), Config::Picture);
        let eye = read("kind = 'input'\ninput = 3").unwrap();
        assert!(matches!(eye, Config::Input(Input { input: 3, .. })));
        assert_eq!(eye.wait().unwrap().picture_within_ms, 200.0);
        let late = read("kind = 'plc'\npicture_within_ms = 0").unwrap();
        assert!(late.check().unwrap_err().to_string().contains("picture_within_ms = 0"));
        let far = read("kind = 'input'\ninput = 40").unwrap();
        assert!(far.check().unwrap_err().to_string().contains("input = 40"));
        assert!(read("kind = 'plc'\nwait_ms = 3").is_err());
    }
}
