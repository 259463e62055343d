"""anomalib's PatchCore against `inspectd bench --net patch_prototypes`, per-image latency.

    python patchcore.py run --inspectd target/release/inspectd [--bank-size N] [--bank FILE]
                            [--threads T…] [--rounds N] [--seconds S] [--json FILE]

Both: ResNet18, levels 2 and 3, 256 × 256, a memory bank of N rows, 9 neighbours, one picture at a
time. anomalib's network (timm's ResNet18, its own PyTorch code) runs in PyTorch and, exported to
ONNX, in ONNX Runtime and OpenVINO; it starts from a tensor that is resized and normalised already,
inspectd from 900 × 900 8-bit pixels, or those of `--pictures`. Random weights, or those of
`--weights`. The bank's rows are those of `--bank` (search.py makes it), else random numbers in
anomalib, which measures every row in any case, and features of rendered parts in inspectd, which
measures those that it can't rule out; pictures and bank should go together. Ratios are to anomalib's
best runtime.
"""

import argparse
import sys
import warnings
from pathlib import Path

import clock
import compare
import places

RUNTIMES = ("onnxruntime", "openvino", "torch")
NEIGHBOURS = 9
LEVELS = ("layer2", "layer3")
DIMS = 384
SIDE = 256
BASELINES = {"best anomalib": [f"anomalib {runtime}" for runtime in RUNTIMES]}


def main() -> int:
    args = arguments()
    return args.do(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--bank-size", type=int, default=16384)
    model.add_argument("--bank", type=Path, help="its first rows of `prototypes` are the bank")
    model.add_argument("--weights", type=Path, help="ResNet18, by torchvision's names")
    model.add_argument("--models", type=Path, default=places.MODELS)
    parts = parser.add_subparsers(required=True)
    race = parts.add_parser("run", parents=[model], help="interleaved run and ratio table")
    race.add_argument("--inspectd", type=Path, help="the program; without it, anomalib only")
    race.add_argument("--pictures", type=Path, help="folder of pictures for inspectd to inspect")
    race.add_argument("--precision", nargs="+", choices=("f32",), default=["f32"])
    race.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    race.add_argument("--rounds", type=int, default=3)
    race.add_argument("--seconds", type=float, default=3, help="of each engine in each round")
    race.add_argument("--json", type=Path)
    race.set_defaults(do=run)
    worker = parts.add_parser("worker", parents=[model], help="one runtime: one JSON line")
    worker.add_argument("runtime", choices=RUNTIMES)
    worker.add_argument("threads", type=int)
    worker.add_argument("seconds", type=float)
    worker.set_defaults(do=work)
    return parser.parse_args()


def run(args: argparse.Namespace) -> int:
    facts = compare.machine(args.inspectd)
    export(args)
    flags = ["--bank-size", args.bank_size, "--models", args.models]
    for name, file in (("--bank", args.bank), ("--weights", args.weights)):
        flags += [name, file] if file else []
    cases, results = [], []
    for threads in args.threads:
        contestants = []
        if args.inspectd is not None:
            network = f"resnet18:{args.weights}" if args.weights else "resnet18"
            options = {"bank_size": args.bank_size, "backbone": network, "batch": 1}
            options |= {"bank": args.bank} if args.bank else {}
            options |= {"pictures": args.pictures} if args.pictures else {}
            contestants = [
                compare.inspectd(
                    args.inspectd,
                    "patch_prototypes",
                    threads,
                    args.seconds,
                    precision=precision,
                    **options,
                )
                for precision in args.precision
            ]
        for runtime in RUNTIMES:
            own = ("worker", runtime, threads, args.seconds, *flags)
            name = f"anomalib {runtime}"
            contestants.append(compare.peer(name, "patchcore.py", *own, threads=threads))
        case = {"net": "patch_prototypes", "bank_size": args.bank_size, "threads": threads}
        print(f"**{', '.join(f'{name} {value}' for name, value in case.items())}**\n")
        measured = compare.interleave(contestants, args.rounds)
        rows = compare.table(measured, BASELINES)
        cases.append({**case, "batch": 1, "rows": rows})
        results += measured
    return compare.finish(facts, cases, results, args.json)


def work(args: argparse.Namespace) -> int:
    clock.prepare(args.threads)
    import numpy as np

    from worker import onnxruntime_session, openvino_request

    x = np.random.default_rng(1).standard_normal((1, 3, SIDE, SIDE), np.float32)
    if args.runtime == "onnxruntime":
        job = onnxruntime_session(onnx(args), x, args.threads)
    elif args.runtime == "openvino":
        job = openvino_request(onnx(args), x, args.threads, "f32")
    else:
        import torch

        torch.set_num_threads(args.threads)
        torch.set_flush_denormal(True)
        net, picture = patchcore(args), torch.from_numpy(x)

        def job():
            with torch.inference_mode():
                return net(picture)

    clock.report(job, args.seconds)
    return 0


def onnx(args: argparse.Namespace) -> Path:
    return args.models / f"patchcore_{args.bank_size}.onnx"


def export(args: argparse.Namespace) -> None:
    import torch

    args.models.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        picture = torch.randn(1, 3, SIDE, SIDE)
        options = {"opset_version": 17, "dynamo": False, "input_names": ["x"]}
        torch.onnx.export(patchcore(args), (picture,), str(onnx(args)), **options)


def patchcore(args: argparse.Namespace):
    """anomalib's network as its training leaves it, in eval mode."""
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from safetensors.torch import load_file

    torch.manual_seed(0)
    net = PatchcoreModel(LEVELS, "resnet18", pre_trained=False, num_neighbors=NEIGHBOURS)
    if args.weights:
        weights = load_file(args.weights)
        backbone = net.feature_extractor.feature_extractor
        absent = backbone.load_state_dict(weights, strict=False).missing_keys
        if any(not name.endswith("num_batches_tracked") for name in absent):
            sys.exit(f"{args.weights}: {absent[0]} is missing")
    net.memory_bank = torch.randn(args.bank_size, DIMS)
    if args.bank:
        net.memory_bank = load_file(args.bank)["prototypes"][: args.bank_size].clone()
        if len(net.memory_bank) < args.bank_size:
            sys.exit(f"{args.bank}: has {len(net.memory_bank)} rows, fewer than {args.bank_size}")
    return net.eval()


if __name__ == "__main__":
    sys.exit(main())
