//! Which map lies where: those whose times do not overlap share a buffer.
//!
//! A buffer holds maps of one height and width, so that the border of zeros is at the same places for
//! each of them and is never written.

use crate::ops::feature_map::{Buffer, FeatureMap, Shape};

/// Where a map lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    buffer: usize,
    pub shape: Shape,
}

impl Place {
    pub fn map<'a>(&self, buffers: &'a [Buffer]) -> FeatureMap<'a> {
        buffers[self.buffer].map(self.shape, 0)
    }
}

/// A map's time, from the moment it is written to the last at which it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub shape: Shape,
    pub from: usize,
    pub to: usize,
}

/// A place for each of `lives`, and the buffers.
pub(super) fn plan(lives: &[Life]) -> (Vec<Place>, Vec<Buffer>) {
    struct Room {
        size: (usize, usize),
        planes: usize,
        free_after: usize,
    }
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|&i| lives[i].from);
    let mut rooms: Vec<Room> = Vec::new();
    let mut places = vec![Place { buffer: usize::MAX, shape: Shape::new(0, 0, 0, 0) }; lives.len()];
    for i in order {
        let Life { shape, from, to } = lives[i];
        let size = (shape.height, shape.width);
        let planes = shape.images * shape.blocks();
        let free = rooms.iter_mut().enumerate().filter(|(_, room)| {
            room.size == size && room.free_after < from && room.planes >= planes
        });
        let buffer = match free.min_by_key(|(_, room)| room.planes) {
            Some((buffer, room)) => {
                room.free_after = to;
                buffer
            }
            None => {
                rooms.push(Room { size, planes, free_after: to });
                rooms.len() - 1
            }
        };
        places[i] = Place { buffer, shape };
    }
    let plane = |(height, width)| Shape::new(1, 1, height, width).plane();
    let buffers = rooms.iter().map(|room| Buffer::zeroed(room.planes * plane(room.size))).collect();
    (places, buffers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_share_a_buffer_only_when_their_times_are_apart() {
        let wide = Shape::new(2, 32, 8, 8);
        let narrow = Shape::new(2, 16, 8, 8);
        let other = Shape::new(2, 32, 4, 8);
        let life = |shape, from, to| Life { shape, from, to };
        let lives = [
            life(wide, 0, 2),
            life(wide, 2, 4),
            // Free for the first one's room, which is large enough.
            life(narrow, 3, 5),
            life(other, 6, 6),
            life(wide, 5, 9),
        ];
        let (places, buffers) = plan(&lives);
        let room: Vec<usize> = places.iter().map(|place| place.buffer).collect();
        assert_eq!(room, [0, 1, 0, 2, 1]);
        assert_eq!(buffers.len(), 3);
    }
}
