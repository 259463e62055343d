"""Pixel AUROC and AP of a test set: scikit-learn against `inspectd bench --net metrics`.

    python metrics.py make FILE
    python metrics.py run FILE --inspectd target/release/inspectd [--threads T…] [--rounds N]
                          [--seconds S] [--json FILE]

`make` writes safetensors with `scores` [168, 65536] and `masks` of 0 and 1: seeded random maps of
256 × 256, two of three with an anomalous square. scikit-learn takes roc_auc_score and
average_precision_score of all 11 million pixels; inspectd takes these two and, in the same time,
AUPRO, IAP, IAP@90 and three curves. Both start from arrays in memory. scikit-learn has one thread
for this. What both find is printed by hand: `inspectd bench --net metrics --maps FILE` and
`python metrics.py sklearn FILE 0` must agree.
"""

import argparse
import sys
from pathlib import Path

import clock
import compare

MAPS, SIDE, DEFECT = 168, 256, 40
SEED = 0


def main() -> int:
    args = arguments()
    return args.do(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    make = parts.add_parser("make", help="make random maps")
    make.add_argument("file", type=Path)
    make.set_defaults(do=make_maps)
    race = parts.add_parser("run", help="interleaved run and ratio table")
    race.add_argument("file", type=Path)
    race.add_argument("--inspectd", type=Path, help="the program; without it, scikit-learn only")
    race.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    race.add_argument("--rounds", type=int, default=2)
    race.add_argument("--seconds", type=float, default=3, help="of each engine in each round")
    race.add_argument("--json", type=Path)
    race.set_defaults(do=run)
    sklearn = parts.add_parser("sklearn", help="scikit-learn alone: one JSON line")
    sklearn.add_argument("file", type=Path)
    sklearn.add_argument("seconds", type=float)
    sklearn.set_defaults(do=run_sklearn)
    return parser.parse_args()


def make_maps(args: argparse.Namespace) -> int:
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(SEED)
    masks = np.zeros((MAPS, SIDE, SIDE), np.float32)
    for i in range(MAPS):
        if i % 3:
            left, top = rng.integers(0, SIDE - DEFECT, 2)
            masks[i, top : top + DEFECT, left : left + DEFECT] = 1
    noise = np.sqrt(-np.log(rng.uniform(1e-6, 1, masks.shape))) * rng.uniform(0.5, 1.5, masks.shape)
    scores = (noise * np.where(masks > 0, 1.8, 1)).astype(np.float32)
    save_file({"scores": scores.reshape(MAPS, -1), "masks": masks.reshape(MAPS, -1)}, args.file)
    return 0


def run(args: argparse.Namespace) -> int:
    facts = compare.machine(args.inspectd)
    file = args.file.resolve()
    cases, results = [], []
    for threads in args.threads:
        contestants = []
        if args.inspectd is not None:
            contestants.append(
                compare.inspectd(args.inspectd, "metrics", threads, args.seconds, maps=file)
            )
        own = ("sklearn", file, args.seconds)
        contestants.append(compare.peer("scikit-learn", "metrics.py", *own, threads=threads))
        print(f"**metrics**, {args.file}, threads {threads} ({args.rounds} rounds)\n")
        measured = compare.interleave(contestants, args.rounds)
        rows = compare.table(measured, {"scikit-learn": ["scikit-learn"]})
        cases.append({"net": "metrics", "batch": MAPS, "threads": threads, "rows": rows})
        results += measured
    return compare.finish(facts, cases, results, args.json)


def run_sklearn(args: argparse.Namespace) -> int:
    clock.prepare(1)
    from safetensors.numpy import load_file
    from sklearn.metrics import average_precision_score, roc_auc_score

    tensors = load_file(args.file)
    scores, labels = tensors["scores"].ravel(), tensors["masks"].ravel().astype(bool)
    found = {
        "pixel_auroc": float(roc_auc_score(labels, scores)),
        "pixel_ap": float(average_precision_score(labels, scores)),
    }

    def both() -> None:
        roc_auc_score(labels, scores)
        average_precision_score(labels, scores)

    clock.report(both, args.seconds, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
