//! A graphics card of NVIDIA as the place where detectors compute.
//!
//! The kernels are ours (`kernels/<op>.cu`, one operation a file, the stem that of its CPU twin in
//! [`crate::ops`]). What ships is their PTX (`kernels/ptx`), which the driver translates for the card
//! it finds; nothing but the driver is needed on the machine. Each room below builds the launches of
//! one file of kernels: grid, block and arguments are decided there and nowhere else, so that what a
//! test executes is what a card is given.
//!
//! [`Gpu`] is what carries launches out: a card through the driver, or, in tests, an interpreter of
//! PTX on the CPU (`tests/ptx`).

pub mod cases;
pub mod conv;
pub mod cosine_map;
pub mod detectors;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod driver;
pub mod elementwise;
pub mod from_pixels;
pub mod kept;
pub mod nearest_prototype;
pub mod network;
pub mod patch_affine;
pub mod patch_attention;
pub mod patch_features;
pub mod patch_prototypes;
pub mod pixels;
pub mod place_softmax;
pub mod plan;
pub mod pooling;
pub mod prototype_residual;
pub mod smooth_upsample;
pub mod texture;
pub mod top_mean;
pub mod upsample;
pub mod window_attention;

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

/// A piece of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub address: u64,
    pub bytes: usize,
}

impl Region {
    /// The part from byte `start` on, `bytes` long.
    ///
    /// # Panics
    /// If it does not lie in this one.
    pub fn part(self, start: usize, bytes: usize) -> Self {
        assert!(start + bytes <= self.bytes, "bytes {start}..{} of {self:?}", start + bytes);
        Self { address: self.address + start as u64, bytes }
    }

    /// This one, which is to hold `count` of `numbers`.
    ///
    /// # Panics
    /// If it is longer or shorter than that.
    pub fn holding(self, count: usize, numbers: Number, what: &str) -> Self {
        assert_eq!(self.bytes, count * numbers.bytes(), "bytes of {what}: {count} {numbers:?}");
        self
    }
}

/// A kind of numbers in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    U8,
    /// Whole, signed or not.
    I32,
    F32,
    Bf16,
    /// A distance above an index.
    Key,
}

impl Number {
    /// Of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::Key => 8,
        }
    }
}

/// An argument of a kernel, as wide as its `.param` in the PTX.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    I32(i32),
    U32(u32),
    F32(f32),
    Memory(Region),
    /// A struct passed by value, laid out as C does.
    Struct(Vec<u8>),
}

impl Arg {
    /// An `int` of a kernel.
    ///
    /// # Panics
    /// If it has no room for `value`.
    pub fn int(value: usize) -> Self {
        Self::I32(int(value))
    }

    /// A pointer that is null.
    pub fn nothing() -> Self {
        Self::Memory(Region { address: 0, bytes: 0 })
    }
}

fn int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or_else(|_| panic!("{value} is more than a kernel counts"))
}

/// Blocks of a grid.
///
/// # Panics
/// If there are more than a card counts.
fn blocks(count: usize) -> u32 {
    u32::try_from(count).unwrap_or_else(|_| panic!("a grid of {count} blocks"))
}

/// A struct of a kernel's argument, field by field in their order.
#[derive(Clone, Debug, Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn memory(self, region: Region) -> Self {
        self.put(&region.address.to_le_bytes())
    }

    fn int(self, value: usize) -> Self {
        self.put(&int(value).to_le_bytes())
    }

    fn f32(self, value: f32) -> Self {
        self.put(&value.to_le_bytes())
    }

    /// Each field begins at a multiple of its own size.
    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(bytes.len()), 0);
        self.0.extend(bytes);
        self
    }

    /// The whole, filled up to `len` bytes.
    fn arg(mut self, len: usize) -> Arg {
        assert!(self.0.len() <= len, "{} bytes of fields in {len}", self.0.len());
        self.0.resize(len, 0);
        Arg::Struct(self.0)
    }
}

/// Kernels that are compiled together.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// The stem of the file in `kernels`.
    pub name: &'static str,
    pub ptx: &'static str,
}

/// One run of a kernel.
#[derive(Clone, Debug)]
pub struct Launch {
    pub module: Module,
    pub entry: &'static str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Shared memory beside what the kernel declares.
    pub shared_bytes: u32,
    pub args: Vec<Arg>,
}

impl Launch {
    /// With `threads` in a row and the shared memory that the kernel declares.
    ///
    /// # Panics
    /// If the grid is empty or has more blocks than a card counts.
    fn of(
        module: Module,
        entry: &'static str,
        grid: [usize; 3],
        threads: u32,
        args: Vec<Arg>,
    ) -> Self {
        let most = [i32::MAX as usize, 65535, 65535];
        let fits = grid.iter().zip(most).all(|(&count, most)| (1..=most).contains(&count));
        assert!(fits, "a grid of {grid:?} blocks for {entry}");
        let block = [threads, 1, 1];
        Self { module, entry, grid: grid.map(blocks), block, shared_bytes: 0, args }
    }
}

/// Launches that are carried out again and again, in this order, on the [`Gpu`] that they were made for.
#[derive(Debug)]
pub struct Prepared {
    id: u64,
    launches: Vec<Launch>,
}

impl Prepared {
    pub fn new(launches: Vec<Launch>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), launches }
    }

    /// No other has it.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }
}

/// What holds device memory and carries out launches, one after the other.
pub trait Gpu {
    /// Device memory, given back when it is dropped.
    type Memory: DeviceMemory;

    /// `bytes` of memory, aligned to 256; what is in it is undefined.
    ///
    /// # Errors
    /// The card has no more.
    fn alloc(&mut self, bytes: usize) -> Result<Self::Memory>;

    /// # Errors
    /// What the card says, this or an earlier launch being the reason.
    ///
    /// # Panics
    /// If the lengths differ.
    fn upload(&mut self, from: &[u8], to: Region) -> Result<()>;

    /// Waits for all launches before it.
    ///
    /// # Errors
    /// What the card says, this or an earlier launch being the reason.
    ///
    /// # Panics
    /// If the lengths differ.
    fn download(&mut self, from: Region, to: &mut [u8]) -> Result<()>;

    /// # Errors
    /// What the card says, this or an earlier launch being the reason.
    fn launch(&mut self, launch: &Launch) -> Result<()>;

    /// Carries out all of them, one after the other; a card remembers them and starts them at once.
    ///
    /// # Errors
    /// What the card says, these or an earlier launch being the reason.
    fn run(&mut self, prepared: &Prepared) -> Result<()> {
        prepared.launches().iter().try_for_each(|launch| self.launch(launch))
    }

    /// What was remembered of them is given back.
    fn forget(&mut self, prepared: Prepared) {
        drop(prepared);
    }
}

pub trait DeviceMemory {
    fn region(&self) -> Region;
}
