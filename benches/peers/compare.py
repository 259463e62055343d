"""Interleaved runs of several programs on the same job, and the ratio table.

A contestant is a command. Each round runs every contestant once, one after the other, so that what
else the machine does falls on all of them; the samples of all rounds are put together.
"""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import clock

TIMEOUT_S = 900

PACKAGES = "onnxruntime openvino nncf torch torchvision faiss-cpu numpy anomalib timm onnx scikit-learn".split()


@dataclass(frozen=True)
class Contestant:
    """`command` prints one JSON line with samples_ms last; inspectd (`ours`) writes its samples to
    the file that is put behind `--json`."""

    name: str
    command: list[str]
    threads: int
    ours: bool = False


@dataclass
class Result:
    name: str
    ours: bool
    samples_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    error: str | None = None

    def quantile(self, q: float) -> float:
        """Nearest rank."""
        ordered = sorted(self.samples_ms)
        return ordered[math.ceil(q * len(ordered)) - 1]

    def row(self) -> dict:
        row = {"engine": self.name, "runs": len(self.samples_ms), **self.facts}
        if self.error:
            row["error"] = self.error
        if self.samples_ms:
            row |= {
                "min_ms": min(self.samples_ms),
                "median_ms": self.quantile(0.5),
                "p99_ms": self.quantile(0.99),
            }
        if self.cpu_ms:
            row["cpu_min_ms"] = min(self.cpu_ms)
        return row


def inspectd(binary: Path, net: str, threads: int, seconds: float, **options) -> Contestant:
    """`inspectd bench`; an option's name is that of its flag, `_` for `-`."""
    command = [str(binary), "bench", "--net", net]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--threads", str(threads), "--seconds", f"{seconds:g}", "--samples"]
    precision = options.get("precision")
    name = f"inspectd {precision}" if precision else "inspectd"
    return Contestant(name, command, threads, ours=True)


def peer(name: str, script: str, *arguments, threads: int) -> Contestant:
    """A script of this folder, run by this Python."""
    path = Path(__file__).with_name(script)
    return Contestant(name, [sys.executable, str(path), *map(str, arguments)], threads)


def interleave(contestants: list[Contestant], rounds: int) -> list[Result]:
    """Runs every contestant once a round. One that fails is reported and left out from then on."""
    results = [Result(contestant.name, contestant.ours) for contestant in contestants]
    for _ in range(rounds):
        for contestant, result in zip(contestants, results, strict=True):
            if result.error:
                continue
            try:
                measured = run(contestant)
                result.samples_ms += measured.pop("samples_ms")
                result.cpu_ms += measured.pop("cpu_ms", [])
                result.facts = measured
            except (OSError, ValueError, LookupError, subprocess.SubprocessError) as err:
                result.error = str(err) or type(err).__name__
                print(f"{contestant.name}: {result.error}", file=sys.stderr)
    return results


def run(contestant: Contestant) -> dict:
    """samples_ms, cpu_ms where known, and what else the contestant says of itself."""
    env = {k: v for k, v in os.environ.items() if k not in clock.FORCED_KERNELS}
    env |= {name: str(contestant.threads) for name in clock.THREAD_COUNTS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command = contestant.command + (["--json", str(file)] if contestant.ours else [])
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            said = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise ValueError(f"exit status {done.returncode}: {said[-800:]}".rstrip(": "))
        if not contestant.ours:
            return json.loads(done.stdout.strip().splitlines()[-1])
        (entry,) = json.loads(file.read_text())
    kept = ("samples_ms", "gflops", "peak_gflops", "arena_mib")
    return {key: entry[key] for key in kept if key in entry}


def table(results: list[Result], baselines: dict[str, list[str]]) -> list[dict]:
    """Prints and returns the rows. A ratio is the baseline's time over the engine's: above 1 the
    engine is faster. A baseline is the best of the engines named, minimum and median apart."""
    rows = [result.row() for result in results]
    measured = [row for row in rows if "min_ms" in row]
    for title, names in baselines.items():
        rivals = [row for row in measured if row["engine"] in names]
        if not rivals:
            continue
        for row in measured:
            for kind in ("min", "median"):
                best = min(rival[f"{kind}_ms"] for rival in rivals)
                row.setdefault("times_faster_than", {}).setdefault(title, {})
                row["times_faster_than"][title][kind] = best / row[f"{kind}_ms"]
    engines = {row["engine"] for row in measured}
    titles = [title for title, names in baselines.items() if engines & set(names)]
    ratios = "".join(f" × {title}, min | median |" for title in titles)
    print(f"| engine | runs | min ms | median ms | p99 ms |{ratios}")
    print("|---" * (5 + 2 * len(titles)) + "|")
    for row in sorted(measured, key=lambda row: row["min_ms"]):
        cells = [row["engine"], str(row["runs"])]
        cells += [f"{row[f'{kind}_ms']:.2f}" for kind in ("min", "median", "p99")]
        for title in titles:
            ratio = row["times_faster_than"][title]
            cells += [f"{ratio[kind]:.2f}" for kind in ("min", "median")]
        print("| " + " | ".join(cells) + " |")
    for row in rows:
        if "error" in row:
            print(f"{row['engine']}: failed, {row['error'].splitlines()[0]}")
    print(flush=True)
    return rows


def machine(binary: Path | None) -> dict:
    """Prints and returns what the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    first = dict(
        (part.strip() for part in line.split(":", 1))
        for line in cpuinfo.split("\n\n")[0].splitlines()
        if ":" in line
    )
    known = "avx2 fma avx512f avx512_vnni avx_vnni avx512_bf16 amx_int8".split()
    flags = first.get("flags", "").split()
    facts = {
        "cpu": first.get("model name", platform.processor() or platform.machine()),
        "cpu_family": first.get("cpu family"),
        "cpu_model": first.get("model"),
        "features": [name for name in known if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if binary is not None:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True)
        facts["inspectd"] = said.stdout.strip()
    print(f"{facts['cpu']} (family {facts['cpu_family']}, model {facts['cpu_model']}),", end=" ")
    print(f"{facts['cores']} cores, {' '.join(facts['features'])}, load {facts['load']:.2f}")
    versions = [f"{name} {number}" for name, number in facts["versions"].items()]
    print(", ".join(filter(None, [facts.get("inspectd"), f"python {facts['python']}", *versions])))
    print(flush=True)
    return facts


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def finish(facts: dict, cases: list[dict], results: list[Result], file: Path | None) -> int:
    """Writes the JSON file; the exit status is 1 if inspectd failed anywhere."""
    if file is not None:
        file.write_text(json.dumps({"machine": facts, "cases": cases}, indent=1) + "\n")
        print(f"written: {file}")
    return int(any(result.ours and result.error for result in results))
