//! A convolution in training: forward and its three gradients, from weights that change with every
//! step and therefore stay the caller's, as `[O, C / groups, K, K]`: what a kernel needs of them is
//! packed into scratch memory on the way.
//! Letters: B pictures, C channels in, O channels out, K kernel width.

use super::super::conv::Geometry;
use super::super::feature_map::{Buffer, FeatureMap, Shape};
use super::super::simd::Isa;
use super::super::team::Team;

/// A convolution of inputs of one shape. `geometry` counts the channels of all groups.
pub struct TrainConv {
    isa: Isa,
    geometry: Geometry,
    groups: usize,
    input: Shape,
    threads: usize,
    needs_input_gradient: bool,
}

impl TrainConv {
    /// # Panics
    /// If there are several groups whose channels, in or out, are no multiple of 16, or the padding
    /// is more than the kernel reaches.
    pub fn new(
        isa: Isa,
        geometry: Geometry,
        groups: usize,
        input: Shape,
        threads: usize,
        needs_input_gradient: bool,
    ) -> Self {
        Self { isa, geometry, groups, input, threads, needs_input_gradient }
    }

    /// The output's shape.
    pub fn output(&self) -> Shape {
        self.geometry.output(self.input)
    }

    /// Numbers of the weights.
    pub fn weights_len(&self) -> usize {
        self.geometry.weights() / self.groups
    }

    /// Numbers of scratch memory that each of the four needs.
    pub fn scratch_len(&self) -> usize {
        0
    }

    /// y = conv(x) + bias; `bias` `[O]`.
    pub fn forward(
        &self,
        team: &Team,
        weights: &[f32],
        bias: Option<&[f32]>,
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        scratch: &Buffer,
    ) {
        todo!()
    }

    /// Overwrites dx.
    pub fn input_gradient(
        &self,
        team: &Team,
        weights: &[f32],
        dy: FeatureMap<'_>,
        dx: FeatureMap<'_>,
        scratch: &Buffer,
    ) {
        todo!()
    }

    /// Overwrites dw `[O, C / groups, K, K]`.
    pub fn weight_gradient(
        &self,
        team: &Team,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        dw: &mut [f32],
        scratch: &Buffer,
    ) {
        todo!()
    }

    /// Overwrites db `[O]`: the sums of dy over pictures and places.
    pub fn bias_gradient(&self, team: &Team, dy: FeatureMap<'_>, db: &mut [f32]) {
        todo!()
    }
}
