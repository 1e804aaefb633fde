"""A PDU that is not there: its power is known from what a tree of processes does.

Run beside a pilot by ``metered_pilot``. The node draws ``IDLE_W`` and ``CORE_W`` for each processor
that the watched processes keep busy; that is the truth, kept as a running sum. The log that a
pilot may read shows it as a PDU would: late, averaged, noisy, in whole watts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import deque
from pathlib import Path

import numpy as np
import psutil

IDLE_W, CORE_W, NOISE_W = 100.0, 60.0, 1.0
STEP_S = 0.02


class ProcessorTime:
    """Of a process and all below it, but this one."""

    def __init__(self, process: int) -> None:
        self.root, self.seen, self.total_s, self.looked_s = process, {}, 0.0, 0.0
        self.processes: list[psutil.Process] = []

    def read(self) -> float:
        if time.monotonic() - self.looked_s > 0.25:
            root = psutil.Process(self.root)
            own = os.getpid()
            self.processes = [p for p in [root, *root.children(recursive=True)] if p.pid != own]
            self.looked_s = time.monotonic()
        for process in self.processes:
            try:
                threads = process.cpu_times()
            except psutil.Error:
                continue
            now_s = threads.user + threads.system
            self.total_s += max(0.0, now_s - self.seen.get(process.pid, now_s))
            self.seen[process.pid] = now_s
        return self.total_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("process", type=int)
    parser.add_argument("log", type=Path)
    parser.add_argument("truth", type=Path)
    for name in ("lag-s", "averaging-s", "period-s"):
        parser.add_argument(f"--{name}", type=float, required=True)
    given = parser.parse_args()
    random, busy = np.random.default_rng(1), ProcessorTime(given.process)
    busy.read()
    started_s, joules, busy_s = time.time(), 0.0, busy.read()
    kept: deque[tuple[float, float]] = deque([(started_s, 0.0)])
    due_s = started_s + given.lag_s + given.averaging_s
    with given.log.open("w") as log, given.truth.open("w") as truth:
        log.write("timestamp,source,watts\n")
        log.flush()
        while psutil.pid_exists(given.process):
            time.sleep(STEP_S)
            now_s, now_busy_s = time.time(), busy.read()
            length_s = now_s - kept[-1][0]
            joules += IDLE_W * length_s + CORE_W * (now_busy_s - busy_s)
            busy_s = now_busy_s
            kept.append((now_s, joules))
            truth.write(f"{now_s:.4f},{joules:.4f}\n")
            while due_s <= now_s:
                to_s = due_s - given.lag_s
                at_s, grown_j = np.array(kept).T
                ends_j = np.interp([to_s - given.averaging_s, to_s], at_s, grown_j)
                watts = round(
                    float(np.diff(ends_j)[0]) / given.averaging_s + random.normal(0, NOISE_W)
                )
                log.write(f"{due_s:.3f},pdu,{watts}\n")
                log.flush()
                due_s += given.period_s
            truth.flush()
            oldest_s = now_s - given.lag_s - given.averaging_s - 1.0
            while kept[1][0] < oldest_s:
                kept.popleft()


if __name__ == "__main__":
    main()
