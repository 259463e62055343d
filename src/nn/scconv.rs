//! Self-calibrated convolution on all channels (Liu et al. 2020, SCNet; MLFF,
//! `../shared/spec/mlff.md`, section 1.2).

use super::graph::{Conv, Graph, Resample, Value};
use super::layers::conv_bn;

/// r: how much smaller the map is that calibrates; SCNet's number.
pub const REDUCTION: usize = 4;

/// [C, H, W] → [C, H, W]: a convolution of a convolution gated by σ(x + low), low being a
/// convolution of x averaged over r × r places and laid back by nearest neighbour. No ReLU at the
/// end.
pub fn self_calibrated(g: &mut Graph, xs: Value, at: &str) -> Value {
    let dims = g.dims(xs);
    let conv = |g: &mut Graph, xs, name| {
        let conv = Conv::new(format!("{at}{name}.0"), dims.channels, dims.channels, 3);
        conv_bn(g, xs, conv, format!("{at}{name}.1"))
    };
    let small = g.average_pool(xs, REDUCTION);
    let low = conv(g, small, "k2");
    let low = g.upsample(low, (dims.height, dims.width), Resample::Nearest);
    let sum = g.add(xs, low);
    let gate = g.sigmoid(sum);
    let ys = conv(g, xs, "k3");
    let ys = g.mul(ys, gate);
    conv(g, ys, "k4")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::Dims;
    use crate::nn::reference::run_on;
    use crate::nn::vectors::{Batch, Vector};

    #[test]
    fn the_convolution_equals_the_vector() {
        let Some(vector) = Vector::open("scconv") else { return };
        let mut g = Graph::default();
        let xs = g.input(Dims { channels: 4, height: 8, width: 8 });
        let out = self_calibrated(&mut g, xs, "");
        g.set_outputs(vec![out]);
        let (weights, inputs) = (vector.weights(str::to_owned), [vector.input("x")]);
        vector.assert_close("eval_nearest", &run_on(&g, &weights, &inputs).unwrap()[0]);
        vector.assert_close("train_nearest", &run_on(&g, &Batch(weights), &inputs).unwrap()[0]);
    }
}
