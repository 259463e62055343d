"""Training steps: PyTorch's, built from the specification's networks, beside `inspectd train`.

    python train.py --specmodels DIR --inspectd target/release/inspectd --data CATEGORY
                    --teacher resnet18.safetensors --source TEXTURES [--batch B] [--threads T…]
                    [--encoder resnet50.safetensors] [--phases PHASE…]

`DIR` holds `specmodels.py`. One step is forward, loss, backward and the optimizer's update, of random
pictures for PyTorch (its better one of contiguous and channels-last memory), of the data set with
everything that makes a batch for inspectd (its `losses.csv`). The two take turns. Prints a table:
median milliseconds of a step, pictures a second, and the most memory that the process had. MLFF's step is
taken where there is an encoder.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, ROUNDS, WARM_UP = 6, 2, 2
PHASES = ("ntsnet", "destseg student", "destseg segmentation", "prn", "mlff")
# Of each scale: a tenth of the good parts that PRN is given here, of some forty.
PROTOTYPES = 4


def main() -> None:
    args = arguments()
    if args.worker:
        print(json.dumps(torch_step(args)))
        return
    print("| step | batch | threads | inspectd ms | images/s | MiB | PyTorch ms | images/s | MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for threads in args.threads:
        ours = {phase: [] for phase in args.phases}
        theirs = {phase: [] for phase in args.phases}
        memory = {}
        for _ in range(ROUNDS):
            for phase, (times, mib) in inspectd(args, threads).items():
                ours[phase] += times
                memory[phase] = [mib]
            for phase in args.phases:
                times, mib = min((worker(args, phase, threads, last) for last in (False, True)),
                                 key=lambda run: statistics.median(run[0]))
                theirs[phase] += times
                memory[phase].append(mib)
        for phase in args.phases:
            own, peer = statistics.median(ours[phase]), statistics.median(theirs[phase])
            rate = [args.batch * 1000 / ms for ms in (own, peer)]
            mib = memory[phase]
            print(f"| {phase} | {args.batch} | {threads} | {own:.0f} | {rate[0]:.1f} | {mib[0]:.0f} "
                  f"| {peer:.0f} | {rate[1]:.1f} | {mib[-1]:.0f} | {peer / own:.2f} |", flush=True)


def peak_mib(command: list) -> tuple[float, str]:
    """Runs to the end; the most memory it had, and what it said."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        said, errors = child.stdout.read(), child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command[0]} ended with {child.returncode}: {errors}")
    return usage.ru_maxrss / 1024, said


def inspectd(args, threads: int) -> dict[str, tuple[list[float], float]]:
    """Milliseconds of steps, by phase, without those that begin a phase or end an epoch, and the most
    memory of the whole run: pictures, batches and, of DeSTSeg, the larger of its phases."""
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        for system, losses in (("ntsnet", {"ntsnet": "level1"}),
                               ("destseg", {"destseg student": "level1",
                                            "destseg segmentation": "focal"}),
                               ("prn", {"prn": "focal"}),
                               ("mlff", {"mlff": "feature"})):
            losses = {phase: loss for phase, loss in losses.items() if phase in args.phases}
            if not losses:
                continue
            out = Path(folder) / system
            config = Path(folder) / f"{system}.toml"
            config.write_text(f"[destseg]\nstudent_steps = {STEPS + WARM_UP}\n"
                              f"segmentation_steps = {STEPS + WARM_UP}\n[ntsnet]\nepochs = 1\n"
                              f"[prn]\nepochs = 1\n[mlff]\nsteps = {STEPS + WARM_UP}\n")
            backbone = f"resnet50:{args.encoder}" if system == "mlff" else f"resnet18:{args.teacher}"
            mib, _ = peak_mib(
                [args.inspectd, "train", "--system", system, "--data", args.data, "--out", out,
                 "--backbone", backbone, "--source", args.source,
                 "--batch", str(args.batch), "--threads", str(threads), "--config", config,
                 # PRN's steps are long: few good parts, of which an epoch is short.
                 "--holdout", "0.8" if system == "prn" else "0.2"])
            with open(f"{out}.training/losses.csv") as file:
                rows = list(csv.DictReader(file))
            for phase, loss in losses.items():
                steps = [float(row["milliseconds"]) for row in rows if row["loss"] == loss]
                times[phase] = steps[WARM_UP:WARM_UP + STEPS], mib
    return times


def worker(args, phase: str, threads: int, channels_last: bool) -> tuple[list[float], float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", phase,
               "--worker-threads", str(threads)]
    command += ["--channels-last"] if channels_last else []
    mib, said = peak_mib(command)
    return json.loads(said.splitlines()[-1]), mib


def torch_step(args) -> list[float]:
    sys.path.insert(0, str(args.specmodels))
    import specmodels
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(args.worker_threads)
    torch.manual_seed(0)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    xs = torch.randn(args.batch, 3, 256, 256).to(memory_format=layout)
    unit = lambda f: F.normalize(f, dim=1)
    teacher = specmodels.Trunk("resnet18", 3).eval().to(memory_format=layout)

    def levels(of, pictures):
        with torch.no_grad():
            return of(pictures)

    if args.worker == "ntsnet":
        student = specmodels.NTSStudent().train().to(memory_format=layout)
        learned = student.parameters()

        def loss():
            pairs = zip(levels(teacher, xs), student(xs))
            return sum((0.5 * (unit(t) - unit(s)).pow(2).sum(1)).mean() for t, s in pairs)
    elif args.worker == "destseg student":
        student = specmodels.DestStudent().train().to(memory_format=layout)
        learned = student.parameters()

        def loss():
            pairs = zip(levels(teacher, xs), student(xs))
            return sum((1 - (unit(t) * unit(s)).sum(1)).sum() / s.shape[2] ** 2 for t, s in pairs)
    elif args.worker == "mlff":
        network = specmodels.MLFF().train().to(memory_format=layout)
        learned = network.parameters()
        truth = torch.zeros(args.batch, 64, 64, dtype=torch.bool)
        truth[::2, 20:40, 20:40] = True

        def loss():
            features, scores = network(xs)
            return mlff_loss(features, scores[:, 0], truth)
    elif args.worker == "prn":
        network = specmodels.PRN().train().to(memory_format=layout)
        # Layer4 learns, with the batch's statistics.
        for name, part in network.enc.named_children():
            if name != "layer4":
                part.eval().requires_grad_(False)
        learned = [p for p in network.parameters() if p.requires_grad]
        shapes = [(64, 64), (128, 32), (256, 16)]
        prototypes = [torch.randn(PROTOTYPES, c, side, side).abs() for c, side in shapes]
        # A half good parts, without anything anomalous.
        truth = (torch.rand(args.batch, 1, 256, 256) > 0.9).float()
        truth[:args.batch // 2] = 0

        def loss():
            said = network(xs, prototypes)
            right = (truth * said + (1 - truth) * (1 - said)).clamp(1e-5, 1 - 1e-5)
            focal = (-0.5 * (1 - right) ** 4 * right.log()).mean()
            return F.smooth_l1_loss(said, truth) + 5 * focal
    else:
        student = specmodels.DestStudent().eval().to(memory_format=layout)
        segmentation = specmodels.DestSeg().train().to(memory_format=layout)
        learned = segmentation.parameters()
        truth = (torch.rand(args.batch, 1, 64, 64) > 0.9).float()

        def loss():
            pairs = zip(levels(teacher, xs), levels(student, xs))
            products = [-unit(t) * unit(s) for t, s in pairs]
            size = products[0].shape[2:]
            up = [F.interpolate(p, size=size, mode="bilinear", align_corners=False)
                  for p in products]
            said = segmentation(torch.cat(up, 1))
            right = truth * said + (1 - truth) * (1 - said)
            focal = (-(1 - right) ** 4 * right.log().clamp(min=-100)).mean()
            return focal + (said - truth).abs().mean()

    if args.worker == "prn":
        optimizer = torch.optim.Adam(learned, lr=1e-4, weight_decay=1e-2)
    else:
        optimizer = torch.optim.SGD(learned, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    times = []
    for _ in range(WARM_UP + STEPS):
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        times.append((time.perf_counter() - begun) * 1e3)
    return times[WARM_UP:]


def mlff_loss(features, scores, truth):
    """The specification's, section 2: features [B, C, h, w], scores and truth [B, h, w]."""
    import torch
    import torch.nn.functional as F

    radii = (features.pow(2).sum(1) + 1).sqrt() - 1
    patches = F.avg_pool2d(features, 4).flatten(2).transpose(1, 2)
    patch_scores = F.avg_pool2d(scores[:, None], 4).flatten(2).transpose(1, 2)
    kept = F.max_pool2d(truth[:, None].float(), 4).flatten(1) == 0
    total = 0
    for i, bad in enumerate(truth):
        normal = scores[i][~bad]
        total += radii[i][~bad].mean() / 2 + F.relu(normal - 2.5).mean()
        if bad.any():
            outside = -torch.expm1(-radii[i][bad].clamp(min=1e-6))
            partners = normal[torch.randint(len(normal), (int(bad.sum()),))]
            total += -outside.log().mean() / 2
            total += F.relu(5 - (scores[i][bad] - partners)).mean()
        p, q = (torch.log_softmax(-torch.cdist(of[i][kept[i]], of[i][kept[i]]), 1)
                for of in (patches, patch_scores))
        total += (q.exp() * (q - p)).sum(1).mean()
    return total / len(truth)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--specmodels", type=Path, required=True)
    parser.add_argument("--inspectd", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--encoder")
    parser.add_argument("--phases", nargs="+", choices=PHASES, metavar="PHASE")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--worker", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--worker-threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--channels-last", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phases is None:
        args.phases = [phase for phase in PHASES if args.encoder or phase != "mlff"]
    if "mlff" in args.phases and not args.encoder:
        parser.error("--encoder: mlff begins with a ResNet50; give its weights")
    return args


if __name__ == "__main__":
    main()
