"""Writes the networks of nets.py as the peers read them: NET_bB.onnx (opset 17) and, quantised by
NNCF, NET_bB_int8.xml (OpenVINO IR). Each ONNX file is run once and held against PyTorch: rounding,
but for mlff, whose quantisation levels are windows with hard edges (a last bit moves a place from
one to the next).

    python export.py [FOLDER] [--nets NET…] [--batches B…] [--spec specmodels.py]

An operation that does not export is reported and the rest goes on; the exit status then is 1.
"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("NNCF_CI", "1")  # no usage statistics are sent

import torch

import nets
import places

CALIBRATION_BATCHES = 4


def main() -> int:
    args = arguments()
    warnings.filterwarnings("ignore")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    args.folder.mkdir(parents=True, exist_ok=True)
    jobs = [(net, batch) for net in args.nets for batch in args.batches]
    failed = 0
    for net, batch in jobs:
        path = args.folder / f"{net}_b{batch}.onnx"
        try:
            error = export(net, batch, args.spec, path)
            print(f"{path.name}: differs from PyTorch by {error:.1e} of the largest value")
            if net in nets.INT8_NETS:
                quantise(path, batch)
                print(f"{path.stem}_int8.xml")
        except Exception as err:  # whatever an exporter throws, the other networks go on
            failed += 1
            print(f"{path.name}: {type(err).__name__}: {str(err).strip()[:500]}", file=sys.stderr)
        sys.stdout.flush()
    return int(failed > 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=places.MODELS)
    parser.add_argument("--nets", nargs="+", choices=nets.NETS, default=nets.NETS, metavar="NET")
    parser.add_argument("--batches", nargs="+", type=int, default=nets.BATCHES)
    parser.add_argument("--spec", type=Path, default=places.SPEC)
    return parser.parse_args()


@torch.no_grad()
def export(name: str, batch: int, spec: Path, path: Path) -> float:
    """Largest difference between ONNX Runtime and PyTorch, as a share of the largest value."""
    import onnxruntime

    net, x = nets.build(name, spec), nets.picture(batch)
    # The exporter writes torch.cdist as an expanded difference, [B, P, C·H·W] numbers large.
    with patch.object(torch, "cdist", distances):
        options = {"opset_version": 17, "dynamo": False, "input_names": ["x"]}
        torch.onnx.export(net, (x,), str(path), **options)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = net(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    got = session.run(None, {"x": x.numpy()})
    pairs = [(torch.from_numpy(g), e) for g, e in zip(got, expected, strict=True)]
    return max(((g - e).abs().max() / e.abs().max()).item() for g, e in pairs)


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [B, D], b [P, D] → [B, P]: L2 distances by one matrix product."""
    squares = a.pow(2).sum(1, keepdim=True) + b.pow(2).sum(1) - 2 * a @ b.T
    return squares.clamp_min(0).sqrt()


def quantise(onnx: Path, batch: int) -> None:
    """Post-training quantisation with NNCF's defaults for CPU speed; random calibration pictures,
    as the weights are random too."""
    import nncf
    import numpy as np
    import openvino

    rng = np.random.default_rng(0)
    shape = (batch, 3, nets.SIDE, nets.SIDE)
    pictures = [rng.standard_normal(shape, np.float32) for _ in range(CALIBRATION_BATCHES)]
    quantised = nncf.quantize(
        openvino.Core().read_model(onnx),
        nncf.Dataset(pictures),
        subset_size=CALIBRATION_BATCHES,
        preset=nncf.QuantizationPreset.PERFORMANCE,
    )
    openvino.save_model(quantised, onnx.with_name(f"{onnx.stem}_int8.xml"), compress_to_fp16=False)


if __name__ == "__main__":
    sys.exit(main())
