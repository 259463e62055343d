//! The frozen network that a student learns from: three levels of ResNet18's shapes, or ResNet34's,
//! which has the same channels.

use serde::{Deserialize, Serialize};

use super::graph::{Graph, Value};
use super::resnet::{Depth, trunk};
use super::{BackboneSpec, compact};

/// Levels at which teacher and student are compared.
pub const LEVELS: usize = 3;

/// Which network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Teacher {
    #[default]
    Resnet18,
    Resnet34,
    /// The embedded backbone; it has no batch norms.
    Compact,
}

impl Teacher {
    /// The one that a backbone is; `None` where its levels have other channels than a student's.
    pub fn of(spec: &BackboneSpec) -> Option<Teacher> {
        match spec {
            BackboneSpec::Compact => Some(Teacher::Compact),
            BackboneSpec::ResNet { depth: Depth::R18, .. } => Some(Teacher::Resnet18),
            BackboneSpec::ResNet { depth: Depth::R34, .. } => Some(Teacher::Resnet34),
            BackboneSpec::ResNet { .. } => None,
        }
    }

    /// Its levels of `xs`, tensors named under `at`: [64, H/4, W/4], [128, H/8, W/8],
    /// [256, H/16, W/16].
    pub fn levels(self, g: &mut Graph, xs: Value, at: &str) -> [Value; LEVELS] {
        let levels = match self {
            Teacher::Resnet18 => trunk(g, xs, at, Depth::R18, LEVELS),
            Teacher::Resnet34 => trunk(g, xs, at, Depth::R34, LEVELS),
            Teacher::Compact => compact::levels(g, xs, at),
        };
        [levels[0], levels[1], levels[2]]
    }
}
