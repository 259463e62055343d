//! Texture enhancement and pyramid texture feature extraction (Zhu et al. 2021, STLNet; MLFF,
//! `../shared/spec/mlff.md`, section 1): how often the cosines to the mean feature take each of N
//! levels, learned into features that every place gets back by its own level.
//!
//! `sizes` are those of MLFF in the network itself, smaller ones in tests. Convolutions have no
//! bias.

use super::graph::{Conv, Graph, LevelRule, Neighbour, Resample, Value};
use super::layers::{conv_bn, conv_bn_relu};
use crate::ops::interpolate::Align;

/// Slope of STLNet's LeakyReLU, PyTorch's default.
const SLOPE: f32 = 0.01;

/// Width of the layers that read statistics.
const STATISTICS: usize = 64;

#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Channels of the statistics.
    pub width: usize,
    /// N.
    pub levels: usize,
    pub rule: LevelRule,
    /// Of pairs, in the pyramid.
    pub neighbour: Neighbour,
}

/// Texture enhancement: [C, H, W] → [C, H, W], levels counted over the whole map.
pub fn enhance(g: &mut Graph, xs: Value, at: &str, sizes: Sizes) -> Value {
    let Sizes { width, levels, rule, .. } = sizes;
    let c = g.dims(xs).channels;
    let pre = Conv::new(format!("{at}qco.pre.0.0"), c, c, 3);
    let ys = conv_bn(g, xs, pre, format!("{at}qco.pre.0.1"));
    let ys = g.leaky_relu(ys, SLOPE);
    let ys = g.conv(ys, Conv::new(format!("{at}qco.pre.1"), c, width, 1));

    let mean = g.region_mean(ys, 1);
    let cosines = g.cosine_to_mean(ys, mean);
    let counts = g.level_counts(cosines, levels, rule); // [2, 1, N]
    let counts = read(g, counts, &format!("{at}qco."), width);
    let mean = g.repeat_regions(mean, levels);
    let both = g.concat(&[counts, mean]);
    let out = Conv::new(format!("{at}qco.out.0"), 2 * width, width, 1);
    let statistics = conv_bn_relu(g, both, out, format!("{at}qco.out.1")); // [width, 1, N]

    let [k, q, v] = ["k", "q", "v"]
        .map(|kind| g.conv(statistics, Conv::new(format!("{at}{kind}"), width, width, 1)));
    let attended = g.level_attention(k, q, v);
    let out = Conv::new(format!("{at}o.0"), width, c, 1);
    let learned = conv_bn_relu(g, attended, out, format!("{at}o.1")); // [C, 1, N]
    g.spread_levels(cosines, learned, rule)
}

/// Pyramid texture features: [C, H, W] → [`c_out`, H, W], co-occurrence of levels in S × S regions
/// for each S of `scales`, each scale `sizes.width` channels.
pub fn pyramid(
    g: &mut Graph,
    xs: Value,
    at: &str,
    (c_out, scales): (usize, &[usize]),
    sizes: Sizes,
) -> Value {
    let dims = g.dims(xs);
    let ys = g.conv(xs, Conv::new(format!("{at}pre"), dims.channels, c_out, 1));
    let mut branches = Vec::with_capacity(scales.len());
    for (i, &regions) in scales.iter().enumerate() {
        let branch = regional(g, ys, &format!("{at}u.{i}."), regions, sizes);
        let to = (dims.height, dims.width);
        branches.push(g.upsample(branch, to, Resample::Bilinear(Align::Corners)));
    }
    let all = g.concat(&branches);
    let out = Conv::new(format!("{at}out.0"), g.dims(all).channels, c_out, 1);
    conv_bn_relu(g, all, out, format!("{at}out.1"))
}

/// Co-occurrence features of S × S regions: [C, H, W] → [width, S, S].
pub fn regional(g: &mut Graph, xs: Value, at: &str, regions: usize, sizes: Sizes) -> Value {
    let Sizes { width, levels, rule, neighbour } = sizes;
    let mean = g.region_mean(xs, regions);
    let cosines = g.cosine_to_mean(xs, mean);
    let pairs = g.co_occurrence(cosines, levels, regions, (rule, neighbour)); // [3, S², N²]
    let pairs = read(g, pairs, at, width);
    let mean = g.repeat_regions(mean, levels * levels);
    let both = g.concat(&[mean, pairs]);
    let out = Conv::new(format!("{at}out.0"), g.dims(both).channels, width, 1);
    let ys = conv_bn_relu(g, both, out, format!("{at}out.1"));
    let ys = conv_bn(g, ys, Conv::new(format!("{at}out.3"), width, width, 1), format!("{at}out.4"));
    g.mean_regions(ys)
}

/// The two 1×1 layers on statistics: `<at>f1.0`, LeakyReLU, `<at>f2.0`, ReLU.
fn read(g: &mut Graph, xs: Value, at: &str, width: usize) -> Value {
    let f1 = Conv::new(format!("{at}f1.0"), g.dims(xs).channels, STATISTICS, 1);
    let ys = g.conv(xs, f1);
    let ys = g.leaky_relu(ys, SLOPE);
    let ys = g.conv(ys, Conv::new(format!("{at}f2.0"), STATISTICS, width, 1));
    g.relu(ys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::{Dims, Op};
    use crate::nn::reference::run_on;
    use crate::nn::vectors::Vector;

    /// Those of the vectors.
    const RULES: (LevelRule, Neighbour) = (LevelRule::Reference, Neighbour::Diagonal);

    #[test]
    fn enhancement_equals_the_vector() {
        let Some(vector) = Vector::open("tem_small") else { return };
        let mut g = Graph::default();
        let xs = g.input(Dims { channels: 6, height: 8, width: 8 });
        let (rule, neighbour) = RULES;
        let out = enhance(&mut g, xs, "", Sizes { width: 4, levels: 8, rule, neighbour });
        let attention = g.nodes().iter().find(|node| node.op == Op::LevelAttention).unwrap();
        let statistics = g.node(attention.inputs[0]).inputs[0];
        g.set_outputs(vec![statistics, out]);
        let weights = vector.weights(str::to_owned);
        let got = run_on(&g, &weights, &[vector.input("x")]).unwrap();
        vector.assert_close("stat", &got[0]);
        vector.assert_close("out", &got[1]);
    }

    #[test]
    fn the_pyramid_equals_the_vector() {
        let Some(vector) = Vector::open("ptfem_small") else { return };
        let mut g = Graph::default();
        let xs = g.input(Dims { channels: 6, height: 8, width: 8 });
        let (rule, neighbour) = RULES;
        let sizes = Sizes { width: 3, levels: 4, rule, neighbour };
        let out = pyramid(&mut g, xs, "", (4, &[1, 2, 4]), sizes);
        let means = (0..g.nodes().len()).filter(|&i| g.nodes()[i].op == Op::MeanRegions);
        let second = means.map(Value).nth(1).unwrap();
        g.set_outputs(vec![second, out]);
        let weights = vector.weights(str::to_owned);
        let got = run_on(&g, &weights, &[vector.input("x")]).unwrap();
        vector.assert_close("branch_s2", &got[0]);
        vector.assert_close("out", &got[1]);
    }
}
