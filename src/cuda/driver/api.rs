//! The functions of NVIDIA's driver that are called, and what its errors mean.
//!
//! cudarc finds the library and knows each function's signature, against which ours are checked
//! when this is compiled. Its own calls are not used: they panic where a driver lacks a function,
//! and they return an enumeration, in which a code that a newer driver has added could not be
//! represented.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use anyhow::{Result, anyhow, bail};
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUgraph, CUgraphExec, CUmodule, CUresult, CUstream, CUstreamCaptureMode,
};

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// What is called of `libcuda.so.1`; each returns a code of [`Code`].
        #[allow(non_snake_case, reason = "the driver's own names")]
        #[derive(Clone, Copy)]
        pub struct Api {
            $(pub $name: unsafe extern "C" fn($($argument: $type),*) -> c_uint,)*
        }

        // The signatures are those of cudarc, which has them from NVIDIA's header.
        $(const _: unsafe fn($($type),*) -> CUresult = sys::$name;)*

        impl Api {
            /// # Errors
            /// There is no driver, or one without a function that is needed.
            #[allow(non_snake_case, reason = "the driver's own names")]
            pub fn load() -> Result<Self> {
                // SAFETY: loading the library runs its initialisers, which is what a driver is
                // installed for.
                if !unsafe { sys::is_culib_present() } {
                    bail!(
                        "there is no NVIDIA driver here (libcuda.so.1 is not to be found); the CPU \
                         needs none: device = \"cpu\""
                    );
                }
                // SAFETY: as above; it is there, so that this does not panic.
                let library = unsafe { sys::culib() };
                $(
                    // SAFETY: the type is that of NVIDIA's header (checked above); the return value
                    // is an enumeration there, which C passes as this integer.
                    let $name = *unsafe {
                        library.get::<unsafe extern "C" fn($($argument: $type),*) -> c_uint>(
                            stringify!($name),
                        )
                    }
                    .map_err(|_| anyhow!(
                        "the NVIDIA driver has no function {}: it is too old, or libcuda.so.1 is \
                         something else", stringify!($name)
                    ))?;
                )*
                Ok(Self { $($name,)* })
            }
        }
    };
}

functions! {
    fn cuInit(flags: c_uint);
    fn cuDriverGetVersion(version: *mut c_int);
    fn cuGetErrorName(code: CUresult, name: *mut *const c_char);
    fn cuGetErrorString(code: CUresult, text: *mut *const c_char);
    fn cuDeviceGetCount(count: *mut c_int);
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    fn cuCtxSetCurrent(context: CUcontext);
    fn cuCtxSynchronize();
    fn cuModuleLoadDataEx(
        module: *mut CUmodule,
        image: *const c_void,
        count: c_uint,
        options: *mut sys::CUjit_option,
        values: *mut *mut c_void,
    );
    fn cuModuleUnload(module: CUmodule);
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    fn cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    fn cuMemFree_v2(address: CUdeviceptr);
    fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint);
    fn cuMemFreeHost(address: *mut c_void);
    fn cuMemcpyHtoDAsync_v2(
        to: CUdeviceptr,
        from: *const c_void,
        bytes: usize,
        stream: CUstream,
    );
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    fn cuStreamDestroy_v2(stream: CUstream);
    fn cuStreamSynchronize(stream: CUstream);
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    fn cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    fn cuGraphExecDestroy(exec: CUgraphExec);
    fn cuGraphDestroy(graph: CUgraph);
    fn cuEventCreate(event: *mut CUevent, flags: c_uint);
    fn cuEventRecord(event: CUevent, stream: CUstream);
    fn cuEventSynchronize(event: CUevent);
    fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    fn cuEventDestroy_v2(event: CUevent);
    fn cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
}

/// What a call came to, as the driver numbers it (`CUresult` in `cuda.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub c_uint);

impl Code {
    pub const NO_DEVICE: Self = Self(100);

    /// What it means to who runs a line; `None` where the driver's own words must do.
    fn meaning(self) -> Option<&'static str> {
        Some(match self.0 {
            2 => "the card has no more memory: fewer or smaller models, or a larger card",
            34 => "libcuda.so.1 is a stub for compiling, not a driver",
            35 | 36 => "the driver is older than the card or this program needs",
            46 => "the card is taken by another program (exclusive compute mode)",
            100 => "the driver sees no card",
            101 => "there is no such card",
            200 | 209 => "the driver can make no code for this card",
            218 => "the driver does not take the kernels' PTX",
            221 => {
                "the driver lacks its compiler (libnvidia-ptxjitcompiler.so.1): install the whole \
                    driver"
            }
            222 => "the driver is too old for the kernels' PTX",
            214 | 220 => "the card's memory or link has an error that it could not correct",
            700 | 716 | 717 => "a kernel touched memory that is not its own",
            702 => "the card stopped a kernel that took too long",
            710 | 714 | 715 | 718 | 719 => "a kernel broke down",
            803 | 804 => {
                "the driver's library and its kernel module are of different versions: \
                          restart the machine"
            }
            226 => "the card contained an error of its memory",
            _ => return None,
        })
    }

    /// Whether this call alone failed: what the card holds and does goes on. All others, those that
    /// are not known among them, leave it in doubt.
    pub fn is_of_one_call(self) -> bool {
        matches!(
            self.0,
            1 | 2 | 200 | 209 | 218 | 221..=223 | 300..=302 | 500 | 701 | 801 | 900..=908
        )
    }
}

impl Api {
    /// # Errors
    /// A code that is not success; `doing` and what the driver says of it.
    pub fn check(&self, code: c_uint, doing: impl FnOnce() -> String) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(self.error(Code(code), &doing())) }
    }

    /// A sentence for a code.
    pub fn error(&self, code: Code, doing: &str) -> anyhow::Error {
        let (name, text) =
            (self.word(code, self.cuGetErrorName), self.word(code, self.cuGetErrorString));
        let said = match (name, text) {
            (Some(name), Some(text)) => format!("{name}, {}: {text}", code.0),
            (Some(name), None) => format!("{name}, {}", code.0),
            _ => format!("error {} of the driver", code.0),
        };
        match code.meaning() {
            Some(meaning) => anyhow!("{doing}: {meaning} ({said})"),
            None => anyhow!("{doing}: {said}"),
        }
    }

    fn word(
        &self,
        code: Code,
        of: unsafe extern "C" fn(CUresult, *mut *const c_char) -> c_uint,
    ) -> Option<String> {
        // SAFETY: both are functions of a C enumeration, which is passed as an unsigned int; as
        // such the function takes codes, too, that the enumeration of this program's header does
        // not have.
        let of: unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint =
            unsafe { std::mem::transmute(of) };
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: the pointer is to a live pointer, which it sets to a text of its own or to null.
        let outcome = unsafe { of(code.0, &raw mut text) };
        if outcome != 0 || text.is_null() {
            return None;
        }
        // SAFETY: a C string that lives as long as the driver, which is not unloaded.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_the_card_is_told_from_what_a_call_got_wrong() {
        for code in [700, 702, 714, 715, 716, 719, 999, 226, 214, 4, 12345] {
            assert!(!Code(code).is_of_one_call(), "{code}");
        }
        for code in [1, 2, 218, 222, 500, 701, 900] {
            assert!(Code(code).is_of_one_call(), "{code}");
        }
    }
}
