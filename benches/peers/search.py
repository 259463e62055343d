"""Exact nearest prototype: faiss IndexFlatL2 (k = 1) against `inspectd bench --net search`.

    python search.py run --inspectd target/release/inspectd [--bank FILE] [--threads T…]
                         [--precision f32 int8] [--rounds N] [--seconds S] [--json FILE]
    python search.py bank FILE [--data bottle] [--weights resnet18.safetensors]
                         [--test test/broken_large/000.png]

`run` interleaves both on 1024 queries × 384 against 16384 prototypes: normal random numbers, or
those of FILE, safetensors with `prototypes` [N, D] and `queries` [Q, D]. `bank` makes such a file
from pictures: patch features as src/detector/patch_prototypes.rs defines them, a seeded draw of
16384 patches of train/good, and all patches of one test picture.

faiss multiplies with the OpenBLAS of its wheel, which picks a kernel by the processor's family. The
one in faiss-cpu 1.15.1 (OpenBLAS 0.3.15, of 2021) knows no newer families and falls back to an
SSE2 kernel ("Barcelona") on them: on AMD Zen 5, 219 ms where its AVX-512 kernel takes 51. So faiss
runs as it comes and again with each kernel that the processor can run, and ratios are to the best
of them as well.

Letters: Q queries, N prototypes, D channels of a patch feature, P patches of a picture.
"""

import argparse
import os
import sys
from pathlib import Path

import clock
import compare
import places

QUERIES, DIMS, COUNT = 1024, 384, 16384
SEED = 0

# OpenBLAS's name of a kernel: what the processor must have.
KERNELS = {"Haswell": "avx2", "SkylakeX": "avx512f"}
BASELINES = {
    "best faiss": ["faiss", *(f"faiss {kernel}" for kernel in KERNELS)],
    "faiss as it comes": ["faiss"],
}


def main() -> int:
    args = arguments()
    return args.do(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    race = parts.add_parser("run", help="interleaved run and ratio table")
    race.add_argument("--inspectd", type=Path, help="the program; without it, faiss only")
    race.add_argument("--bank", type=Path, help="real data; random numbers without it")
    race.add_argument("--threads", nargs="+", type=int, default=[1])
    race.add_argument("--precision", nargs="+", choices=("f32", "int8"), default=["f32", "int8"])
    race.add_argument("--rounds", type=int, default=3)
    race.add_argument("--seconds", type=float, default=3, help="of each engine in each round")
    race.add_argument("--json", type=Path)
    race.set_defaults(do=run)
    faiss = parts.add_parser("faiss", help="faiss alone: one JSON line")
    faiss.add_argument("threads", type=int)
    faiss.add_argument("seconds", type=float)
    faiss.add_argument("--bank", type=Path)
    faiss.add_argument("--kernel", choices=KERNELS, help="OpenBLAS's choice without it")
    faiss.set_defaults(do=run_faiss)
    bank = parts.add_parser("bank", help="make a file for --bank from pictures")
    bank.add_argument("file", type=Path)
    bank.add_argument("--data", type=Path, default=places.BOTTLE)
    bank.add_argument("--weights", type=Path, default=places.RESNET18)
    bank.add_argument("--test", default="test/broken_large/000.png", help="below --data")
    bank.set_defaults(do=make_bank)
    return parser.parse_args()


def run(args: argparse.Namespace) -> int:
    facts = compare.machine(args.inspectd)
    bank = {"bank": args.bank.resolve()} if args.bank else {}
    flags = [word for name, file in bank.items() for word in (f"--{name}", file)]
    cases, results = [], []
    for threads in args.threads:
        contestants = []
        if args.inspectd is not None:
            contestants = [
                compare.inspectd(
                    args.inspectd, "search", threads, args.seconds, precision=precision, **bank
                )
                for precision in args.precision
            ]
        own = ("faiss", threads, args.seconds, *flags)
        contestants.append(compare.peer("faiss", "search.py", *own, threads=threads))
        for kernel in KERNELS:
            if KERNELS[kernel] in facts["features"]:
                forced = (*own, "--kernel", kernel)
                name = f"faiss {kernel}"
                contestants.append(compare.peer(name, "search.py", *forced, threads=threads))
        print(f"**search**, {args.bank or 'random'}, threads {threads} ({args.rounds} rounds)\n")
        measured = compare.interleave(contestants, args.rounds)
        rows = compare.table(measured, BASELINES)
        for result in measured:
            if "blas" in result.facts:
                size = "{queries} × {dims} against {count}".format(**result.facts)
                print(f"{result.name}: {size}; {', '.join(result.facts['blas'])}")
        print()
        cases.append({"net": "search", "batch": 1, "threads": threads, "rows": rows})
        results += measured
    return compare.finish(facts, cases, results, args.json)


def run_faiss(args: argparse.Namespace) -> int:
    clock.prepare(args.threads)
    if args.kernel:
        os.environ["OPENBLAS_CORETYPE"] = args.kernel
    import faiss
    import numpy as np
    from safetensors.numpy import load_file
    from threadpoolctl import threadpool_info

    if args.bank:
        tensors = load_file(args.bank)
    else:
        rng = np.random.default_rng(SEED)
        shapes = {"queries": (QUERIES, DIMS), "prototypes": (COUNT, DIMS)}
        tensors = {name: rng.standard_normal(s, np.float32) for name, s in shapes.items()}
    queries, prototypes = (np.ascontiguousarray(tensors[n]) for n in ("queries", "prototypes"))
    faiss.omp_set_num_threads(args.threads)
    index = faiss.IndexFlatL2(prototypes.shape[1])
    index.add(prototypes)
    blas = [
        f"{lib['internal_api']} {lib['version']} {lib.get('architecture', '')}".strip()
        for lib in threadpool_info()
        if lib["user_api"] == "blas" and "faiss" in lib["filepath"]
    ]
    facts = {"queries": len(queries), "count": len(prototypes), "dims": prototypes.shape[1]}
    facts |= {"blas": blas, "faiss": faiss.get_compile_options()}
    clock.report(lambda: index.search(queries, 1), args.seconds, **facts)
    return 0


def make_bank(args: argparse.Namespace) -> int:
    import numpy as np
    import torch
    from safetensors.numpy import save_file

    torch.manual_seed(SEED)
    backbone = resnet18(args.weights)
    good = sorted((args.data / "train" / "good").glob("*.png"))
    if not good:
        sys.exit(f"{args.data}/train/good: no pictures")
    patches = len(features(backbone, good[0]))
    if len(good) * patches < COUNT:
        sys.exit(f"{args.data}/train/good: {len(good)} pictures have fewer than {COUNT} patches")
    chosen = np.random.default_rng(SEED).choice(len(good) * patches, COUNT, replace=False)
    rows = []
    for number, picture in enumerate(good):
        mine = np.sort(chosen[chosen // patches == number]) % patches
        rows.append(features(backbone, picture)[mine])
    queries = features(backbone, args.data / args.test)
    tensors = {"prototypes": np.concatenate(rows), "queries": queries}
    save_file(tensors, args.file)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in tensors.items())
    print(f"{args.file}: {shapes}, {len(good)} pictures of {args.data}")
    return 0


def resnet18(weights: Path):
    """resnet18-layer3 of nets.py with weights of a file, by torchvision's names."""
    import torchvision
    from safetensors.torch import load_file

    import nets

    net = torchvision.models.resnet18(weights=None)
    missing = net.load_state_dict(load_file(weights), strict=False).missing_keys
    deeper = ("layer4.", "fc.")
    absent = [n for n in missing if not n.startswith(deeper) and not n.endswith("_tracked")]
    if absent:
        sys.exit(f"{weights}: {absent[0]} is missing")
    return nets.ResNetLevels(net).eval()


def features(backbone, picture: Path):
    """[P, D] f32, P = 32 · 32: levels 2 and 3, each averaged over 3 × 3 places (zeros outside, sum
    divided by 9), level 3 brought to level 2's grid, patches row by row."""
    import torch
    import torch.nn.functional as F

    with torch.inference_mode():
        _, level2, level3 = (F.avg_pool2d(f, 3, 1, 1) for f in backbone(tensor(picture)))
        level3 = F.interpolate(level3, level2.shape[2:], mode="bilinear", align_corners=False)
        both = torch.cat([level2, level3], 1)  # [1, D, H/8, W/8]
        return both[0].flatten(1).T.contiguous().numpy()


def tensor(picture: Path):
    """[1, 3, 256, 256], resized by Pillow's BILINEAR and normalised with ImageNet's statistics."""
    import numpy as np
    import torch
    from PIL import Image

    import nets

    size = (nets.SIDE, nets.SIDE)
    pixels = Image.open(picture).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    values = np.asarray(pixels, np.float32) / 255
    values = (values - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()


if __name__ == "__main__":
    sys.exit(main())
