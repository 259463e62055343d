//! Cosines cut into levels (`../shared/spec/mlff.md`, TEM and PTFEM). Maps are [B, 1, H, W].

use anyhow::Result;
use candle_core::{DType, Tensor};

use super::split;
use crate::nn::graph::{LevelRule, Neighbour};

/// Added to the sum of counts, which is zero where all cosines are equal and the rule is
/// [`LevelRule::Reference`]; and to that of pairs (STLNet's code).
const LEAST_COUNT: f64 = 1e-12;
const LEAST_PAIRS: f64 = 1e-6;

/// → [B, 2, 1, N].
pub fn counts(cosines: &Tensor, levels: usize, rule: LevelRule) -> Result<Tensor> {
    let cosines = cosines.flatten_from(1)?; // [B, K]
    let levels = values(&cosines, levels, rule)?; // [B, N]
    let counts = encode(&cosines, &levels, rule)?.sum(1)?;
    let total = (counts.sum_keepdim(1)? + LEAST_COUNT)?;
    let counts = counts.broadcast_div(&total)?;
    Ok(Tensor::stack(&[levels, counts], 1)?.unsqueeze(2)?)
}

/// → [B, 3, S², N²].
pub fn co_occurrence(
    cosines: &Tensor,
    levels: usize,
    regions: usize,
    (rule, neighbour): (LevelRule, Neighbour),
) -> Result<Tensor> {
    let (b, _, height, width) = cosines.dims4()?;
    let (h, w) = (height / regions, width / regions);
    let all = b * regions * regions; // R
    let cosines = split(cosines, regions)?.squeeze(1)?.permute((0, 1, 3, 2, 4))?.contiguous()?;
    let cosines = cosines.reshape((all, h * w))?;
    let values = values(&cosines, levels, rule)?; // [R, N]
    let (dy, dx) = neighbour.offset();
    let pairs = if h > dy && w > dx {
        let encoded = encode(&cosines, &values, rule)?.reshape((all, h, w, levels))?;
        let part = |y, x| -> Result<Tensor> {
            let part = encoded.narrow(1, y, h - dy)?.narrow(2, x, w - dx)?.contiguous()?;
            Ok(part.reshape((all, (h - dy) * (w - dx), levels))?)
        };
        part(0, 0)?.t()?.contiguous()?.matmul(&part(dy, dx)?)?
    } else {
        Tensor::zeros((all, levels, levels), DType::F32, cosines.device())?
    };
    let pairs = pairs.reshape((all, levels * levels))?;
    let pairs = pairs.broadcast_div(&(pairs.sum_keepdim(1)? + LEAST_PAIRS)?)?;
    let first = values.unsqueeze(2)?.repeat((1, 1, levels))?.reshape(pairs.dims())?;
    let second = values.unsqueeze(1)?.repeat((1, levels, 1))?.reshape(pairs.dims())?;
    let together = Tensor::stack(&[first, second, pairs], 1)?; // [R, 3, N²]
    let together = together.reshape((b, regions * regions, 3, levels * levels))?;
    Ok(together.transpose(1, 2)?.contiguous()?)
}

/// `d` [B, C, 1, N] → [B, C, H, W].
pub fn spread(cosines: &Tensor, d: &Tensor, rule: LevelRule) -> Result<Tensor> {
    let (b, _, h, w) = cosines.dims4()?;
    let (_, c, _, levels) = d.dims4()?;
    let cosines = cosines.flatten_from(1)?;
    let encoded = encode(&cosines, &values(&cosines, levels, rule)?, rule)?; // [B, K, N]
    let spread = d.squeeze(2)?.contiguous()?.matmul(&encoded.t()?.contiguous()?)?; // [B, C, K]
    Ok(spread.reshape((b, c, h, w))?)
}

/// L: `cosines` [R, K] → [R, N]. Of several places that hold a bound the first has its gradient:
/// candle's minima and maxima would give all of it to each.
fn values(cosines: &Tensor, levels: usize, rule: LevelRule) -> Result<Tensor> {
    let n = levels as f64;
    let least = cosines.gather(&cosines.argmin_keepdim(1)?, 1)?;
    let most = cosines.gather(&cosines.argmax_keepdim(1)?, 1)?;
    let range = (most - &least)?; // [R, 1]
    let counting = Tensor::arange(0u32, levels as u32, cosines.device())?.to_dtype(DType::F32)?;
    let counting = counting.unsqueeze(0)?; // [1, N]
    let values = match rule {
        LevelRule::Paper => (range / n)?.broadcast_mul(&(counting + 1.0)?)?,
        LevelRule::Reference => range.broadcast_mul(&(counting.affine(2.0, 1.0)? / (2.0 * n))?)?,
    };
    Ok(values.broadcast_add(&least)?)
}

/// E: `cosines` [R, K] and `levels` [R, N] → [R, K, N].
fn encode(cosines: &Tensor, levels: &Tensor, rule: LevelRule) -> Result<Tensor> {
    let difference = levels.unsqueeze(1)?.broadcast_sub(&cosines.unsqueeze(2)?)?;
    let n = levels.dim(1)?;
    let counted = match rule {
        LevelRule::Paper => {
            let half = 0.5 / n as f64;
            (difference.ge(-half)? * difference.lt(half)?)?
        }
        LevelRule::Reference => {
            let spacing = (levels.narrow(1, 1, 1)? - levels.narrow(1, 0, 1)?)?; // [R, 1]
            difference.abs()?.broadcast_lt(&spacing.unsqueeze(2)?)?
        }
    };
    Ok(((1.0 - difference.abs()?)? * counted.to_dtype(DType::F32)?)?)
}
