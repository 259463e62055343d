//! Batches made ahead: while the network learns from one, the next is read, corrupted and normalised on
//! the workshop's other threads. A batch depends on its step alone, so that neither threads nor an
//! interruption change what is learned.

use std::sync::Arc;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, bounded};
use image::Rgb32FImage;
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::detector::input::{MEAN, STD};
use crate::synth::{SampleKey, Tag};

type Make<B> = dyn Fn(u64) -> Result<B> + Send + Sync;

/// Makes the batch of a step, one ahead of the step that is asked for.
pub struct Feed<B> {
    make: Arc<Make<B>>,
    /// The step under way, and where its batch will come.
    ahead: Option<(u64, Receiver<Result<B>>)>,
}

impl<B: Send + 'static> Feed<B> {
    pub fn new(make: impl Fn(u64) -> Result<B> + Send + Sync + 'static) -> Feed<B> {
        Feed { make: Arc::new(make), ahead: None }
    }

    /// The batch of `step`; that of the next step is begun.
    ///
    /// # Errors
    /// A picture that can't be read.
    pub fn take(&mut self, step: u64) -> Result<B> {
        let batch = match self.ahead.take() {
            Some((ahead, batch)) if ahead == step => {
                batch.recv().context("the thread that makes batches has gone")?
            }
            _ => (self.make)(step),
        };
        // One place: the thread never waits for us.
        let (send, receive) = bounded(1);
        let make = Arc::clone(&self.make);
        rayon::spawn(move || {
            // Nobody takes it if training ends here.
            let _ = send.send(make(step + 1));
        });
        self.ahead = Some((step + 1, receive));
        batch
    }
}

/// The pictures of a step, of `count`, and the epoch it lies in. Each epoch has an order of its own.
/// What does not fill a batch at an epoch's end comes as a smaller one where `keep` says so and it has
/// two pictures at least, or else not. Where there are fewer pictures than a batch, they are drawn with
/// repetition.
pub fn pictures_of(step: u64, batch: usize, count: usize, keep: bool, seed: u64) -> Vec<usize> {
    if count < batch && !keep {
        let key = SampleKey { seed, epoch: step, index: u64::MAX };
        let mut rng = key.rng(Tag::Order);
        return (0..batch).map(|_| rng.random_range(0..count)).collect();
    }
    let steps = steps_of_epoch(batch, count, keep);
    let order = order(step / steps, count, seed);
    let first = (step % steps) as usize * batch;
    order[first..(first + batch).min(count)].to_vec()
}

/// Steps that see every picture once, but for those that are left out.
pub fn steps_of_epoch(batch: usize, count: usize, keep: bool) -> u64 {
    let rest = count % batch;
    let more = u64::from(keep && rest >= LEAST_BATCH);
    ((count / batch) as u64 + more).max(1)
}

/// The pictures of a step, where an epoch ends with a whole batch: what is missing comes from the
/// beginning of its order.
pub fn pictures_around(step: u64, batch: usize, count: usize, seed: u64) -> Vec<usize> {
    let steps = steps_around(batch, count);
    let order = order(step / steps, count, seed);
    let first = (step % steps) as usize * batch;
    (first..first + batch).map(|place| order[place % count]).collect()
}

/// Steps of an epoch of [`pictures_around`].
pub fn steps_around(batch: usize, count: usize) -> u64 {
    count.div_ceil(batch) as u64
}

/// The pictures in the order of an epoch.
fn order(epoch: u64, count: usize, seed: u64) -> Vec<usize> {
    let key = SampleKey { seed, epoch, index: u64::MAX };
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut key.rng(Tag::Order));
    order
}

/// A variance is of two at least.
const LEAST_BATCH: usize = 2;

/// Levels 0..1 as a network wants them, `[3, H, W]`, behind `to`'s end.
pub fn normalise(picture: &Rgb32FImage, to: &mut Vec<f32>) {
    for channel in 0..3 {
        let (mean, std) = (MEAN[channel], STD[channel]);
        to.extend(picture.pixels().map(|pixel| (pixel.0[channel] - mean) / std));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_epoch_sees_every_picture_once() {
        let steps = steps_of_epoch(4, 10, true);
        assert_eq!((steps, steps_of_epoch(4, 10, false), steps_of_epoch(4, 9, true)), (3, 2, 2));
        let epoch = |first: u64| -> Vec<usize> {
            (first..first + 3).flat_map(|step| pictures_of(step, 4, 10, true, 7)).collect()
        };
        let (one, two) = (epoch(0), epoch(3));
        assert_eq!(one.iter().collect::<BTreeSet<_>>().len(), 10);
        assert_ne!(one, two);
        assert_eq!(pictures_of(2, 4, 10, true, 7).len(), 2);
        assert_eq!(pictures_of(1, 4, 10, false, 7).len(), 4);
    }

    #[test]
    fn few_pictures_fill_a_batch_by_repetition() {
        assert_eq!(pictures_of(5, 8, 3, false, 1).len(), 8);
        assert!(pictures_of(5, 8, 3, false, 1).iter().all(|&i| i < 3));
    }

    #[test]
    fn an_epoch_can_end_with_a_whole_batch() {
        assert_eq!((steps_around(4, 10), steps_around(4, 8), steps_around(8, 3)), (3, 2, 1));
        let epoch: Vec<usize> = (3..6).flat_map(|step| pictures_around(step, 4, 10, 7)).collect();
        assert_eq!(epoch[..10].iter().collect::<BTreeSet<_>>().len(), 10);
        assert_eq!(epoch[10..], epoch[..2]);
        // More than a batch's worth of rounds.
        let few = pictures_around(0, 8, 3, 1);
        assert_eq!((few.len(), &few[3..6]), (8, &few[..3]));
    }

    #[test]
    fn batches_are_those_of_their_steps_wherever_one_begins() {
        let mut feed = Feed::new(|step| Ok(step * 10));
        let taken: Vec<u64> = [3, 4, 5, 9].iter().map(|&step| feed.take(step).unwrap()).collect();
        assert_eq!(taken, [30, 40, 50, 90]);
    }

    #[test]
    fn a_batch_that_cannot_be_made_is_an_error() {
        let mut feed: Feed<()> = Feed::new(|step| anyhow::bail!("no picture at {step}"));
        assert!(feed.take(0).unwrap_err().to_string().contains("no picture at 0"));
        assert!(feed.take(1).unwrap_err().to_string().contains("no picture at 1"));
    }
}
