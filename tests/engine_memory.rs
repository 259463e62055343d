//! Once warm, the engine asks the system for nothing: no memory, and on one thread no call at all.
//!
//! Everything is in one test: allocations are counted on every thread of the process, so that those
//! of a team's workers are among them, and the test harness must not do its own meanwhile.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
#![allow(unsafe_code, reason = "an allocator, and a process that gives up its system calls")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use image::{GrayImage, Luma, Rgb, RgbImage};
use inspectd::detector::Detector;
use inspectd::detector::input::Input;
use inspectd::detector::patch_prototypes::{PatchFeatures, PatchPrototypes};
use inspectd::frame::Image;
use inspectd::nn::engine::{self, Engine};
use inspectd::nn::graph::{Graph, LevelRule};
use inspectd::nn::plan::{Plan, calibrate};
use inspectd::nn::resnet::Depth;
use inspectd::nn::{BackboneSpec, compact, destseg, mlff, ntsnet, prn, resnet};
use inspectd::ops::nearest_prototype::{Nearest, PrototypeBank, Scan, Scratch};
use inspectd::ops::simd::Isa;
use inspectd::ops::team::Team;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The system's allocator, which counts while it is told to.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

impl Counting {
    fn count() {
        if COUNTS.load(Ordering::Relaxed) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(old, layout, bytes) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(old, layout) }
    }
}

/// How often memory was asked for during `work`, on all threads.
fn allocations<T>(work: impl FnOnce() -> T) -> usize {
    ALLOCATIONS.store(0, Ordering::SeqCst);
    COUNTS.store(true, Ordering::SeqCst);
    std::hint::black_box(work());
    COUNTS.store(false, Ordering::SeqCst);
    ALLOCATIONS.load(Ordering::SeqCst)
}

#[test]
fn once_warm_the_engine_asks_the_system_for_nothing() {
    // The workshop's threads, which prepare models, start when they are first asked and take memory
    // for that, on a busy machine long after: they are to be there before anything is counted.
    rayon::broadcast(|_| ());
    assert_eq!(allocations(|| vec![1u8; 100]), 1, "what the counter makes of a Vec");
    check_plans();
    check_search();
    check_detector();
}

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn check_plans() {
    let nets: [(&str, Graph); 6] = [
        ("compact", compact::graph(64, 64)),
        ("resnet18", resnet::graph(Depth::R18, 3, (64, 64)).unwrap()),
        ("destseg", destseg::graph(64, 64)),
        ("ntsnet", ntsnet::graph(64, 64)),
        ("prn", prn::graph(128, [2; 3])),
        ("mlff", mlff::graph(64, 64, LevelRule::Paper)),
    ];
    for (name, graph) in &nets {
        let weights = graph.random_weights(&mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        let (isa, pixels) = (Isa::detect().unwrap(), random(3 * graph_places(graph), 2));
        let picture = std::iter::once(Ok(pixels.clone()));
        let steps = calibrate(graph, &weights, isa, Arc::new(Team::alone()), picture).unwrap();
        for (threads, int8) in [(1, false), (2, false), (1, true), (2, true)] {
            let team = Arc::new(Team::new(threads, false).unwrap());
            let mut plan = if int8 {
                Plan::quantized(graph, &weights, &steps, 1, isa, team).unwrap()
            } else {
                Plan::new(graph, &weights, 1, isa, team).unwrap()
            };
            let planes = plan.planes();
            planes.write(&pixels, plan.pixels());
            let _ = allocations(|| plan.run());
            let count = allocations(|| [plan.run(), plan.run(), plan.run()]);
            assert_eq!(count, 0, "allocations of {name} on {threads} threads, int8: {int8}");
            if threads == 1 {
                check_calls(name, || plan.run());
            }
        }
    }
}

fn graph_places(graph: &Graph) -> usize {
    let pixels = graph.nodes()[0].dims;
    pixels.height * pixels.width
}

fn check_search() {
    const DIM: usize = 72;
    for (scan, threads) in [(Scan::F32, 1), (Scan::F32, 2), (Scan::Int8, 1), (Scan::Int8, 2)] {
        let team = Team::new(threads, false).unwrap();
        let isa = Isa::detect().unwrap();
        let bank = PrototypeBank::scanned_by(scan, random(1100 * DIM, 3), DIM, isa).unwrap();
        let mut found = vec![Nearest { index: 0, distance2: 0.0 }; 100];
        let mut scratch = Scratch::default();
        bank.nearest_into(&team, &random(100 * DIM, 4), &mut found, &mut scratch).unwrap();
        // others, so that another number of prototypes waits to be measured
        let queries = random(100 * DIM, 5);
        let mut search =
            || bank.nearest_into(&team, &queries, &mut found, &mut scratch).expect("finite");
        let count = allocations(&mut search);
        assert_eq!(count, 0, "allocations of a search, {scan:?}, {threads} threads");
        if threads == 1 {
            check_calls("a search", search);
        }
    }
}

fn check_detector() {
    let input = Input { width: 96, height: 64 };
    let backbone = inspectd::nn::load(&BackboneSpec::Compact, 3).unwrap();
    let pictures = [
        Image::Gray(GrayImage::from_fn(150, 100, |x, y| Luma([(x * 7 + y * y) as u8]))),
        Image::Rgb(RgbImage::from_fn(150, 100, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]))),
    ];
    for threads in [1, 2] {
        let engine = engine::Config { threads: Some(threads), ..Default::default() };
        let engine = Engine::new(&engine).unwrap();
        let features = PatchFeatures::new(input, &backbone, &engine).unwrap();
        let prototypes = random(20 * features.dims(), 6);
        let mut detector = PatchPrototypes::new(features, prototypes).unwrap();
        for picture in &pictures {
            detector.detect(&[picture]).unwrap();
            let count = allocations(|| detector.detect(&[picture]).expect("finite"));
            // what it gives away: the list, and the map in it
            assert_eq!(count, 2, "allocations of a picture on {threads} threads");
        }
    }
}

#[cfg(target_os = "linux")]
fn check_calls<T>(name: &str, work: impl FnOnce() -> T) {
    // The method sees a call where there is one.
    let caught = calls::forbidden(|| {
        // SAFETY: asks for a number.
        let _ = std::hint::black_box(unsafe { libc::getppid() });
    });
    match caught {
        None => println!("SKIPPED: system calls of {name}; no strict seccomp here"),
        Some(calls::Outcome::Returned) => panic!("getppid is not seen"),
        Some(calls::Outcome::Called) => assert_eq!(
            calls::forbidden(work),
            Some(calls::Outcome::Returned),
            "{name} makes a system call"
        ),
    }
}

#[cfg(not(target_os = "linux"))]
fn check_calls<T>(name: &str, _: impl FnOnce() -> T) {
    println!("SKIPPED: system calls of {name}; strict seccomp is Linux's");
}

#[cfg(target_os = "linux")]
mod calls {
    #[derive(Debug, PartialEq)]
    pub enum Outcome {
        Returned,
        /// The system ended the process for a call.
        Called,
    }

    /// Ends a process that was not allowed to give up its calls.
    const REFUSED: i32 = 77;

    /// Does `work` in a copy of this process that may read, write and exit; any other system call
    /// kills it. `None` where the system has no such mode.
    ///
    /// The copy has this thread only: work that needs others, or a lock that one of them holds,
    /// never ends.
    pub fn forbidden<T>(work: impl FnOnce() -> T) -> Option<Outcome> {
        // SAFETY: the copy runs `work`, which is under test for needing nothing of the system, and
        // then ends without anything of Rust's or C's being run.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "{}", std::io::Error::last_os_error());
        if child == 0 {
            // SAFETY: sets a mode of this process; ends it.
            unsafe {
                if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) != 0 {
                    libc::syscall(libc::SYS_exit, REFUSED);
                }
                let _made = std::mem::ManuallyDrop::new(work());
                libc::syscall(libc::SYS_exit, 0);
            }
        }
        let mut status = 0;
        // SAFETY: `status` is there for it to write to.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child, "{}", std::io::Error::last_os_error());
        if libc::WIFSIGNALED(status) {
            assert_eq!(libc::WTERMSIG(status), libc::SIGKILL, "not killed for a call");
            return Some(Outcome::Called);
        }
        match libc::WEXITSTATUS(status) {
            0 => Some(Outcome::Returned),
            REFUSED => None,
            other => panic!("the copy ended with {other}"),
        }
    }
}
