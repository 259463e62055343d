//! MLFF: ResNet50 features of three levels, the shallow two enriched with texture statistics, the
//! deep one self-calibrated, and a score at each place (`../shared/spec/mlff.md`). There is no
//! published code; names are those of `../shared/spec/tools/specmodels.py`.

use super::graph::{Conv, Graph, LevelRule, Resample, Value};
use super::layers::sequential;
use super::resnet::{Depth, trunk};
use super::scconv::self_calibrated;
use super::texture::{self, Sizes};
use crate::ops::interpolate::Align;

/// Width of the texture branch, and of its statistics.
const WIDTH: usize = 256;
const STATISTICS: usize = 128;

/// N over the whole map, and in regions (STLNet's code).
const LEVELS: usize = 128;
const REGION_LEVELS: usize = 8;

/// Regions of the pyramid along a side.
const SCALES: [usize; 4] = [1, 2, 4, 8];

/// For sides that are multiples of 64. Outputs: the features [1792, H/4, W/4] and their scores
/// [1, H/4, W/4], unbounded.
pub fn graph(height: usize, width: usize, rule: LevelRule) -> Graph {
    let (mut g, xs) = Graph::new(height, width);
    let levels = trunk(&mut g, xs, "enc.", Depth::R50, 3);
    let to = g.dims(levels[0]);
    let enlarge = |g: &mut Graph, xs: Value| {
        g.upsample(xs, (to.height, to.width), Resample::Bilinear(Align::HalfPixel))
    };
    let layer2 = enlarge(&mut g, levels[1]);
    let shallow = g.concat(&[levels[0], layer2]);
    let base = sequential(&mut g, shallow, "start.", WIDTH, 1);

    let sizes = Sizes { width: STATISTICS, levels: LEVELS, rule };
    let enhanced = texture::enhance(&mut g, base, "tem.", sizes);
    let both = g.concat(&[enhanced, base]);
    let sizes = Sizes { levels: REGION_LEVELS, ..sizes };
    let pyramid = texture::pyramid(&mut g, both, "ptfem.", (WIDTH, &SCALES), sizes);

    let calibrated = self_calibrated(&mut g, levels[2], "sc.");
    let calibrated = enlarge(&mut g, calibrated);
    let features = g.concat(&[pyramid, enhanced, base, calibrated]);
    let c = g.dims(features).channels;
    let score = g.conv(features, Conv::new("score", c, 1, 1).with_bias());
    g.set_outputs(vec![features, score]);
    g
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::Dims;

    #[test]
    fn the_network_is_the_specs() {
        let g = graph(256, 256, LevelRule::Paper);
        let shapes: Vec<_> = g.outputs().iter().map(|&out| g.dims(out)).collect();
        let map = |channels| Dims { channels, height: 64, width: 64 };
        assert_eq!(shapes, [map(1792), map(1)]);
        assert_eq!(g.parameter_count(), 38_367_169);
    }
}
