"""Run: a server from its start to its end."""

import socket
import sys

import uvicorn

from drnet_jax.api import Model
from drnet_jax.config import GIGA
from drnet_jax.dial import milliseconds_of
from drnet_jax.errors import UserError
from drnet_jax.serve.app import Limits, Service, make_app


def serve(
    model: Model, limits: Limits, budget: float | str | None, kind: str | None, token: str | None,
    address: tuple[str, int],
) -> None:
    """Answers until SIGTERM or Ctrl-C, and then what was taken by then.

    Args:
        model: what answers.
        limits: of requests.
        budget: mean multiply-adds of an image, or "12ms"; None: that of training.
        kind: of the policy; None for `Model.kind`'s.
        token: that changes the budget; None: nobody does.
        address: host, and port, 0 for any.

    Raises:
        UserError: if the address cannot be had, or no policy meets the budget.
    """
    kind = model.kind(kind)
    asked = in_multiply_adds(model, budget, kind)
    service = Service(model, limits, asked, kind, token)
    listening = listen(address)
    announce(listening, (
        f"{model.runtime.name}, batches of {model.predicting.batch_size}, budget "
        f"{asked / GIGA:.4g}e9 multiply-adds"
    ))
    config = uvicorn.Config(
        make_app(service), log_level="warning", access_log=False, lifespan="on",
        timeout_graceful_shutdown=int(limits.timeout) + 1, h11_max_incomplete_event_size=65536,
    )
    uvicorn.Server(config).run(sockets=[listening])


def in_multiply_adds(model: Model, budget: float | str | None, kind: str) -> float:
    """A budget as `Model.predict` takes it in mean multiply-adds of an image, 0 for no limit.

    Raises:
        UserError: if milliseconds are asked for that cannot be met.
    """
    milliseconds = milliseconds_of(budget)
    if milliseconds is None:
        return model.budget if budget is None else float(budget)
    model.policy(budget, kind=kind)  # checks that it can be met
    return model.dial(kind).converted(milliseconds, model.milliseconds, model.costs.networks)


def announce(listening: socket.socket, about: str) -> None:
    """Says where a server is."""
    host, port = listening.getsockname()[:2]
    print(f"http://{host}:{port}/ ({about})", file=sys.stderr)


def listen(address: tuple[str, int]) -> socket.socket:
    """A socket at an address, port 0 for any; raises UserError if that cannot be had."""
    try:
        return socket.create_server(address, backlog=512)
    except OSError as error:
        raise UserError(
            f"--host and --port: expected an address that is free, received "
            f"{address[0]}:{address[1]} ({error.strerror})"
        ) from error
