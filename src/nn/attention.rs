//! Multi-size self-attention (PRN, `../shared/spec/prn.md`, section 1.4).

use serde::{Deserialize, Serialize};

use super::graph::{Conv, Graph, Value};

/// What makes a head's q, k and v of the map (P-3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Embedding {
    /// A 1×1 convolution before patches are cut, as M2TR does.
    #[default]
    Shared,
    /// A scale and a shift for each number of a flattened patch, as PRNet does.
    Elementwise,
}

/// What logits are divided by (P-5), a flattened patch having c·p² numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// By c·p² (eq. 3).
    #[default]
    PatchSize,
    /// By √(c·p²), as transformers do.
    Root,
}

impl Scale {
    /// What logits of patches of `size` numbers are multiplied by.
    fn factor(self, size: usize) -> f32 {
        match self {
            Scale::PatchSize => 1.0 / size as f32,
            Scale::Root => 1.0 / (size as f32).sqrt(),
        }
    }
}

/// Four heads with patches of the map's height and its half, quarter and eighth, side by side, then
/// a residual block: [C, H, W] → [C, H, W]. A head's embeddings are `<at>q.<head>` and so on.
pub fn multi_size_attention(
    g: &mut Graph,
    xs: Value,
    at: &str,
    embedding: Embedding,
    scale: Scale,
) -> Value {
    let dims = g.dims(xs);
    let c = dims.channels;
    let heads: Vec<Value> = [1, 2, 4, 8]
        .into_iter()
        .enumerate()
        .map(|(head, share)| {
            let patch = dims.height / share;
            let maps = ["q", "k", "v"].map(|kind| {
                let name = format!("{at}{kind}.{head}");
                match embedding {
                    Embedding::Shared => g.conv(xs, Conv::new(name, c, c, 1).with_bias()),
                    Embedding::Elementwise => g.patch_affine(xs, name, patch),
                }
            });
            g.patch_attention(maps, patch, scale.factor(c * patch * patch))
        })
        .collect();
    let heads = g.concat(&heads); // [4·C, H, W]

    let ys = g.conv(heads, Conv::new(format!("{at}c1"), 4 * c, c, 3).with_bias());
    let ys = g.batch_norm(ys, format!("{at}b1"));
    let ys = g.relu(ys);
    let ys = g.conv(ys, Conv::new(format!("{at}c2"), c, c, 3).with_bias());
    let ys = g.batch_norm(ys, format!("{at}b2"));
    let shortcut = g.conv(heads, Conv::new(format!("{at}sc"), 4 * c, c, 1).with_bias());
    let sum = g.add(ys, shortcut);
    g.relu(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::{Dims, Op};
    use crate::nn::reference::run_on;
    use crate::nn::vectors::Vector;

    fn module(channels: usize, side: usize, embedding: Embedding, scale: Scale) -> Graph {
        let mut g = Graph::default();
        let xs = g.input(Dims { channels, height: side, width: side });
        let out = multi_size_attention(&mut g, xs, "", embedding, scale);
        let heads = (0..g.nodes().len()).find(|&i| g.nodes()[i].op == Op::Concat).unwrap();
        g.set_outputs(vec![Value(heads), out]);
        g
    }

    #[test]
    fn the_module_equals_the_vector() {
        let Some(vector) = Vector::open("prn_msa") else { return };
        let weights = vector.weights(str::to_owned);
        let inputs = [vector.input("x")];
        let got = run_on(&module(2, 8, Embedding::Shared, Scale::PatchSize), &weights, &inputs);
        let got = got.unwrap();
        vector.assert_close("heads", &got[0]);
        vector.assert_close("out", &got[1]);
        let got = run_on(&module(2, 8, Embedding::Shared, Scale::Root), &weights, &inputs);
        vector.assert_close("heads_sqrt_scale", &got.unwrap()[0]);
    }

    #[test]
    fn parameters_are_those_of_the_spec() {
        let count = |channels, side, embedding| {
            module(channels, side, embedding, Scale::PatchSize).parameter_count()
        };
        let mut elementwise = 0;
        for (channels, want) in [(128, 1_001_856), (256, 4_002_560), (512, 16_000_512)] {
            assert_eq!(count(channels, 8, Embedding::Shared), want, "{channels} channels");
            // q, k and v of four heads
            let convolutions = 12 * (channels * channels + channels);
            let side = 64 * 128 / channels;
            elementwise +=
                3 * (count(channels, side, Embedding::Elementwise) + convolutions - want);
        }
        // "21.9 M params over all modules" at 256 × 256
        assert_eq!(elementwise, 21_934_080);
    }
}
