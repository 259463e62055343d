//! Which value lies where: those whose times do not overlap share memory.

use crate::nn::graph::{Dims, Graph, Op, Value};

/// Every piece begins at a multiple of it, so that 16-byte loads are aligned and a warp's whole.
const ALIGNMENT: usize = 256;

/// When something is written first and read last, counted in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub made: usize,
    /// `usize::MAX` for what is read from outside.
    pub read: usize,
}

impl Life {
    /// Within one step.
    pub fn of_step(step: usize) -> Self {
        Self { made: step, read: step }
    }

    /// The time from the first of both to the last.
    pub fn and(self, other: Self) -> Self {
        Self { made: self.made.min(other.made), read: self.read.max(other.read) }
    }

    /// A step reads its arguments while it writes its result.
    fn overlaps(self, other: Self) -> bool {
        self.made <= other.read && other.made <= self.read
    }
}

/// Offsets in one piece of memory of pieces of `bytes` with these lives, and the length of the
/// whole. The largest are placed first, each at the lowest place that is free for its time.
pub fn place(pieces: &[(usize, Life)]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(pieces[i].0), pieces[i].1.made, i));
    let mut placed: Vec<(usize, usize, Life)> = Vec::new(); // from, to, when
    let mut offsets = vec![0; pieces.len()];
    let mut length = 0;
    for i in order {
        let (bytes, life) = pieces[i];
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let mut others: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(_, _, other)| other.overlaps(life))
            .map(|&(from, to, _)| (from, to))
            .collect();
        others.sort_unstable();
        let mut at = 0;
        for (from, to) in others {
            if at + bytes <= from {
                break;
            }
            at = at.max(to);
        }
        offsets[i] = at;
        placed.push((at, at + bytes, life));
        length = length.max(at + bytes);
    }
    (offsets, length)
}

/// A value that lies within a concatenation, from this channel on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Within {
    pub whole: Value,
    pub channel: usize,
}

/// For each value, the concatenation that it can be written into at once: the first that takes it.
/// Only of one picture are the channels of a part one piece of memory.
pub fn parts(graph: &Graph, images: usize) -> Vec<Option<Within>> {
    let mut within = vec![None; graph.nodes().len()];
    if images > 1 {
        return within;
    }
    for (i, node) in graph.nodes().iter().enumerate().filter(|(_, node)| node.op == Op::Concat) {
        let mut channel = 0;
        for &part in &node.inputs {
            let own = &mut within[part.index()];
            if own.is_none() && graph.node(part).op != Op::Input {
                *own = Some(Within { whole: Value::at(i), channel });
            }
            channel += graph.dims(part).channels;
        }
    }
    within
}

/// The value that has memory of its own and holds `value`, and from which channel on.
pub fn root(within: &[Option<Within>], value: Value) -> (Value, usize) {
    match within[value.index()] {
        None => (value, 0),
        Some(Within { whole, channel }) => {
            let (root, offset) = root(within, whole);
            (root, offset + channel)
        }
    }
}

/// Numbers of `images` such maps.
pub fn count(images: usize, dims: Dims) -> usize {
    images * dims.channels * dims.height * dims.width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_at_one_time_lies_apart_and_the_rest_shares() {
        let life = |made, read| Life { made, read };
        let pieces = [
            (1000, life(0, 2)),
            (300, life(1, 3)),
            (1000, life(3, 5)),
            (200, life(4, usize::MAX)),
            (256, life(2, 2)),
        ];
        let (offsets, length) = place(&pieces);
        for (i, (bytes, own)) in pieces.iter().enumerate() {
            assert!(offsets[i] % ALIGNMENT == 0 && offsets[i] + bytes <= length);
            for (j, (others, other)) in pieces.iter().enumerate().skip(i + 1) {
                let apart = offsets[i] + bytes <= offsets[j] || offsets[j] + others <= offsets[i];
                let never = own.read < other.made || other.read < own.made;
                assert!(apart || never, "{i} and {j}: {offsets:?}");
            }
        }
        assert_eq!(length, 1024 + 512 + 256);
    }
}
