//! Multi-size self-attention (PRN, `../shared/spec/prn.md`, section 1.4).

use super::graph::{Conv, Graph, Value};

/// Four heads with patches of the map's height and its half, quarter and eighth, side by side, then
/// a residual block: [C, H, W] → [C, H, W]. A head's q, k and v are 1×1 convolutions `<at>q.<head>`
/// and so on.
pub fn multi_size_attention(g: &mut Graph, xs: Value, at: &str) -> Value {
    let dims = g.dims(xs);
    let c = dims.channels;
    let heads: Vec<Value> = [1, 2, 4, 8]
        .into_iter()
        .enumerate()
        .map(|(head, share)| {
            let [q, k, v] = ["q", "k", "v"].map(|kind| {
                g.conv(xs, Conv::new(format!("{at}{kind}.{head}"), c, c, 1).with_bias())
            });
            g.patch_attention(q, k, v, dims.height / share)
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

    #[test]
    fn the_module_equals_the_vector() {
        let Some(vector) = Vector::open("prn_msa") else { return };
        let mut g = Graph::default();
        let xs = g.input(Dims { channels: 2, height: 8, width: 8 });
        let out = multi_size_attention(&mut g, xs, "");
        let heads = (0..g.nodes().len()).find(|&i| g.nodes()[i].op == Op::Concat).unwrap();
        g.set_outputs(vec![Value(heads), out]);
        let weights = vector.weights(str::to_owned);
        let got = run_on(&g, &weights, &[vector.input("x")]).unwrap();
        vector.assert_close("heads", &got[0]);
        vector.assert_close("out", &got[1]);
    }

    #[test]
    fn parameters_are_those_of_the_spec() {
        for (channels, want) in [(128, 1_001_856), (256, 4_002_560), (512, 16_000_512)] {
            let mut g = Graph::default();
            let xs = g.input(Dims { channels, height: 8, width: 8 });
            multi_size_attention(&mut g, xs, "");
            assert_eq!(g.parameter_count(), want, "{channels} channels");
        }
    }
}
