//! Multi-scale fusion (PRN, `../shared/spec/prn.md`, section 1.3): each scale becomes the sum of all
//! three, brought to its size and channels.

use super::graph::{Conv, Graph, Resample, Value};
use crate::ops::interpolate::Align;

/// Three maps, each half as large as the one before, of any channels → the same shapes. The way from
/// scale r to scale j has the name `<at>f.<r><j>`; all convolutions have biases.
pub fn multi_scale_fusion(g: &mut Graph, scales: [Value; 3], at: &str) -> [Value; 3] {
    [0, 1, 2].map(|j| {
        let to = g.dims(scales[j]);
        let mut sum = scales[j];
        for (r, &from) in scales.iter().enumerate().filter(|&(r, _)| r != j) {
            let name = format!("{at}f.{r}{j}");
            let c = g.dims(from).channels;
            let moved = if r < j {
                let stride = 1 << (j - r);
                let depthwise = Conv::new(format!("{name}.0"), c, c, stride + 1);
                let depthwise = depthwise.stride(stride).groups(c).with_bias();
                let small = g.conv(from, depthwise);
                g.conv(small, Conv::new(format!("{name}.1"), c, to.channels, 1).with_bias())
            } else {
                let rule = Resample::Bilinear(Align::Corners);
                let large = g.upsample(from, (to.height, to.width), rule);
                g.conv(large, Conv::new(name, c, to.channels, 1).with_bias())
            };
            sum = g.add(sum, moved);
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::Dims;
    use crate::nn::reference::run_on;
    use crate::nn::vectors::Vector;

    fn fused(channels: [usize; 3]) -> Graph {
        let mut g = Graph::default();
        let scales = [0, 1, 2].map(|j| {
            let side = 8 >> j;
            g.input(Dims { channels: channels[j], height: side, width: side })
        });
        let out = multi_scale_fusion(&mut g, scales, "");
        g.set_outputs(out.into());
        g
    }

    #[test]
    fn fused_scales_equal_the_vector() {
        let Some(vector) = Vector::open("prn_mf") else { return };
        let inputs = ["x1", "x2", "x3"].map(|name| vector.input(name));
        let weights = vector.weights(str::to_owned);
        let got = run_on(&fused([2, 4, 8]), &weights, &inputs).unwrap();
        for (name, got) in ["out1", "out2", "out3"].iter().zip(&got) {
            vector.assert_close(name, got);
        }
    }

    #[test]
    fn parameters_are_those_of_the_spec() {
        assert_eq!(fused([64, 128, 256]).parameter_count(), 119_168);
        assert_eq!(fused([128, 256, 512]).parameter_count(), 467_712);
    }
}
