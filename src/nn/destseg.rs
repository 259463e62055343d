//! DeSTSeg (Zhang et al. 2023): a frozen teacher sees the picture, a student that learned to undo
//! corruption sees it too, and a segmentation network reads where their features part. Names are
//! those of the published checkpoints (`../shared/spec/destseg.md`).

use super::aspp::aspp;
use super::graph::{Conv, Distance, Graph, Resample, Value};
use super::layers::{basic_block, conv_bn_relu};
use super::resnet::{Depth, trunk};
use crate::ops::interpolate::Align;

/// Levels at which teacher and student are compared.
pub const LEVELS: usize = 3;

/// Width of the segmentation network, and the dilations of its pyramid.
const WIDTH: usize = 256;
const RATES: [usize; 3] = [6, 12, 18];

const RULE: Resample = Resample::Bilinear(Align::HalfPixel);

/// Outputs: the segmentation [1, H/4, W/4] in 0..1, then the cosine distances of the three levels
/// [1, H/4, W/4], [1, H/8, W/8], [1, H/16, W/16].
pub fn graph(height: usize, width: usize) -> Graph {
    let (mut g, xs) = Graph::new(height, width);
    let teacher = teacher(&mut g, xs);
    let student = student(&mut g, xs);
    let segmentation = segmentation(&mut g, teacher, student);
    let distances =
        [0, 1, 2].map(|i| g.cosine_distance(teacher[i], student[i], Distance::OneMinusCosine));
    g.set_outputs([[segmentation].as_slice(), &distances].concat());
    g
}

/// The frozen ResNet18's three levels.
pub fn teacher(g: &mut Graph, xs: Value) -> [Value; LEVELS] {
    let levels = trunk(g, xs, "teacher_net.encoder.", Depth::R18, LEVELS);
    [levels[0], levels[1], levels[2]]
}

/// The student's three levels, of the teacher's shapes: a whole ResNet18 and back up.
pub fn student(g: &mut Graph, xs: Value) -> [Value; LEVELS] {
    let encoder = trunk(g, xs, "student_net.encoder.", Depth::R18, 4);
    let mut ys = encoder[3];
    let mut levels = [ys; LEVELS];
    for (stage, c_out) in [(4, 512), (3, 256), (2, 128), (1, 64)] {
        let to = g.dims(encoder[stage - 1]);
        ys = g.upsample(ys, (to.height, to.width), RULE);
        ys = two_blocks(g, ys, &format!("student_net.decoder_layer{stage}."), c_out);
        if stage <= LEVELS {
            levels[stage - 1] = ys;
        }
    }
    levels
}

/// Where a defect is, [1, H/4, W/4] in 0..1, from the levels of both.
pub fn segmentation(g: &mut Graph, teacher: [Value; LEVELS], student: [Value; LEVELS]) -> Value {
    let to = g.dims(teacher[0]);
    let products = [0, 1, 2].map(|i| {
        let product = g.cosine_product(teacher[i], student[i]);
        g.upsample(product, (to.height, to.width), RULE)
    });
    let xs = g.concat(&products); // [448, H/4, W/4]
    let at = "segmentation_net.";
    let xs = two_blocks(g, xs, &format!("{at}res."), WIDTH);
    let xs = aspp(g, xs, &format!("{at}head.0."), WIDTH, &RATES);
    let xs = conv_bn_relu(
        g,
        xs,
        Conv::new(format!("{at}head.1"), WIDTH, WIDTH, 3),
        format!("{at}head.2"),
    );
    let logits = g.conv(xs, Conv::new(format!("{at}head.4"), WIDTH, 1, 1).with_bias());
    g.sigmoid(logits)
}

fn two_blocks(g: &mut Graph, xs: Value, at: &str, c_out: usize) -> Value {
    let xs = basic_block(g, xs, &format!("{at}0."), c_out, 1);
    basic_block(g, xs, &format!("{at}1."), c_out, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::graph::Dims;

    #[test]
    fn the_network_is_the_specs() {
        let g = graph(256, 256);
        let shapes: Vec<_> = g.outputs().iter().map(|&out| g.dims(out)).collect();
        let map = |side| Dims { channels: 1, height: side, width: side };
        assert_eq!(shapes, [map(64), map(64), map(32), map(16)]);
        assert_eq!(g.parameter_count(), 35_154_177);
        let count = |at: &str| -> usize {
            let own = g.tensors().into_iter().filter(|(name, _)| name.starts_with(at));
            let learned = own.filter(|(name, _)| !name.contains("running_"));
            learned.map(|(_, shape)| shape.iter().product::<usize>()).sum()
        };
        assert_eq!(count("teacher_net."), 2_782_784);
        assert_eq!(count("student_net.encoder."), 11_176_512);
        let stages = [(4, 9_441_280), (3, 3_082_752), (2, 771_328), (1, 193_152)];
        for (stage, want) in stages {
            assert_eq!(count(&format!("student_net.decoder_layer{stage}.")), want);
        }
        assert_eq!(count("segmentation_net.res."), 2_918_912);
        assert_eq!(count("segmentation_net.head.0."), 4_196_864);
    }

    #[test]
    fn any_size_that_a_resnet_takes_is_taken() {
        let g = graph(96, 160);
        assert_eq!(g.dims(g.outputs()[0]), Dims { channels: 1, height: 24, width: 40 });
    }
}
