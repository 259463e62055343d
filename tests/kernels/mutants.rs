//! Kernels that were broken on purpose, one way each: the interpreter, or the number that comes
//! out, must show each of them. What shows it is asserted too, so that no mutant is caught by
//! accident.

use std::collections::BTreeSet;

use inspectd::cuda::{Arg, Gpu, Launch, Module, cases};
use inspectd::nn::engine::{Config, Engine};
use ptx_interpreter::{Fault, Kind};

use super::interpreter::Interpreter;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Fault(Kind),
    /// No complaint, but another number than the CPU's.
    WrongNumber,
    Nothing,
}

/// A change of a launch: of its kernel's text, or of what it is given.
type Change = Box<dyn Fn(&mut Launch, &mut Interpreter)>;

struct Mutant {
    name: &'static str,
    /// The cases that it is tried on begin so; the first that shows it counts.
    case: &'static str,
    entry: &'static str,
    change: Change,
    seen: Seen,
}

/// Of an entry's text: the lines of one kernel, and the place of one of them that begins so.
fn edited(
    entry: &'static str,
    begins: &'static str,
    nth: usize,
    edit: fn(&str) -> String,
) -> Change {
    Box::new(move |launch, _| {
        let text = launch.module.ptx;
        let start = text.find(&format!(".entry {entry}(")).unwrap();
        let end = start + text[start..].find("\n}").unwrap();
        let mut lines: Vec<String> = text[start..end].lines().map(String::from).collect();
        let found: Vec<usize> =
            (0..lines.len()).filter(|&i| lines[i].trim_start().starts_with(begins)).collect();
        let line = &mut lines[*found.get(nth).unwrap_or_else(|| panic!("{entry}: no {begins}"))];
        let edited = edit(line);
        assert_ne!(edited, *line, "{entry}: the edit changes nothing");
        *line = edited;
        let text = format!("{}{}{}", &text[..start], lines.join("\n"), &text[end..]);
        launch.module = Module { name: launch.module.name, ptx: text.leak() };
    })
}

fn nothing(_: &str) -> String {
    String::new()
}

/// A shuffle that gives each lane its own number, as if it were not there.
fn own_number(line: &str) -> String {
    let (to, rest) = line.split_once('|').unwrap();
    let from = rest.split(',').nth(1).unwrap();
    format!("mov.b32 {}, {from};", to.split_whitespace().last().unwrap())
}

/// Thread 5 of each block has left before the line.
fn one_has_left(line: &str) -> String {
    format!(
        "{{ .reg .pred %gone; .reg .b32 %who; mov.u32 %who, %tid.x; \
         setp.eq.s32 %gone, %who, 5; @%gone ret; }} {line}"
    )
}

/// Thread 5 does not do what the line says.
fn one_is_left_out(line: &str) -> String {
    format!(
        "{{ .reg .pred %left; .reg .b32 %who; mov.u32 %who, %tid.x; \
         setp.ne.s32 %left, %who, 5; @%left {} }}",
        line.trim_start()
    )
}

/// Thread 5 does it somewhere else.
fn in_both_branches(line: &str) -> String {
    format!("{} {}", one_is_left_out(line), one_is_left_out(line).replace("setp.ne", "setp.eq"))
}

fn one_too_many(line: &str) -> String {
    line.replace("setp.ge", "setp.gt").replace("setp.lt", "setp.le")
}

fn one_group_less(line: &str) -> String {
    line.replace("wait_group 1", "wait_group 2")
}

fn four_bytes_on(line: &str) -> String {
    line.replace("];", "+4];")
}

/// An addition that others may interrupt.
fn not_atomic(line: &str) -> String {
    let operands = line.trim().strip_prefix("atom.shared.add.u32").unwrap().trim_end_matches(';');
    let [to, at, value] = operands.split(',').map(str::trim).collect::<Vec<_>>()[..] else {
        panic!("{line}");
    };
    format!("ld.shared.u32 {to}, {at}; add.s32 {to}, {to}, {value}; st.shared.u32 {at}, {to};")
}

fn given(change: fn(&mut Launch, &mut Interpreter)) -> Change {
    Box::new(change)
}

/// The last argument that is memory, a word shorter than it should be.
fn shorter_memory(launch: &mut Launch, gpu: &mut Interpreter) {
    let regions = launch.args.iter_mut().filter_map(|arg| match arg {
        Arg::Memory(region) => Some(region),
        _ => None,
    });
    let last = regions.last().unwrap();
    let short = gpu.alloc(last.bytes - 4).unwrap();
    let region = inspectd::cuda::DeviceMemory::region(&short);
    std::mem::forget(short);
    last.address = region.address;
}

fn number(launch: &mut Launch) -> &mut Arg {
    launch.args.iter_mut().find(|arg| matches!(arg, Arg::I32(_) | Arg::U32(_))).unwrap()
}

fn mutants() -> Vec<Mutant> {
    use Kind::*;
    use Seen::{Fault as F, WrongNumber};
    let mut all = vec![];
    let mut edit = |name, case, entry, begins, nth, how, seen| {
        let change = edited(entry, begins, nth, how);
        all.push(Mutant { name, case, entry, change, seen });
    };
    let cosine = "cosine_distances (OneMinusCosine, F32";
    let by_f32 = "nearest_prototype (F32";
    let by_bf16 = "nearest_prototype (Bf16";
    let (blurred, residual) = ("smooth_upsample, blurred", "prototype_residual");
    let barrier = "bar.sync";
    let shuffle = "shfl.sync.bfly";

    let name = "no barrier after the sums of the warps";
    edit(name, cosine, "cosine_distances_f32", barrier, 0, nothing, F(SharedRace));
    let name = "no barrier after the scales";
    edit(name, "cosine_products (F32", "cosine_products_f32", barrier, 1, nothing, F(SharedRace));
    let name = "no barrier after the tile";
    edit(name, by_f32, "search_f32", barrier, 0, nothing, F(SharedRace));
    let name = "no barrier before the next tile";
    edit(name, by_f32, "search_f32", barrier, 1, nothing, F(SharedRace));
    let name = "no barrier after the copies have landed";
    edit(name, by_bf16, "search_bf16", barrier, 0, nothing, F(SharedRace));
    let name = "no barrier after the rows";
    edit(name, "pixels", "pixels_rgb", barrier, 0, nothing, F(SharedRace));
    let name = "no barrier after the level's places";
    edit(name, blurred, "fuse_levels", barrier, 0, nothing, F(SharedRace));
    let name = "no barrier after the counts are cleared";
    edit(name, "top_mean (", "top_mean", barrier, 0, nothing, F(SharedRace));
    let name = "no barrier before the parts are summed";
    edit(name, residual, "map_distances", barrier, 0, nothing, F(SharedRace));

    let name = "a barrier that a thread does not come to";
    edit(name, cosine, "cosine_distances_f32", barrier, 0, one_has_left, F(Barrier));
    let name = "a barrier in each of two branches";
    edit(name, by_f32, "search_f32", barrier, 0, in_both_branches, F(Barrier));

    let name = "a shuffle a step short";
    edit(name, cosine, "cosine_distances_f32", shuffle, 0, own_number, WrongNumber);
    edit(name, residual, "map_distances", shuffle, 1, own_number, WrongNumber);
    let name = "a thread leaves before a shuffle of all lanes";
    edit(name, cosine, "cosine_distances_f32", shuffle, 0, one_has_left, F(Warp));
    edit(name, residual, "map_distances", shuffle, 0, one_has_left, F(Warp));
    let name = "a thread leaves before a product of matrices";
    edit(name, by_bf16, "search_bf16", "mma.sync", 0, one_has_left, F(Warp));
    let name = "a lane is left out of a shuffle that names it";
    edit(name, by_bf16, "search_bf16", shuffle, 0, one_is_left_out, F(Warp));

    let name = "copies waited for a group short";
    edit(name, by_bf16, "search_bf16", "cp.async.wait_group", 0, one_group_less, F(Uninitialised));
    let name = "copies not waited for";
    edit(name, by_bf16, "search_bf16", "cp.async.wait_group", 0, nothing, F(Uninitialised));
    let name = "copies of no group";
    edit(name, by_bf16, "search_bf16", "cp.async.commit_group", 0, nothing, F(Uninitialised));

    let name = "a row too many";
    edit(name, by_f32, "search_f32", "setp.ge.s32", 1, one_too_many, F(OutOfBounds));
    let name = "a place too many";
    edit(name, "top_mean", "top_mean", "setp.ge.s32", 0, one_too_many, F(OutOfBounds));
    edit(name, "patch_features", "patch_features", "setp.ge.s32", 1, one_too_many, F(OutOfBounds));
    let name = "a column too many, which is another block's";
    edit(name, "smooth_upsample", "fuse_levels", "setp.ge.s32", 2, one_too_many, F(GlobalRace));
    let name = "four bytes beside a load of sixteen";
    let load = "ld.global.nc.v4";
    edit(name, by_f32, "search_f32", load, 0, four_bytes_on, F(Misaligned));
    let name = "a count that is not atomic";
    edit(name, "top_mean (", "top_mean", "atom.shared", 5, not_atomic, F(SharedRace));
    let name = "a number that nothing was put into";
    edit(name, by_f32, "search_f32", "mov.f32", 0, nothing, F(Uninitialised));

    let mut give = |name, case, entry, change, seen| {
        all.push(Mutant { name, case, entry, change: given(change), seen });
    };
    give(
        "an argument of another width",
        "top_mean (",
        "top_mean",
        |launch, _| {
            *number(launch) = Arg::Struct(vec![0; 8]);
        },
        F(Arguments),
    );
    give(
        "an argument too few",
        "top_mean (",
        "top_mean",
        |launch, _| {
            launch.args.pop();
        },
        F(Arguments),
    );
    give(
        "an argument too many",
        by_f32,
        "search_f32",
        |launch, _| {
            launch.args.push(Arg::I32(0));
        },
        F(Arguments),
    );
    give(
        "a struct a word short",
        cosine,
        "cosine_distances_f32",
        |launch, _| {
            let Arg::Struct(bytes) = &mut launch.args[0] else { panic!("no struct") };
            bytes.truncate(bytes.len() - 4);
        },
        F(Arguments),
    );
    give("memory a word short", "top_mean (", "top_mean", shorter_memory, F(OutOfBounds));
    give(
        "where it reads and where it writes, exchanged",
        "top_mean (",
        "top_mean",
        |launch, _| {
            let places: Vec<usize> = (0..launch.args.len())
                .filter(|&i| matches!(launch.args[i], Arg::Memory(_)))
                .collect();
            launch.args.swap(places[0], places[1]);
        },
        F(Uninitialised),
    );
    give(
        "no memory at all",
        "top_mean (",
        "top_mean",
        |launch, _| {
            for arg in &mut launch.args {
                if let Arg::Memory(region) = arg {
                    region.address = 0;
                }
            }
        },
        F(OutOfBounds),
    );
    give(
        "a block too few",
        cosine,
        "cosine_distances_f32",
        |launch, _| {
            launch.grid[0] -= 1;
        },
        F(Unwritten),
    );
    give(
        "more threads than it was compiled for",
        by_f32,
        "search_f32",
        |launch, _| {
            launch.block[0] *= 2;
        },
        F(Shape),
    );
    give(
        "a warp too few",
        cosine,
        "cosine_distances_f32",
        |launch, _| {
            launch.block[0] -= 32;
        },
        F(Uninitialised),
    );
    give(
        "no shared memory for the rows",
        "pixels",
        "pixels_rgb",
        |launch, _| {
            launch.shared_bytes = 0;
        },
        F(OutOfBounds),
    );
    give(
        "another kernel's name",
        "top_mean (",
        "top_mean",
        |launch, _| {
            launch.entry = "top_means";
        },
        F(UnknownKernel),
    );
    all
}

/// What shows when a case is carried out, changed or as it is.
fn look(case: &cases::Case, engine: &Engine, mutant: Option<&Mutant>) -> (bool, Seen) {
    let mut gpu = Interpreter::default();
    let mut work = case.lay_out(&mut gpu, engine).unwrap();
    let mut applied = false;
    if let Some(mutant) = mutant {
        // Launches of a module share its text.
        let name = work.launches.iter().find(|launch| launch.entry == mutant.entry);
        let Some(name) = name.map(|launch| launch.module.name) else {
            return (false, Seen::Nothing);
        };
        let mut changed = None;
        for launch in work.launches.iter_mut().filter(|launch| launch.entry == mutant.entry) {
            (mutant.change)(launch, &mut gpu);
            changed = Some(launch.module);
            applied = true;
        }
        for launch in work.launches.iter_mut().filter(|launch| launch.module.name == name) {
            launch.module = changed.unwrap_or(launch.module);
        }
    }
    let outcome = work
        .launches
        .iter()
        .try_for_each(|launch| gpu.launch(launch))
        .and_then(|()| work.held_against(&mut gpu));
    let seen = match outcome {
        Ok(outcome) if outcome.is_good() => Seen::Nothing,
        Ok(_) => Seen::WrongNumber,
        Err(error) => Seen::Fault(error.downcast_ref::<Fault>().expect("a fault").kind),
    };
    (applied, seen)
}

#[test]
fn every_mutant_is_caught_by_what_it_breaks() {
    let engine = Engine::new(&Config { threads: Some(1), ..Default::default() }).unwrap();
    let cases = cases::ragged();
    let mutants = mutants();
    let mut wrong = vec![];
    for case in &cases {
        let concerned = mutants.iter().any(|mutant| case.name.starts_with(mutant.case));
        if concerned && look(case, &engine, None).1 != Seen::Nothing {
            wrong.push(format!("{} fails as it is", case.name));
        }
    }
    for mutant in &mutants {
        let mut applied = false;
        let mut seen = Seen::Nothing;
        for case in cases.iter().filter(|case| case.name.starts_with(mutant.case)) {
            let (was_applied, shown) = look(case, &engine, Some(mutant));
            applied |= was_applied;
            if shown != Seen::Nothing {
                seen = shown;
                break;
            }
        }
        if !applied || seen != mutant.seen {
            let Mutant { name, entry, seen: want, .. } = mutant;
            wrong.push(format!("{entry}, {name}: {seen:?}, not {want:?} (applied: {applied})"));
        }
    }
    assert!(wrong.is_empty(), "of {} mutants\n{}", mutants.len(), wrong.join("\n"));
}

/// The barrier at the end of the last turn, behind which the block reads and writes nothing more.
const NEEDLESS: (&str, usize) = ("rank_some", 6);

#[test]
fn no_barrier_can_be_left_out() {
    let engine = Engine::new(&Config { threads: Some(1), ..Default::default() }).unwrap();
    let (mut needed, mut others) = (BTreeSet::new(), BTreeSet::new());
    for case in cases::ragged() {
        let work = case.lay_out(&mut Interpreter::default(), &engine).unwrap();
        let launches = work.launches.iter().map(|launch| (launch.entry, launch.module.ptx));
        for (entry, text) in launches.collect::<BTreeSet<_>>() {
            let start = text.find(&format!(".entry {entry}(")).unwrap();
            let body = &text[start..start + text[start..].find("\n}").unwrap()];
            for nth in 0..body.matches("bar.sync").count() {
                if needed.contains(&(entry, nth)) {
                    continue;
                }
                let change = edited(entry, "bar.sync", nth, nothing);
                let seen = Seen::Nothing;
                let mutant = Mutant { name: "no barrier", case: "", entry, change, seen };
                match look(&case, &engine, Some(&mutant)).1 {
                    Seen::Fault(Kind::SharedRace | Kind::Uninitialised) => {
                        needed.insert((entry, nth));
                    }
                    _ => {
                        others.insert((entry, nth));
                    }
                }
            }
        }
    }
    let others: Vec<_> = others.difference(&needed).collect();
    assert!(needed.len() > 20, "only {needed:?}");
    assert_eq!(others, [&NEEDLESS]);
}
