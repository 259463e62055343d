"""What every worker process does: few threads, honest kernels, one JSON line of samples."""

import json
import os
import time
from collections.abc import Callable

WARM_UP_RUNS = 3
FEWEST_RUNS = 5

# Set on some machines to force a kernel; a peer runs the one that it chooses itself.
FORCED_KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def prepare(threads: int) -> None:
    """To be called before the first import of a numeric library, which read these once."""
    for name in FORCED_KERNELS:
        os.environ.pop(name, None)
    for name in THREAD_COUNTS:
        os.environ[name] = str(threads)


def report(run: Callable[[], object], seconds: float, **facts) -> None:
    """Prints wall and process CPU time of each run, milliseconds, and `facts` beside them."""
    for _ in range(WARM_UP_RUNS):
        run()
    wall, cpu = [], []
    end = time.perf_counter() + seconds
    while len(wall) < FEWEST_RUNS or time.perf_counter() < end:
        cpu_start, start = time.process_time(), time.perf_counter()
        run()
        wall.append((time.perf_counter() - start) * 1e3)
        cpu.append((time.process_time() - cpu_start) * 1e3)
    print(json.dumps({"samples_ms": wall, "cpu_ms": cpu, **facts}))
