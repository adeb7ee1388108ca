"""Meeting: how a process comes to the others of its run, at the coordinator."""

import contextlib
import json
import socket
import sys
import time

from drnet_jax.errors import UserError


def meet(address: str, index: int, seconds: float) -> tuple[list[str], socket.socket]:
    """Waits until all processes are there; the names of their hosts, and what connects this one
    to the coordinator, by which that knows how long it lives."""
    host, _, port = address.rpartition(":")
    began = time.monotonic()
    while True:
        connection = _connected((host.strip("[]"), int(port)), began + seconds)
        introduced = {"index": index, "host": socket.gethostname()}
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(introduced).encode() + b"\n")
        connection.settimeout(seconds + 10)
        heard, hosts = _listen(connection, began)
        if hosts is not None:
            return hosts, connection
        connection.close()
        if heard or time.monotonic() - began > seconds:
            raise UserError(f"--distributed: process 0, at {address}, is gone before all had come")
        time.sleep(0.5)


def _listen(connection: socket.socket, began: float) -> tuple[bool, list[str] | None]:
    """Whether it was the coordinator that answered, and the hosts, if all came.

    What else may answer is JAX's service of a run before, which is about to end.
    """
    told, heard = began, False
    try:
        for line in connection.makefile("rb"):
            message = json.loads(line)
            heard = True
            if "hosts" in message:
                return True, message["hosts"]
            if "error" in message:
                raise UserError(f"--distributed: {message['error']}")
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(
                    f"waiting for {_processes(message['missing'])}, {told - began:.0f} s by now",
                    file=sys.stderr, flush=True,
                )
    except UserError:
        raise
    except (OSError, ValueError):  # it is gone, or says something else
        pass
    return heard, None


def _connected(address: tuple[str, int], until: float) -> socket.socket:
    began = time.monotonic()
    while True:
        try:
            return socket.create_connection(address, timeout=max(1.0, until - time.monotonic()))
        except OSError as error:
            if time.monotonic() >= until:
                raise UserError(
                    f"--distributed: expected process 0 at {address[0]}:{address[1]} within "
                    f"{until - began:.0f} s, received no answer ({error}); JAX_COORDINATOR_ADDRESS "
                    "is to be the address of process 0, and its port open to all"
                ) from error
            time.sleep(0.5)


def _processes(indexes: list[int]) -> str:
    return f"process{'es' * (len(indexes) > 1)} {', '.join(map(str, indexes))}"
