//! DeSTSeg (Zhang et al. 2023): a frozen teacher sees the picture, a student that learned to undo
//! corruption sees it too, and a segmentation network reads where their features part. Names are
//! those of the published checkpoints (`../shared/spec/destseg.md`).

use serde::{Deserialize, Serialize};

use super::aspp::aspp;
use super::graph::{Conv, Distance, Graph, Resample, Value};
use super::layers::{basic_block, conv_bn_relu};
use super::resnet::{Depth, trunk};
use super::teacher::{LEVELS, Teacher};
use crate::ops::interpolate::Align;

/// Paths of the three networks.
pub const TEACHER: &str = "teacher_net.encoder.";
pub const STUDENT: &str = "student_net.";
pub const SEGMENTATION: &str = "segmentation_net.";

/// Width of the segmentation network, and the dilations of its pyramid.
const WIDTH: usize = 256;
const RATES: [usize; 3] = [6, 12, 18];

const RULE: Resample = Resample::Bilinear(Align::HalfPixel);

/// Which of the paper's networks; the default is the paper's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Variant {
    pub teacher: Teacher,
    /// The ablation `ed`.
    pub student: Student,
    pub segmentation: Segmentation,
}

/// What the student is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Student {
    #[default]
    EncoderDecoder,
    /// The teacher's own shape: stem to layer3.
    Encoder,
}

/// What the segmentation network reads (paper, table 6), or that there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Segmentation {
    /// The products of normalised features, 448 channels; negative as in the published code (D-1).
    #[default]
    Products,
    /// The features of student and teacher as they are, 896 channels.
    Features,
    /// The cosine distances, 3 channels.
    Distances,
    /// The map is the product of the distances.
    None,
}

/// The paper's network: see [`Variant::graph`].
pub fn graph(height: usize, width: usize) -> Graph {
    Variant::default().graph(height, width)
}

impl Variant {
    /// Outputs: the segmentation [1, H/4, W/4] in 0..1 where there is one, then the cosine distances
    /// of the three levels [1, H/4, W/4], [1, H/8, W/8], [1, H/16, W/16].
    pub fn graph(self, height: usize, width: usize) -> Graph {
        let (mut g, xs) = Graph::new(height, width);
        let teacher = self.teacher.levels(&mut g, xs, TEACHER);
        let student = self.student(&mut g, xs);
        let segmentation = self.segmentation(&mut g, teacher, student);
        let distances = distances(&mut g, teacher, student);
        g.set_outputs(segmentation.into_iter().chain(distances).collect());
        g
    }

    /// What the student is trained on: two pictures, the clean one for the teacher and the corrupted
    /// one for the student. Outputs: the three cosine distances.
    pub fn student_training(self, height: usize, width: usize) -> Graph {
        let (mut g, clean) = Graph::new(height, width);
        let corrupted = g.input(g.dims(clean));
        let teacher = self.teacher.levels(&mut g, clean, TEACHER);
        let student = self.student(&mut g, corrupted);
        let distances = distances(&mut g, teacher, student);
        g.set_outputs(distances.to_vec());
        g
    }

    /// The student's three levels, of the teacher's shapes: a whole ResNet18 and back up.
    fn student(self, g: &mut Graph, xs: Value) -> [Value; LEVELS] {
        let at = format!("{STUDENT}encoder.");
        if self.student == Student::Encoder {
            let levels = trunk(g, xs, &at, Depth::R18, LEVELS);
            return [levels[0], levels[1], levels[2]];
        }
        let encoder = trunk(g, xs, &at, Depth::R18, 4);
        let mut ys = encoder[3];
        let mut levels = [ys; LEVELS];
        for (stage, c_out) in [(4, 512), (3, 256), (2, 128), (1, 64)] {
            let to = g.dims(encoder[stage - 1]);
            ys = g.upsample(ys, (to.height, to.width), RULE);
            ys = two_blocks(g, ys, &format!("{STUDENT}decoder_layer{stage}."), c_out);
            if stage <= LEVELS {
                levels[stage - 1] = ys;
            }
        }
        levels
    }

    /// Where a defect is, [1, H/4, W/4] in 0..1, from the levels of both.
    fn segmentation(
        self,
        g: &mut Graph,
        teacher: [Value; LEVELS],
        student: [Value; LEVELS],
    ) -> Option<Value> {
        let to = g.dims(teacher[0]);
        let parts = match self.segmentation {
            Segmentation::None => return None,
            Segmentation::Products => {
                [0, 1, 2].map(|i| g.cosine_product(teacher[i], student[i])).to_vec()
            }
            Segmentation::Features => [student, teacher].concat(),
            Segmentation::Distances => distances(g, teacher, student).to_vec(),
        };
        let parts: Vec<Value> =
            parts.into_iter().map(|part| g.upsample(part, (to.height, to.width), RULE)).collect();
        let xs = g.concat(&parts); // [448, H/4, W/4]
        let xs = two_blocks(g, xs, &format!("{SEGMENTATION}res."), WIDTH);
        let xs = aspp(g, xs, &format!("{SEGMENTATION}head.0."), WIDTH, &RATES);
        let last = Conv::new(format!("{SEGMENTATION}head.1"), WIDTH, WIDTH, 3);
        let xs = conv_bn_relu(g, xs, last, format!("{SEGMENTATION}head.2"));
        let out = Conv::new(format!("{SEGMENTATION}head.4"), WIDTH, 1, 1).with_bias();
        let logits = g.conv(xs, out);
        Some(g.sigmoid(logits))
    }
}

fn distances(g: &mut Graph, teacher: [Value; LEVELS], student: [Value; LEVELS]) -> [Value; LEVELS] {
    [0, 1, 2].map(|i| g.cosine_distance(teacher[i], student[i], Distance::OneMinusCosine))
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
