//! A launch: what is handed over against what the kernel wants, then block after block.

use crate::fault::{Fault, Kind, Place, Problem};
use crate::instruction::{BlockReduce, Op};
use crate::memory::Memory;
use crate::module::{Kernel, Module};
use crate::race::{BLOCKS, PHASES};
use crate::registers::{LANES, lanes};
use crate::shared::Shared;
use crate::warp::{Site, Sizes, Warp, thread};

/// Threads of a block at most, of all cards.
const MOST_THREADS: u64 = 1024;
/// Static shared memory of a kernel at most, which ptxas holds it to.
const MOST_STATIC: usize = 48 << 10;
/// Shared memory of a block at most, on the cards with the least (RTX 30, 40 and 50).
const MOST_SHARED: usize = 99 << 10;

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Shared memory beside what the kernel declares.
    pub shared_bytes: u32,
}

/// What a launch took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// Instructions, each counted once a thread.
    pub instructions: u64,
    /// Barriers, each counted once a block.
    pub barriers: u64,
}

impl Module {
    /// Runs a kernel to its end. `args` are the bytes of each argument.
    ///
    /// # Errors
    /// The first thing that is wrong; memory is then half written.
    pub fn launch(
        &self,
        memory: &mut Memory,
        entry: &str,
        shape: &Shape,
        args: &[Vec<u8>],
    ) -> Result<Run, Fault> {
        let Some(kernel) = self.kernels.get(entry) else {
            let detail = format!("{entry} is not in the module, which has {:?}", self.entries());
            return Err(Problem::new(Kind::UnknownKernel, detail).into());
        };
        check_args(kernel, args)?;
        check_shape(kernel, shape)?;
        let mut arrays = kernel.shared.arrays.clone();
        arrays.push((kernel.shared.dynamic_start(), shape.shared_bytes as usize));
        let mut shared = Shared::new(&arrays, kernel.granules.shared);
        let threads: u32 = shape.block.iter().product();
        let mut warps: Vec<Warp> =
            (0..threads.div_ceil(LANES as u32)).map(|number| Warp::new(number, kernel)).collect();
        let launch = memory.begin_launch();
        let mut run = Run::default();
        let mut site = Site {
            kernel,
            args,
            memory,
            shared: &mut shared,
            era: launch * BLOCKS,
            barriers: 0,
            epoch: 0,
            sizes: Sizes { block: [0; 3], grid: shape.grid, threads: shape.block },
        };
        let [x, y, z] = shape.grid;
        for block in (0..z).flat_map(|z| (0..y).flat_map(move |y| (0..x).map(move |x| [x, y, z]))) {
            site.sizes.block = block;
            run_block(&mut site, &mut warps)?;
            run.barriers += u64::from(site.barriers);
            site.era += 1;
        }
        run.instructions = warps.iter().map(|warp| warp.executed).sum();
        Ok(run)
    }
}

fn check_args(kernel: &Kernel, args: &[Vec<u8>]) -> Result<(), Problem> {
    let fail = |detail: String| Err(Problem::new(Kind::Arguments, detail));
    if args.len() != kernel.params.len() {
        return fail(format!(
            "{} of {}, which takes {}",
            args.len(),
            kernel.name,
            kernel.params.len()
        ));
    }
    for (index, (arg, param)) in args.iter().zip(&kernel.params).enumerate() {
        if arg.len() != param.bytes {
            let (have, want) = (arg.len(), param.bytes);
            return fail(format!(
                "argument {index} of {} has {have} bytes, not {want}",
                kernel.name
            ));
        }
    }
    Ok(())
}

fn check_shape(kernel: &Kernel, shape: &Shape) -> Result<(), Problem> {
    let fail =
        |detail: String| Err(Problem::new(Kind::Shape, format!("{}: {detail}", kernel.name)));
    let ([x, y, z], block) = (shape.grid, shape.block);
    let blocks: u64 = shape.grid.iter().map(|&n| u64::from(n)).product();
    let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
    if blocks == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
        return fail(format!("a grid of {:?}", shape.grid));
    }
    if blocks >= BLOCKS {
        return fail(format!("{blocks} blocks, more than this interpreter tells apart"));
    }
    if threads == 0 || threads > MOST_THREADS || block[2] > 64 {
        return fail(format!("a block of {block:?}"));
    }
    if let Some(most) = kernel.max_threads {
        let is_right = if kernel.exact_threads {
            block == most
        } else {
            threads <= most.iter().map(|&n| u64::from(n)).product()
        };
        if !is_right {
            return fail(format!("a block of {block:?}, compiled for {most:?}"));
        }
    }
    let fixed = kernel.shared.static_bytes();
    let total = fixed + shape.shared_bytes as usize;
    if fixed > MOST_STATIC || total > MOST_SHARED {
        return fail(format!("{total} bytes of shared memory, {fixed} of them static"));
    }
    Ok(())
}

fn run_block(site: &mut Site, warps: &mut [Warp]) -> Result<(), Fault> {
    site.shared.clear();
    site.barriers = 0;
    site.epoch += 1;
    let sizes = site.sizes;
    warps.iter_mut().for_each(|warp| warp.begin(site.kernel, &sizes));
    loop {
        for (number, warp) in warps.iter_mut().enumerate() {
            warp.run(site).map_err(|(problem, at)| locate(problem, at, number, site))?;
        }
        if warps.iter().all(|warp| warp.at_barrier == 0) {
            return Ok(());
        }
        meet(site, warps)?;
        site.epoch += 1;
        site.barriers += 1;
        if site.barriers == PHASES {
            return Err(Problem::new(Kind::Endless, format!("{PHASES} barriers of a block")).into());
        }
    }
}

/// All threads that have not exited wait at a barrier: it must be the same one, and all of the
/// block.
fn meet(site: &Site, warps: &mut [Warp]) -> Result<(), Fault> {
    let waiting = |warps: &[Warp]| -> Vec<(usize, usize)> {
        let of_warp = |(number, warp): (usize, &Warp)| {
            lanes(warp.at_barrier).map(move |lane| (number, lane)).collect::<Vec<_>>()
        };
        warps.iter().enumerate().flat_map(of_warp).collect()
    };
    let all = waiting(warps);
    let (first, lane) = all[0];
    let at = warps[first].at[lane];
    let fail = |detail: String, (number, lane): (usize, usize)| {
        let problem = Problem::new(Kind::Barrier, detail).of_lane(lane);
        Err(locate(problem, warps[number].at[lane], number, site))
    };
    let threads: u32 = site.sizes.threads.iter().product();
    if all.len() as u32 != threads {
        let detail = format!("{} of {threads} threads are here, the others have exited", all.len());
        return fail(detail, all[0]);
    }
    if let Some(&other) = all.iter().find(|&&(number, lane)| warps[number].at[lane] != at) {
        let line = site.kernel.code[at].line;
        return fail(format!("other threads wait at the one of line {line}"), other);
    }
    let (id, count) = match &site.kernel.code[at].op {
        Op::Barrier { id, threads } => (*id, *threads),
        Op::ReduceBarrier { id, .. } => (*id, None),
        _ => unreachable!("threads wait at barriers only"),
    };
    for &(number, lane) in &all {
        let word =
            |index| warps[number].registers.words.get(index, 1 << lane).map(|words| words[lane]);
        let id = word(id).map_err(|problem| locate(problem, at, number, site))?;
        if id != 0 {
            return fail(
                format!("barrier {id}: only that of the whole block is known"),
                (number, lane),
            );
        }
        if let Some(count) = count {
            let count = word(count).map_err(|problem| locate(problem, at, number, site))?;
            if count != threads {
                return fail(format!("for {count} of {threads} threads"), (number, lane));
            }
        }
    }
    if let Op::ReduceBarrier { how, to, from, negated, .. } = &site.kernel.code[at].op {
        let mut holds = 0;
        for (number, warp) in warps.iter().enumerate() {
            holds += warp
                .count(*from, *negated, warp.at_barrier)
                .map_err(|problem| locate(problem, at, number, site))?;
        }
        let value = match how {
            BlockReduce::And => u64::from(holds == threads),
            BlockReduce::Or => u64::from(holds > 0),
            BlockReduce::Count => u64::from(holds),
        };
        for warp in warps.iter_mut() {
            warp.give(*to, value, warp.at_barrier);
        }
    }
    warps.iter_mut().for_each(Warp::release);
    Ok(())
}

fn locate(problem: Problem, at: usize, warp: usize, site: &Site) -> Fault {
    let instruction = &site.kernel.code[at];
    let source = instruction.source.map(|(file, line)| {
        let name = site.kernel.files.iter().find(|(number, _)| *number == file);
        format!("{}:{line}", name.map_or("?", |(_, name)| name))
    });
    let number = (warp * LANES + problem.lane.unwrap_or(0)) as u32;
    Fault {
        kind: problem.kind,
        detail: problem.detail,
        place: Some(Place {
            kernel: site.kernel.name.clone(),
            line: instruction.line,
            source,
            block: site.sizes.block,
            thread: thread(number, site.sizes.threads),
        }),
    }
}
