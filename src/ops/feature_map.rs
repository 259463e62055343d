//! Where the engine keeps numbers: aligned buffers, and feature maps in blocked layout.
//!
//! A feature map of B pictures, C channels, H × W is stored as planes of 16 channels:
//! `[B][⌈C/16⌉][H + 2][W + 2][16]`, with a border of one place all round that is zero and stays zero
//! (what a 3×3 convolution pads with). Channels past C in the last block are zero too, or, behind an
//! operation that does not keep zero, finite. A map may be a run of blocks within a wider one: that
//! is how concatenation costs nothing. The int8 path keeps its activations in the same layout, a byte
//! a number ([`ByteMap`]).

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ptr::NonNull;

use super::simd::LANES;

/// Of a cache line, and of a 512-bit register.
const ALIGNMENT: usize = 64;

/// From this size on the buffer is aligned to and asked of the kernel as huge pages (2 MiB).
const HUGE: usize = 2 << 20;

/// What a buffer holds.
///
/// # Safety
/// All bits zero is a value of the type, the number zero, and it needs no drop.
pub unsafe trait Number: Copy + PartialEq + std::fmt::Debug + 'static {}

// SAFETY: as the trait asks.
unsafe impl Number for f32 {}
// SAFETY: as above.
unsafe impl Number for u8 {}
// SAFETY: as above.
unsafe impl Number for i8 {}

/// Numbers that nothing but this value owns, aligned to cache lines, zero at first.
///
/// Not `Sync`: views of it ([`Map`]) write without a `&mut`, so all of them stay on the
/// thread that has the buffer, which hands pieces to a [`super::team::Team`] only inside an
/// operation.
pub struct Memory<T> {
    start: NonNull<UnsafeCell<T>>,
    len: usize,
    layout: Layout,
}

pub type Buffer = Memory<f32>;
pub type ByteBuffer = Memory<u8>;

// SAFETY: it owns its memory, like a Vec; only sharing it is not allowed.
unsafe impl<T: Number> Send for Memory<T> {}

impl<T: Number> Memory<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let numbers = Layout::array::<T>(len.max(LANES)).expect("more numbers than memory has");
        let bytes = numbers.size();
        let alignment = if bytes >= HUGE { HUGE } else { ALIGNMENT };
        let layout = Layout::from_size_align(bytes, alignment).expect("far below isize::MAX");
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // SAFETY: the range is ours and was just allocated. It is advice: an answer of no
            // changes nothing. It comes before the first touch, which is what it is about, and why
            // the zeros are not asked of the allocator.
            unsafe {
                let _ = rustix::mm::madvise(
                    start.as_ptr().cast(),
                    bytes,
                    rustix::mm::Advice::LinuxHugepage,
                );
            }
        }
        // SAFETY: the range is ours, and all zeros is a number.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Self { start: start.cast(), len, layout }
    }

    pub fn from_slice(values: &[T]) -> Self {
        let mut buffer = Self::zeroed(values.len());
        buffer.as_mut_slice().copy_from_slice(values);
        buffer
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.layout.size()
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `len` initialised numbers that only we own, borrowed mutably with us.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }

    /// The first number. Writing through it is what [`UnsafeCell`] allows, as long as no reference to
    /// the same numbers lives.
    pub fn as_ptr(&self) -> *mut T {
        self.start.as_ptr().cast()
    }

    /// A map of `shape` that begins `first_plane` planes of its size into this buffer.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn map(&self, shape: Shape, first_plane: usize) -> Map<'_, T> {
        self.window(shape, first_plane, shape.blocks())
    }

    /// As [`Memory::map`], but from picture to picture `stride` ≥ ⌈C/16⌉ planes further on: one part
    /// of a wider map.
    pub fn window(&self, shape: Shape, first_plane: usize, stride: usize) -> Map<'_, T> {
        let blocks = shape.blocks();
        assert!(stride >= blocks && shape.images > 0, "{shape:?} in strides of {stride} planes");
        let end = end_of(shape, first_plane, stride);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{shape:?} from plane {first_plane}, stride {stride}, in a buffer of {}",
            self.len
        );
        // SAFETY: the last plane ends within the buffer, as just checked.
        let start = unsafe { self.as_ptr().add(first_plane * shape.plane()) };
        Map { start, shape, stride, memory: PhantomData }
    }
}

/// Numbers up to the end of the last plane of a map, if they can be counted: a product that wraps
/// would let a map of absurd size into any buffer.
fn end_of(shape: Shape, first_plane: usize, stride: usize) -> Option<usize> {
    let row = shape.width.checked_add(2)?.checked_mul(LANES)?;
    let plane = shape.height.checked_add(2)?.checked_mul(row)?;
    let before = (shape.images - 1).checked_mul(stride)?.checked_add(first_plane)?;
    before.checked_add(shape.blocks())?.checked_mul(plane)
}

/// Numbers that no longer change, such as packed weights: all threads may read them.
#[derive(Debug)]
pub struct Frozen<T = f32>(Memory<T>);

// SAFETY: nothing writes to the buffer inside, and no view of it is given out that could.
unsafe impl<T: Number> Sync for Frozen<T> {}

impl<T: Number> From<Memory<T>> for Frozen<T> {
    fn from(buffer: Memory<T>) -> Self {
        Self(buffer)
    }
}

impl<T: Number> Frozen<T> {
    pub fn as_ptr(&self) -> *const T {
        self.0.as_ptr().cast_const()
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` initialised numbers that nobody writes to.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.0.len()) }
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout in `zeroed`, and given back once.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) }
    }
}

impl<T> std::fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} {})", self.len, std::any::type_name::<T>())
    }
}

/// Of a feature map: B, C, H, W.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub images: usize,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

impl Shape {
    pub fn new(images: usize, channels: usize, height: usize, width: usize) -> Self {
        Self { images, channels, height, width }
    }

    /// Blocks of 16 channels.
    pub fn blocks(&self) -> usize {
        self.channels.div_ceil(LANES)
    }

    /// Numbers from a row to the next, border included.
    pub fn row(&self) -> usize {
        (self.width + 2) * LANES
    }

    /// Numbers of one plane of 16 channels, border included.
    pub fn plane(&self) -> usize {
        (self.height + 2) * self.row()
    }

    /// Numbers of a buffer that holds just this.
    pub fn len(&self) -> usize {
        self.images * self.blocks() * self.plane()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places of a channel.
    pub fn places(&self) -> usize {
        self.height * self.width
    }
}

/// A view of a feature map in a [`Memory`]. Copies see and write the same numbers.
#[derive(Clone, Copy)]
pub struct Map<'a, T> {
    start: *mut T,
    shape: Shape,
    /// Planes from picture to picture.
    stride: usize,
    memory: PhantomData<&'a Memory<T>>,
}

pub type FeatureMap<'a> = Map<'a, f32>;
/// Activations of the int8 path: a byte q stands for scale · q, the scale being known to whoever
/// reads it.
pub type ByteMap<'a> = Map<'a, u8>;

impl<'a, T: Number> Map<'a, T> {
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Only the channels `first`..`first + channels`; `first` must be a multiple of 16.
    pub fn channels(&self, first: usize, channels: usize) -> Self {
        let whole = self.shape.blocks() * LANES;
        assert!(
            first.is_multiple_of(LANES)
                && (1..=whole).contains(&channels)
                && first <= whole - channels,
            "{channels} channels from {first} on of {whole}"
        );
        // SAFETY: that block lies within this map.
        let start = unsafe { self.start.add(first / LANES * self.shape.plane()) };
        Self { start, shape: Shape { channels, ..self.shape }, ..*self }
    }

    /// Only picture `image`.
    pub fn image(&self, image: usize) -> Self {
        let start = self.plane(image, 0);
        Self { start, shape: Shape { images: 1, ..self.shape }, ..*self }
    }

    /// The number before which plane `block` of `image` begins: the corner of its border.
    pub fn plane(&self, image: usize, block: usize) -> *mut T {
        assert!(image < self.shape.images && block < self.shape.blocks());
        // SAFETY: every plane of the map lies within its buffer.
        unsafe { self.start.add((image * self.stride + block) * self.shape.plane()) }
    }

    /// The first number of place (y, x) in plane `block` of `image`. −1 and H or W are the border.
    pub fn place(&self, image: usize, block: usize, y: isize, x: isize) -> *mut T {
        let (height, width) = (self.shape.height as isize, self.shape.width as isize);
        assert!((-1..=height).contains(&y) && (-1..=width).contains(&x), "({y}, {x})");
        let offset = (y + 1) as usize * self.shape.row() + (x + 1) as usize * LANES;
        // SAFETY: within the plane, as just checked.
        unsafe { self.plane(image, block).add(offset) }
    }

    /// Numbers from plane to plane.
    pub fn plane_len(&self) -> usize {
        self.shape.plane()
    }

    /// Planes from a picture to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// One number.
    pub fn get(&self, image: usize, channel: usize, y: usize, x: usize) -> T {
        // SAFETY: `place` checks that it lies in the map; the lane is below 16.
        unsafe { *self.place(image, channel / LANES, y as isize, x as isize).add(channel % LANES) }
    }

    /// Writes one number.
    pub fn set(&self, image: usize, channel: usize, y: usize, x: usize, value: T) {
        assert!(y < self.shape.height && x < self.shape.width, "the border stays zero");
        // SAFETY: as in `get`.
        unsafe {
            *self.place(image, channel / LANES, y as isize, x as isize).add(channel % LANES) =
                value;
        }
    }

    /// Whether the two share a number.
    pub fn overlaps(&self, other: &Map<'_, T>) -> bool {
        let (own, others) = (self.span(), other.span());
        let apart = own.1 <= others.0 || others.1 <= own.0;
        if apart || self.shape.plane() != other.shape.plane() || self.stride != other.stride {
            return !apart;
        }
        // Two runs of blocks in the same wider map: they share numbers where the runs meet.
        let plane = (self.shape.plane() * size_of::<T>()) as isize;
        let distance = other.start as isize - self.start as isize;
        if distance % plane != 0 {
            return true;
        }
        let (stride, blocks) = (self.stride as isize, distance / plane);
        let from = blocks.rem_euclid(stride);
        from < self.shape.blocks() as isize || from + other.shape.blocks() as isize > stride
    }

    /// Whether the two are one map, or share no number: threads that read a place of `other` before
    /// they write the same place of this one disturb nobody.
    pub fn is_or_is_apart_from(&self, other: &Map<'_, T>) -> bool {
        let same =
            (self.start, self.shape, self.stride) == (other.start, other.shape, other.stride);
        same || !self.overlaps(other)
    }

    /// Whether it lies in `memory`.
    pub fn is_in(&self, memory: &Memory<T>) -> bool {
        let start = memory.as_ptr() as usize;
        (start..start + memory.bytes()).contains(&(self.start as usize))
    }

    fn span(&self) -> (usize, usize) {
        let planes = (self.shape.images - 1) * self.stride + self.shape.blocks();
        let start = self.start as usize;
        (start, start + planes * self.shape.plane() * size_of::<T>())
    }

    /// Fills the map from `values` [B, C, H, W].
    pub fn write(&self, values: &[T]) {
        let Shape { images, channels, height, width } = self.shape;
        assert_eq!(values.len(), images * channels * height * width, "{:?}", self.shape);
        let mut values = values.iter();
        for (b, c) in (0..images).flat_map(|b| (0..channels).map(move |c| (b, c))) {
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                self.set(b, c, y, x, *values.next().expect("counted above"));
            }
        }
    }

    /// The numbers as [B, C, H, W].
    pub fn read(&self) -> Vec<T> {
        let Shape { images, channels, height, width } = self.shape;
        let mut values = Vec::with_capacity(images * channels * height * width);
        for (b, c) in (0..images).flat_map(|b| (0..channels).map(move |c| (b, c))) {
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                values.push(self.get(b, c, y, x));
            }
        }
        values
    }
}

/// A pointer that the threads of a [`super::team::Team`] share inside one operation, each for places
/// of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub T);

// SAFETY: what it points to is divided among the threads by the operation that makes it; see there.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// A method, so that closures capture the whole wrapper and not its field.
    #[inline(always)]
    pub fn get(&self) -> T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_border_stays_zero() {
        let shape = Shape::new(2, 20, 3, 5);
        let mut buffer = Buffer::zeroed(shape.len());
        let values: Vec<f32> = (1..=2 * 20 * 15).map(|i| i as f32).collect();
        buffer.map(shape, 0).write(&values);
        assert_eq!(buffer.map(shape, 0).read(), values);
        assert_eq!(buffer.map(shape, 0).get(1, 17, 2, 3), values[((20 + 17) * 3 + 2) * 5 + 3]);
        let filled = buffer.as_mut_slice().iter().filter(|x| **x != 0.0).count();
        assert_eq!(filled, values.len());
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
    }

    #[test]
    fn parts_of_a_wider_map_know_whether_they_meet() {
        let whole = Shape::new(3, 96, 2, 2);
        let buffer = Buffer::zeroed(whole.len());
        let map = buffer.map(whole, 0);
        let (left, middle, right) =
            (map.channels(0, 32), map.channels(16, 32), map.channels(48, 48));
        assert!(left.overlaps(&middle) && middle.overlaps(&left) && left.overlaps(&left));
        assert!(!left.overlaps(&right) && !right.overlaps(&left) && !middle.overlaps(&right));
        assert!(map.overlaps(&right) && map.image(1).overlaps(&map));
        assert!(!map.image(0).overlaps(&map.image(1)));
        right.set(2, 47, 1, 1, 5.0);
        assert_eq!(map.get(2, 95, 1, 1), 5.0);
    }

    #[test]
    #[should_panic(expected = "in a buffer of")]
    fn a_map_past_the_end_is_refused() {
        let shape = Shape::new(1, 16, 4, 4);
        Buffer::zeroed(shape.len()).map(shape, 1);
    }

    #[test]
    fn sizes_that_wrap_are_refused() {
        fn refused<T>(work: impl Fn() -> T) -> bool {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err()
        }
        let buffer = Buffer::zeroed(Shape::new(1, 16, 4, 4).len());
        let half = 1 << (usize::BITS - 1);
        for shape in [
            Shape::new(1, 16, half - 2, 2),
            Shape::new(1, 16, usize::MAX - 1, 4),
            Shape::new(1, 16, 4, usize::MAX - 1),
            Shape::new(half + 1, 32, 4, 4),
        ] {
            assert!(refused(|| buffer.map(shape, 0).shape()), "{shape:?}");
        }
        let shape = Shape::new(1, 16, 4, 4);
        assert!(refused(|| buffer.map(shape, half).shape()));
        assert!(refused(|| buffer.window(Shape { images: 3, ..shape }, 0, half).shape()));
        assert!(refused(|| buffer.map(shape, 0).channels(usize::MAX - 15, 32).shape()));
        assert!(refused(|| Buffer::zeroed(half / 2).len()));
    }

    #[test]
    fn a_map_knows_its_memory() {
        let shape = Shape::new(2, 16, 3, 3);
        let (own, other) = (Buffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
        let map = own.map(shape, 0);
        assert!(map.is_in(&own) && map.image(1).is_in(&own) && !map.is_in(&other));
        assert!(map.is_or_is_apart_from(&map) && map.is_or_is_apart_from(&other.map(shape, 0)));
        assert!(!map.is_or_is_apart_from(&map.image(1)));
        assert!(map.image(0).is_or_is_apart_from(&map.image(1)));
    }
}
