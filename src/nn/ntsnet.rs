//! NTSNet: a ResNet18 teacher and a student of its shape whose stride-1 3×3 convolutions are
//! contextual transformer blocks (`../shared/spec/ntsnet.md`). There is no published code; teacher
//! and student have torchvision's names under `teacher.` and `student.`.

use serde::{Deserialize, Serialize};

use super::cot::{Attention, cot_block};
use super::graph::{Conv, Distance, Graph, Value};
use super::layers::{conv_bn_relu, join};
use super::resnet;
use super::teacher::{LEVELS, Teacher};

/// Paths of the two networks.
pub const TEACHER: &str = "teacher.";
pub const STUDENT: &str = "student.";

/// Which of the paper's networks; the default is the paper's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Variant {
    pub teacher: Teacher,
    pub student: Student,
    /// Which convolutions of the student are contextual transformer blocks (N-2).
    pub transformers: Transformers,
    pub attention: Attention,
    /// Levels compared, of layer1, layer2 and layer3 (paper, table 5).
    pub levels: [bool; LEVELS],
}

impl Default for Variant {
    fn default() -> Variant {
        Variant {
            teacher: Teacher::default(),
            student: Student::default(),
            transformers: Transformers::default(),
            attention: Attention::default(),
            levels: [true; LEVELS],
        }
    }
}

/// How deep the student is (paper, table 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Student {
    #[default]
    Resnet18,
    Resnet34,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transformers {
    /// All of stride 1 that keep the channels.
    #[default]
    All,
    /// The second of each block.
    Second,
    /// A plain ResNet: the baseline (N-9).
    None,
}

/// The paper's network: see [`Variant::graph`].
pub fn graph(height: usize, width: usize) -> Graph {
    Variant::default().graph(height, width)
}

impl Variant {
    /// Outputs: the distances of the levels compared, of [1, H/4, W/4], [1, H/8, W/8],
    /// [1, H/16, W/16].
    pub fn graph(self, height: usize, width: usize) -> Graph {
        let (mut g, xs) = Graph::new(height, width);
        let teacher = self.teacher.levels(&mut g, xs, TEACHER);
        let student = self.student(&mut g, xs);
        let pairs = teacher.into_iter().zip(student).zip(self.levels);
        let distances = pairs
            .filter(|(_, compared)| *compared)
            .map(|((t, s), _)| g.cosine_distance(t, s, Distance::HalfSquared))
            .collect();
        g.set_outputs(distances);
        g
    }

    /// The student's levels, of the teacher's shapes.
    fn student(self, g: &mut Graph, xs: Value) -> Vec<Value> {
        let blocks = match self.student {
            Student::Resnet18 => [2, 2, 2],
            Student::Resnet34 => [3, 4, 6],
        };
        let mut xs = resnet::stem(g, xs, STUDENT, 64);
        let mut levels = Vec::with_capacity(LEVELS);
        for (i, (c_out, blocks)) in [64, 128, 256].into_iter().zip(blocks).enumerate() {
            for b in 0..blocks {
                let stride = if b == 0 && i > 0 { 2 } else { 1 };
                xs = self.block(g, xs, &format!("{STUDENT}layer{}.{b}.", i + 1), c_out, stride);
            }
            levels.push(xs);
        }
        levels
    }

    /// A basic block, its convolutions transformer blocks where they keep the shape.
    fn block(self, g: &mut Graph, xs: Value, at: &str, c_out: usize, stride: usize) -> Value {
        let c_in = g.dims(xs).channels;
        let keeps = stride == 1 && c_in == c_out;
        let ys = if keeps && self.transformers == Transformers::All {
            let ys = cot_block(g, xs, &format!("{at}conv1."), self.attention);
            let ys = g.batch_norm(ys, format!("{at}bn1"));
            g.relu(ys)
        } else {
            let conv = Conv::new(format!("{at}conv1"), c_in, c_out, 3).stride(stride);
            conv_bn_relu(g, xs, conv, format!("{at}bn1"))
        };
        let ys = if self.transformers == Transformers::None {
            g.conv(ys, Conv::new(format!("{at}conv2"), c_out, c_out, 3))
        } else {
            cot_block(g, ys, &format!("{at}conv2."), self.attention)
        };
        let ys = g.batch_norm(ys, format!("{at}bn2"));
        join(g, xs, ys, at, stride)
    }
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
        assert_eq!(shapes, [map(64), map(32), map(16)]);
        assert_eq!(g.parameter_count(), 2_782_784 + 2_223_600);
    }

    #[test]
    fn the_ablations_have_the_specs_sizes() {
        let count = |variant: Variant| variant.graph(64, 64).parameter_count();
        let paper = Variant::default();
        let second = Variant { transformers: Transformers::Second, ..paper };
        assert_eq!(count(second), 2_782_784 + 2_415_536);
        let plain = Variant { transformers: Transformers::None, ..paper };
        assert_eq!(count(plain), 2 * 2_782_784);
        let deep = Variant { teacher: Teacher::Resnet34, student: Student::Resnet34, ..paper };
        assert_eq!(count(deep), 8_170_304 + 6_330_176);
        let one = Variant { levels: [false, true, false], ..paper };
        assert_eq!(one.graph(64, 64).outputs().len(), 1);
    }
}
