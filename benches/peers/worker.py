"""One engine, one network, one process:

    python worker.py ENGINE NET BATCH THREADS SECONDS [--models FOLDER] [--spec specmodels.py]

prints one JSON line, {"samples_ms": […], "cpu_ms": […]}: wall and process CPU time of each run,
after warm-up. Each engine is set up as its manual advises for latency on few threads, the input in
place, and with numbers below 2^-126 taken as zero.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import clock
import places


@dataclass(frozen=True)
class Job:
    net: str
    batch: int
    threads: int
    models: Path
    spec: Path

    @property
    def onnx(self) -> Path:
        return self.models / f"{self.net}_b{self.batch}.onnx"

    @property
    def int8(self) -> Path:
        return self.models / f"{self.net}_b{self.batch}_int8.xml"

    def picture(self):
        """[B, 3, 256, 256]"""
        import numpy as np

        rng = np.random.default_rng(1)
        return rng.standard_normal((self.batch, 3, 256, 256), np.float32)


def onnxruntime_f32(job: Job) -> Callable[[], object]:
    return onnxruntime_session(job.onnx, job.picture(), job.threads)


def openvino_f32(job: Job) -> Callable[[], object]:
    return openvino_request(job.onnx, job.picture(), job.threads, "f32")


def openvino_bf16(job: Job) -> Callable[[], object]:
    return openvino_request(job.onnx, job.picture(), job.threads, "bf16")


def openvino_int8(job: Job) -> Callable[[], object]:
    return openvino_request(job.int8, job.picture(), job.threads, "f32")


def torch_channels_last(job: Job) -> Callable[[], object]:
    torch, net, x = torch_parts(job)

    def run():
        with torch.inference_mode():
            return net(x)

    return run


def torch_compile(job: Job) -> Callable[[], object]:
    torch, net, x = torch_parts(job)
    torch._inductor.config.freezing = True  # folds weights; needs no_grad
    net = torch.compile(net)

    def run():
        with torch.no_grad():
            return net(x)

    return run


ENGINES = {
    "onnxruntime": onnxruntime_f32,
    "openvino-f32": openvino_f32,
    "openvino-bf16": openvino_bf16,
    "openvino-int8": openvino_int8,
    "torch": torch_channels_last,
    "torch-compile": torch_compile,
}


def onnxruntime_session(path: Path, x, threads: int) -> Callable[[], object]:
    """A run of the ONNX file at `path` on its one input `x`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    picture = onnxruntime.OrtValue.ortvalue_from_numpy(x)  # a copy, which the binding keeps
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, picture)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def openvino_request(path: Path, x, threads: int, precision: str) -> Callable[[], object]:
    """A run of the ONNX file or IR at `path` on its one input `x`."""
    import openvino

    config = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "CPU_DENORMALS_OPTIMIZATION": True,
    }
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))  # a copy, which the request keeps
    return request.infer


def torch_parts(job: Job):
    """PyTorch, the network and its input, both channels last."""
    import torch

    import nets

    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(True)
    layout = {"memory_format": torch.channels_last}
    net = nets.build(job.net, job.spec).to(**layout)
    return torch, net, torch.from_numpy(job.picture()).contiguous(**layout)


def main() -> None:
    parser = argparse.ArgumentParser(description="one engine, one network")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("net")
    parser.add_argument("batch", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--models", type=Path, default=places.MODELS)
    parser.add_argument("--spec", type=Path, default=places.SPEC)
    args = parser.parse_args()
    clock.prepare(args.threads)
    job = Job(args.net, args.batch, args.threads, args.models, args.spec)
    needs = {"torch": None, "torch-compile": None, "openvino-int8": job.int8}
    file = needs.get(args.engine, job.onnx)
    if file is not None and not file.is_file():
        sys.exit(f"{file}: not there; export.py writes it")
    clock.report(ENGINES[args.engine](job), args.seconds)


if __name__ == "__main__":
    main()
