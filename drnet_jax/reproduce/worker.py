"""Worker: one job in a process of its own, whose memory and failures end with it.

    python -m drnet_jax.reproduce.worker < JOB

The job is a line of JSON on stdin, {"kind": of WORK, "began": when, "cores": to use or null, ...}.
The process ends when stdin does: whoever started it holds the other end, and once that one is
killed nobody is left to write where the next one is going to.
"""

import json
import os
import select
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drnet_jax.api import load
from drnet_jax.config_check import parse
from drnet_jax.devices import data_mesh
from drnet_jax.environment import environment
from drnet_jax.errors import UserError
from drnet_jax.reproduce import latency, results
from drnet_jax.train.loop import train

TICK = 1.0  # seconds between looks at stdin, and notes of the time that went by


def main() -> int:
    """Does the job on stdin; returns the exit status, 2 after a UserError."""
    job = json.loads(sys.stdin.readline())
    if job["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cores"])  # before XLA starts its threads
    try:
        WORK[job["kind"]](job)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(job: dict[str, Any]) -> None:
    """Trains, from the newest checkpoint if there is one, and evaluates."""
    workdir = Path(job["workdir"])
    record = results.Record.open(workdir, job["began"], job["command"])
    _watch(record.tick)
    train(parse(job["config"]), str(workdir))
    model = load(workdir)
    found = model.measure(model.source())
    results.write_answers(workdir, found.table)
    record.tick(environment=environment(data_mesh()))
    # Last: by it a run is known to be done.
    results.write(workdir / results.REPORT, found.report)


def _time(job: dict[str, Any]) -> None:
    """Measures latencies."""
    _watch(lambda: None)
    points = [latency.Point(**point) for point in job["points"]]
    found = latency.measure(Path(job["runs"]), points)
    results.write(Path(job["path"]), found)


WORK: dict[str, Callable[[dict[str, Any]], None]] = {"run": _run, "time": _time}


def _watch(tick: Callable[[], None]) -> None:
    """Calls `tick` every so often from now on, and ends the process when stdin ends."""
    def watch() -> None:
        while True:
            tick()
            if select.select([sys.stdin], [], [], TICK)[0] and not os.read(sys.stdin.fileno(), 1):
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
