//! NTSNet: a ResNet18 teacher and a student of its shape whose stride-1 3×3 convolutions are
//! contextual transformer blocks (`../shared/spec/ntsnet.md`). There is no published code; teacher
//! and student have torchvision's names under `teacher.` and `student.`.

use super::cot::cot_block;
use super::graph::{Conv, Distance, Graph, Value};
use super::layers::{conv_bn_relu, join};
use super::resnet::{self, Depth, trunk};

/// Levels at which teacher and student are compared.
pub const LEVELS: usize = 3;

/// Outputs: the cosine distances of the three levels [1, H/4, W/4], [1, H/8, W/8], [1, H/16, W/16].
pub fn graph(height: usize, width: usize) -> Graph {
    let (mut g, xs) = Graph::new(height, width);
    let teacher = trunk(&mut g, xs, "teacher.", Depth::R18, LEVELS);
    let student = student(&mut g, xs, "student.");
    let pairs = teacher.into_iter().zip(student);
    let distances = pairs.map(|(t, s)| g.cosine_distance(t, s, Distance::HalfSquared)).collect();
    g.set_outputs(distances);
    g
}

/// The student's levels, of the teacher's shapes.
pub fn student(g: &mut Graph, xs: Value, at: &str) -> Vec<Value> {
    let mut xs = resnet::stem(g, xs, at, 64);
    let mut levels = Vec::with_capacity(LEVELS);
    for (i, c_out) in [64, 128, 256].into_iter().enumerate() {
        for b in 0..2 {
            let stride = if b == 0 && i > 0 { 2 } else { 1 };
            xs = block(g, xs, &format!("{at}layer{}.{b}.", i + 1), c_out, stride);
        }
        levels.push(xs);
    }
    levels
}

/// A basic block whose second convolution is a contextual transformer block, and the first one too
/// where it keeps the shape.
fn block(g: &mut Graph, xs: Value, at: &str, c_out: usize, stride: usize) -> Value {
    let c_in = g.dims(xs).channels;
    let ys = if stride == 1 && c_in == c_out {
        let ys = cot_block(g, xs, &format!("{at}conv1."));
        let ys = g.batch_norm(ys, format!("{at}bn1"));
        g.relu(ys)
    } else {
        let conv = Conv::new(format!("{at}conv1"), c_in, c_out, 3).stride(stride);
        conv_bn_relu(g, xs, conv, format!("{at}bn1"))
    };
    let ys = cot_block(g, ys, &format!("{at}conv2."));
    let ys = g.batch_norm(ys, format!("{at}bn2"));
    join(g, xs, ys, at, stride)
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
}
