//! Every kernel, by the launches that production builds, in the interpreter of PTX against its twin
//! on the CPU.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

#[path = "kernels/cases.rs"]
mod cases;
#[path = "kernels/conv.rs"]
mod conv;
#[path = "kernels/cosine_map.rs"]
mod cosine_map;
#[path = "kernels/data.rs"]
mod data;
#[path = "kernels/detectors.rs"]
mod detectors;
#[path = "kernels/interpreter.rs"]
mod interpreter;
#[path = "kernels/mutants.rs"]
mod mutants;
#[path = "kernels/nearest_prototype.rs"]
mod nearest_prototype;
#[path = "kernels/networks.rs"]
mod networks;
#[path = "kernels/operations.rs"]
mod operations;
#[path = "kernels/patch_features.rs"]
mod patch_features;
#[path = "kernels/pixels.rs"]
mod pixels;
#[path = "kernels/prototype_residual.rs"]
mod prototype_residual;
#[path = "kernels/smooth_upsample.rs"]
mod smooth_upsample;
#[path = "kernels/top_mean.rs"]
mod top_mean;

use inspectd::cuda::{Arg, DeviceMemory, Gpu, Launch, Module};
use interpreter::Interpreter;
use ptx_interpreter::Fault;

/// Doubles `count` values.
const TWICE: Module = Module {
    name: "twice",
    ptx: "
.version 9.0
.target sm_80
.address_size 64

.visible .entry twice(
    .param .u64 twice_param_0,
    .param .u32 twice_param_1
)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<5>;
    ld.param.b64 %rd1, [twice_param_0];
    ld.param.b32 %r1, [twice_param_1];
    mov.u32 %r2, %tid.x;
    setp.ge.u32 %p1, %r2, %r1;
    @%p1 bra $L__BB0_2;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r2, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.b32 %r3, [%rd4];
    add.f32 %r4, %r3, %r3;
    st.global.b32 [%rd4], %r4;
$L__BB0_2:
    ret;
}
",
};

#[test]
fn the_interpreter_is_a_gpu() {
    let mut gpu = Interpreter::default();
    let values = gpu.floats(&[1.0, 2.5, -3.0]);
    let launch = |count| Launch {
        module: TWICE,
        entry: "twice",
        grid: [1, 1, 1],
        block: [32, 1, 1],
        shared_bytes: 0,
        args: vec![Arg::Memory(values.region()), Arg::U32(count)],
    };
    gpu.launch(&launch(3)).unwrap();
    assert_eq!(gpu.read_floats(values.region()).unwrap(), [2.0, 5.0, -6.0]);

    let error = gpu.launch(&launch(4)).unwrap_err();
    let fault = error.downcast_ref::<Fault>().unwrap();
    assert_eq!(fault.kind, ptx_interpreter::Kind::OutOfBounds);
}
