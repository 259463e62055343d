//! Weight files: named f32 tensors from safetensors (f32, f16, bf16) or from a zip `.pth`.
//!
//! Nothing in a file is ever run. safetensors is a table of offsets; the safetensors crate refuses a
//! header above 100 MB, offsets that overlap, leave holes or pass the end of the file, and shapes
//! that do not fit their bytes. `.pth` is read by [`super::pth`].

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::pth;

/// Four times the largest network here (Wide-ResNet50-2: 276 MB in f32).
const MAX_FILE_BYTES: u64 = 1 << 30;

/// What training code puts before torchvision's names.
const PREFIXES: [&str; 5] = ["module.", "encoder.", "backbone.", "model.", "teacher_net."];

/// Named tensors of one file, f32 on the CPU.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Where they come from, for messages.
    origin: String,
    tensors: BTreeMap<String, Tensor>,
    sha256: String,
}

impl Weights {
    /// Reads a user's file, safetensors or zip `.pth` (told by its first bytes, not its name), and
    /// drops the prefixes `module.`, `encoder.`, `backbone.`, `model.` and `teacher_net.encoder.`.
    pub fn open(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let reading = || format!("reading weights {origin}");
        let size = fs::metadata(path).with_context(reading)?.len();
        ensure!(
            size <= MAX_FILE_BYTES,
            "weights {origin}: {size} bytes is more than any network here needs (at most {MAX_FILE_BYTES})"
        );
        let bytes = fs::read(path).with_context(reading)?;
        let mut weights = Self::from_bytes(&origin, &bytes)?;
        weights.drop_prefixes()?;
        Ok(weights)
    }

    /// As [`Self::open`], names kept as they are; `origin` is used in messages.
    pub fn from_bytes(origin: &str, bytes: &[u8]) -> Result<Self> {
        let tensors = match bytes {
            [b'P', b'K', 3, 4, ..] => pth::read(bytes),
            [0x80, _, ..] => Err(pth::legacy_stream()),
            _ => read_safetensors(bytes),
        }
        .with_context(|| format!("weights {origin}"))?;
        let sha256 = hex(&Sha256::digest(bytes));
        Ok(Self { origin: origin.to_owned(), tensors, sha256 })
    }

    /// From tensors in memory; the hash is over names, shapes and f32 values in name order.
    pub fn from_tensors(origin: &str, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let mut hash = Sha256::new();
        for (name, tensor) in &tensors {
            hash.update(format!("{name} {:?}\n", tensor.dims()));
            for value in tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()? {
                hash.update(value.to_le_bytes());
            }
        }
        Ok(Self { origin: origin.to_owned(), tensors, sha256: hex(&hash.finalize()) })
    }

    /// The tensor `name`, which must have this shape and hold finite numbers only.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let origin = &self.origin;
        let Some(tensor) = self.tensors.get(name) else {
            bail!(
                "weights {origin}: there is no tensor {name}{}; is this the network you named?",
                self.some_names()
            );
        };
        ensure!(
            tensor.dims() == shape,
            "weights {origin}: tensor {name} has shape {:?}, this network needs {shape:?}",
            tensor.dims()
        );
        // A NaN or an infinity anywhere makes the sum of magnitudes one too.
        let sum = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
        ensure!(
            sum.is_finite(),
            "weights {origin}: tensor {name} holds numbers that are not finite"
        );
        Ok(tensor.clone())
    }

    /// Names present, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Everything in the file, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// SHA-256 of the file's bytes, hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    fn drop_prefixes(&mut self) -> Result<()> {
        let mut bare = BTreeMap::new();
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let mut short = name.as_str();
            while let Some(rest) = PREFIXES.iter().find_map(|prefix| short.strip_prefix(prefix)) {
                short = rest;
            }
            ensure!(
                bare.insert(short.to_owned(), tensor).is_none(),
                "weights {}: two tensors are called {short} once prefixes are dropped (one is {name}); \
                 save the backbone alone",
                self.origin
            );
        }
        self.tensors = bare;
        Ok(())
    }

    fn some_names(&self) -> String {
        let names: Vec<_> = self.names().take(3).collect();
        if names.is_empty() {
            " (it holds none)".into()
        } else {
            format!(" (it holds {}, …)", names.join(", "))
        }
    }
}

fn read_safetensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        anyhow::anyhow!(
            "neither whole safetensors nor a zip .pth ({error}); cut short, or another kind of file"
        )
    })?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let Some(values) = floats(view.dtype(), view.data()) else { continue };
        tensors.insert(name, Tensor::from_vec(values, view.shape(), &Device::Cpu)?);
    }
    Ok(tensors)
}

/// Little-endian floating point bytes as f32; `None` for other types, such as the int64 counters
/// that no inference needs.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter().copied();
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect(),
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
