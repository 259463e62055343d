//! The device itself: its ioctls, and the memory that its driver writes frames into. The only room of
//! the cameras with `unsafe`: the kernel is told where our structures lie, and tells where its memory
//! does.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};

use super::negotiate::Node;
use super::stream::{Clock, Driver, Taken};
use super::uapi::{
    BUF_ERROR, BUF_TIMESTAMP_MASK, BUF_TIMESTAMP_MONOTONIC, Buffer, CAPTURE, Capability, Control,
    Format, FormatDescription, FrameInterval, FrameSize, MMAP, QueryControl, RequestBuffers,
    StreamParm,
};

/// An ioctl that reads or writes a `T`, whose size is part of its number.
struct Request<T> {
    opcode: Opcode,
    of: PhantomData<T>,
}

impl<T> Request<T> {
    const fn read(number: u8) -> Request<T> {
        Request { opcode: opcode::read::<T>(b'V', number), of: PhantomData }
    }

    const fn write(number: u8) -> Request<T> {
        Request { opcode: opcode::write::<T>(b'V', number), of: PhantomData }
    }

    const fn both(number: u8) -> Request<T> {
        Request { opcode: opcode::read_write::<T>(b'V', number), of: PhantomData }
    }
}

const QUERYCAP: Request<Capability> = Request::read(0);
const ENUM_FMT: Request<FormatDescription> = Request::both(2);
const S_FMT: Request<Format> = Request::both(5);
const REQBUFS: Request<RequestBuffers> = Request::both(8);
const QUERYBUF: Request<Buffer> = Request::both(9);
const QBUF: Request<Buffer> = Request::both(15);
const DQBUF: Request<Buffer> = Request::both(17);
const STREAMON: Request<u32> = Request::write(18);
const STREAMOFF: Request<u32> = Request::write(19);
const G_PARM: Request<StreamParm> = Request::both(21);
const S_PARM: Request<StreamParm> = Request::both(22);
const G_CTRL: Request<Control> = Request::both(27);
const S_CTRL: Request<Control> = Request::both(28);
const QUERYCTRL: Request<QueryControl> = Request::both(36);
const ENUM_FRAMESIZES: Request<FrameSize> = Request::both(74);
const ENUM_FRAMEINTERVALS: Request<FrameInterval> = Request::both(75);

/// One request with the value it is about.
struct Call<'a, T> {
    opcode: Opcode,
    value: &'a mut T,
}

// SAFETY: the pointer is to a `T` that the call borrows for as long as it runs; the kernel copies as many
// bytes as the number says, which is `size_of::<T>()` (`Request`). All `T` above are plain numbers, for
// which any bits are a value, and none of those that we fill holds an address: frames lie in memory that
// the driver owns (MMAP).
unsafe impl<T> Ioctl for Call<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::from_mut(self.value).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// A device that is open, not yet streaming.
pub struct Device {
    file: OwnedFd,
}

impl Device {
    pub fn open(path: &Path) -> Result<Device, Errno> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(Device { file: retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))? })
    }

    fn call<T>(&self, request: &Request<T>, value: &mut T) -> Result<(), Errno> {
        retry_on_intr(|| {
            let call = Call { opcode: request.opcode, value: &mut *value };
            // SAFETY: as `Call` says; a file that is no V4L2 device knows no number of the kind 'V' and
            // says so.
            unsafe { rustix::ioctl::ioctl(&self.file, call) }
        })
    }

    /// Takes about `count` buffers of the format that was set, and starts the stream into them.
    pub fn stream(self, count: u32) -> Result<Camera, Errno> {
        let mut request =
            RequestBuffers { count, kind: CAPTURE, memory: MMAP, ..RequestBuffers::default() };
        self.call(&REQBUFS, &mut request)?;
        let mut camera = Camera { buffers: Vec::new(), device: self };
        for index in 0..request.count {
            let mut about = described(index);
            camera.device.call(&QUERYBUF, &mut about)?;
            camera.buffers.push(Mapped::new(&camera.device.file, &about)?);
        }
        for index in 0..request.count {
            camera.queue(index)?;
        }
        let mut kind = CAPTURE;
        camera.device.call(&STREAMON, &mut kind)?;
        Ok(camera)
    }
}

impl Node for Device {
    fn capability(&self) -> Result<Capability, Errno> {
        let mut capability = Capability::default();
        self.call(&QUERYCAP, &mut capability).map(|()| capability)
    }

    fn format(&self, mut description: FormatDescription) -> Result<FormatDescription, Errno> {
        self.call(&ENUM_FMT, &mut description).map(|()| description)
    }

    fn frame_size(&self, mut size: FrameSize) -> Result<FrameSize, Errno> {
        self.call(&ENUM_FRAMESIZES, &mut size).map(|()| size)
    }

    fn frame_interval(&self, mut interval: FrameInterval) -> Result<FrameInterval, Errno> {
        self.call(&ENUM_FRAMEINTERVALS, &mut interval).map(|()| interval)
    }

    fn set_format(&mut self, mut format: Format) -> Result<Format, Errno> {
        self.call(&S_FMT, &mut format).map(|()| format)
    }

    fn parm(&self, mut parm: StreamParm) -> Result<StreamParm, Errno> {
        self.call(&G_PARM, &mut parm).map(|()| parm)
    }

    fn set_parm(&mut self, mut parm: StreamParm) -> Result<StreamParm, Errno> {
        self.call(&S_PARM, &mut parm).map(|()| parm)
    }

    fn query_control(&self, mut query: QueryControl) -> Result<QueryControl, Errno> {
        self.call(&QUERYCTRL, &mut query).map(|()| query)
    }

    fn control(&self, mut control: Control) -> Result<Control, Errno> {
        self.call(&G_CTRL, &mut control).map(|()| control)
    }

    fn set_control(&mut self, mut control: Control) -> Result<Control, Errno> {
        self.call(&S_CTRL, &mut control).map(|()| control)
    }
}

/// A device that streams into mapped buffers.
pub struct Camera {
    buffers: Vec<Mapped>,
    device: Device,
}

impl Camera {
    fn queue(&mut self, index: u32) -> Result<(), Errno> {
        self.device.call(&QBUF, &mut described(index))
    }
}

impl Driver for Camera {
    fn buffers(&self) -> usize {
        self.buffers.len()
    }

    fn clock(&self) -> Clock {
        let monotonic = clock_gettime(ClockId::Monotonic);
        #[expect(
            clippy::disallowed_methods,
            reason = "the moment of capture is read where the frame is fetched"
        )]
        let now = Instant::now();
        let monotonic = duration(monotonic.tv_sec, monotonic.tv_nsec).unwrap_or_default();
        Clock { now, monotonic }
    }

    fn wait(&mut self, patience: Duration) -> Result<bool, Errno> {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut files = [PollFd::new(&self.device.file, PollFlags::IN)];
        // A signal ends the wait early; the caller comes again.
        match poll(&mut files, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        let came = files[0].revents();
        if came.contains(PollFlags::IN) {
            return Ok(true);
        }
        // Without a frame the stream has failed; why, is said by the attempt to take one.
        let mut buffer = described(0);
        match self.device.call(&DQBUF, &mut buffer) {
            Err(Errno::AGAIN) | Ok(()) => Err(Errno::IO),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self) -> Result<Option<Taken>, Errno> {
        let mut buffer = described(0);
        match self.device.call(&DQBUF, &mut buffer) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error),
        }
        let monotonic = buffer.flags & BUF_TIMESTAMP_MASK == BUF_TIMESTAMP_MONOTONIC;
        let stamp = duration(buffer.seconds, buffer.microseconds.saturating_mul(1000));
        Ok(Some(Taken {
            index: buffer.index,
            bytes_used: buffer.bytes_used,
            broken: buffer.flags & BUF_ERROR != 0,
            sequence: buffer.sequence,
            stamp: stamp.filter(|_| monotonic),
        }))
    }

    fn bytes(&self, taken: &Taken) -> &[u8] {
        let bytes = self.buffers.get(taken.index as usize).map(Mapped::bytes).unwrap_or_default();
        &bytes[..bytes.len().min(taken.bytes_used as usize)]
    }

    fn give_back(&mut self, taken: Taken) -> Result<(), Errno> {
        self.queue(taken.index)
    }
}

impl Drop for Camera {
    /// A device that is gone cannot be stopped any more, nor need it be.
    fn drop(&mut self) {
        let mut kind = CAPTURE;
        let _gone = self.device.call(&STREAMOFF, &mut kind);
    }
}

fn described(index: u32) -> Buffer {
    Buffer { index, kind: CAPTURE, memory: MMAP, ..Buffer::default() }
}

/// `None` for a time before the clock's zero.
fn duration(seconds: i64, nanoseconds: i64) -> Option<Duration> {
    let whole = Duration::from_secs(u64::try_from(seconds).ok()?);
    Some(whole.saturating_add(Duration::from_nanos(u64::try_from(nanoseconds).ok()?)))
}

/// A buffer of the driver, to be read by us.
struct Mapped {
    at: *mut c_void,
    length: usize,
}

impl Mapped {
    fn new(file: &OwnedFd, about: &Buffer) -> Result<Mapped, Errno> {
        let length = about.length as usize;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let at = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                about.offset & u64::from(u32::MAX),
            )
        }?;
        Ok(Mapped { at, length })
    }

    /// The whole buffer. Only what a frame has been taken into is looked at: the driver writes to a
    /// buffer from when it is given back until it is taken again.
    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `length` bytes long, readable, and lives as long as `self`. V4L2 lets
        // the driver write to it only while it is queued; it is looked at with the `Taken` in hand that
        // giving it back consumes, and no slice lasts until then, since giving back wants the camera
        // for itself.
        unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slice of it outlives `self`.
        let _mapped = unsafe { munmap(self.at, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /* printf("%#lx\n", VIDIOC_QUERYCAP) and so on, gcc 12, x86-64, linux/videodev2.h of Linux 6.1 */
    #[test]
    fn requests_have_the_numbers_of_the_kernel_and_so_the_sizes_of_its_structures() {
        for (name, opcode, number) in [
            ("QUERYCAP", QUERYCAP.opcode, 0x8068_5600_u32),
            ("ENUM_FMT", ENUM_FMT.opcode, 0xc040_5602),
            ("S_FMT", S_FMT.opcode, 0xc0d0_5605),
            ("REQBUFS", REQBUFS.opcode, 0xc014_5608),
            ("QUERYBUF", QUERYBUF.opcode, 0xc058_5609),
            ("QBUF", QBUF.opcode, 0xc058_560f),
            ("DQBUF", DQBUF.opcode, 0xc058_5611),
            ("STREAMON", STREAMON.opcode, 0x4004_5612),
            ("STREAMOFF", STREAMOFF.opcode, 0x4004_5613),
            ("G_PARM", G_PARM.opcode, 0xc0cc_5615),
            ("S_PARM", S_PARM.opcode, 0xc0cc_5616),
            ("G_CTRL", G_CTRL.opcode, 0xc008_561b),
            ("S_CTRL", S_CTRL.opcode, 0xc008_561c),
            ("QUERYCTRL", QUERYCTRL.opcode, 0xc044_5624),
            ("ENUM_FRAMESIZES", ENUM_FRAMESIZES.opcode, 0xc02c_564a),
            ("ENUM_FRAMEINTERVALS", ENUM_FRAMEINTERVALS.opcode, 0xc034_564b),
        ] {
            assert_eq!(opcode, number, "VIDIOC_{name}");
        }
        assert_eq!(std::mem::offset_of!(Buffer, sequence), 56);
        assert_eq!(std::mem::offset_of!(Format, pix), 8);
        assert_eq!(std::mem::offset_of!(StreamParm, capture), 4);
    }

    #[test]
    fn a_file_that_is_no_camera_says_so() {
        let device = Device::open(Path::new("/dev/null")).unwrap();
        assert_eq!(device.capability().err(), Some(Errno::NOTTY));
        assert_eq!(Device::open(Path::new("/dev/video987")).err(), Some(Errno::NOENT));
    }
}
