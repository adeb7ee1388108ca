"""Lock: one run at a time writes to a workdir.

It is the operating system's, on a file in the workdir, and ends with the process that holds it,
however that ends. Between hosts it holds where their shared file system knows locks, as NFS does,
and not in a bucket that is mounted.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from drnet_jax.errors import UserError

FILE = "lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the lock of a workdir, which must be there; of several processes only the first, which
    is the one that writes.

    Raises:
        UserError: if another process holds it, which the message names, or nothing can be written
            there.
    """
    if jax.process_index():
        yield
        return
    path = workdir / FILE
    try:
        file = path.open("a+")
    except OSError as error:
        raise unwritable(workdir, error) from error
    # Of the process, not of the open file: worker processes, which may outlive it, have no part.
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--workdir: expected one that no other run writes to, received {str(workdir)!r}, "
                f"to which {_holder(path)} does; wait for it, stop it, or give another"
            ) from error
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "process": os.getpid(), "since": _now()}, file)
        file.flush()
        yield


def unwritable(workdir: Path, error: OSError) -> UserError:
    """The error of a workdir that nothing can be written to."""
    return UserError(
        f"--workdir: expected a directory that can be written, received {str(workdir)!r} "
        f"({error.strerror})"
    )


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"process {held['process']} on {held['host']}, since {held['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
