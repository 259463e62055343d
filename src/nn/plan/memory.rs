//! Which feature map lies where: values whose times do not overlap share a buffer.
//!
//! A buffer holds maps of one height and width, so that the border of zeros is at the same places
//! for each of them and is never written. Floats and bytes have buffers of their own.

use std::marker::PhantomData;

use crate::nn::graph::{Graph, Op, Value};
use crate::ops::feature_map::{Map, Memory, Number, Shape};
use crate::ops::simd::LANES;

/// Where a value lies, among buffers of floats or of bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place<T = f32> {
    buffer: usize,
    /// In planes of the shape's size.
    first: usize,
    /// Planes from picture to picture.
    stride: usize,
    pub shape: Shape,
    number: PhantomData<T>,
}

impl<T: Number> Place<T> {
    pub fn map<'a>(&self, buffers: &'a [Memory<T>]) -> Map<'a, T> {
        buffers[self.buffer].window(self.shape, self.first, self.stride)
    }

    /// Whether the two lie in one buffer.
    pub fn shares_with(&self, other: &Self) -> bool {
        self.buffer == other.buffer
    }

    /// Only the channels `first`..`first + channels`; `first` must be a multiple of 16.
    pub fn channels(&self, first: usize, channels: usize) -> Self {
        assert!(first.is_multiple_of(LANES), "channels from {first} on");
        let shape = Shape { channels, ..self.shape };
        Self { first: self.first + first / LANES, shape, ..*self }
    }
}

/// When a value is made and read, counted in steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub value: Value,
    pub made: usize,
    /// The last step that reads it; `usize::MAX` for an output.
    pub read: usize,
}

/// A value that lies within a concatenation, from this channel on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Within {
    pub whole: Value,
    pub channel: usize,
}

/// For each value, the concatenation that it can be written into at once: the first that takes it, if
/// its channels there begin with a block. What it is a part of may itself be a part.
pub(super) fn parts(graph: &Graph) -> Vec<Option<Within>> {
    let mut within = vec![None; graph.nodes().len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        if node.op != Op::Concat {
            continue;
        }
        let mut channel = 0;
        for &part in &node.inputs {
            let whole = Value(i);
            let own = &mut within[part.index()];
            if own.is_none() && channel % LANES == 0 && graph.node(part).op != Op::Input {
                *own = Some(Within { whole, channel });
            }
            channel += graph.dims(part).channels;
        }
    }
    within
}

/// The value that has memory of its own and holds `value`, and from which channel on.
fn root(within: &[Option<Within>], value: Value) -> (Value, usize) {
    match within[value.index()] {
        None => (value, 0),
        Some(Within { whole, channel }) => {
            let (root, offset) = root(within, whole);
            (root, offset + channel)
        }
    }
}

/// The plan: a place for each value of `lives`, and the planes and shape of each buffer.
pub(super) struct Layout<T = f32> {
    places: Vec<Option<Place<T>>>,
    buffers: Vec<(usize, usize)>, // planes, numbers of a plane
}

impl<T: Number> Layout<T> {
    /// `channels`: of each value as the line keeps it.
    pub fn new(
        graph: &Graph,
        channels: &[usize],
        within: &[Option<Within>],
        lives: &[Life],
        images: usize,
    ) -> Self {
        // A root lives from the first of its parts to the last.
        let mut roots: Vec<Life> = Vec::new();
        for life in lives {
            let (value, _) = root(within, life.value);
            match roots.iter_mut().find(|other| other.value == value) {
                Some(other) => {
                    other.made = other.made.min(life.made);
                    other.read = other.read.max(life.read);
                }
                None => roots.push(Life { value, ..*life }),
            }
        }
        roots.sort_by_key(|life| life.made);
        let shape = |value: Value| {
            let dims = graph.dims(value);
            Shape::new(images, channels[value.index()], dims.height, dims.width)
        };
        struct Slot {
            side: (usize, usize),
            planes: usize,
            busy_to: usize,
        }
        let mut slots: Vec<Slot> = Vec::new();
        let mut own: Vec<Option<usize>> = vec![None; graph.nodes().len()];
        for life in &roots {
            let shape = shape(life.value);
            let (side, planes) = ((shape.height, shape.width), images * shape.blocks());
            let free = |slot: &&mut Slot| slot.side == side && slot.busy_to < life.made;
            // The one that fits best, else the one that has to grow least.
            let best = slots
                .iter_mut()
                .filter(free)
                .min_by_key(|slot| (slot.planes < planes, slot.planes.abs_diff(planes)));
            if let Some(slot) = best {
                slot.planes = slot.planes.max(planes);
                slot.busy_to = life.read;
                let slot: *const Slot = slot;
                own[life.value.index()] = slots.iter().position(|other| std::ptr::eq(other, slot));
            } else {
                own[life.value.index()] = Some(slots.len());
                slots.push(Slot { side, planes, busy_to: life.read });
            }
        }
        let mut places = vec![None; graph.nodes().len()];
        for life in lives {
            let (value, channel) = root(within, life.value);
            let buffer = own[value.index()].expect("every root has a slot");
            places[life.value.index()] = Some(Place {
                buffer,
                first: channel / LANES,
                stride: shape(value).blocks(),
                shape: shape(life.value),
                number: PhantomData,
            });
        }
        let plane = |slot: &Slot| Shape::new(1, 1, slot.side.0, slot.side.1).plane();
        Self { places, buffers: slots.iter().map(|slot| (slot.planes, plane(slot))).collect() }
    }

    /// # Panics
    /// If the value is none that a step makes in this form.
    pub fn place(&self, value: Value) -> Place<T> {
        self.find(value).expect("a value that a step makes")
    }

    pub fn find(&self, value: Value) -> Option<Place<T>> {
        self.places[value.index()]
    }

    pub fn buffers(&self) -> Vec<Memory<T>> {
        self.buffers.iter().map(|(planes, plane)| Memory::zeroed(planes * plane)).collect()
    }
}
