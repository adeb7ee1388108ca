"""A server in a process of its own, as tests need it."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import drnet_jax
from drnet_jax.api import Model
from tests import runs

TOKEN = "a token of the tests"


def model_of(workdir: Path) -> Model:
    return drnet_jax.load(workdir, runtime="jax")


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that is up."""

    process: subprocess.Popen
    address: tuple[str, int]


def start(workdir: Path, *arguments: str) -> Server:
    """Starts `drnet serve` and waits until it says where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "drnet_jax.main", "serve", str(workdir), "--port=0", "--batch=8",
         *arguments],
        env=runs.environment() | {"DRNET_TOKEN": TOKEN}, text=True, stderr=subprocess.PIPE,
    )
    for line in process.stderr:
        if found := re.match(r"http://([\d.]+):(\d+)/", line):
            return Server(process, (found[1], int(found[2])))
    raise AssertionError(f"the server ended with {process.wait()}")


def stop(server: Server) -> None:
    server.process.kill()
    server.process.wait()
    server.process.stderr.close()
