//! PRN (Zhang et al. 2023, "Prototypical Residual Networks"): features and what separates them from
//! the nearest good part's, fused over scales, attended over sizes and decoded to a map
//! (`../shared/spec/prn.md`). There is no published code; names are those of
//! `../shared/spec/tools/specmodels.py`, prototypes are `prototypes.1` to `prototypes.3`.

use serde::{Deserialize, Serialize};

use super::attention::multi_size_attention;
pub use super::attention::{Embedding, Scale};
pub use super::fusion::Depthwise;
use super::fusion::multi_scale_fusion;
use super::graph::{Conv, Graph, Resample, Value};
use super::layers::{basic_block, conv_bn_relu};
use super::teacher::{LEVELS, Teacher};
pub use crate::ops::interpolate::Align;

/// Path of the encoder, whose stem to layer3 are never trained, and of its layer4.
pub const ENCODER: &str = "enc.";
pub const LAYER4: &str = "enc.layer4.";

/// Attention modules one behind the other at each scale.
const MODULES: usize = 3;

/// Which of the paper's networks; the default is the paper's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Variant {
    /// What makes the features of the three scales. Layer4 is ResNet18's whatever this is.
    pub encoder: Teacher,
    /// MP (paper, table 4): without, there are no residuals, and a scale is its features.
    pub prototypes: bool,
    /// MSA (paper, table 4): without, what it would read goes on as it is.
    pub attention: bool,
    /// MF (paper, table 4): without, each scale stays by itself, in all three places.
    pub fusion: bool,
    /// P-2.
    pub residual: Residual,
    /// P-3.
    pub embedding: Embedding,
    /// P-5.
    pub scale: Scale,
    /// P-6.
    pub depthwise: Depthwise,
    /// Features and residuals are fused with the same weights, `mf_f.` (P-7).
    pub shared_fusion: bool,
    /// Where bilinear values come from, in the decoder and in MF (P-9).
    pub align: Align,
}

impl Default for Variant {
    fn default() -> Variant {
        Variant {
            encoder: Teacher::default(),
            prototypes: true,
            attention: true,
            fusion: true,
            residual: Residual::default(),
            embedding: Embedding::default(),
            scale: Scale::default(),
            depthwise: Depthwise::default(),
            shared_fusion: false,
            align: Align::Corners,
        }
    }
}

/// What stands between features and the nearest prototype, number by number (P-2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    #[default]
    Absolute,
    /// As MemSeg and PRNet do.
    Squared,
}

/// The paper's network: see [`Variant::graph`].
pub fn graph(side: usize, prototypes: [usize; 3]) -> Graph {
    Variant::default().graph(side, prototypes)
}

impl Variant {
    /// For square pictures of a multiple of 128 pixels, with the number of prototypes at each scale
    /// (of no meaning without MP). Output: the map [1, side, side] in 0..1.
    pub fn graph(self, side: usize, prototypes: [usize; LEVELS]) -> Graph {
        let (mut g, xs) = Graph::new(side, side);
        let features = self.encoder.levels(&mut g, xs, ENCODER);
        let deep = basic_block(&mut g, features[2], &format!("{LAYER4}0."), 512, 2);
        let deep = basic_block(&mut g, deep, &format!("{LAYER4}1."), 512, 1);
        let compared = self.compared(&mut g, features, prototypes);
        let attended = [0, 1, 2].map(|j| {
            let mut xs = compared[j];
            for module in (0..MODULES).filter(|_| self.attention) {
                let at = format!("msa.{j}.{module}.");
                xs = multi_size_attention(&mut g, xs, &at, self.embedding, self.scale);
            }
            xs
        });
        let skips = self.fused(&mut g, attended, "mf_t.");

        let rule = Resample::Bilinear(self.align);
        let xs = decoder_stage(&mut g, deep, skips[2], ("up43.", "blk3."), 256, rule);
        let xs = decoder_stage(&mut g, xs, skips[1], ("up32.", "blk2."), 128, rule);
        let xs = decoder_stage(&mut g, xs, skips[0], ("up21.", "blk1."), 64, rule);
        let xs = g.upsample(xs, (side, side), rule);
        let xs = conv3x3(&mut g, xs, "up10.", 64);
        let logits = g.conv(xs, Conv::new("out", 64, 1, 3).with_bias());
        let map = g.sigmoid(logits);
        g.set_outputs(vec![map]);
        g
    }

    /// Features fused, and beside them residuals fused: what attention reads.
    fn compared(
        self,
        g: &mut Graph,
        features: [Value; LEVELS],
        prototypes: [usize; LEVELS],
    ) -> [Value; LEVELS] {
        let residuals = self.prototypes.then(|| {
            [0, 1, 2].map(|j| {
                let name = format!("prototypes.{}", j + 1);
                let distance = g.prototype_residual(features[j], name, prototypes[j]);
                match self.residual {
                    Residual::Absolute => distance,
                    Residual::Squared => g.mul(distance, distance),
                }
            })
        });
        let features = self.fused(g, features, "mf_f.");
        let Some(residuals) = residuals else { return features };
        let at = if self.shared_fusion { "mf_f." } else { "mf_d." };
        let residuals = self.fused(g, residuals, at);
        [0, 1, 2].map(|j| g.concat(&[features[j], residuals[j]]))
    }

    fn fused(self, g: &mut Graph, scales: [Value; LEVELS], at: &str) -> [Value; LEVELS] {
        if !self.fusion {
            return scales;
        }
        multi_scale_fusion(g, scales, at, self.depthwise, self.align)
    }
}

/// To the size of `skip` and a convolution, then beside it two more.
fn decoder_stage(
    g: &mut Graph,
    xs: Value,
    skip: Value,
    (up, block): (&str, &str),
    c_out: usize,
    rule: Resample,
) -> Value {
    let to = g.dims(skip);
    let xs = g.upsample(xs, (to.height, to.width), rule);
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

    #[test]
    fn the_variants_have_the_specs_sizes() {
        let paper = Variant::default();
        let count = |variant: Variant| variant.graph(256, [10, 9, 8]).parameter_count();
        let whole = count(paper);
        assert_eq!(whole, 79_583_873);
        let (mf, mf_t) = (119_168, 467_712);
        let msa = 3_005_568 + 12_007_680 + 48_001_536;
        assert_eq!(count(Variant { fusion: false, ..paper }), whole - 2 * mf - mf_t);
        assert_eq!(count(Variant { attention: false, ..paper }), whole - msa);
        assert_eq!(count(Variant { shared_fusion: true, ..paper }), whole - mf);
        assert_eq!(
            count(Variant { depthwise: Depthwise::Grouped, ..paper }),
            whole - 2 * (mf - 68_096) - (mf_t - 250_880)
        );
        let same = Variant {
            residual: Residual::Squared,
            scale: Scale::Root,
            align: Align::HalfPixel,
            ..paper
        };
        assert_eq!(count(same), whole);
        let unet = Variant { prototypes: false, attention: false, fusion: false, ..paper };
        // Skips of 64, 128 and 256 channels, half of the paper's.
        let decoder = 4_686_529 - 9 * (256 * 256 + 128 * 128 + 64 * 64);
        assert_eq!(count(unet), 11_176_512 + decoder);
        assert!(unet.graph(128, [1; 3]).tensors().iter().all(|(name, _)| !name.contains("proto")));
        let layer4 = 11_176_512 - 2_782_784;
        let compact = Variant { encoder: Teacher::Compact, ..paper };
        assert_eq!(count(compact), whole - 11_176_512 + 972_032 + layer4);
        let deep = Variant { encoder: Teacher::Resnet34, ..paper };
        assert_eq!(count(deep), whole - 11_176_512 + 8_170_304 + layer4);
    }

    #[test]
    fn an_unknown_option_is_refused() {
        let variant: Variant = toml::from_str("residual = \"squared\"\nfusion = false").unwrap();
        let want = Variant { residual: Residual::Squared, fusion: false, ..Variant::default() };
        assert_eq!(variant, want);
        assert!(toml::from_str::<Variant>("residue = \"squared\"").is_err());
    }
}
