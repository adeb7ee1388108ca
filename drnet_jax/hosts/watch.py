"""Watch: what a process knows of the others of its run, while it lasts.

Each writes now and then that it is alive into the key-value store of JAX's coordination service,
and looks whether the others have.
"""

import contextlib
import os
import sys
import threading
import time
from typing import Any, NoReturn

KEYS = "drnet_jax/"
FAILED = 1  # status of who ends because another has


class Watch:
    """What a process knows of the others of its run, and tells them."""

    def __init__(self, client: Any, index: int, hosts: list[str], silence: float):
        """Begins to watch, in threads.

        Args:
            client: of JAX's coordination service.
            index: of this process.
            hosts: of all processes.
            silence: seconds after which one that says nothing is taken for dead.
        """
        self._client, self._index, self._hosts, self._silence = client, index, hosts, silence
        self._every = min(1.0, silence / 10)
        self._heard = [(0, time.monotonic())] * len(hosts)  # of each its beat, and since when
        self._answered = time.monotonic()  # when the coordinator last did
        self._lock, self._current, self._last = threading.Lock(), 0, None
        self._agreeing = False
        self.asked: str | None = None  # why to stop
        self._closed = threading.Event()
        for work in (self._talk, self._check):
            threading.Thread(target=work, daemon=True).start()

    def stop(self, reason: str) -> None:
        """Asks all processes to stop after a step that they then agree on."""
        self._set("stop", reason)

    def after(self, step: int) -> bool:
        """Whether all stop after this step; each asks after every step."""
        with self._lock:
            if self._last is not None:
                return step >= self._last
            self._current = step + 1  # which others may wait for it to run, from here on
            return False

    def fail(self, message: str) -> None:
        """Tells the others why this process ends, so that they do too; they are not heard now."""
        self.close()
        with contextlib.suppress(Exception):  # whatever JAX raises where nobody listens any more
            self._set(f"failed/{self._index}", message)
            time.sleep(3 * self._every)

    def outlast(self) -> None:
        """Returns only if all others are still there after as long as it takes to miss one.

        What is computed together fails at once where one has died, and does not say which.
        """
        time.sleep(self._silence + 3 * self._every)

    def close(self) -> None:
        """Ends watching: the run is over."""
        self._closed.set()

    def _set(self, key: str, value: str) -> None:
        self._client.key_value_set(KEYS + key, value, allow_overwrite=True)

    def _talk(self) -> None:
        """Says now and then that this process is alive, and hears what the others say."""
        beat = 0
        while not self._closed.wait(self._every):
            beat += 1
            try:
                self._set(f"beat/{self._index}", str(beat))
                known = {
                    key.removeprefix(KEYS): value
                    for key, value in self._client.key_value_dir_get(KEYS)
                }
            except Exception:  # whatever JAX raises; `_check` counts the time
                continue
            self._hear(known)

    def _hear(self, known: dict[str, str]) -> None:
        now = self._answered = time.monotonic()
        for index in range(len(self._hosts)):
            beat = int(known.get(f"beat/{index}", 0))
            if beat != self._heard[index][0]:
                self._heard[index] = beat, now
            if index != self._index and (message := known.get(f"failed/{index}")):
                self._end(f"{self._name(index)} failed: {message}")
        if "stop" in known and self._last is None:
            self.asked = known["stop"]
            self._agree(known)

    def _agree(self, known: dict[str, str]) -> None:
        """All say which step they are in, none begins another until all have; the last counts."""
        if not self._agreeing:
            self._lock.acquire()
            self._agreeing = True
            self._set(f"stop-after/{self._index}", str(self._current))
        steps = [known.get(f"stop-after/{index}") for index in range(len(self._hosts))]
        if None not in steps:
            self._last = max(map(int, steps))
            self._lock.release()

    def _check(self) -> None:
        """Ends this process where the others, or the coordinator, are not heard of any more."""
        looked = time.monotonic()
        while not self._closed.wait(self._every):
            now = time.monotonic()
            if now - looked > self._silence:
                self._end(f"this process was halted for {now - looked:.0f} s")
            looked = now
            if now - self._answered > self._silence:
                self._end(
                    f"nothing is heard of the other processes for {self._silence:g} s: the network "
                    f"of this host, or {self._name(0)}, is gone"
                )
            for index, (_, since) in enumerate(self._heard):
                if now - since > self._silence:
                    self._end(f"{self._name(index)} is not heard of for {self._silence:g} s")

    def _name(self, index: int) -> str:
        return f"process {index} on {self._hosts[index]}"

    def _end(self, message: str) -> NoReturn:
        print(
            f"error: {message}; this one, {self._name(self._index)}, ends, too. The same command "
            "on all hosts goes on from the newest checkpoint", file=sys.stderr, flush=True,
        )
        os._exit(FAILED)
