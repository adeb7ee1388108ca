"""Stopping: SIGTERM, SIGHUP and Ctrl-C end a run after its present step, with a checkpoint.

A second signal ends it at once. Signals are heard while the main thread is in a long program, too:
what they wake is a thread of its own.
"""

import contextlib
import os
import signal
import sys
import threading
from types import TracebackType

from drnet_jax.errors import Stopped
from drnet_jax.hosts.join import others

HEEDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Stopping:
    """Whether a run is to stop; listens for signals between `__enter__` and `__exit__`.

    One that is never entered hears nothing.
    """

    def __init__(self, status: int = 0):
        """`status` is that of a process that has stopped, but by Ctrl-C, of which it is 130."""
        self._status = status
        self._heard: signal.Signals | None = None

    def __enter__(self) -> "Stopping":
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._before = {
            each: signal.signal(each, lambda *_: None)
            # What nohup, or a shell that starts it in the background, has made deaf stays so.
            for each in HEEDED if signal.getsignal(each) is not signal.SIG_IGN
        }
        self._woken = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._woken)
        for each, handler in self._before.items():
            signal.signal(each, handler)
        os.close(self._writing)  # which ends the thread

    def after(self, step: int) -> bool:
        """Whether to stop after a step: asked after every one, and on all hosts of the same."""
        watch = others()
        return self._heard is not None if watch is None else watch.after(step)

    def stopped(self, step: int) -> Stopped:
        """What a run raises that has stopped after a step."""
        watch = others()
        reason = self._heard.name if watch is None else watch.asked
        # Who pressed Ctrl-C is told so by the status, as by other programs.
        status = 128 + signal.SIGINT if self._heard == signal.SIGINT else self._status
        return Stopped(
            f"stopped by {reason} after step {step}, which is saved; the same command goes on",
            status,
        )

    def _listen(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as signals:
            while number := signals.read(1):
                self._hear(number[0])

    def _hear(self, number: int) -> None:
        if number not in self._before:  # of a child that has ended, say
            return
        if self._heard is not None:
            os._exit(128 + number)
        self._heard = signal.Signals(number)
        if watch := others():
            watch.stop(self._heard.name)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(
                f"{self._heard.name}: stopping after this step; a second signal stops at once",
                file=sys.stderr, flush=True,
            )
