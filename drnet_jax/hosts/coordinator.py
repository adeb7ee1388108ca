"""Coordinator: where the processes of a run on several hosts meet, and what JAX's own of them know.

A process of its own, started by process 0, so that the death of that one can be told like that of
any other: JAX ends the processes of a run at once, with a stack, where its service is gone. First
it waits for all processes, on the port at which JAX's service then listens.
"""

import contextlib
import errno
import json
import selectors
import signal
import socket
import sys
import time
from typing import Any, NamedTuple

TELL = 1.0  # seconds between two words to those who wait
END = "end\n"  # from process 0: the run is over


class Order(NamedTuple):
    """What a coordinator is told on its command line, as JSON."""

    port: int
    count: int  # of the processes
    seconds: float  # for which they are waited for
    silence: float  # seconds after which a process that says nothing is taken for dead


class Guest:
    """A process that has come."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.said = b""
        self.index: int | None = None  # until it has said who it is
        self.host = ""

    def hear(self) -> bool:
        """Whether it is still there; what it says is one line."""
        try:
            data = self.connection.recv(4096)
        except OSError:
            return False
        self.said += data
        if self.index is None and b"\n" in self.said:
            introduced = json.loads(self.said)
            self.index, self.host = introduced["index"], introduced["host"]
        return bool(data)

    def tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # whether it is there is found out by listening
            self.connection.sendall(json.dumps(message).encode() + b"\n")


def meet(order: Order) -> list[socket.socket] | None:
    """Waits for all processes and tells them so.

    Returns:
        What connects each of them, as long as it lives; None if not all came.
    """
    began, told, guests = time.monotonic(), 0.0, {}
    with _listening(order, began) as listening, selectors.DefaultSelector() as ready:
        ready.register(listening, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select(TELL):
                if key.fileobj is listening:
                    guest = Guest(listening.accept()[0])
                    guests[guest.connection] = guest
                    ready.register(guest.connection, selectors.EVENT_READ)
                elif not guests[key.fileobj].hear():
                    ready.unregister(key.fileobj)
                    guests.pop(key.fileobj).connection.close()
            known = [guest for guest in guests.values() if guest.index is not None]
            message = _verdict(order, known, time.monotonic() - began)
            if "missing" not in message or time.monotonic() - told >= TELL:
                told = time.monotonic()
                for guest in known:
                    guest.tell(message)
            if "hosts" in message:
                return [guest.connection for guest in known]
            if "error" in message:
                for guest in guests.values():
                    guest.tell(message)
                return None


def _listening(order: Order, began: float) -> socket.socket:
    """A socket at the port, which the coordinator of a run that has just died may hold a while."""
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", order.port), family=socket.AF_INET6, dualstack_ipv6=True
                )
            return socket.create_server(("", order.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() - began > order.seconds:
                raise
            time.sleep(TELL / 2)


def _wait_for_end(connections: list[socket.socket], seconds: float) -> None:
    """Returns when all processes have ended, or after so many seconds."""
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as ready:
        for connection in connections:
            ready.register(connection, selectors.EVENT_READ)
        while ready.get_map() and time.monotonic() < until:
            for key, _ in ready.select(TELL):
                with contextlib.suppress(OSError):
                    if key.fileobj.recv(4096):
                        continue
                ready.unregister(key.fileobj)


def _verdict(order: Order, known: list[Guest], seconds: float) -> dict[str, Any]:
    """What those who have come are told: who is missing, that all are there, or what is wrong."""
    hosts: dict[int, str] = {}
    for guest in known:
        if guest.index in hosts:
            return {"error": (
                f"expected processes of different numbers, received two of number {guest.index}, "
                f"on {hosts[guest.index]} and {guest.host}"
            )}
        hosts[guest.index] = guest.host
    missing = [index for index in range(order.count) if index not in hosts]
    if not missing:
        return {"hosts": [hosts[index] for index in range(order.count)]}
    if seconds > order.seconds:
        names = ", ".join(map(str, missing))
        return {"error": (
            f"expected {order.count} processes within {order.seconds:g} s, of which "
            f"{names} did not come"
        )}
    return {"missing": missing}


def main(argument: str) -> None:
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # they are for process 0, and this ends with that
    from jax._src.lib import _jax  # before anybody waits for it

    order = Order(**json.loads(argument))
    try:
        connections = meet(order)
    except OSError as error:
        sys.exit(f"error: --distributed: cannot listen at port {order.port} ({error.strerror})")
    if connections is None:
        return
    service = _jax.get_distributed_runtime_service(
        f"[::]:{order.port}", order.count, heartbeat_timeout=int(order.silence) + 60
    )
    if sys.stdin.readline() == END:
        service.shutdown()
        return
    # Process 0 has died: the others find out, and end.
    _wait_for_end(connections, 2 * order.silence + 10)


if __name__ == "__main__":
    main(sys.argv[1])
