//! Groups of operations that several networks share. `at` is a path in a state dict: empty, or
//! ending in a dot.

use super::graph::{Conv, Graph, Value};

/// A convolution and the batch norm `norm` behind it.
pub fn conv_bn(g: &mut Graph, xs: Value, conv: Conv, norm: impl Into<String>) -> Value {
    let ys = g.conv(xs, conv);
    g.batch_norm(ys, norm)
}

pub fn conv_bn_relu(g: &mut Graph, xs: Value, conv: Conv, norm: impl Into<String>) -> Value {
    let ys = conv_bn(g, xs, conv, norm);
    g.relu(ys)
}

/// Convolution `<at>0`, batch norm `<at>1`, ReLU: the names of PyTorch's `Sequential`. The
/// convolution is one of `kernel` × `kernel` that keeps the size, without bias.
pub fn sequential(g: &mut Graph, xs: Value, at: &str, c_out: usize, kernel: usize) -> Value {
    let conv = Conv::new(format!("{at}0"), g.dims(xs).channels, c_out, kernel);
    conv_bn_relu(g, xs, conv, format!("{at}1"))
}

/// Two 3×3 convolutions and a shortcut (He et al. 2016): `<at>conv1`, `<at>bn1`, `<at>conv2`,
/// `<at>bn2`, and the projection where there is one.
pub fn basic_block(g: &mut Graph, xs: Value, at: &str, c_out: usize, stride: usize) -> Value {
    let conv1 = Conv::new(format!("{at}conv1"), g.dims(xs).channels, c_out, 3).stride(stride);
    let ys = conv_bn_relu(g, xs, conv1, format!("{at}bn1"));
    let conv2 = Conv::new(format!("{at}conv2"), c_out, c_out, 3);
    let ys = conv_bn(g, ys, conv2, format!("{at}bn2"));
    join(g, xs, ys, at, stride)
}

/// relu(ys + shortcut(xs)): the end of a residual block. The shortcut is the identity, or where
/// channels or stride change the 1×1 convolution `<at>downsample.0` and `<at>downsample.1`.
pub fn join(g: &mut Graph, xs: Value, ys: Value, at: &str, stride: usize) -> Value {
    let (c_in, c_out) = (g.dims(xs).channels, g.dims(ys).channels);
    let shortcut = if stride == 1 && c_in == c_out {
        xs
    } else {
        let conv = Conv::new(format!("{at}downsample.0"), c_in, c_out, 1).stride(stride);
        conv_bn(g, xs, conv, format!("{at}downsample.1"))
    };
    let sum = g.add(ys, shortcut);
    g.relu(sum)
}
