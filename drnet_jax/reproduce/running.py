"""Running: jobs in processes of their own, and a line of how they go."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
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


class Process:
    """A process of `worker` that does a job."""

    def __init__(
        self, job: dict[str, Any], folder: Path, log: Path, cores: Sequence[int] | None = None
    ):
        """Starts it.

        Args:
            job: as `worker` reads it, without the time and the cores.
            folder: of the study, in which compiled programs are kept for the next job.
            log: where all that the process says goes, after what is there.
            cores: of the CPU that it may use, and compute on; None: all, and accelerators.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self.began = log, time.time()
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "drnet_jax.reproduce.worker"], text=True,
                stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
                env=_environment(folder, cores),
            )
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.write(
                json.dumps(job | {"began": self.began, "cores": cores}) + "\n"
            )
            self._process.stdin.flush()

    def ended(self) -> bool:
        """Whether the job is done; raises UserError if it failed, with what it said last."""
        if self._process.poll() is None:
            return False
        self.stop()
        status = self._process.returncode
        if status:
            text = self._log.read_text(errors="replace")
            said = [line for line in text.splitlines() if line.strip()]
            last = said[-1].removeprefix("error: ") if said else "nothing"
            how = "" if status == 2 else f"ended with status {status}, saying "
            raise UserError(f"{self._log}: {how}{last}")
        return True

    def stop(self) -> None:
        """Ends it: at the end of its stdin it stops; what it has saved is whole."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def run(job: dict[str, Any], folder: Path, log: Path) -> None:
    """Does a job by itself; arguments and errors are those of `Process`."""
    process = Process(job, folder, log)
    try:
        while not process.ended():
            time.sleep(POLL)
    finally:
        process.stop()


def _environment(folder: Path, cores: Sequence[int] | None) -> dict[str, str]:
    """The variables of a worker: this code, and compiled programs that outlive it."""
    code = str(Path(drnet_jax.__file__).parents[1])
    path = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        # Programs of one processor are not those of another.
        "JAX_COMPILATION_CACHE_DIR": str(folder.absolute() / "compiled" / platform.node()),
        # jaxlib 0.10.1 says several lines of each CPU program that it finds there.
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # An accelerator is not shared.
        **({} if cores is None else {"JAX_PLATFORMS": "cpu"}),
    } | os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def run_order(job: Job) -> dict[str, Any]:
    """A training job as `worker` reads it."""
    return {
        "kind": "run", "config": json.loads(job.config.to_json()), "workdir": str(job.workdir),
        "command": job.command,
    }


def status(number: int, total: int, doing: str, left: float | None) -> str:
    """Such as "[3/19] ResNet-50, stage 1: step 40 of 368, 1 min 20 s left".

    Args:
        number: of the job, of `total`.
        doing: the job, and where in it.
        left: seconds of it; None: not known.
    """
    return f"[{number}/{total}] {doing}" + ("" if left is None else f", {duration(left)} left")


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
