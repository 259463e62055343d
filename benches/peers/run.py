"""`inspectd bench` and its peers on the same networks, interleaved; prints the ratio tables.

    python run.py --inspectd target/release/inspectd [--nets NET…] [--batches B…]
                  [--threads T…] [--precision f32 bf16 int8] [--rounds N] [--seconds S]
                  [--json FILE]

The networks must have been exported (export.py). Ratios are to the better of ONNX Runtime and
OpenVINO in f32, and to OpenVINO INT8. A peer that fails is reported; the exit status is 1 only if
inspectd fails.
"""

import argparse
import itertools
import sys
from pathlib import Path

import compare
import nets
import places
from worker import ENGINES

PEERS = {
    "f32": ("onnxruntime", "openvino-f32", "torch", "torch-compile"),
    "bf16": ("openvino-bf16",),
    "int8": ("openvino-int8",),
}

BASELINES = {"best f32 peer": ["onnxruntime", "openvino-f32"], "OpenVINO INT8": ["openvino-int8"]}


def main() -> int:
    args = arguments()
    facts = compare.machine(args.inspectd)
    cases, results = [], []
    for net, batch, threads in itertools.product(args.nets, args.batches, args.threads):
        contestants = [*ours(args, net, batch, threads), *theirs(args, net, batch, threads)]
        print(f"**{net}**, batch {batch}, threads {threads} ({args.rounds} rounds)\n")
        measured = compare.interleave(contestants, args.rounds)
        rows = compare.table(measured, BASELINES)
        cases.append({"net": net, "batch": batch, "threads": threads, "rows": rows})
        results += measured
    return compare.finish(facts, cases, results, args.json)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inspectd", type=Path, help="the program; without it, peers only")
    parser.add_argument("--nets", nargs="+", choices=nets.NETS, default=nets.NETS, metavar="NET")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--precision", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each engine in each round")
    parser.add_argument("--models", type=Path, default=places.MODELS)
    parser.add_argument("--spec", type=Path, default=places.SPEC)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def ours(args, net: str, batch: int, threads: int) -> list[compare.Contestant]:
    if args.inspectd is None:
        return []
    options = {"threads": threads, "seconds": args.seconds, "batch": batch}
    return [
        compare.inspectd(args.inspectd, net, precision=precision, **options)
        for precision in args.precision
        if precision == "f32" or (precision == "int8" and net in nets.INT8_NETS)
    ]


def theirs(args, net: str, batch: int, threads: int) -> list[compare.Contestant]:
    wanted = [
        engine
        for precision in args.precision
        for engine in PEERS[precision]
        if engine in args.engines and (precision != "int8" or net in nets.INT8_NETS)
    ]
    places = ("--models", args.models, "--spec", args.spec)
    return [
        compare.peer(
            engine, "worker.py", engine, net, batch, threads, args.seconds, *places, threads=threads
        )
        for engine in wanted
    ]


if __name__ == "__main__":
    sys.exit(main())
