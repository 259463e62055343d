//! Multi-scale fusion (PRN, `../shared/spec/prn.md`, section 1.3): each scale becomes the sum of all
//! three, brought to its size and channels.

use serde::{Deserialize, Serialize};

use super::graph::{Conv, Graph, Resample, Value};
use crate::ops::interpolate::Align;

/// How a scale gets to the size and channels of a coarser one (P-6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depthwise {
    /// A filter for each channel, then a 1×1 convolution.
    #[default]
    Separable,
    /// Several filters for each channel and no more, as PRNet does.
    Grouped,
}

/// Three maps, each half as large as the one before, of any channels → the same shapes. The way from
/// scale r to scale j has the name `<at>f.<r><j>`; all convolutions have biases.
///
/// # Panics
/// If [`Depthwise::Grouped`] and the channels of a scale are no multiple of those before.
pub fn multi_scale_fusion(
    g: &mut Graph,
    scales: [Value; 3],
    at: &str,
    depthwise: Depthwise,
    align: Align,
) -> [Value; 3] {
    [0, 1, 2].map(|j| {
        let to = g.dims(scales[j]);
        let mut sum = scales[j];
        for (r, &from) in scales.iter().enumerate().filter(|&(r, _)| r != j) {
            let name = format!("{at}f.{r}{j}");
            let c = g.dims(from).channels;
            let moved = if r < j {
                let stride = 1 << (j - r);
                let filters = |name: String, c: usize| {
                    Conv::new(name, c, c, stride + 1).stride(stride).groups(c).with_bias()
                };
                match depthwise {
                    Depthwise::Separable => {
                        let small = g.conv(from, filters(format!("{name}.0"), c));
                        g.conv(small, Conv::new(format!("{name}.1"), c, to.channels, 1).with_bias())
                    }
                    Depthwise::Grouped => {
                        assert!(to.channels.is_multiple_of(c), "{c} channels to {}", to.channels);
                        let repeated = g.repeat_channels(from, to.channels / c);
                        g.conv(repeated, filters(name, to.channels))
                    }
                }
            } else {
                let large = g.upsample(from, (to.height, to.width), Resample::Bilinear(align));
                g.conv(large, Conv::new(name, c, to.channels, 1).with_bias())
            };
            sum = g.add(sum, moved);
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::nn::graph::Dims;
    use crate::nn::reference::run_on;
    use crate::nn::vectors::Vector;
    use crate::nn::weights::Weights;

    fn fused(channels: [usize; 3], depthwise: Depthwise, align: Align) -> Graph {
        let mut g = Graph::default();
        let scales = [0, 1, 2].map(|j| {
            let side = 8 >> j;
            g.input(Dims { channels: channels[j], height: side, width: side })
        });
        let out = multi_scale_fusion(&mut g, scales, "", depthwise, align);
        g.set_outputs(out.into());
        g
    }

    #[test]
    fn fused_scales_equal_the_vector() {
        let Some(vector) = Vector::open("prn_mf") else { return };
        let inputs = ["x1", "x2", "x3"].map(|name| vector.input(name));
        let weights = vector.weights(str::to_owned);
        for (align, suffix) in [(Align::Corners, ""), (Align::HalfPixel, "_align_corners_false")] {
            let graph = fused([2, 4, 8], Depthwise::Separable, align);
            let got = run_on(&graph, &weights, &inputs).unwrap();
            for (name, got) in ["out1", "out2", "out3"].iter().zip(&got) {
                vector.assert_close(&format!("{name}{suffix}"), got);
            }
        }
    }

    #[test]
    fn parameters_are_those_of_the_spec() {
        let count =
            |channels, depthwise| fused(channels, depthwise, Align::Corners).parameter_count();
        assert_eq!(count([64, 128, 256], Depthwise::Separable), 119_168);
        assert_eq!(count([128, 256, 512], Depthwise::Separable), 467_712);
        assert_eq!(count([64, 128, 256], Depthwise::Grouped), 68_096);
        assert_eq!(count([128, 256, 512], Depthwise::Grouped), 250_880);
    }

    #[test]
    fn grouped_filters_of_a_channel_are_neighbours() {
        let graph = fused([1, 2, 4], Depthwise::Grouped, Align::Corners);
        let tensors = graph.tensors().into_iter().map(|(name, shape)| {
            let count = shape.iter().product();
            // Of the way from scale 0 to scale 1: the centre of the filters 1 and 2, all else 0.
            let values: Vec<f32> = match name.as_str() {
                "f.01.weight" => (0..count)
                    .map(|i| {
                        [(4, 1.0), (13, 2.0)]
                            .iter()
                            .find(|(at, _)| *at == i)
                            .map_or(0.0, |(_, value)| *value)
                    })
                    .collect(),
                _ => vec![0.0; count],
            };
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        });
        let weights = Weights::from_tensors("made up", tensors.collect()).unwrap();
        let numbers = |c: usize, side: usize| {
            let values: Vec<f32> = (0..c * side * side).map(|i| i as f32).collect();
            Tensor::from_vec(values, (1, c, side, side), &Device::Cpu).unwrap()
        };
        let inputs = [numbers(1, 8), numbers(2, 4), numbers(4, 2)];
        let got = run_on(&graph, &weights, &inputs).unwrap()[1].flatten_all().unwrap();
        let got: Vec<f32> = got.to_vec1().unwrap();
        for (i, got) in got.iter().enumerate() {
            let (c, y, x) = (i / 16, i / 4 % 4, i % 4);
            assert_eq!(*got, (i + (c + 1) * (16 * y + 2 * x)) as f32, "{i}");
        }
    }
}
