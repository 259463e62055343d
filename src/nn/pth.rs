//! Zip `.pth` files as `torch.save` has written them since PyTorch 1.6: `<root>/data.pkl`, a pickle
//! that describes tensors, and their numbers in `<root>/data/<key>`, little-endian.
//!
//! The pickle is parsed into inert values by candle's reader, which knows dictionaries, lists,
//! numbers, strings and "call this with that" as plain records; it has no way to call anything.
//! From those records only `torch._utils._rebuild_tensor_v2` on a storage inside the same archive
//! is understood here; all else is left alone.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::pickle::{Object, Stack};
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use zip::ZipArchive;

use super::weights::floats;

/// Descriptions are short: ResNet50's is 40 kB.
const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// Storages may be shared by tensors; what they unfold to must still fit in memory.
const MAX_NUMBERS: usize = 1 << 28;

/// Where training scripts put the state dict.
const NESTS: [&str; 3] = ["state_dict", "model", "model_state_dict"];

const CONVERT_STREAM: &str = "write it anew with: python -c \"import torch; \
     torch.save(torch.load('old.pth', map_location='cpu', weights_only=True), 'new.pth')\"";

const CONVERT_MODEL: &str = "write its state dict anew with: python -c \"import torch; \
     m = torch.load('old.pth', map_location='cpu', weights_only=False); \
     torch.save(m.state_dict() if hasattr(m, 'state_dict') else m, 'new.pth')\" \
     (only with a file you trust: this does run what is in it)";

/// All floating point tensors of the state dict in the zip archive `bytes`, as f32.
pub(super) fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let mut zip =
        ZipArchive::new(Cursor::new(bytes)).context("the zip archive is cut short or damaged")?;
    let names: Vec<String> =
        zip.file_names().map(|name| Ok(name?.into_owned())).collect::<Result<_>>()?;
    let root = names.iter().find_map(|name| {
        let root = name.strip_suffix("data.pkl")?;
        (root.is_empty() || root.ends_with('/')).then_some(root)
    });
    let Some(root) = root else { bail!("a zip archive, but not one of torch.save: no data.pkl") };
    ensure!(
        !names.iter().any(|name| name.strip_prefix(root).is_some_and(|n| n.starts_with("code/"))),
        "a TorchScript program, not a state dict; {CONVERT_MODEL}"
    );
    if names.contains(&format!("{root}byteorder")) {
        let order = entry(&mut zip, &format!("{root}byteorder"), 64)?;
        ensure!(order.starts_with(b"little"), "its numbers are big-endian; {CONVERT_MODEL}");
    }
    let pickle = entry(&mut zip, &format!("{root}data.pkl"), MAX_PICKLE_BYTES)?;
    let mut stack = Stack::empty();
    let parsed = stack.read_loop(&mut pickle.as_slice()).and_then(|()| stack.finalize());
    let object = parsed.map_err(|error| {
        anyhow!("data.pkl is not a plain state dict ({error}); {CONVERT_MODEL}")
    })?;

    let mut tensors = BTreeMap::new();
    let mut numbers = 0usize;
    for (name, value) in state_dict(object)? {
        let (Object::Unicode(name), Some(view)) = (name, TensorView::of(&value)) else { continue };
        let Some(dtype) = view.dtype() else { continue };
        let tensor = || format!("tensor {name}");
        let storage = entry(&mut zip, &format!("{root}data/{}", view.key), bytes.len() as u64)
            .with_context(tensor)?;
        let size = view.shape.iter().try_fold(1usize, |size, &side| size.checked_mul(side));
        numbers = size.and_then(|size| size.checked_add(numbers)).unwrap_or(usize::MAX);
        ensure!(numbers <= MAX_NUMBERS, "its tensors unfold to more than {MAX_NUMBERS} numbers");
        let values = floats(dtype, &storage).and_then(|storage| view.gather(&storage));
        let values = values.with_context(|| {
            format!("tensor {name}: shape {:?} passes the end of its storage", view.shape)
        })?;
        tensors.insert(name, Tensor::from_vec(values, view.shape, &Device::Cpu)?);
    }
    ensure!(!tensors.is_empty(), "there are no tensors in it; {CONVERT_MODEL}");
    Ok(tensors)
}

/// What to say of a file that starts as a bare pickle.
pub(super) fn legacy_stream() -> anyhow::Error {
    anyhow!(
        "a pickle stream as PyTorch wrote before 1.6 (or some other pickle), not a zip .pth; {CONVERT_STREAM}"
    )
}

fn entry(zip: &mut ZipArchive<Cursor<&[u8]>>, name: &str, limit: u64) -> Result<Vec<u8>> {
    let reading = || format!("reading {name} in the archive");
    let mut bytes = Vec::new();
    let file = zip.by_name(name).with_context(reading)?;
    file.take(limit + 1).read_to_end(&mut bytes).with_context(reading)?;
    ensure!(bytes.len() as u64 <= limit, "{name} in the archive is longer than {limit} bytes");
    Ok(bytes)
}

/// The dictionary of tensors: the top one, or the one under a usual key.
fn state_dict(object: Object) -> Result<Vec<(Object, Object)>> {
    let Object::Dict(top) = object else {
        bail!(
            "it holds something else than a state dict (a whole model, a single tensor?); {CONVERT_MODEL}"
        )
    };
    for nest in NESTS {
        let inner = top.iter().find_map(|(key, value)| match (key, value) {
            (Object::Unicode(key), Object::Dict(inner)) if key == nest => Some(inner),
            _ => None,
        });
        if let Some(inner) = inner {
            return Ok(inner.clone());
        }
    }
    Ok(top)
}

/// A tensor as the pickle describes it: places of a storage, in units of numbers.
struct TensorView {
    /// `FloatStorage`, …
    storage_class: String,
    key: String,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl TensorView {
    /// `_rebuild_tensor_v2(storage, offset, size, stride, …)`, also inside a parameter; `None` for
    /// anything else.
    fn of(value: &Object) -> Option<Self> {
        let (class, args) = call(value)?;
        match class {
            "_rebuild_parameter" => return Self::of(args.first()?),
            "_rebuild_tensor_v2" => {}
            _ => return None,
        }
        let [Object::PersistentLoad(storage), offset, size, stride, ..] = args else { return None };
        let Object::Tuple(storage) = &**storage else { return None };
        // ("storage", class, key, device, numbers)
        let [_, Object::Class { class_name, .. }, Object::Unicode(key), ..] = &storage[..] else {
            return None;
        };
        let (shape, stride) = (sizes(size)?, sizes(stride)?);
        (shape.len() == stride.len()).then(|| {
            Some(Self {
                storage_class: class_name.clone(),
                key: key.clone(),
                offset: size_of(offset)?,
                shape,
                stride,
            })
        })?
    }

    fn dtype(&self) -> Option<Dtype> {
        Some(match self.storage_class.as_str() {
            "FloatStorage" => Dtype::F32,
            "HalfStorage" => Dtype::F16,
            "BFloat16Storage" => Dtype::BF16,
            "DoubleStorage" => Dtype::F64,
            _ => return None,
        })
    }

    /// The tensor's numbers, row-major; `None` where it reaches outside the storage.
    fn gather(&self, storage: &[f32]) -> Option<Vec<f32>> {
        if self.shape.contains(&0) {
            return Some(Vec::new());
        }
        let mut places = vec![self.offset];
        for (&size, &stride) in self.shape.iter().zip(&self.stride) {
            let steps =
                |&place: &usize| (0..size).map(move |i| place.checked_add(i.checked_mul(stride)?));
            places = places.iter().flat_map(steps).collect::<Option<_>>()?;
        }
        places.into_iter().map(|place| storage.get(place).copied()).collect()
    }
}

/// A recorded call of a function in `torch._utils`: its name and arguments.
fn call(value: &Object) -> Option<(&str, &[Object])> {
    let Object::Reduce { callable, args } = value else { return None };
    let (Object::Class { module_name, class_name }, Object::Tuple(args)) = (&**callable, &**args)
    else {
        return None;
    };
    (module_name == "torch._utils").then_some((class_name.as_str(), args.as_slice()))
}

fn sizes(tuple: &Object) -> Option<Vec<usize>> {
    let Object::Tuple(all) = tuple else { return None };
    all.iter().map(size_of).collect()
}

fn size_of(number: &Object) -> Option<usize> {
    match number {
        Object::Int(n) => usize::try_from(*n).ok(),
        Object::Long(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::weights::Weights;

    fn file(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
    }

    fn values(weights: &Weights, name: &str, shape: &[usize]) -> Vec<f32> {
        weights.get(name, shape).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn refusal(bytes: &[u8]) -> String {
        format!("{:#}", Weights::from_bytes("some.pth", bytes).unwrap_err())
    }

    /* PyTorch 2.15.0, in the repository root:
    x = torch.arange(24.0)
    torch.save({
        "conv1.weight": torch.nn.Parameter(x.reshape(2, 3, 4) / 7),
        "transposed": (x.reshape(4, 6) / 7).t(),
        "sliced": x[5:9],
        "half": torch.tensor([1.5, -2.25], dtype=torch.float16),
        "brain": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
        "double": torch.tensor([1.5], dtype=torch.float64),
        "bn1.num_batches_tracked": torch.tensor(7),
    }, "tests/data/weights.pth") */
    #[test]
    fn tensors_of_every_layout_are_read() {
        let weights = Weights::from_bytes("weights.pth", &file("weights.pth")).unwrap();
        let sevenths: Vec<f32> = (0..24).map(|i| i as f32 / 7.0).collect();
        assert_eq!(values(&weights, "conv1.weight", &[2, 3, 4]), sevenths);
        let transposed: Vec<f32> = (0..24).map(|i| sevenths[i % 4 * 6 + i / 4]).collect();
        assert_eq!(values(&weights, "transposed", &[6, 4]), transposed);
        assert_eq!(values(&weights, "sliced", &[4]), [5.0, 6.0, 7.0, 8.0]);
        assert_eq!(values(&weights, "half", &[2]), [1.5, -2.25]);
        assert_eq!(values(&weights, "brain", &[2]), [1.5, -2.25]);
        assert_eq!(values(&weights, "double", &[1]), [1.5]);
        assert!(!weights.names().any(|name| name.contains("num_batches")));
    }

    /* wrapped.module.conv1 = torch.nn.Linear(2, 1), weight 0.5, bias 0.25
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1, momentum=0.9)
    torch.save({"epoch": 3, "best": 0.5, "args": {"lr": 0.1, "name": None},
                "state_dict": wrapped.state_dict(), "optimizer": optimizer.state_dict()},
               "tests/data/checkpoint.pth") */
    #[test]
    fn state_dict_in_a_checkpoint_is_found_and_its_prefix_dropped() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint.pth");
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["conv1.bias", "conv1.weight"]);
        assert_eq!(values(&weights, "conv1.weight", &[1, 2]), [0.5, 0.5]);
        assert_eq!(values(&weights, "conv1.bias", &[1]), [0.25]);
    }

    /* torch.save({"a": torch.ones(1)}, "tests/data/legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(x[5:9].clone(), "tests/data/bare_tensor.pth") */
    #[test]
    fn other_kinds_of_files_are_refused_with_the_way_to_convert() {
        let legacy = refusal(&file("legacy.pth"));
        assert!(legacy.contains("some.pth: a pickle stream"), "{legacy}");
        assert!(legacy.contains("weights_only=True"), "{legacy}");
        let tensor = refusal(&file("bare_tensor.pth"));
        assert!(tensor.contains("something else than a state dict"), "{tensor}");
        let text = refusal(b"<html>404 not found</html>");
        assert!(text.contains("some.pth: neither whole safetensors nor a zip .pth"), "{text}");
        assert!(refusal(b"").contains("neither whole safetensors"));
    }

    #[test]
    fn file_cut_anywhere_or_with_a_changed_byte_never_panics() {
        let whole = file("weights.pth");
        for end in 0..whole.len() {
            assert!(Weights::from_bytes("some.pth", &whole[..end]).is_err(), "cut at {end}");
        }
        assert!(refusal(&whole[..200]).contains("cut short"));
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x55;
            let _ = Weights::from_bytes("some.pth", &changed);
        }
    }
}
