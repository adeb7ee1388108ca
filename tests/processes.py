"""Runs in processes of their own, whose output is read as it comes."""

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS = 180  # for anything to happen, on a machine that does much else


class Running:
    """A process; what it prints is read by threads, so that it never waits for its reader."""

    def __init__(self, process: subprocess.Popen):
        self._process, self.pid = process, process.pid
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._lines
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        with getattr(self._process, name) as stream:
            self._lines[name] += iter(stream.readline, "")

    @property
    def out(self) -> str:
        return "".join(self._lines["stdout"])

    @property
    def err(self) -> str:
        return "".join(self._lines["stderr"])

    def reaches(self, step: int) -> None:
        """Waits until it has told of a step of training."""
        self.waits_for(lambda: steps_told(self.out)[-1:] >= [step])

    def waits_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self._process.poll() is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.002)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it, also when it is halted, and when it has ended."""
        self._process.kill()
        self._process.wait()

    def end(self, seconds: float = SECONDS) -> int:
        """Waits for its end; the exit status, negative after a signal."""
        try:
            status = self._process.wait(seconds)
        finally:
            self._process.kill()
        for reader in self._readers:
            reader.join(5)  # what it has started, and is halted, may hold its pipes
        return status


def steps_told(out: str) -> list[int]:
    """The steps of training of which a run has told on stdout."""
    return [int(step) for step in re.findall(r"^train (\d+)", out, re.M)]


def error_line(text: str) -> str:
    """The one line of what was printed that tells an error; checks that there is no traceback."""
    assert "Traceback" not in text, text
    (line,) = (each for each in text.splitlines() if each.startswith("error: "))
    return line


def last_line(text: str) -> str:
    """The last line of what was printed; checks that there is no traceback."""
    assert "Traceback" not in text and "terminate called" not in text, text
    return text.splitlines()[-1]


def workers(pid: int) -> list[int]:
    """The worker processes of a run's loader."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            for each in map(int, (task / "children").read_text().split()):
                if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes():
                    found.append(each)
    return found


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def ended(*runs: Running) -> Iterator[None]:
    """Ends runs that a failing test has left, those that are halted, too."""
    try:
        yield
    finally:
        for each in runs:
            each.kill()
