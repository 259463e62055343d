//! Device memory that is kept for what is done in it.

use anyhow::Result;

use super::{DeviceMemory, Gpu, Region};

/// Takes memory of a [`Gpu`], all of which is given back together.
pub struct Kept<'a, G: Gpu> {
    pub gpu: &'a mut G,
    pub memory: Vec<G::Memory>,
}

impl<'a, G: Gpu> Kept<'a, G> {
    pub fn on(gpu: &'a mut G) -> Self {
        Self { gpu, memory: Vec::new() }
    }

    /// `bytes` of which it does not matter what is in them.
    ///
    /// # Errors
    /// The card has no more.
    pub fn room(&mut self, bytes: usize) -> Result<Region> {
        let memory = self.gpu.alloc(bytes)?;
        let region = memory.region();
        self.memory.push(memory);
        Ok(region)
    }

    /// These bytes.
    ///
    /// # Errors
    /// What the card says.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<Region> {
        let region = self.room(bytes.len())?;
        self.gpu.upload(bytes, region)?;
        Ok(region)
    }

    /// These numbers.
    ///
    /// # Errors
    /// What the card says.
    pub fn floats(&mut self, numbers: &[f32]) -> Result<Region> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    /// These numbers.
    ///
    /// # Errors
    /// What the card says.
    pub fn words(&mut self, numbers: &[u32]) -> Result<Region> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.bytes(&bytes)
    }
}

/// The numbers in `from`, when all that was begun is done.
///
/// # Errors
/// What the card says.
pub fn read_floats(gpu: &mut impl Gpu, from: Region) -> Result<Vec<f32>> {
    let mut bytes = vec![0; from.bytes];
    gpu.download(from, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect())
}
