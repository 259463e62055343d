//! The rows of a feature map as work for a team: numbered picture by picture, plane by plane.

use super::feature_map::Shape;
use super::team::Team;

/// Numbers to pass over that are worth handing out: below, the handing costs more than it brings.
const WORTH: usize = 4096;

/// How the rows of a map are numbered.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    blocks: usize,
    height: usize,
    count: usize,
}

impl Rows {
    /// Those of all planes.
    pub fn of(shape: Shape) -> Self {
        Self::across(shape, shape.blocks())
    }

    /// Those of all pictures, each row through all planes at once.
    pub fn of_images(shape: Shape) -> Self {
        Self::across(shape, 1)
    }

    fn across(shape: Shape, blocks: usize) -> Self {
        Self { blocks, height: shape.height, count: shape.images * blocks * shape.height }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Picture, plane and y of row `i`.
    #[inline(always)]
    pub fn at(&self, i: usize) -> (usize, usize, usize) {
        let plane = i / self.height;
        (plane / self.blocks, plane % self.blocks, i % self.height)
    }
}

/// How many of `count` pieces a thread takes at once if each passes over `len` numbers: about four
/// helpings a thread, so that one that is held up does not hold up all.
pub(super) fn helping(team: &Team, count: usize, len: usize) -> usize {
    if team.threads() == 1 {
        return count;
    }
    count.div_ceil(4 * team.threads()).max(WORTH.div_ceil(len.max(1)))
}
