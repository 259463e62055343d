//! What detectors compute on a card, and what makes it for them.
//!
//! Judging stays where it was: a card makes maps and distances, and the same code as for the CPU's
//! makes scores of them.

use std::sync::Arc;

use anyhow::Result;

use super::Gpu;
use super::network::Network;
use super::patch_prototypes::PatchPrototypes;
use crate::detector::input::Input;
use crate::nn::graph::Graph;
use crate::nn::weights::Weights;
use crate::ops::nearest_prototype::PrototypeBank;
use crate::ops::pixels::Pixels;

/// A network on a card, picture by picture.
pub trait Maps: Send {
    /// # Errors
    /// What the card says.
    fn run(&mut self, pixels: &Pixels<'_>) -> Result<()>;

    /// Channels, height and width of each of the graph's outputs.
    fn shapes(&self) -> &[[usize; 3]];

    /// Output `index` of the last run [C, H, W].
    ///
    /// # Errors
    /// What the card says, the run being the reason.
    fn read(&mut self, index: usize) -> Result<Vec<f32>>;
}

/// Patch features against a memory bank on a card, picture by picture.
/// Letters: N prototypes, H × W the picture.
pub trait Patches: Send {
    /// The score of a picture; its distances as a smooth map go into `map` [H, W]. What is not
    /// finite is given back as it is.
    ///
    /// # Errors
    /// What the card says.
    fn run(&mut self, pixels: &Pixels<'_>, map: &mut [f32]) -> Result<f32>;
}

/// What patches are searched with, and what the map of their distances is.
pub struct Search<'a> {
    pub input: Input,
    pub bank: &'a PrototypeBank,
    /// The prototypes nearest to each, itself first, [N, `NEIGHBOURS`].
    pub neighbours: &'a [u32],
    /// σ of the map's blur, pixels.
    pub sigma_px: f32,
}

/// A card for detectors, each of which gets a stream of its own.
pub trait Gpus: Send + Sync {
    /// For people.
    fn about(&self) -> String;

    /// # Errors
    /// A tensor that is missing, of another shape or not finite; what the card says.
    fn network(&self, graph: &Graph, weights: &Weights) -> Result<Box<dyn Maps>>;

    /// `graph` ends with levels 2 and 3 of the backbone.
    ///
    /// # Errors
    /// As [`Gpus::network`].
    fn patches(
        &self,
        graph: &Graph,
        weights: &Weights,
        search: &Search<'_>,
    ) -> Result<Box<dyn Patches>>;
}

/// [`Gpus`] by what makes a [`Gpu`].
pub struct Each<F> {
    pub about: String,
    pub make: F,
}

impl<F, G> Gpus for Each<F>
where
    F: Fn() -> Result<G> + Send + Sync,
    G: Gpu<Memory: Send> + Send + 'static,
{
    fn about(&self) -> String {
        self.about.clone()
    }

    fn network(&self, graph: &Graph, weights: &Weights) -> Result<Box<dyn Maps>> {
        Ok(Box::new(Network::new((self.make)()?, graph, weights)?))
    }

    fn patches(
        &self,
        graph: &Graph,
        weights: &Weights,
        search: &Search<'_>,
    ) -> Result<Box<dyn Patches>> {
        Ok(Box::new(PatchPrototypes::new((self.make)()?, graph, weights, search)?))
    }
}

/// Card `ordinal`.
///
/// # Errors
/// It can't be used, and why.
#[cfg(feature = "cuda")]
pub fn open(ordinal: u32) -> Result<Arc<dyn Gpus>> {
    use super::driver::Context;
    Context::open(ordinal).map(of)
}

/// The first card that can be used.
///
/// # Errors
/// There is none, and why.
#[cfg(feature = "cuda")]
pub fn first() -> Result<Arc<dyn Gpus>> {
    use super::driver::Context;
    Context::first().map(of)
}

#[cfg(feature = "cuda")]
fn of(context: super::driver::Context) -> Arc<dyn Gpus> {
    use super::driver::Card;
    let about = context.about().to_string();
    Arc::new(Each { about, make: move || Card::new(&context) })
}

/// No card: this is a build without the feature `cuda`.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn open(ordinal: u32) -> Result<Arc<dyn Gpus>> {
    anyhow::bail!(
        "device = \"cuda:{ordinal}\": this inspectd was built without the feature cuda; the CPU is \
         device = \"cpu\""
    )
}

/// No card: this is a build without the feature `cuda`.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn first() -> Result<Arc<dyn Gpus>> {
    anyhow::bail!("this inspectd was built without the feature cuda")
}
