"""Hosts of their own on this machine: network namespaces, and a wire that delays and loses.

Each host has a network device of its own (a TAP), address and name; a thread carries frames from
each to all others, some time later, and loses some.
"""

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import selectors
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import runs
from tests.processes import Running

TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
DELAY, LOSS = 0.002, 0.005  # seconds, and a share of the frames


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Network:
    """Hosts "host0", "host1" and so on, at 10.77.0.1 and up; `close` takes them away."""

    def __init__(self, hosts: int):
        if os.geteuid() or not os.path.exists("/dev/net/tun") or not shutil.which("ip"):
            pytest.skip("needs root, ip and /dev/net/tun, to make network namespaces")
        self._cut: set[int] = set()
        self._spaces = [f"drnet{os.getpid()}-{index}" for index in range(hosts)]
        self._wires = [self._host(index) for index in range(hosts)]
        self._closed = threading.Event()
        self._carrier = threading.Thread(target=self._carry, daemon=True)
        self._carrier.start()

    def _host(self, index: int) -> int:
        """Makes a host; the other end of its wire."""
        space, device = self._spaces[index], f"dr{os.getpid() % 10**6}-{index}"
        wire = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(wire, TUNSETIFF, struct.pack("16sH", device.encode(), TAP_WITHOUT_HEADER))
        ip("netns", "add", space)
        ip("link", "set", device, "netns", space)
        ip("-n", space, "address", "add", f"{self.address(index)}/24", "dev", device)
        for each in (device, "lo"):
            ip("-n", space, "link", "set", each, "up")
        # `ip netns exec` puts it in the place of /etc/hosts.
        names = Path("/etc/netns") / space / "hosts"
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text(f"127.0.0.1 localhost\n{self.address(index)} host{index}\n")
        return wire

    def address(self, index: int) -> str:
        return f"10.77.0.{index + 1}"

    def start(self, index: int, count: int, *flags: str, **variables: str) -> Running:
        """Starts drnet as process `index` of `count`, on the host of that number."""
        named = f"hostname host{index}; exec {sys.executable} -m drnet_jax.main \"$@\""
        return Running(subprocess.Popen(
            ["ip", "netns", "exec", self._spaces[index], "unshare", "--uts", "bash", "-c", named,
             "drnet", *flags, "--distributed"],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=runs.environment() | {
                "JAX_COORDINATOR_ADDRESS": f"{self.address(0)}:9377",
                "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index),
            } | variables,
        ))

    def cut(self, index: int) -> None:
        """Carries nothing to a host, nor from it."""
        self._cut.add(index)

    def mend(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self._closed.set()
        self._carrier.join()
        for wire, space in zip(self._wires, self._spaces, strict=True):
            os.close(wire)
            ip("netns", "delete", space)
            shutil.rmtree(Path("/etc/netns") / space)

    def _carry(self) -> None:
        rng, numbers = random.Random(0), itertools.count()
        under_way: list[tuple[float, int, int, bytes]] = []  # until when, number, from, frame
        with selectors.DefaultSelector() as ready:
            for index, wire in enumerate(self._wires):
                ready.register(wire, selectors.EVENT_READ, index)
            while not self._closed.is_set():
                for key, _ in ready.select(DELAY / 5):
                    frame = os.read(key.fd, 1 << 16)
                    if rng.random() >= LOSS:
                        due = time.monotonic() + DELAY
                        heapq.heappush(under_way, (due, next(numbers), key.data, frame))
                while under_way and under_way[0][0] <= time.monotonic():
                    self._deliver(*heapq.heappop(under_way)[2:])

    def _deliver(self, sender: int, frame: bytes) -> None:
        for index, wire in enumerate(self._wires):
            if index != sender and not {index, sender} & self._cut:
                with contextlib.suppress(BlockingIOError):  # its queue is full: lost, too
                    os.write(wire, frame)  # whom it is not meant for drops it
