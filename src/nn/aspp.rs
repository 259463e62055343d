//! Atrous spatial pyramid pooling (Chen et al. 2017, "Rethinking Atrous Convolution"), under the
//! names of DeSTSeg's published code.

use super::graph::{Conv, Graph, Resample, Value};
use super::layers::conv_bn_relu;
use crate::ops::interpolate::Align;

/// The mean of the whole map and 3×3 convolutions at each dilation of `rates`, O = `c_out` channels
/// each, side by side and fused by a 3×3 convolution: [C, H, W] → [O, H, W].
pub fn aspp(g: &mut Graph, xs: Value, at: &str, c_out: usize, rates: &[usize]) -> Value {
    let dims = g.dims(xs);
    let conv =
        |name: &str, c_in, kernel| Conv::new(format!("{at}{name}.conv"), c_in, c_out, kernel);
    let norm = |name: &str| format!("{at}{name}.norm");

    let pool = "aspp_feature_extractors.0.1";
    let mean = g.region_mean(xs, 1);
    let mean = conv_bn_relu(g, mean, conv(pool, dims.channels, 1), norm(pool));
    let to = (dims.height, dims.width);
    let mut branches = vec![g.upsample(mean, to, Resample::Bilinear(Align::HalfPixel))];
    for (i, &rate) in rates.iter().enumerate() {
        let name = format!("aspp_feature_extractors.{}", i + 1);
        let conv = conv(&name, dims.channels, 3).dilation(rate);
        branches.push(conv_bn_relu(g, xs, conv, norm(&name)));
    }
    let all = g.concat(&branches);
    let fuse = "aspp_fusion_layer";
    conv_bn_relu(g, all, conv(fuse, g.dims(all).channels, 3), norm(fuse))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::Dims;
    use crate::nn::reference::run_on;
    use crate::nn::vectors::{Batch, Vector};

    #[test]
    fn the_pyramid_equals_the_vector() {
        let Some(vector) = Vector::open("aspp_small") else { return };
        let mut g = Graph::default();
        let xs = g.input(Dims { channels: 4, height: 8, width: 8 });
        let out = aspp(&mut g, xs, "", 3, &[2, 3, 5]);
        g.set_outputs(vec![out]);
        // pool.0, br.<i>.0 and fuse.0 are convolutions, .1 their norms
        let weights = vector.weights(|name| {
            let name = name.replace("pool.", "aspp_feature_extractors.0.1.");
            let name = name.replace("fuse.", "aspp_fusion_layer.");
            let name = (0..3).fold(name, |name, i| {
                let ours = format!("aspp_feature_extractors.{}.", i + 1);
                name.replace(&format!("br.{i}."), &ours)
            });
            let (path, kind) = name.rsplit_once('.').unwrap();
            let (path, place) = path.rsplit_once('.').unwrap();
            format!("{path}.{}.{kind}", if place == "0" { "conv" } else { "norm" })
        });
        let inputs = [vector.input("x")];
        vector.assert_close("eval_out", &run_on(&g, &weights, &inputs).unwrap()[0]);
        vector.assert_close("train_out", &run_on(&g, &Batch(weights), &inputs).unwrap()[0]);
    }
}
