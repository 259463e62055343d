//! Weight files: named f32 tensors from safetensors (f32, f16, bf16) or from a zip `.pth`.
//!
//! Nothing in a file is ever run. safetensors is a table of offsets; the safetensors crate refuses a
//! header above 100 MB, offsets that overlap, leave holes or pass the end of the file, and shapes
//! that do not fit their bytes. `.pth` is read by `nn/pth.rs`.

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

    /// These tensors alone, each of them as [`Self::get`] wants it; the hash stays the file's.
    pub fn only(&self, tensors: &[(String, Vec<usize>)]) -> Result<Self> {
        let found = tensors.iter().map(|(name, shape)| Ok((name.clone(), self.get(name, shape)?)));
        let tensors = found.collect::<Result<_>>()?;
        Ok(Self { origin: self.origin.clone(), tensors, sha256: self.sha256.clone() })
    }

    /// The tensor `name`, which must have this shape and hold finite numbers only.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.find(name, shape)?;
        // A NaN or an infinity anywhere makes the sum of magnitudes one too.
        let sum = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
        ensure!(
            sum.is_finite(),
            "weights {}: tensor {name} holds numbers that are not finite",
            self.origin
        );
        Ok(tensor.clone())
    }

    /// As [`Self::get`], but for the look at every number: for tensors that it has been at.
    pub(super) fn find(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
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
        Ok(tensor)
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
pub(super) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter().copied();
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect(),
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        Dtype::F64 => {
            bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
        }
        _ => return None,
    })
}

/// A digest in hex.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{TensorView, serialize};

    use super::*;

    fn file(tensors: &[(&'static str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
        let view = |&(name, dtype, shape, bytes): &(&'static str, Dtype, &[usize], _)| {
            (name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
        };
        serialize(tensors.iter().map(view).collect::<Vec<_>>(), None).unwrap()
    }

    fn refusal<T>(result: Result<T>) -> String {
        format!("{:#}", result.err().unwrap())
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn floats_of_every_width_are_widened() {
        let all = file(&[
            ("single", Dtype::F32, &[1], &(-2.25f32).to_le_bytes()),
            ("half", Dtype::F16, &[1], &f16::from_f32(-2.25).to_le_bytes()),
            ("brain", Dtype::BF16, &[1], &bf16::from_f32(-2.25).to_le_bytes()),
            ("double", Dtype::F64, &[1], &(-2.25f64).to_le_bytes()),
            ("bn1.num_batches_tracked", Dtype::I64, &[], &7i64.to_le_bytes()),
        ]);
        let weights = Weights::from_bytes("some.safetensors", &all).unwrap();
        assert_eq!(weights.names().count(), 4);
        for name in ["single", "half", "brain", "double"] {
            let got = weights.get(name, &[1]).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(got, [-2.25], "{name}");
        }
    }

    #[test]
    fn refusals_name_file_and_tensor() {
        let all = file(&[
            ("a", Dtype::F32, &[2], &bytes(&[1.0, 2.0])),
            ("nan", Dtype::F32, &[2], &bytes(&[1.0, f32::NAN])),
            ("infinite", Dtype::F32, &[2], &bytes(&[f32::NEG_INFINITY, 1.0])),
        ]);
        let weights = Weights::from_bytes("some.safetensors", &all).unwrap();
        let missing = refusal(weights.get("b", &[2]));
        assert!(
            missing.contains("some.safetensors: there is no tensor b (it holds a, "),
            "{missing}"
        );
        let shape = refusal(weights.get("a", &[1, 2]));
        assert!(shape.contains("tensor a has shape [2], this network needs [1, 2]"), "{shape}");
        assert!(refusal(weights.get("nan", &[2])).contains("tensor nan holds numbers"));
        assert!(refusal(weights.get("infinite", &[2])).contains("tensor infinite holds numbers"));
        for end in 0..all.len() {
            let cut = refusal(Weights::from_bytes("some.safetensors", &all[..end]));
            assert!(cut.contains("some.safetensors: neither whole"), "cut at {end}: {cut}");
        }
    }

    #[test]
    fn training_prefixes_are_dropped_in_any_nesting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let one: &[u8] = &1f32.to_le_bytes();
        let names = ["module.encoder.a", "teacher_net.encoder.b", "backbone.c", "model.d", "e"];
        let all: Vec<_> = names.map(|name| (name, Dtype::F32, &[1usize] as &[_], one)).into();
        std::fs::write(&path, file(&all)).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
        let twice = [("model.a", Dtype::F32, &[1usize] as &[_], one), ("a", Dtype::F32, &[1], one)];
        std::fs::write(&path, file(&twice)).unwrap();
        assert!(refusal(Weights::open(&path)).contains("two tensors are called a"));
        let absent = refusal(Weights::open(&folder.path().join("absent.pth")));
        assert!(absent.contains("absent.pth"), "{absent}");
    }

    #[test]
    fn hash_is_sha256_of_the_bytes() {
        let all = file(&[]);
        // printf '\10\0\0\0\0\0\0\0{}      ' | sha256sum
        assert_eq!(all, b"\x08\0\0\0\0\0\0\0{}      ");
        let weights = Weights::from_bytes("empty", &all).unwrap();
        assert_eq!(
            weights.sha256(),
            "9bbcbf73561f6bc5d0a17ea6a2081feed2d1304e87602d8c502d9a5c4bd85576"
        );
    }
}
