//! MLFF: ResNet50 features of three levels, the shallow two enriched with texture statistics, the
//! deep one self-calibrated, and a score at each place (`../shared/spec/mlff.md`). There is no
//! published code; names are those of `../shared/spec/tools/specmodels.py`.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::graph::{Conv, Graph, LevelRule, Neighbour, Op, Resample, Value};
use super::layers::sequential;
use super::resnet::{Depth, trunk};
use super::scconv::self_calibrated;
use super::texture::{self, Sizes};
use crate::ops::interpolate::Align;

/// Path of the encoder, torchvision's names behind it.
pub const ENCODER: &str = "enc.";

/// Width of the texture branch, of its statistics, and of the projection.
const WIDTH: usize = 256;
const STATISTICS: usize = 128;

/// Which of the paper's networks; the default is the paper's own. Its ablations (spec, section 5) are
/// `texture`, `calibration` and `score` turned on one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Variant {
    pub encoder: Encoder,
    /// The texture branch instead of the first two levels as they are.
    pub texture: bool,
    /// The self-calibrated convolution over the third level.
    pub calibration: bool,
    /// The head that scores each place. Without it the map is the distance of the features from their
    /// centre.
    pub score: bool,
    /// At which the levels are put together (M-1).
    pub resolution: Resolution,
    /// M-2.
    pub levels: LevelRule,
    /// M-3.
    pub neighbour: Neighbour,
    /// N over the whole map, from 2 on (M-4).
    pub map_levels: usize,
    /// N in a region, from 2 on (M-4).
    pub region_levels: usize,
    /// M-4.
    pub scales: Scales,
    /// A 1×1 convolution of the features to 256 channels, which are then the features (M-14).
    pub projection: bool,
}

impl Default for Variant {
    fn default() -> Variant {
        Variant {
            encoder: Encoder::default(),
            texture: true,
            calibration: true,
            score: true,
            resolution: Resolution::default(),
            levels: LevelRule::default(),
            neighbour: Neighbour::default(),
            map_levels: 128,
            region_levels: 8,
            scales: Scales::default(),
            projection: false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoder {
    Resnet18,
    Resnet34,
    /// The paper's.
    #[default]
    Resnet50,
}

impl Encoder {
    pub fn depth(self) -> Depth {
        match self {
            Encoder::Resnet18 => Depth::R18,
            Encoder::Resnet34 => Depth::R34,
            Encoder::Resnet50 => Depth::R50,
        }
    }
}

/// Of the features, as a part of the picture's sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// That of the first level.
    #[default]
    Quarter,
    /// That of the second: the first is averaged over 2 × 2 places, as in STLNet.
    Eighth,
}

/// Regions of the pyramid along a side, one number a branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scales {
    /// 1, 2, 4, 8.
    #[default]
    Paper,
    /// 1, 2, 3, 6: STLNet's own. Sides of the picture must be multiples of 192.
    Reference,
}

impl Scales {
    pub fn sides(self) -> [usize; 4] {
        match self {
            Scales::Paper => [1, 2, 4, 8],
            Scales::Reference => [1, 2, 3, 6],
        }
    }
}

/// A cosine map of the network: how it is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantised {
    /// Along a side.
    pub regions: usize,
    /// N of each region.
    pub levels: usize,
}

/// The paper's network but for its levels: see [`Variant::graph`].
pub fn graph(height: usize, width: usize, rule: LevelRule) -> Graph {
    Variant { levels: rule, ..Variant::default() }.graph(height, width)
}

impl Variant {
    /// What the sides of a picture must be multiples of.
    pub fn multiple(self) -> usize {
        match self.scales {
            Scales::Reference if self.texture => 192,
            _ => 64,
        }
    }

    /// # Errors
    /// A value that can't be meant, or one that this size of picture does not allow; the message names
    /// the key.
    pub fn check(self, (height, width): (usize, usize)) -> Result<()> {
        for (key, levels) in
            [("map_levels", self.map_levels), ("region_levels", self.region_levels)]
        {
            ensure!(
                (2..=512).contains(&levels),
                "mlff.network.{key} = {levels}: must lie between 2 and 512"
            );
        }
        let multiple = self.multiple();
        ensure!(
            height > 0
                && width > 0
                && height.is_multiple_of(multiple)
                && width.is_multiple_of(multiple),
            "mlff.network takes pictures whose sides are multiples of {multiple}, not {height} × {width}"
        );
        Ok(())
    }

    /// For sides that [`Variant::check`] allows. Outputs: the features [C, h, w] (C = 1792 with
    /// ResNet50, 1024 with the shallower encoders and texture, 448 without, 256 with projection;
    /// h = H/4 or H/8), and where there is a head their scores [1, h, w], unbounded.
    pub fn graph(self, height: usize, width: usize) -> Graph {
        let (mut g, xs) = Graph::new(height, width);
        let levels = trunk(&mut g, xs, ENCODER, self.encoder.depth(), 3);
        let to = match self.resolution {
            Resolution::Quarter => g.dims(levels[0]),
            Resolution::Eighth => g.dims(levels[1]),
        };
        let resize = |g: &mut Graph, xs: Value| {
            let from = g.dims(xs);
            if from.height > to.height {
                return g.average_pool(xs, from.height / to.height);
            }
            g.upsample(xs, (to.height, to.width), Resample::Bilinear(Align::HalfPixel))
        };
        let [layer1, layer2] = [levels[0], levels[1]].map(|level| resize(&mut g, level));
        let mut parts =
            if self.texture { self.texture(&mut g, layer1, layer2) } else { vec![layer1, layer2] };
        let deep =
            if self.calibration { self_calibrated(&mut g, levels[2], "sc.") } else { levels[2] };
        parts.push(resize(&mut g, deep));
        let mut features = g.concat(&parts);
        if self.projection {
            let c = g.dims(features).channels;
            features = g.conv(features, Conv::new("project", c, WIDTH, 1));
        }
        let mut outputs = vec![features];
        if self.score {
            let c = g.dims(features).channels;
            outputs.push(g.conv(features, Conv::new("score", c, 1, 1).with_bias()));
        }
        g.set_outputs(outputs);
        g
    }

    /// As [`Variant::graph`], with a further output for each of [`Variant::quantised`]: the cosines
    /// [1, h, w] of that map, for [`crate::ops::texture::reach`]. A loss that does not ask for them
    /// has to write zeros to their gradients.
    pub fn graph_with_cosines(self, height: usize, width: usize) -> Graph {
        let mut g = self.graph(height, width);
        let nodes = g.nodes().iter().enumerate();
        let cosines = nodes.filter(|(_, node)| node.op == Op::CosineToMean);
        let cosines = cosines.map(|(i, _)| Value(i)).collect();
        g.set_outputs([g.outputs().to_vec(), cosines].concat());
        g
    }

    /// The cosine maps in the order of their making: that of the whole map's levels, then the
    /// pyramid's. None without the texture branch.
    pub fn quantised(self) -> Vec<Quantised> {
        if !self.texture {
            return Vec::new();
        }
        let whole = Quantised { regions: 1, levels: self.map_levels };
        let scales = self.scales.sides().into_iter();
        let regional = scales.map(|regions| Quantised { regions, levels: self.region_levels });
        std::iter::once(whole).chain(regional).collect()
    }

    /// Of two levels of one size: pyramid, enhanced and base, of 256 channels each.
    fn texture(self, g: &mut Graph, layer1: Value, layer2: Value) -> Vec<Value> {
        let shallow = g.concat(&[layer1, layer2]);
        let base = sequential(g, shallow, "start.", WIDTH, 1);
        let sizes = Sizes {
            width: STATISTICS,
            levels: self.map_levels,
            rule: self.levels,
            neighbour: self.neighbour,
        };
        let enhanced = texture::enhance(g, base, "tem.", sizes);
        let both = g.concat(&[enhanced, base]);
        let sizes = Sizes { levels: self.region_levels, ..sizes };
        let scales = self.scales.sides();
        let pyramid = texture::pyramid(g, both, "ptfem.", (WIDTH, &scales), sizes);
        vec![pyramid, enhanced, base]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::Dims;

    fn shapes(g: &Graph) -> Vec<Dims> {
        g.outputs().iter().map(|&out| g.dims(out)).collect()
    }

    fn map(channels: usize, side: usize) -> Dims {
        Dims { channels, height: side, width: side }
    }

    #[test]
    fn the_network_is_the_specs() {
        let g = graph(256, 256, LevelRule::Paper);
        assert_eq!(shapes(&g), [map(1792, 64), map(1, 64)]);
        assert_eq!(g.parameter_count(), 38_367_169);
        assert_eq!(Variant::default().graph(256, 256).parameter_count(), 38_367_169);
    }

    #[test]
    fn the_ablations_are_parts_of_it() {
        let paper = Variant::default();
        let baseline = Variant { texture: false, calibration: false, score: false, ..paper };
        let g = baseline.graph(128, 128);
        assert_eq!(shapes(&g), [map(1792, 32)]);
        // What is left of ResNet50 without its last layer and head (`backbones.md`).
        let encoder = 38_367_169 - 1_793 - 28_317_696 - 197_120 - 746_880 - 560_384;
        assert_eq!(g.parameter_count(), encoder);
        let calibrated = Variant { calibration: true, ..baseline };
        assert_eq!(calibrated.graph(128, 128).parameter_count(), encoder + 28_317_696);
        let textured = Variant { texture: true, ..calibrated };
        let g = textured.graph(128, 128);
        assert_eq!(shapes(&g), [map(1792, 32)]);
        assert_eq!(g.parameter_count(), 38_367_169 - 1_793);
        assert_eq!(Variant { score: true, ..textured }, paper);
    }

    #[test]
    fn options_change_the_shapes_they_name() {
        let paper = Variant::default();
        let small = Variant { encoder: Encoder::Resnet18, ..paper };
        assert_eq!(shapes(&small.graph(64, 64)), [map(1024, 16), map(1, 16)]);
        let plain = Variant { texture: false, ..small };
        assert_eq!(shapes(&plain.graph(64, 64)), [map(448, 16), map(1, 16)]);
        let coarse = Variant { resolution: Resolution::Eighth, projection: true, ..small };
        let g = coarse.graph(64, 64);
        assert_eq!(shapes(&g), [map(256, 8), map(1, 8)]);
        assert_eq!(g.parameter_count(), small.graph(64, 64).parameter_count() + 1024 * 256 - 768);
        let thirds = Variant { scales: Scales::Reference, ..small };
        assert_eq!(shapes(&thirds.graph(192, 192)), [map(1024, 48), map(1, 48)]);
    }

    #[test]
    fn the_cosine_maps_are_further_outputs() {
        let variant = Variant { encoder: Encoder::Resnet18, ..Variant::default() };
        let g = variant.graph_with_cosines(64, 64);
        let expected = [vec![map(1024, 16)], vec![map(1, 16); 6]].concat();
        assert_eq!(shapes(&g), expected);
        let quantised = variant.quantised();
        assert_eq!(quantised[0], Quantised { regions: 1, levels: 128 });
        let regions: Vec<usize> = quantised[1..].iter().map(|map| map.regions).collect();
        assert_eq!(regions, [1, 2, 4, 8]);
        let plain = Variant { texture: false, score: false, ..variant };
        assert_eq!(
            (plain.graph_with_cosines(64, 64).outputs().len(), plain.quantised()),
            (1, vec![])
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        let paper = Variant::default();
        assert!(paper.check((64, 128)).is_ok());
        let error = paper.check((96, 64)).unwrap_err().to_string();
        assert!(error.contains("multiples of 64, not 96 × 64"), "{error}");
        let thirds = Variant { scales: Scales::Reference, ..paper };
        assert!(thirds.check((192, 384)).is_ok());
        assert!(thirds.check((256, 256)).unwrap_err().to_string().contains("multiples of 192"));
        let one = Variant { map_levels: 1, ..paper };
        let error = one.check((64, 64)).unwrap_err().to_string();
        assert!(error.contains("mlff.network.map_levels = 1"), "{error}");
    }

    #[test]
    fn a_variant_reads_what_it_writes_and_nothing_else() {
        let text = "encoder = \"resnet18\"\nlevels = \"reference\"\nneighbour = \"right\"\n";
        let variant: Variant = toml::from_str(text).unwrap();
        let wanted = Variant {
            encoder: Encoder::Resnet18,
            levels: LevelRule::Reference,
            neighbour: Neighbour::Right,
            ..Variant::default()
        };
        assert_eq!(variant, wanted);
        assert_eq!(toml::from_str::<Variant>(&toml::to_string(&wanted).unwrap()).unwrap(), wanted);
        assert!(toml::from_str::<Variant>("textures = true").is_err());
    }
}
