"""Waiting: for the next batch of images, which may be long in coming, or never come."""

import os
import sys
import threading
from collections.abc import Iterator
from typing import TypeVar

from drnet_jax import config
from drnet_jax.errors import UserError
from drnet_jax.hosts.join import others

Batch = TypeVar("Batch")
GO_ON = "the same command goes on from the newest checkpoint"


def next_batch(batches: Iterator[Batch], data: config.Data) -> Batch:
    """The next batch; ends the process, status 2, if it does not come within `data.timeout`.

    Nothing else can: whoever waits for a file system that hangs, or for a worker process that does,
    hears of nothing.

    Raises:
        UserError: if a worker process was ended by others.
    """
    timer = threading.Timer(data.timeout, _end, [data])
    timer.daemon = True
    if data.timeout:
        timer.start()
    try:
        return next(batches)
    except RuntimeError as error:  # Grain's, of a worker
        if "terminated unexpectedly" not in str(error):
            raise
        raise UserError(
            "a worker process of the loader was ended by others, as Linux does where memory runs "
            f"out; expected it to live as long as the run; lower config.data.workers, now "
            f"{data.workers}; {GO_ON}"
        ) from error
    finally:
        timer.cancel()


def _end(data: config.Data) -> None:
    message = (
        f"no batch of images came within {data.timeout:g} s (config.data.timeout); expected "
        f"{data.dir or 'the data set'} to be there and to answer; {GO_ON}"
    )
    print(f"error: {message}", file=sys.stderr, flush=True)
    if watch := others():
        watch.fail(message)
    os._exit(2)
