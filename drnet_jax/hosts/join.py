"""Joining: how the processes of all hosts find each other."""

import atexit
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import jax
from jax._src import clusters, distributed
from jax._src.lib import _jax

from drnet_jax.errors import UserError, first_line
from drnet_jax.hosts.coordinator import END, Order
from drnet_jax.hosts.meeting import meet
from drnet_jax.hosts.watch import Watch

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
TIMEOUT = "DRNET_HOSTS_TIMEOUT"  # seconds to wait for all to come
SILENCE = "DRNET_HOSTS_SILENCE"  # seconds after which one that says nothing is taken for dead


def join() -> None:
    """Joins the processes of all hosts into one run.

    JAX finds them by itself on TPU slices and under Slurm and the like; elsewhere VARIABLES say who
    they are.

    Raises:
        UserError: if a variable is wrong, or missing where JAX finds nothing by itself, or if not
            all processes come in time.
    """
    global _watch, _meeting
    seconds, silence = _seconds(TIMEOUT, 300.0), _seconds(SILENCE, 60.0)
    address, count, index, local = _who(int(seconds))
    port = int(address.rpartition(":")[2])
    service = _Coordinator(Order(port, count, seconds, silence)) if index == 0 else None
    hosts, _meeting = meet(address, index, seconds)
    with _service(service):
        jax.distributed.initialize(
            address, count, index, local, initialization_timeout=int(seconds),
            # By then ours has long ended what JAX would end with a stack.
            heartbeat_timeout_seconds=int(silence) + 60,
        )
    if count > 1:
        _watch = Watch(distributed.global_state.client, index, hosts, silence)
        atexit.register(_watch.close)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 1 <= value < 1e6:
        raise UserError(f"{name}: expected seconds, 1 or more, received {text!r}")
    return value


def _who(seconds: int) -> tuple[str, int, int, list[int] | None]:
    """Address of the coordinator, how many processes there are, which this is, and its devices."""
    address = os.environ.get(VARIABLES[0])
    if address is not None and not re.fullmatch(r"\S+:\d{1,5}", address):
        raise UserError(f"{VARIABLES[0]}: expected HOST:PORT, received {address!r}")
    count = _number(VARIABLES[1], 1, 10**6)
    index = _number(VARIABLES[2], 0, (count or 10**6) - 1)
    try:
        address, count, index, local = (
            clusters.ClusterEnv.auto_detect_unset_distributed_params(
                address, count, index, None, None, seconds
            )
        )
        reason = ""
    except Exception as error:  # each kind of cluster that JAX looks for has errors of its own
        reason, local = f" ({first_line(error)})", None
    if None in (address, count, index):
        missing = [name for name in VARIABLES if name not in os.environ]
        raise UserError(
            f"--distributed: expected a TPU slice, Slurm or the like, or the variables "
            f"{', '.join(VARIABLES)}{'; missing: ' * bool(missing)}{', '.join(missing)}{reason}"
        )
    return address, count, index, local


def _number(name: str, low: int, high: int) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(f"{name}: expected a number from {low} to {high}, received {text!r}")
    return int(text)


class _Coordinator:
    """The coordinator's process; JAX takes it for its service, which it shuts down at the end."""

    def __init__(self, order: Order):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "drnet_jax.hosts.coordinator", json.dumps(order._asdict())],
            stdin=subprocess.PIPE, text=True, start_new_session=True,
        )

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.write(END)
            self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def _service(coordinator: _Coordinator | None) -> Iterator[None]:
    """Has JAX take the coordinator for its service, in place of one in this process."""
    made = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = lambda *_, **__: coordinator
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = made


_watch: Watch | None = None
_meeting: socket.socket | None = None  # open as long as this process lives


def others() -> Watch | None:
    """What this process knows of the others of its run; None if there are none."""
    return _watch
