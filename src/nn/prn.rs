//! PRN (Zhang et al. 2023, "Prototypical Residual Networks"): features and what separates them from
//! the nearest good part's, fused over scales, attended over sizes and decoded to a map
//! (`../shared/spec/prn.md`). There is no published code; names are those of
//! `../shared/spec/tools/specmodels.py`, prototypes are `prototypes.1` to `prototypes.3`.

use super::attention::multi_size_attention;
use super::fusion::multi_scale_fusion;
use super::graph::{Conv, Graph, Resample, Value};
use super::layers::conv_bn_relu;
use super::resnet::{Depth, trunk};
use crate::ops::interpolate::Align;

/// Attention modules one behind the other at each scale.
const MODULES: usize = 3;

/// For square pictures of a multiple of 128 pixels, with the number of prototypes at each scale.
/// Output: the map [1, side, side] in 0..1.
pub fn graph(side: usize, prototypes: [usize; 3]) -> Graph {
    let (mut g, xs) = Graph::new(side, side);
    let levels = trunk(&mut g, xs, "enc.", Depth::R18, 4);
    let features = [levels[0], levels[1], levels[2]];
    let residuals = [0, 1, 2]
        .map(|j| g.prototype_residual(features[j], format!("prototypes.{}", j + 1), prototypes[j]));
    let features = multi_scale_fusion(&mut g, features, "mf_f.");
    let residuals = multi_scale_fusion(&mut g, residuals, "mf_d.");
    let attended = [0, 1, 2].map(|j| {
        let mut xs = g.concat(&[features[j], residuals[j]]);
        for module in 0..MODULES {
            xs = multi_size_attention(&mut g, xs, &format!("msa.{j}.{module}."));
        }
        xs
    });
    let skips = multi_scale_fusion(&mut g, attended, "mf_t.");

    let xs = decoder_stage(&mut g, levels[3], skips[2], ("up43.", "blk3."), 256);
    let xs = decoder_stage(&mut g, xs, skips[1], ("up32.", "blk2."), 128);
    let xs = decoder_stage(&mut g, xs, skips[0], ("up21.", "blk1."), 64);
    let xs = g.upsample(xs, (side, side), Resample::Bilinear(Align::Corners));
    let xs = conv3x3(&mut g, xs, "up10.", 64);
    let logits = g.conv(xs, Conv::new("out", 64, 1, 3).with_bias());
    let map = g.sigmoid(logits);
    g.set_outputs(vec![map]);
    g
}

/// To the size of `skip` and a convolution, then beside it two more.
fn decoder_stage(
    g: &mut Graph,
    xs: Value,
    skip: Value,
    (up, block): (&str, &str),
    c_out: usize,
) -> Value {
    let to = g.dims(skip);
    let xs = g.upsample(xs, (to.height, to.width), Resample::Bilinear(Align::Corners));
    let xs = conv3x3(g, xs, up, c_out);
    let xs = g.concat(&[skip, xs]);
    let xs = conv3x3(g, xs, &format!("{block}0."), c_out);
    conv3x3(g, xs, &format!("{block}1."), c_out)
}

/// 3×3 convolution with bias, batch norm, ReLU.
fn conv3x3(g: &mut Graph, xs: Value, at: &str, c_out: usize) -> Value {
    let conv = Conv::new(format!("{at}0"), g.dims(xs).channels, c_out, 3).with_bias();
    conv_bn_relu(g, xs, conv, format!("{at}1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::Dims;

    #[test]
    fn the_network_is_the_specs() {
        let g = graph(256, [10, 9, 8]);
        assert_eq!(g.outputs().len(), 1);
        assert_eq!(g.dims(g.outputs()[0]), Dims { channels: 1, height: 256, width: 256 });
        assert_eq!(g.parameter_count(), 79_583_873);
        let tensors = g.tensors();
        let shape = |name: &str| &tensors.iter().find(|(own, _)| own == name).unwrap().1;
        assert_eq!(*shape("prototypes.1"), [10, 64, 64, 64]);
        assert_eq!(*shape("prototypes.3"), [8, 256, 16, 16]);
    }
}
