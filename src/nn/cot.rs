//! The contextual transformer block (Li et al. 2021, CoTNet) as NTSNet changes it: queries get a 1×1
//! convolution, values a second one, and static and dynamic context are summed
//! (`../shared/spec/ntsnet.md`, section 1).

use serde::{Deserialize, Serialize};

use super::graph::{Conv, Graph, Value};
use super::layers::{conv_bn, sequential};

/// Groups of the static context's convolution; channels that share weights of the dynamic one.
const GROUPS: usize = 4;
const SHARE: usize = 8;

/// Among which places the weights of the dynamic context are shared out (N-5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// The 3×3 window around each place, as CoTNet does.
    #[default]
    Local,
    /// All places of a channel, whose values are then weighed one by one: what a widespread
    /// reimplementation of CoTNet does. Of H·W places a weight is small, and the context nearly nothing.
    Global,
}

/// [C, H, W] → [C, H, W]: a drop-in for a 3×3 convolution.
pub fn cot_block(g: &mut Graph, xs: Value, at: &str, attention: Attention) -> Value {
    let c = g.dims(xs).channels;
    let key = Conv::new(format!("{at}key.0"), c, c, 3).groups(GROUPS);
    let key = conv_bn(g, xs, key, format!("{at}key.1"));
    let key = g.relu(key);
    let query = sequential(g, xs, &format!("{at}query."), c, 1);
    let value = sequential(g, xs, &format!("{at}value.0."), c, 1);
    let second = Conv::new(format!("{at}value.1.0"), c, c, 1);
    let value = conv_bn(g, value, second, format!("{at}value.1.1"));

    let both = g.concat(&[key, query]);
    let theta = sequential(g, both, &format!("{at}theta."), c / 2, 1);
    let delta = |c_out| Conv::new(format!("{at}delta"), c / 2, c_out, 1).with_bias();
    let dynamic = match attention {
        Attention::Local => {
            let logits = g.conv(theta, delta(9 * (c / SHARE))); // [9·C/8, H, W]
            g.window_attention(logits, value)
        }
        Attention::Global => {
            let logits = g.conv(theta, delta(c));
            let weights = g.place_softmax(logits);
            g.mul(weights, value)
        }
    };
    g.add(key, dynamic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::Dims;
    use crate::nn::reference::run_on;
    use crate::nn::vectors::Vector;

    #[test]
    fn the_block_equals_the_vectors() {
        for (name, attention) in
            [("cot_block_local", Attention::Local), ("cot_block_global", Attention::Global)]
        {
            let Some(vector) = Vector::open(name) else { return };
            let mut g = Graph::default();
            let xs = g.input(Dims { channels: 16, height: 5, width: 5 });
            let out = cot_block(&mut g, xs, "", attention);
            g.set_outputs(vec![out]);
            let weights = vector.weights(str::to_owned);
            vector.assert_close("out", &run_on(&g, &weights, &[vector.input("x")]).unwrap()[0]);
        }
    }

    #[test]
    fn parameters_are_those_of_the_spec() {
        for (channels, want) in [(64, 28_552), (128, 112_912), (256, 449_056)] {
            let mut g = Graph::default();
            let xs = g.input(Dims { channels, height: 4, width: 4 });
            cot_block(&mut g, xs, "", Attention::Local);
            assert_eq!(g.parameter_count(), want, "{channels} channels");
        }
    }
}
