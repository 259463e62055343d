//! The thread that fetches frames from a driver which may never answer, and the source in front
//! of it. Knows no hardware: what fetches is handed in.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use crate::camera::{CameraFault, FrameSource, Grab, Picture};
use crate::frame::Image;

/// One frame as the camera packed it.
pub struct Raw {
    pub bytes: Vec<u8>,
    pub captured_at: Instant,
}

/// Waits for the next frame, without a limit if the driver has none. An error ends the reader.
pub type Fetch = Box<dyn FnMut() -> Result<Raw, String>>;

/// Makes a picture of a frame's bytes, or says why it is none.
pub type Unpack = Box<dyn Fn(&[u8]) -> Result<Image, String>>;

/// A camera behind its reader.
pub struct Reader {
    device: String,
    frames: Receiver<Result<Numbered, String>>,
    stop: Arc<AtomicBool>,
    unpack: Unpack,
    silence: Duration,
    waited: Duration,
    /// The number that the next part will have.
    next: u64,
    /// Taken from the slot, but parts before it must be reported first.
    held: Option<Numbered>,
}

struct Numbered {
    number: u64,
    raw: Raw,
}

impl Reader {
    /// Starts the reader of `device`. `open` runs on the reader's thread, since opening may hang
    /// as well; `unpack` runs on the thread that grabs.
    ///
    /// At most one reader a device: while an earlier one hangs in the driver, this is a fault and
    /// starts none, so that trying again for days does not pile up threads.
    pub fn start(
        device: &str,
        silence: Duration,
        open: impl FnOnce() -> Result<Fetch, String> + Send + 'static,
        unpack: Unpack,
    ) -> Result<Reader, CameraFault> {
        let claim = Claim::of(device).ok_or_else(|| {
            CameraFault(format!(
                "{device}: an earlier reader still hangs in its driver; unplug the camera and plug \
                 it in again, or restart inspectd"
            ))
        })?;
        let (sender, frames) = bounded(1);
        let stop = Arc::new(AtomicBool::new(false));
        let (slot, stopped) = (frames.clone(), stop.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "the driver's wait has no time limit: it must not be the camera thread that \
                      hangs in it; named, owned by this source, at most one a device"
        )]
        thread::Builder::new()
            .name(format!("read {device}"))
            .spawn(move || {
                let _claim = claim;
                let end = match open() {
                    Ok(fetch) => fetch_until_stopped(fetch, &sender, &slot, &stopped),
                    Err(error) => Some(error),
                };
                if let Some(error) = end {
                    // After the last frame, not in its place; with nobody left to take it, in vain.
                    drop(slot);
                    let _unheard = sender.send(Err(error));
                }
            })
            .map_err(|error| CameraFault(format!("{device}: starting its reader: {error}")))?;
        Ok(Reader {
            device: device.to_owned(),
            frames,
            stop,
            unpack,
            silence,
            waited: Duration::ZERO,
            next: 0,
            held: None,
        })
    }
}

impl FrameSource for Reader {
    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault> {
        let frame = match self.held.take() {
            Some(frame) => frame,
            None => {
                let wait = patience.min(self.silence.saturating_sub(self.waited));
                match self.frames.recv_timeout(wait) {
                    Ok(Ok(frame)) => frame,
                    Ok(Err(error)) => {
                        return Err(CameraFault(format!("{}: {error}", self.device)));
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(CameraFault(format!("{}: its reader ended", self.device)));
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        self.waited += wait;
                        if self.waited < self.silence {
                            return Ok(Grab::Idle);
                        }
                        return Err(CameraFault(format!(
                            "{}: no frame for {} ms",
                            self.device,
                            self.silence.as_millis()
                        )));
                    }
                }
            }
        };
        self.waited = Duration::ZERO;
        let number = self.next;
        self.next += 1;
        let name = format!("frame-{number}");
        if number < frame.number {
            self.held = Some(frame);
            let reason = "replaced by a newer frame before it was taken".to_owned();
            return Ok(Grab::Bad { name, reason });
        }
        Ok(match (self.unpack)(&frame.raw.bytes) {
            Ok(image) => {
                let captured_at = Some(frame.raw.captured_at);
                Grab::Picture(Picture { image, name, captured_at, position: None, truth: None })
            }
            Err(reason) => Grab::Bad { name, reason },
        })
    }
}

impl Drop for Reader {
    /// The thread is not waited for: it may hang. It ends with the next frame or error.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn fetch_until_stopped(
    mut fetch: Fetch,
    sender: &Sender<Result<Numbered, String>>,
    slot: &Receiver<Result<Numbered, String>>,
    stop: &AtomicBool,
) -> Option<String> {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        match fetch() {
            Ok(raw) => put(sender, slot, Numbered { number, raw }),
            Err(error) => return Some(error),
        }
    }
    None
}

/// Puts the newest into the slot, in place of what is still in it. The number tells the taker
/// what was replaced.
fn put(
    sender: &Sender<Result<Numbered, String>>,
    slot: &Receiver<Result<Numbered, String>>,
    newest: Numbered,
) {
    let mut newest = Ok(newest);
    while let Err(TrySendError::Full(back)) = sender.try_send(newest) {
        newest = back;
        let _replaced = slot.try_recv();
    }
}

/// The devices that have a living reader.
static READING: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The right to read a device, for as long as its reader lives.
struct Claim(String);

impl Claim {
    fn of(device: &str) -> Option<Claim> {
        let mut reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        reading.insert(device.to_owned()).then(|| Claim(device.to_owned()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        READING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The test hands frames to the reader one by one; a frame is one byte, 255 is not decodable.
    fn fed(device: &str, silence: Duration) -> (Sender<Result<u8, String>>, Reader) {
        let (feed, fed) = bounded::<Result<u8, String>>(0);
        let open = move || {
            let fetch: Fetch = Box::new(move || match fed.recv() {
                Ok(Ok(byte)) => Ok(Raw { bytes: vec![byte], captured_at: moment() }),
                Ok(Err(error)) => Err(error),
                Err(_) => Err("unplugged".to_owned()),
            });
            Ok(fetch)
        };
        (feed, Reader::start(device, silence, open, Box::new(unpack)).unwrap())
    }

    fn unpack(bytes: &[u8]) -> Result<Image, String> {
        match bytes[0] {
            255 => Err("half a frame".to_owned()),
            level => Ok(Image::Gray(GrayImage::from_pixel(1, 1, Luma([level])))),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "some moment; its value is not looked at")]
    fn moment() -> Instant {
        Instant::now()
    }

    fn describe(grab: Result<Grab, CameraFault>) -> String {
        match grab {
            Ok(Grab::Picture(Picture { image: Image::Gray(image), name, captured_at, .. })) => {
                assert!(captured_at.is_some());
                format!("{name} {}", image.get_pixel(0, 0).0[0])
            }
            Ok(Grab::Bad { name, reason }) => format!("{name} bad: {reason}"),
            Ok(other) => format!("{other:?}"),
            Err(CameraFault(text)) => format!("fault: {text}"),
        }
    }

    #[test]
    fn each_frame_is_a_part_and_one_that_cannot_be_unpacked_a_bad_one() {
        let (feed, mut reader) = fed("each", PATIENCE);
        for (byte, gives) in
            [(7, "frame-0 7"), (255, "frame-1 bad: half a frame"), (9, "frame-2 9")]
        {
            feed.send(Ok(byte)).unwrap();
            assert_eq!(describe(reader.grab(PATIENCE)), gives);
        }
    }

    #[test]
    fn a_replaced_frame_comes_out_as_a_bad_part_before_the_newest() {
        let (feed, mut reader) = fed("replaced", PATIENCE);
        for byte in [1, 2, 3] {
            feed.send(Ok(byte)).unwrap();
        }
        // The reader fetches again only after the frame before is in the slot: once this is taken
        // from us, 3 is in.
        feed.send(Ok(4)).unwrap();
        let mut seen = Vec::new();
        while !seen.iter().any(|text: &String| text == "frame-3 4") {
            assert!(seen.len() < 4, "{seen:?}");
            seen.push(describe(reader.grab(PATIENCE)));
        }
        let replaced = "replaced by a newer frame before it was taken";
        assert_eq!(seen[0], format!("frame-0 bad: {replaced}"));
        assert_eq!(seen[1], format!("frame-1 bad: {replaced}"));
        // 4 may or may not have replaced 3 before we looked; no number is missing either way.
        assert!(
            seen[2] == "frame-2 3" || seen[2] == format!("frame-2 bad: {replaced}"),
            "{seen:?}"
        );
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn silence_is_idle_first_and_a_fault_when_it_lasts() {
        let silence = Duration::from_millis(50);
        let (feed, mut reader) = fed("silent", silence);
        let patience = Duration::from_millis(20);
        for gives in ["Idle", "Idle", "fault: silent: no frame for 50 ms"] {
            assert_eq!(describe(reader.grab(patience)), gives);
        }
        drop(feed);
    }

    #[test]
    fn an_error_of_the_driver_is_a_fault_with_its_words() {
        let (feed, mut reader) = fed("broken", PATIENCE);
        feed.send(Ok(1)).unwrap();
        feed.send(Err("ENODEV".to_owned())).unwrap();
        assert_eq!(describe(reader.grab(PATIENCE)), "frame-0 1", "what came before is not lost");
        assert_eq!(describe(reader.grab(PATIENCE)), "fault: broken: ENODEV");

        let mut reader =
            Reader::start("closed", PATIENCE, || Err("no permission".to_owned()), Box::new(unpack))
                .unwrap();
        assert_eq!(describe(reader.grab(PATIENCE)), "fault: closed: no permission");
    }

    #[test]
    fn while_a_reader_hangs_its_device_is_refused_and_afterwards_opened() {
        let (feed, reader) = fed("hanging", PATIENCE);
        drop(reader);
        let again =
            || Reader::start("hanging", PATIENCE, || Err("opened".to_owned()), Box::new(unpack));
        let Err(CameraFault(text)) = again() else { panic!("the reader still hangs") };
        assert!(text.starts_with("hanging: an earlier reader still hangs"), "{text}");
        // The driver answers at last; the reader sees that it is no longer wanted.
        drop(feed);
        let mut tries = 0;
        let mut reader = loop {
            match again() {
                Ok(reader) => break reader,
                Err(_) if tries < 2000 => thread::sleep(Duration::from_millis(5)),
                Err(CameraFault(text)) => panic!("{text}"),
            }
            tries += 1;
        };
        assert_eq!(describe(reader.grab(PATIENCE)), "fault: hanging: opened");
    }
}
