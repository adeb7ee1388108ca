"""Load: a server under as many requests as it can answer, and a plain one of the same network.

    drnet load-test runs/demo --clients 32 --seconds 20

Both run in processes of their own, one after the other, in the same runtime, and are asked over
loopback by clients that send the next image as soon as the last is answered. The plain server
(`drnet_jax.benchmark.plain_server`) classifies one image at a time at the base size.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from drnet_jax.api import Model
from drnet_jax.dial import Policy
from drnet_jax.errors import UserError
from drnet_jax.formatting import table
from drnet_jax.inference.predict import Answer, Predictor, Wording

IMAGES = 256  # of validation, taken evenly; clients begin anew after the last
CLOSE = 1e-3  # by which a probability may differ: batches of other sizes round otherwise


@dataclasses.dataclass(frozen=True)
class Reply:
    """To an image."""

    image: int
    status: int
    seconds: float
    record: Mapping[str, Any]


def measure(
    model: Model, policy: Policy, serve: Sequence[str], plain: Mapping[str, Any], clients: int,
    seconds: float,
) -> dict[str, Any]:
    """Asks both servers.

    Args:
        model: of which the servers are, whose images of validation are sent.
        policy: that the first server works at.
        serve: arguments of `drnet serve`.
        plain: arguments of `drnet_jax.load`, for the plain server.
        clients: that ask at once.
        seconds: for which each server is asked.

    Returns:
        "images" and "clients"; and of the servers "drnet serve" and "plain" "requests", "refused"
        (429), "failed" (of any other status but 200), "images_per_second", "p50", "p95" and "p99"
        in milliseconds, "multiply_adds" of an image, and "different": how many answers are not
        those of `Model.predict`, None of the plain one.

    Raises:
        UserError: if the images of validation are not there, or a server does not start.
    """
    images = list(_images(model))
    answers = Predictor(Wording(model.predicting, model.classes), model.square, policy).answers(
        images, skip_errors=False
    )
    expected = list(answers)
    module = ["-m", "drnet_jax.main", "serve", *serve, "--port=0"]
    plain_module = ["-m", "drnet_jax.benchmark.plain_server", json.dumps(plain)]
    found = {"images": len(images), "clients": clients}
    for name, arguments, known in (
        ("drnet serve", module, expected), ("plain", plain_module, None)
    ):
        with running(arguments) as address:
            replies, took = asyncio.run(_ask(address, images, clients, seconds))
        found[name] = _summary(replies, took, known)
    return found


def _images(model: Model) -> Iterator[bytes]:
    source = model.source()
    for index in range(0, len(source), -(-len(source) // IMAGES)):
        image = source[index]["image"]
        if not isinstance(image, bytes):
            image = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        yield image


@contextlib.contextmanager
def running(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server in a process of its own, by its address; it is ended afterwards.

    Raises:
        UserError: if it ends before it says where it listens.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments], text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line.strip())
            if at := re.match(r"http://([\d.]+):(\d+)/", line):
                address = at[1], int(at[2])
                break
        else:
            raise UserError(f"the server ended: {said[-1] if said else 'it said nothing'}")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def _ask(
    address: tuple[str, int], images: Sequence[bytes], clients: int, seconds: float
) -> tuple[list[Reply], float]:
    """All replies, and the seconds that they took."""
    async with _connected(address) as connection:
        await _request(*connection, images[0])  # until it is ready
    work, replies = itertools.cycle(range(len(images))), []
    began = time.perf_counter()

    async def client() -> None:
        async with _connected(address) as connection:
            while time.perf_counter() < began + seconds:
                image, sent = next(work), time.perf_counter()
                status, record = await _request(*connection, images[image])
                replies.append(Reply(image, status, time.perf_counter() - sent, record))

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies, time.perf_counter() - began


@contextlib.asynccontextmanager
async def _connected(
    address: tuple[str, int]
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, image: bytes
) -> tuple[int, dict[str, Any]]:
    """Status and body of POST /predict; the connection stays open."""
    writer.write(
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(image)
        + image
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = re.search(r"content-length: *(\d+)", head)
    body = await reader.readexactly(int(length[1]))
    return int(head.split(" ", 2)[1]), json.loads(body)


def _summary(
    replies: Sequence[Reply], took: float, expected: Sequence[Answer] | None
) -> dict[str, Any]:
    answered = [reply for reply in replies if reply.status == 200]
    refused = sum(reply.status == 429 for reply in replies)
    if not answered:
        raise UserError(f"the server answered none of {len(replies)} requests")
    times = 1e3 * np.quantile([reply.seconds for reply in answered], (0.5, 0.95, 0.99))
    spent = float(np.mean([reply.record["multiply_adds"] for reply in answered]))
    return {
        "requests": len(replies), "refused": refused,
        "failed": len(replies) - len(answered) - refused,
        "images_per_second": len(answered) / took,
        **dict(zip(("p50", "p95", "p99"), times.tolist(), strict=True)), "multiply_adds": spent,
        "different": expected and sum(
            _differ(reply.record, expected[reply.image]) for reply in answered
        ),
    }


def _differ(record: Mapping[str, Any], answer: Answer) -> bool:
    same = all(record[name] == getattr(answer, name) for name in ("label", "multiply_adds"))
    return not same or abs(record["probability"] - answer.probability) > CLOSE


def text(report: Mapping[str, Any]) -> str:
    """The report as a table."""
    columns = ("requests", "refused", "failed", "different")
    rows = [("", *columns, "images/s", "p50 ms", "p95 ms", "p99 ms", "multiply-adds")]
    for name in ("drnet serve", "plain"):
        row = report[name]
        rows.append((
            name, *("-" if row[column] is None else str(row[column]) for column in columns),
            f"{row['images_per_second']:.1f}", *(f"{row[at]:.0f}" for at in ("p50", "p95", "p99")),
            f"{row['multiply_adds']:.3g}",
        ))
    return (
        f"{report['clients']} clients, {report['images']} images of validation\n{table(rows)}"
    )
