//! The interpreter of PTX as a card.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use inspectd::cuda::{Arg, DeviceMemory, Gpu, Launch, Region};
use ptx_interpreter::{Memory, Module, Run, Shape};

/// Executes launches on the CPU and fails at the first thing that a card would pass over.
#[derive(Default)]
pub struct Interpreter {
    memory: Arc<Mutex<Memory>>,
    /// By the name that the kernels' module has.
    modules: HashMap<&'static str, (&'static str, Module)>,
    /// What all launches took together.
    pub taken: Run,
}

pub struct Buffer {
    memory: Arc<Mutex<Memory>>,
    region: Region,
}

impl DeviceMemory for Buffer {
    fn region(&self) -> Region {
        self.region
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.lock().unwrap().free(self.region.address);
    }
}

impl Interpreter {
    /// A buffer that holds `values`.
    pub fn buffer(&mut self, values: &[u8]) -> Buffer {
        let buffer = self.alloc(values.len()).unwrap();
        self.upload(values, buffer.region()).unwrap();
        buffer
    }

    /// A buffer of f32.
    pub fn floats(&mut self, values: &[f32]) -> Buffer {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.buffer(&bytes)
    }

    /// What a region holds, as f32; an error where a byte of it was never written.
    pub fn read_floats(&mut self, from: Region) -> Result<Vec<f32>> {
        let mut bytes = vec![0; from.bytes];
        self.download(from, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }

    /// Which bytes of a region were never written.
    #[allow(dead_code, reason = "not each test that takes this room asks")]
    pub fn unwritten(&self, region: Region) -> Result<Vec<Range<usize>>> {
        Ok(self.memory.lock().unwrap().unwritten(region.address, region.bytes)?)
    }
}

impl Gpu for Interpreter {
    type Memory = Buffer;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer> {
        let address = self.memory.lock().unwrap().alloc(bytes);
        Ok(Buffer { memory: Arc::clone(&self.memory), region: Region { address, bytes } })
    }

    fn upload(&mut self, from: &[u8], to: Region) -> Result<()> {
        assert_eq!(from.len(), to.bytes, "upload of another length");
        Ok(self.memory.lock().unwrap().upload(from, to.address)?)
    }

    fn download(&mut self, from: Region, to: &mut [u8]) -> Result<()> {
        assert_eq!(from.bytes, to.len(), "download of another length");
        Ok(self.memory.lock().unwrap().download(from.address, to)?)
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let module = launch.module;
        if !self.modules.contains_key(module.name) {
            let parsed = Module::parse(module.ptx).with_context(|| module.name)?;
            self.modules.insert(module.name, (module.ptx, parsed));
        }
        let (ptx, parsed) = &self.modules[module.name];
        assert_eq!(*ptx, module.ptx, "two modules are named {}", module.name);
        let shape =
            Shape { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
        let args: Vec<Vec<u8>> = launch.args.iter().map(bytes).collect();
        let run = parsed
            .launch(&mut self.memory.lock().unwrap(), launch.entry, &shape, &args)
            .with_context(|| format!("launch of {}", launch.entry))?;
        self.taken.instructions += run.instructions;
        self.taken.barriers += run.barriers;
        Ok(())
    }
}

/// An argument as it lies in the kernel's parameters.
fn bytes(arg: &Arg) -> Vec<u8> {
    match arg {
        Arg::I32(value) => value.to_le_bytes().to_vec(),
        Arg::U32(value) => value.to_le_bytes().to_vec(),
        Arg::F32(value) => value.to_le_bytes().to_vec(),
        Arg::Memory(region) => region.address.to_le_bytes().to_vec(),
        Arg::Struct(bytes) => bytes.clone(),
    }
}
