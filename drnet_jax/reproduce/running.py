"""Running: jobs one after the other, each in a process of its own, and a line of how it goes."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import drnet_jax
from drnet_jax.errors import UserError
from drnet_jax.reproduce.estimate import duration
from drnet_jax.reproduce.jobs import Job

LOG = "log.txt"
POLL = 0.5  # seconds between looks at a job
QUIET = 60.0  # seconds between lines where there is no terminal to write over
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that surely hold a record of training


class Display:
    """A line that is written over; without a terminal, one now and then."""

    def __init__(self, file: TextIO):
        self._file, self._terminal = file, file.isatty()
        self._written, self._length = -QUIET, 0

    def show(self, text: str) -> None:
        """Puts a line in the place of the last one shown."""
        if self._terminal:
            self._write("\r" + text.ljust(self._length))
            self._length = len(text)
        elif time.monotonic() - self._written >= QUIET:
            self.say(text)

    def say(self, text: str) -> None:
        """Puts a line that stays in the place of the last one shown."""
        self._write("\r" * self._terminal + text.ljust(self._length) + "\n")
        self._length, self._written = 0, time.monotonic()

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


def run(job: dict[str, Any], folder: Path, log: Path, poll: Callable[[], None]) -> None:
    """Does a job of `worker` in a process of its own.

    Args:
        job: as `worker` reads it, without the time.
        folder: of the study, in which compiled programs are kept for the next job.
        log: where all that the process says goes, after what is there.
        poll: is called every so often.

    Raises:
        UserError: if it fails, with what it said last.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "drnet_jax.reproduce.worker"], text=True,
            stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=_environment(folder),
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                process.stdin.write(json.dumps(job | {"began": time.time()}) + "\n")
                process.stdin.flush()
            while process.poll() is None:
                poll()
                time.sleep(POLL)
        finally:
            # At the end of its stdin it stops; what it has saved is whole.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
    if process.returncode:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = said[-1].removeprefix("error: ") if said else "nothing"
        how = "" if process.returncode == 2 else f"ended with status {process.returncode}, saying "
        raise UserError(f"{log}: {how}{last}")


def _environment(folder: Path) -> dict[str, str]:
    """The variables of a worker: this code, and compiled programs that outlive it."""
    code = str(Path(drnet_jax.__file__).parents[1])
    path = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        # Programs of one processor are not those of another.
        "JAX_COMPILATION_CACHE_DIR": str(folder.absolute() / "compiled" / platform.node()),
        # jaxlib 0.10.1 says several lines of each CPU program that it finds there.
        "TF_CPP_MIN_LOG_LEVEL": "3",
    } | os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def run_order(job: Job) -> dict[str, Any]:
    """A training job as `worker` reads it."""
    return {
        "kind": "run", "config": json.loads(job.config.to_json()), "workdir": str(job.workdir),
        "command": job.command,
    }


def status(number: int, total: int, doing: str, left: float | None, of_all: float) -> str:
    """Such as "[3/19] ResNet-50, stage 1: step 40 of 368, 1 min 20 s left (of all: 22 min)".

    Args:
        number: of the job, of `total`.
        doing: the job, and where in it.
        left: seconds of it; None: not known.
        of_all: seconds of it and all that follow.
    """
    own = "" if left is None else f", {duration(left)} left"
    return f"[{number}/{total}] {doing}{own} (of all: {duration(of_all)})"


def last_record(workdir: Path) -> dict[str, Any] | None:
    """The last record of training in metrics.jsonl; None if there is none."""
    try:
        with (workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]  # what follows the last end of line is not whole
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # cut off by the seek
            continue
        if record.get("kind") == "train":
            return record
    return None
