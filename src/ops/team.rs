//! A small fork/join team: the thread that calls and some workers do one piece of work together.
//!
//! Workers wait in a loop for a moment, since the next operation of a network comes within
//! microseconds, and then sleep until they are called. A team does one piece of work at a time: two
//! detectors that share a team take turns, and a machine is never asked for more threads than the
//! team has. Nothing is allocated when work is handed out.
//!
//! Work is offered, not ordered: pieces go to whoever is free ([`Team::chunks`]), and when none is
//! left the caller closes the round to workers that have not come yet. So a worker that the system
//! has put aside for another program costs its help and not its time slice.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};

/// How long a worker looks for work before it sleeps: longer than the gaps between the operations of
/// a network, and much shorter than the time between two parts.
const LOOKS: u32 = 20_000;

/// How often it looks without a break; then it lets others run in between.
const LOOKS_AT_ONCE: u32 = 10_000;

/// Threads of a machine that nobody has told otherwise.
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The caller and `threads − 1` workers.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    threads: usize,
}

struct Shared {
    /// Counts the pieces of work handed out; a change is the call.
    round: AtomicUsize,
    /// The work of this round: a `&Work` that lives until no worker's state is [`TAKEN`].
    work: AtomicPtr<Work<'static>>,
    /// Someone has the team.
    taken: AtomicBool,
    panicked: AtomicBool,
    stop: AtomicBool,
    workers: Vec<Worker>,
}

struct Worker {
    /// [`IDLE`], [`OFFERED`] or [`TAKEN`]: whether this round's work is its to do.
    state: AtomicU8,
    /// It is asleep, or about to be.
    asleep: AtomicBool,
}

/// The round is over for this worker: it has done its part, or came too late.
const IDLE: u8 = 0;
/// It may begin.
const OFFERED: u8 = 1;
/// It has begun: the caller must wait for it.
const TAKEN: u8 = 2;

thread_local! {
    /// Whose work this thread is doing.
    static AT_WORK_FOR: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

struct Work<'a>(&'a (dyn Fn(usize) + Sync));

impl Team {
    /// A team of `threads` ≥ 1, the caller among them. With `pin`, worker i keeps to CPU i of those
    /// that the process may use; the caller pins itself with [`pin_current`] if it wants to.
    ///
    /// # Errors
    /// Zero threads, or the system does not give any.
    #[expect(
        clippy::disallowed_methods,
        reason = "a team's threads never outlive their owner's call"
    )]
    pub fn new(threads: usize, pin: bool) -> Result<Self> {
        ensure!((1..=256).contains(&threads), "threads = {threads}: must be from 1 to 256");
        let shared = Arc::new(Shared {
            round: AtomicUsize::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
            taken: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            workers: (1..threads)
                .map(|_| Worker { state: AtomicU8::new(IDLE), asleep: AtomicBool::new(false) })
                .collect(),
        });
        let mut workers = Vec::with_capacity(threads - 1);
        for i in 1..threads {
            let own = Arc::clone(&shared);
            let worker = thread::Builder::new().name(format!("team-{i}")).spawn(move || {
                if pin {
                    pin_current(i);
                }
                own.serve(i);
            });
            workers.push(worker.context("starting a worker of the inference team")?);
        }
        let team = Self { shared, workers, threads };
        // What a thread takes to start is to be no part of an inspection: all are there from here on.
        team.run(&|_| {});
        Ok(team)
    }

    /// One thread: the caller.
    pub fn alone() -> Self {
        Self::new(1, false).expect("starts nothing")
    }

    /// Threads that work, the caller among them.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work(i)` on thread i for each i in 0..threads, 0 being this one, and returns when all
    /// are done. Waits if another thread is using the team.
    ///
    /// # Panics
    /// If one of them does, once all are done; or if it is called by the work of a team of several
    /// on the same team, which would wait for itself.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        self.together(work, true);
    }

    /// `all`: wait for workers that have not begun, instead of doing without them.
    fn together(&self, work: &(dyn Fn(usize) + Sync), all: bool) {
        if self.threads == 1 {
            return work(0);
        }
        let shared = &*self.shared;
        let before = AT_WORK_FOR.get();
        assert!(!std::ptr::eq(before, shared), "a team's work calls the same team");
        let mut looks = 0;
        while shared.taken.swap(true, Ordering::Acquire) {
            wait(&mut looks);
        }
        let work = Work(work);
        let pointer: *const Work<'_> = &raw const work;
        shared.work.store(pointer.cast_mut().cast(), Ordering::Relaxed);
        for worker in &shared.workers {
            // Whoever sees the offer sees the work too.
            worker.state.store(OFFERED, Ordering::Release);
        }
        shared.round.fetch_add(1, Ordering::SeqCst);
        for (handle, worker) in self.workers.iter().zip(&shared.workers) {
            if worker.asleep.load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
        AT_WORK_FOR.set(shared);
        let own = catch_unwind(AssertUnwindSafe(|| work.0(0)));
        AT_WORK_FOR.set(before);
        for worker in &shared.workers {
            let closed = !all
                && worker
                    .state
                    .compare_exchange(OFFERED, IDLE, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            let mut looks = 0;
            while !closed && worker.state.load(Ordering::Acquire) != IDLE {
                wait(&mut looks);
            }
        }
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        shared.taken.store(false, Ordering::Release);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!panicked, "a worker of the inference team panicked");
    }

    /// Cuts 0..`total` into pieces of `chunk` that threads take as they become free, and calls
    /// `work(thread, from, to)` for each.
    pub fn chunks(&self, total: usize, chunk: usize, work: impl Fn(usize, usize, usize) + Sync) {
        let chunk = chunk.max(1);
        if self.threads == 1 || total <= chunk {
            for from in (0..total).step_by(chunk) {
                work(0, from, (from + chunk).min(total));
            }
            return;
        }
        let next = AtomicUsize::new(0);
        let help = |thread| {
            loop {
                let from = next.fetch_add(chunk, Ordering::Relaxed);
                if from >= total {
                    return;
                }
                work(thread, from, (from + chunk).min(total));
            }
        };
        self.together(&help, false);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panic was told where it happened.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn serve(&self, thread: usize) {
        AT_WORK_FOR.set(self);
        let mut seen = 0;
        let Worker { state, asleep } = &self.workers[thread - 1];
        loop {
            let mut looks = 0;
            while self.round.load(Ordering::SeqCst) == seen {
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                if looks < LOOKS {
                    wait(&mut looks);
                    continue;
                }
                asleep.store(true, Ordering::SeqCst);
                // Whoever calls raises the round first and looks whether we sleep then; we say that
                // we sleep first and look at the round then. One of us sees the other.
                if self.round.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                asleep.store(false, Ordering::SeqCst);
            }
            seen = self.round.load(Ordering::SeqCst);
            // Closed already, or done: this offer was taken before the round was seen.
            let taken =
                state.compare_exchange(OFFERED, TAKEN, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_err() {
                continue;
            }
            // SAFETY: the caller keeps the work alive until we are not at it any more, which we say
            // below; it stored the pointer before the offer that we have taken.
            let work = unsafe { &*self.work.load(Ordering::Relaxed) };
            if catch_unwind(AssertUnwindSafe(|| work.0(thread))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            state.store(IDLE, Ordering::Release);
        }
    }
}

fn wait(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS_AT_ONCE { std::hint::spin_loop() } else { thread::yield_now() }
}

/// Keeps this thread to the `n`-th CPU of those that the process may use; does nothing where the
/// system does not allow it.
pub fn pin_current(n: usize) {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return };
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        if let Some(cpu) = cpus.nth(n % (allowed.count() as usize).max(1)) {
            let mut own = CpuSet::new();
            own.set(cpu);
            let _ = sched_setaffinity(None, &own);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = n;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_work_and_all_pieces_are_done_once() {
        // Eight are more than most machines have: some come too late and are shut out.
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads, false).unwrap();
            let (calls, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
            for _ in 0..100 {
                team.run(&|thread| {
                    calls.fetch_add(1 << (8 * thread), Ordering::Relaxed);
                });
                team.chunks(10, 3, |_, from, to| {
                    (from..to).for_each(|i| {
                        sum.fetch_add(i, Ordering::Relaxed);
                    });
                });
            }
            let each = (0..threads).map(|thread| 100 << (8 * thread)).sum::<usize>();
            assert_eq!((calls.into_inner(), sum.into_inner()), (each, 4500));
        }
    }

    #[test]
    fn work_that_calls_its_own_team_panics_and_the_team_goes_on() {
        let team = Team::new(2, false).unwrap();
        let nested = catch_unwind(AssertUnwindSafe(|| team.run(&|_| team.run(&|_| {}))));
        let panic = nested.unwrap_err();
        let text = panic.downcast_ref::<&str>().copied().unwrap_or_default();
        assert_eq!(text, "a team's work calls the same team");
        team.run(&|_| {});
        Team::alone().run(&|_| team.run(&|_| {}));
    }
}
