//! A card through NVIDIA's driver: the real [`Gpu`].
//!
//! The driver, `libcuda.so.1`, is looked for when a card is asked for and not before; nothing else
//! of CUDA is needed on the machine. A [`Context`] is a card that was found fit, and the kernels
//! that the driver has translated for it. Each detector has a [`Card`], which is a stream of its
//! own in that context; it belongs to one thread, that of inference.
//!
//! *Uploads* go through two pieces of pinned memory in turn, so that the next can be filled while
//! the card fetches the last; each is used again only when the event behind its last copy has come.
//!
//! *Errors*: what leaves the card in doubt (a kernel broke down, memory is damaged, a code that is
//! not known) makes it lost, for all detectors on it: every later call says so, and parts are
//! rejected. A driver does not take a card back within a process. Waiting is the driver's: where it
//! never ends, the tracker rejects parts at their time and the watchdog stops being fed.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUevent, CUfunction, CUfunction_attribute, CUgraph,
    CUgraphExec, CUmodule, CUstream, CUstreamCaptureMode,
};

use super::{Arg, DeviceMemory, Gpu, Launch, Module, Prepared, Region};
use api::{Api, Code};

mod api;

/// The oldest cards that the kernels run on: Ampere, compute capability 8.0 (`kernels/build`).
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// Bytes of each piece of pinned memory; more goes in several turns. A picture of 1024 × 1024
/// pixels in colour fits.
const SLOT_BYTES: usize = 4 << 20;

/// Dynamic shared memory that a kernel may have without being asked for (CUDA programming guide,
/// compute capabilities).
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// Streams do not wait for the legacy default stream (`CU_STREAM_NON_BLOCKING`).
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DEFAULT`, which keeps the time, and `CU_EVENT_DISABLE_TIMING`.
const WITH_TIME: c_uint = 0;
const WITHOUT_TIME: c_uint = 2;

/// A card that can be used; copies are the same one.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    api: Api,
    about: About,
    device: CUdevice,
    context: CUcontext,
    modules: Mutex<HashMap<&'static str, CUmodule>>,
    /// Why no call can succeed any more.
    lost: OnceLock<String>,
}

/// What a card is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    pub ordinal: u32,
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    pub memory_bytes: usize,
    pub multiprocessors: i32,
    pub clock_khz: i32,
    pub memory_clock_khz: i32,
    pub memory_bus_bits: i32,
    /// The newest CUDA that the driver knows, as 1000 · major + 10 · minor.
    pub driver_cuda: i32,
}

impl About {
    /// What the memory gives at most, at two transfers a clock; `None` where the driver does not
    /// say.
    pub fn bytes_per_s(&self) -> Option<f64> {
        let clock_hz = f64::from(self.memory_clock_khz) * 1e3;
        let rate = 2.0 * clock_hz * f64::from(self.memory_bus_bits) / 8.0;
        (rate > 0.0).then_some(rate)
    }

    /// What the f32 units do at most, a multiplication and an addition a clock each; `None` where
    /// the driver does not say. Units of a multiprocessor: CUDA programming guide, throughput of
    /// arithmetic instructions.
    pub fn f32_flops_per_s(&self) -> Option<f64> {
        let units = if self.capability == (8, 0) { 64.0 } else { 128.0 };
        let clock_hz = f64::from(self.clock_khz) * 1e3;
        let rate = 2.0 * units * f64::from(self.multiprocessors) * clock_hz;
        (rate > 0.0).then_some(rate)
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(
            f,
            "{} (cuda:{}, compute capability {major}.{minor}, {:.1} GiB, driver for CUDA {})",
            self.name,
            self.ordinal,
            self.memory_bytes as f64 / f64::from(1 << 30),
            version(self.driver_cuda)
        )
    }
}

// SAFETY: handles of the driver may be used from any thread; each call makes the context the
// thread's own before ([`Inner::enter`]). What is changed lies behind locks.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Context {
    /// Card `ordinal`, as the driver counts those that `CUDA_VISIBLE_DEVICES` leaves it.
    ///
    /// # Errors
    /// No driver, no such card, one that is too old or taken.
    pub fn open(ordinal: u32) -> Result<Self> {
        open(ordinal).with_context(|| format!("device = \"cuda:{ordinal}\""))
    }

    /// The first card that can be used.
    ///
    /// # Errors
    /// There is none, and why.
    pub fn first() -> Result<Self> {
        let count = count(&started()?)?;
        let mut reasons = Vec::new();
        for ordinal in 0..count {
            match Self::open(ordinal) {
                Ok(context) => return Ok(context),
                Err(error) => reasons.push(format!("{error:#}")),
            }
        }
        bail!("no card can be used: {}", reasons.join("; "))
    }

    pub fn about(&self) -> &About {
        &self.0.about
    }
}

/// The driver, ready to be asked.
fn started() -> Result<Api> {
    let api = Api::load()?;
    // SAFETY: no pointers.
    let code = unsafe { (api.cuInit)(0) };
    api.check(code, || "starting the NVIDIA driver".to_owned())?;
    Ok(api)
}

/// How many cards the driver sees, one at least.
fn count(api: &Api) -> Result<u32> {
    let mut count = 0;
    // SAFETY: a pointer to a live integer.
    let code = unsafe { (api.cuDeviceGetCount)(&raw mut count) };
    api.check(code, || "counting the cards".to_owned())?;
    match u32::try_from(count) {
        Ok(count @ 1..) => Ok(count),
        _ => Err(api.error(Code::NO_DEVICE, "counting the cards")),
    }
}

fn open(ordinal: u32) -> Result<Context> {
    let api = started()?;
    let count = count(&api)?;
    ensure!(
        ordinal < count,
        "there is no such card: the driver sees {count}, cuda:0 to cuda:{}",
        count - 1
    );
    let mut device: CUdevice = 0;
    // SAFETY: a pointer to a live integer; the number is one of a card.
    let code = unsafe { (api.cuDeviceGet)(&raw mut device, ordinal as c_int) };
    api.check(code, || "finding the card".to_owned())?;
    let about = about(&api, device, ordinal)?;
    let (major, minor) = about.capability;
    ensure!(
        about.capability >= LEAST_CAPABILITY,
        "{} has compute capability {major}.{minor}: the kernels need {}.{} (Ampere, such as A2, \
         RTX A2000, RTX 30) or newer",
        about.name,
        LEAST_CAPABILITY.0,
        LEAST_CAPABILITY.1
    );
    let mut context: CUcontext = ptr::null_mut();
    // SAFETY: a pointer to a live pointer, and a card that was found.
    let code = unsafe { (api.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
    api.check(code, || format!("taking {}", about.name))?;
    let (modules, lost) = (Mutex::default(), OnceLock::new());
    Ok(Context(Arc::new(Inner { api, about, device, context, modules, lost })))
}

fn about(api: &Api, device: CUdevice, ordinal: u32) -> Result<About> {
    let doing = || format!("asking card {ordinal} what it is");
    let mut name = [0; 256];
    // SAFETY: a pointer to as many bytes as are said.
    let code = unsafe { (api.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int, device) };
    api.check(code, doing)?;
    *name.last_mut().expect("it is not empty") = 0;
    // SAFETY: it ends with a zero at the latest in its last place.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let attribute = |attribute: CUdevice_attribute| {
        let mut value = 0;
        // SAFETY: a pointer to a live integer.
        let code = unsafe { (api.cuDeviceGetAttribute)(&raw mut value, attribute, device) };
        api.check(code, doing).map(|()| value)
    };
    use CUdevice_attribute as Attribute;
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let clock_khz = attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    let memory_clock_khz = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let memory_bus_bits = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    let mut memory_bytes = 0;
    // SAFETY: a pointer to a live integer.
    let code = unsafe { (api.cuDeviceTotalMem_v2)(&raw mut memory_bytes, device) };
    api.check(code, doing)?;
    let mut driver_cuda = 0;
    // SAFETY: a pointer to a live integer.
    let code = unsafe { (api.cuDriverGetVersion)(&raw mut driver_cuda) };
    api.check(code, doing)?;
    let capability = (major, minor);
    Ok(About {
        ordinal,
        name,
        capability,
        memory_bytes,
        multiprocessors,
        clock_khz,
        memory_clock_khz,
        memory_bus_bits,
        driver_cuda,
    })
}

/// 13000 as 13.0.
fn version(cuda: i32) -> String {
    format!("{}.{}", cuda / 1000, cuda % 1000 / 10)
}

impl Inner {
    /// Makes this the context of the calling thread.
    ///
    /// # Errors
    /// The card is lost.
    fn enter(&self) -> Result<()> {
        if let Some(reason) = self.lost.get() {
            bail!("the card was lost and comes back with a restart of inspectd only: {reason}");
        }
        // SAFETY: a context that is kept as long as this is there.
        let code = unsafe { (self.api.cuCtxSetCurrent)(self.context) };
        self.check(code, || "turning to the card".to_owned())
    }

    /// As [`Api::check`]; remembers what breaks the card.
    fn check(&self, code: c_uint, doing: impl FnOnce() -> String) -> Result<()> {
        let Err(error) = self.api.check(code, doing) else { return Ok(()) };
        if !Code(code).is_of_one_call() {
            // The first reason stands.
            let _ = self.lost.set(format!("{error:#}"));
        }
        Err(error)
    }

    /// A kernel, its module translated for this card if it was not before.
    fn function(&self, module: Module, entry: &str) -> Result<CUfunction> {
        let handle = self.module(module)?;
        let name = CString::new(entry).context("a kernel's name")?;
        let mut function: CUfunction = ptr::null_mut();
        // SAFETY: a pointer to a live pointer, a module of this context, a C string.
        let code =
            unsafe { (self.api.cuModuleGetFunction)(&raw mut function, handle, name.as_ptr()) };
        self.check(code, || format!("finding the kernel {entry} in {}", module.name))?;
        Ok(function)
    }

    fn module(&self, module: Module) -> Result<CUmodule> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&handle) = modules.get(module.name) {
            return Ok(handle);
        }
        let text = CString::new(module.ptx)
            .with_context(|| format!("the PTX of {} contains a zero", module.name))?;
        let mut handle: CUmodule = ptr::null_mut();
        // SAFETY: a pointer to a live pointer, a C string, no options.
        let code = unsafe {
            (self.api.cuModuleLoadDataEx)(
                &raw mut handle,
                text.as_ptr().cast::<c_void>(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        self.check(code, || {
            let isa = module.ptx.lines().find_map(|line| line.trim().strip_prefix(".version"));
            format!(
                "translating the kernels of {} (PTX {}) for {} by a driver for CUDA {}",
                module.name,
                isa.unwrap_or("of no version").trim(),
                self.about.name,
                version(self.about.driver_cuda)
            )
        })?;
        modules.insert(module.name, handle);
        Ok(handle)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nothing can be done about what goes wrong here, and nothing follows.
        // SAFETY: nobody holds the context, or anything in it, any more.
        unsafe {
            (self.api.cuCtxSetCurrent)(self.context);
            let modules = self.modules.get_mut().unwrap_or_else(PoisonError::into_inner);
            for (_, module) in modules.drain() {
                (self.api.cuModuleUnload)(module);
            }
            (self.api.cuCtxSetCurrent)(ptr::null_mut());
            (self.api.cuDevicePrimaryCtxRelease_v2)(self.device);
        }
    }
}

/// Device memory of a card.
pub struct Memory {
    context: Arc<Inner>,
    region: Region,
}

impl DeviceMemory for Memory {
    fn region(&self) -> Region {
        self.region
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        // SAFETY: this context's memory, given back once; what was begun on it has ended.
        unsafe {
            (self.context.api.cuCtxSynchronize)();
            (self.context.api.cuMemFree_v2)(self.region.address);
        }
    }
}

/// A stream of a card, to which a detector's work goes in order.
pub struct Card {
    context: Arc<Inner>,
    stream: CUstream,
    slots: [Slot; 2],
    /// The slot whose turn it is.
    turn: usize,
    kernels: HashMap<(&'static str, &'static str), Kernel>,
    /// By [`Prepared::id`].
    prepared: HashMap<u64, Seen>,
}

/// Pinned memory.
struct Slot {
    address: *mut c_void,
    /// Comes when the last copy out of it is done.
    copied: CUevent,
}

#[derive(Clone, Copy)]
struct Kernel {
    function: CUfunction,
    /// Dynamic shared memory that it may have.
    shared_bytes: u32,
}

/// How far launches that come again are.
#[derive(Clone, Copy)]
enum Seen {
    /// Carried out one by one, which loads what the driver loads at first use: that is not allowed
    /// while they are recorded.
    Once,
    Recorded(CUgraphExec),
}

// SAFETY: handles of the driver may be used from any thread, see [`Inner`]; the pinned memory is
// this card's alone.
unsafe impl Send for Card {}

impl Card {
    /// # Errors
    /// The card is lost; no memory for the stream.
    pub fn new(context: &Context) -> Result<Self> {
        let context = context.0.clone();
        context.enter()?;
        let mut card = Self {
            context,
            stream: ptr::null_mut(),
            slots: [const { Slot { address: ptr::null_mut(), copied: ptr::null_mut() } }; 2],
            turn: 0,
            kernels: HashMap::new(),
            prepared: HashMap::new(),
        };
        // What was made is given back by `drop` where the next fails.
        let Self { context, stream, slots, .. } = &mut card;
        let api = &context.api;
        // SAFETY: a pointer to a live pointer.
        let code = unsafe { (api.cuStreamCreate)(&raw mut *stream, NON_BLOCKING) };
        context.check(code, || "making a stream".to_owned())?;
        for slot in slots {
            // SAFETY: a pointer to a live pointer.
            let code = unsafe { (api.cuMemHostAlloc)(&raw mut slot.address, SLOT_BYTES, 0) };
            context.check(code, || format!("pinning {SLOT_BYTES} bytes of memory"))?;
            // SAFETY: a pointer to a live pointer.
            let code = unsafe { (api.cuEventCreate)(&raw mut slot.copied, WITHOUT_TIME) };
            context.check(code, || "making an event".to_owned())?;
        }
        Ok(card)
    }

    pub fn about(&self) -> &About {
        &self.context.about
    }

    /// Waits until everything is done.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn wait(&mut self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: this card's stream.
        let code = unsafe { (self.context.api.cuStreamSynchronize)(self.stream) };
        self.context.check(code, || "waiting for the card".to_owned())
    }

    /// Milliseconds that the card takes from the first to the last of what `work` gives it, by its
    /// own clock.
    ///
    /// # Errors
    /// What `work` says, or the card.
    pub fn timed(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<f32> {
        let context = self.context.clone();
        context.enter()?;
        let events = [Event::new(&context)?, Event::new(&context)?];
        events[0].record(self.stream)?;
        work(self)?;
        events[1].record(self.stream)?;
        self.wait()?;
        let mut milliseconds = 0.0;
        // SAFETY: a pointer to a live number; both events have come.
        let code = unsafe {
            (self.context.api.cuEventElapsedTime)(
                &raw mut milliseconds,
                events[0].event,
                events[1].event,
            )
        };
        self.context.check(code, || "reading the card's clock".to_owned())?;
        Ok(milliseconds)
    }

    /// The slot whose turn it is, its last copy done.
    fn next_slot(&mut self) -> Result<usize> {
        let index = self.turn;
        self.turn = (index + 1) % self.slots.len();
        // SAFETY: this card's event; one that was never recorded counts as come.
        let code = unsafe { (self.context.api.cuEventSynchronize)(self.slots[index].copied) };
        self.context.check(code, || "waiting for the card to fetch the last picture".to_owned())?;
        Ok(index)
    }

    fn kernel(&mut self, launch: &Launch) -> Result<CUfunction> {
        let key = (launch.module.name, launch.entry);
        let mut kernel = match self.kernels.get(&key) {
            Some(&kernel) => kernel,
            None => {
                let function = self.context.function(launch.module, launch.entry)?;
                Kernel { function, shared_bytes: USUAL_SHARED_BYTES }
            }
        };
        if launch.shared_bytes > kernel.shared_bytes {
            use CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            let bytes =
                c_int::try_from(launch.shared_bytes).context("shared memory of a kernel")?;
            // SAFETY: a kernel of this context.
            let code =
                unsafe { (self.context.api.cuFuncSetAttribute)(kernel.function, MOST, bytes) };
            self.context.check(code, || {
                format!("giving the kernel {} {bytes} bytes of shared memory", launch.entry)
            })?;
            kernel.shared_bytes = launch.shared_bytes;
        }
        self.kernels.insert(key, kernel);
        Ok(kernel.function)
    }

    /// Gives a launch to the stream; the context is the thread's.
    fn begin(&mut self, launch: &Launch) -> Result<()> {
        let function = self.kernel(launch)?;
        let arguments: Vec<Argument<'_>> = launch.args.iter().map(Argument::of).collect();
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        // SAFETY: a kernel of this context; a pointer for each argument, to a value as wide as its
        // parameter, which the driver copies before it returns. That number and widths are those of
        // the kernel is checked where the launch is made and executed by tests
        // (`tests/kernels.rs`).
        let code = unsafe {
            (self.context.api.cuLaunchKernel)(
                function,
                grid_x,
                grid_y,
                grid_z,
                block_x,
                block_y,
                block_z,
                launch.shared_bytes,
                self.stream,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.context.check(code, || {
            format!(
                "launching the kernel {} on {:?} blocks of {:?} threads",
                launch.entry, launch.grid, launch.block
            )
        })
    }

    /// Records launches as a graph, which starts them at once.
    fn record(&mut self, launches: &[Launch]) -> Result<CUgraphExec> {
        let api = self.context.api;
        // SAFETY: this card's stream, on which nothing is being recorded.
        let code = unsafe {
            (api.cuStreamBeginCapture_v2)(
                self.stream,
                CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
        };
        self.context.check(code, || "recording launches".to_owned())?;
        let outcome = launches.iter().try_for_each(|launch| self.begin(launch));
        let mut graph: CUgraph = ptr::null_mut();
        // SAFETY: what began above ends here, whatever came between; a pointer to a live pointer.
        let code = unsafe { (api.cuStreamEndCapture)(self.stream, &raw mut graph) };
        let ended = self.context.check(code, || "ending a recording of launches".to_owned());
        let mut exec: CUgraphExec = ptr::null_mut();
        let made = outcome.and(ended).and_then(|()| {
            // SAFETY: a pointer to a live pointer, and the graph that was recorded.
            let code = unsafe { (api.cuGraphInstantiateWithFlags)(&raw mut exec, graph, 0) };
            self.context.check(code, || format!("making a graph of {} launches", launches.len()))
        });
        if !graph.is_null() {
            // SAFETY: the recorded graph, which what was made of it does not need.
            unsafe { (api.cuGraphDestroy)(graph) };
        }
        made.map(|()| exec)
    }
}

impl Gpu for Card {
    type Memory = Memory;

    fn alloc(&mut self, bytes: usize) -> Result<Memory> {
        self.context.enter()?;
        let mut address = 0;
        // SAFETY: a pointer to a live integer. None at all is refused by the driver.
        let code = unsafe { (self.context.api.cuMemAlloc_v2)(&raw mut address, bytes.max(1)) };
        self.context.check(code, || {
            let all = self.context.about.memory_bytes;
            format!("taking {bytes} bytes of the {all} of {}", self.context.about.name)
        })?;
        Ok(Memory { context: self.context.clone(), region: Region { address, bytes } })
    }

    fn upload(&mut self, from: &[u8], to: Region) -> Result<()> {
        assert_eq!(from.len(), to.bytes, "bytes to upload");
        self.context.enter()?;
        for (i, piece) in from.chunks(SLOT_BYTES).enumerate() {
            let index = self.next_slot()?;
            let (api, slot) = (&self.context.api, &self.slots[index]);
            let target = to.address + (i * SLOT_BYTES) as u64;
            // SAFETY: the slot is pinned memory of SLOT_BYTES, out of which no copy is under way;
            // the driver reads as many bytes as were written there, behind what the stream does
            // before.
            let code = unsafe {
                ptr::copy_nonoverlapping(piece.as_ptr(), slot.address.cast::<u8>(), piece.len());
                (api.cuMemcpyHtoDAsync_v2)(target, slot.address, piece.len(), self.stream)
            };
            self.context.check(code, || format!("sending {} bytes to the card", from.len()))?;
            // SAFETY: this card's event and stream.
            let code = unsafe { (api.cuEventRecord)(slot.copied, self.stream) };
            self.context.check(code, || format!("sending {} bytes to the card", from.len()))?;
        }
        Ok(())
    }

    fn download(&mut self, from: Region, to: &mut [u8]) -> Result<()> {
        assert_eq!(from.bytes, to.len(), "bytes to download");
        self.context.enter()?;
        let bytes = to.len();
        for (i, piece) in to.chunks_mut(SLOT_BYTES).enumerate() {
            let index = self.next_slot()?;
            let address = self.slots[index].address;
            let source = from.address + (i * SLOT_BYTES) as u64;
            // SAFETY: the slot is pinned memory of SLOT_BYTES, out of which no copy is under way.
            let code = unsafe {
                let Api { cuMemcpyDtoHAsync_v2, .. } = self.context.api;
                cuMemcpyDtoHAsync_v2(address, source, piece.len(), self.stream)
            };
            self.context.check(code, || format!("fetching {bytes} bytes from the card"))?;
            // SAFETY: this card's stream.
            let code = unsafe { (self.context.api.cuStreamSynchronize)(self.stream) };
            self.context.check(code, || "waiting for the card".to_owned())?;
            // SAFETY: the copy into the slot has ended and wrote as many bytes.
            unsafe {
                ptr::copy_nonoverlapping(address.cast::<u8>(), piece.as_mut_ptr(), piece.len());
            }
        }
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        self.context.enter()?;
        self.begin(launch)
    }

    fn run(&mut self, prepared: &Prepared) -> Result<()> {
        self.context.enter()?;
        let exec = match self.prepared.get(&prepared.id()) {
            None => {
                prepared.launches().iter().try_for_each(|launch| self.begin(launch))?;
                self.prepared.insert(prepared.id(), Seen::Once);
                return Ok(());
            }
            Some(Seen::Once) => {
                let exec = self.record(prepared.launches())?;
                self.prepared.insert(prepared.id(), Seen::Recorded(exec));
                exec
            }
            Some(&Seen::Recorded(exec)) => exec,
        };
        // SAFETY: a graph of this context, to be run on this card's stream.
        let code = unsafe { (self.context.api.cuGraphLaunch)(exec, self.stream) };
        self.context.check(code, || format!("starting {} launches", prepared.launches().len()))
    }

    fn forget(&mut self, prepared: Prepared) {
        let Some(Seen::Recorded(exec)) = self.prepared.remove(&prepared.id()) else { return };
        if self.wait().is_ok() {
            // SAFETY: a graph of this card, which does not run any more; given back once.
            unsafe { (self.context.api.cuGraphExecDestroy)(exec) };
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let is_lost = self.context.enter().is_err();
        let api = &self.context.api;
        // Nothing can be done about what goes wrong here. A lost card is not waited for, but what
        // is on this side is given back.
        // SAFETY: all of it is this card's, made by the driver and given back once; what was begun
        // has ended.
        unsafe {
            if !is_lost && !self.stream.is_null() {
                (api.cuStreamSynchronize)(self.stream);
            }
            for seen in self.prepared.values() {
                if let Seen::Recorded(exec) = seen {
                    (api.cuGraphExecDestroy)(*exec);
                }
            }
            for slot in &self.slots {
                if !slot.copied.is_null() {
                    (api.cuEventDestroy_v2)(slot.copied);
                }
                if !slot.address.is_null() {
                    (api.cuMemFreeHost)(slot.address);
                }
            }
            if !self.stream.is_null() {
                (api.cuStreamDestroy_v2)(self.stream);
            }
        }
    }
}

/// An event that keeps the time.
struct Event<'a> {
    context: &'a Inner,
    event: CUevent,
}

impl<'a> Event<'a> {
    fn new(context: &'a Inner) -> Result<Self> {
        let mut event: CUevent = ptr::null_mut();
        // SAFETY: a pointer to a live pointer.
        let code = unsafe { (context.api.cuEventCreate)(&raw mut event, WITH_TIME) };
        context.check(code, || "making an event".to_owned())?;
        Ok(Self { context, event })
    }

    fn record(&self, stream: CUstream) -> Result<()> {
        // SAFETY: this event, and a stream of the same context.
        let code = unsafe { (self.context.api.cuEventRecord)(self.event, stream) };
        self.context.check(code, || "recording an event".to_owned())
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: made by the driver and given back once.
        unsafe { (self.context.api.cuEventDestroy_v2)(self.event) };
    }
}

/// An argument as the driver reads it: as many bytes as its parameter is wide.
enum Argument<'a> {
    Word(u32),
    Address(u64),
    Bytes(&'a [u8]),
}

impl<'a> Argument<'a> {
    fn of(arg: &'a Arg) -> Self {
        match arg {
            Arg::I32(value) => Self::Word(value.cast_unsigned()),
            Arg::U32(value) => Self::Word(*value),
            Arg::F32(value) => Self::Word(value.to_bits()),
            Arg::Memory(region) => Self::Address(region.address),
            Arg::Struct(bytes) => Self::Bytes(bytes),
        }
    }

    /// The driver only reads there.
    fn pointer(&self) -> *mut c_void {
        let pointer: *const c_void = match self {
            Self::Word(value) => ptr::from_ref(value).cast(),
            Self::Address(value) => ptr::from_ref(value).cast(),
            Self::Bytes(bytes) => bytes.as_ptr().cast(),
        };
        pointer.cast_mut()
    }
}
