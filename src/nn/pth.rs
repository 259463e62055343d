//! Zip `.pth` files of PyTorch.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use candle_core::Tensor;

pub(super) fn read(_bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    bail!("zip .pth")
}

pub(super) fn legacy_stream() -> anyhow::Error {
    anyhow!("a pickle stream of an old PyTorch")
}
