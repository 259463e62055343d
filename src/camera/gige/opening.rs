//! A camera while it is being opened. That takes a second or more: the description is fetched,
//! features are written and read back, the largest packet is searched for, and a camera that is
//! not there is asked several times. The camera thread must not stand still meanwhile.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::camera::{Camera, Opened};
use super::source::Source;
use super::{Config, Trigger};
use crate::camera::{CameraFault, FrameSource, Grab};

/// Opened, or about to be.
pub struct Opening<C: Camera> {
    config: Config,
    answer: Receiver<Result<(C, Opened), String>>,
    source: Option<Source<C>>,
    /// Triggers before the camera was there.
    missed: u64,
}

impl<C: Camera + Send + 'static> Opening<C> {
    /// Opens on a thread of its own, which ends with that. If nobody waits for the camera any more
    /// it is given back at once.
    pub fn start(
        config: &Config,
        open: impl FnOnce(&Config) -> Result<(C, Opened), String> + Send + 'static,
    ) -> Result<Opening<C>, CameraFault> {
        let (sender, answer) = mpsc::sync_channel(1);
        let (config, own) = (config.clone(), config.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "opening takes longer than a stage may stand still; named, at most one a \
                      source, and it ends by itself"
        )]
        thread::Builder::new()
            .name(format!("open {}", config.address))
            .spawn(move || {
                let _unheard = sender.send(open(&own));
            })
            .map_err(|error| {
                CameraFault(format!("{}: starting to open it: {error}", config.address))
            })?;
        Ok(Opening { config, answer, source: None, missed: 0 })
    }
}

impl<C: Camera> FrameSource for Opening<C> {
    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault> {
        if self.missed > 0 {
            self.missed -= 1;
            let reason = "it was triggered before the camera was open".to_owned();
            return Ok(Grab::Bad { name: "frame-none".to_owned(), reason });
        }
        if let Some(source) = &mut self.source {
            return source.grab(patience);
        }
        let address = self.config.address;
        match self.answer.recv_timeout(patience) {
            Ok(Ok((camera, opened))) => {
                self.source = Some(Source::new(&self.config, camera, opened));
                Ok(Grab::Idle)
            }
            Ok(Err(reason)) => Err(CameraFault(format!("{address}: {reason}"))),
            Err(RecvTimeoutError::Timeout) => Ok(Grab::Idle),
            Err(RecvTimeoutError::Disconnected) => {
                Err(CameraFault(format!("{address}: the thread that opened it ended")))
            }
        }
    }

    fn ready(&self) -> bool {
        self.source.is_some()
    }

    fn trigger(&mut self) -> Result<(), CameraFault> {
        match &mut self.source {
            Some(source) => source.trigger(),
            None => {
                self.missed += u64::from(self.config.trigger == Trigger::Software);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::camera::Delivery;
    use super::super::pixels::Format;
    use super::*;

    /// There, and silent.
    struct Quiet;

    impl Camera for Quiet {
        type Payload = Vec<u8>;

        fn next(&mut self, wait: Duration) -> Option<Delivery<Vec<u8>>> {
            thread::sleep(wait);
            None
        }

        fn trigger(&mut self) -> Result<(), String> {
            Ok(())
        }

        fn sight(&mut self) -> Option<(u64, Instant)> {
            None
        }

        fn lost(&self) -> Option<String> {
            None
        }

        fn own_losses(&mut self) -> String {
            String::new()
        }
    }

    type Answer = Result<(Quiet, Opened), String>;

    fn opening(trigger: Trigger) -> (mpsc::Sender<Answer>, Opening<Quiet>) {
        let (answer, open) = mpsc::channel::<Answer>();
        let config = toml::from_str("address = '10.0.0.5'\nsilence_ms = 60000").unwrap();
        let config = Config { trigger, ..config };
        (answer, Opening::start(&config, move |_| answered(&open)).unwrap())
    }

    /// A test that ends early leaves its camera closed.
    fn answered(answers: &Receiver<Answer>) -> Answer {
        answers.recv().unwrap_or_else(|_| Err("the test is over".to_owned()))
    }

    const BRIEF: Duration = Duration::from_millis(1);
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn until_the_camera_is_open_the_source_is_idle_and_not_ready() {
        let (answer, mut source) = opening(Trigger::Free);
        assert!(matches!(source.grab(BRIEF), Ok(Grab::Idle)));
        assert!(!source.ready());
        let opened =
            Opened { format: Format::Mono8, rate_hz: None, encoder: None, line_status: None };
        answer.send(Ok((Quiet, opened))).unwrap();
        assert!(matches!(source.grab(PATIENCE), Ok(Grab::Idle)));
        assert!(source.ready());
        assert!(matches!(source.grab(BRIEF), Ok(Grab::Idle)));
    }

    #[test]
    fn a_camera_that_does_not_open_is_a_fault_with_its_address() {
        let (answer, mut source) = opening(Trigger::Free);
        answer.send(Err("no camera answers".to_owned())).unwrap();
        let fault = source.grab(PATIENCE).unwrap_err();
        assert_eq!(fault.to_string(), "10.0.0.5: no camera answers");
    }

    #[test]
    fn triggers_before_the_camera_is_open_are_bad_parts() {
        let (_answer, mut source) = opening(Trigger::Software);
        source.trigger().unwrap();
        source.trigger().unwrap();
        for _ in 0..2 {
            let grab = source.grab(BRIEF).unwrap();
            assert!(
                matches!(&grab, Grab::Bad { reason, .. } if reason.contains("before")),
                "{grab:?}"
            );
        }
        assert!(matches!(source.grab(BRIEF), Ok(Grab::Idle)));
    }
}
