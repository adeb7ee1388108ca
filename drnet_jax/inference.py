"""Routed inference: images go to a queue per resolution, which runs when it is full.

Nothing is simulated: an image is resized to, and classified at, its own resolution only. Queues
fill across batches, so that buckets are full ones whatever the mix; what is left is run padded.
Every host serves its own images on its own devices, without waiting for any other.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from drnet_jax import routing
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.mesh import AXIS, data_mesh, per_device, put_batch, replicated
from drnet_jax.programs import Programs

TOP = 5  # predictions kept for each image


class Server:
    """The compiled networks of one host, for batches of one static size.

    Images are uint8 [N, H, W, 3] at the base size, N at most `batch_size`; shorter batches are
    padded by repeating their first row.
    """

    def __init__(
        self, drnet: DRNet, params: Tree, batch_stats: Tree, batch_size: int, programs: Programs
    ):
        """Copies the parameters to all devices of this host.

        `batch_size` is rounded up to a multiple of their number.
        """
        self.drnet = drnet
        self.mesh = data_mesh(jax.local_devices())
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        self._programs = programs
        # This host's copy of a replicated array is whole.
        variables = jax.tree.map(lambda leaf: leaf.addressable_data(0), (params, batch_stats))
        self._variables = jax.device_put(variables, replicated(self.mesh))

    def choose(self, images: np.ndarray) -> np.ndarray:
        """The predictor's choice, without noise: int32 [N]."""
        def choose(params, batch_stats, images):
            logits, _ = self.drnet.route(params, batch_stats, images)
            return routing.choose(logits)

        return self._run("choose", choose, images)

    def classify(self, index: int, images: np.ndarray) -> np.ndarray:
        """The best classes at one resolution, best first: int32 [N, min(5, C)]."""
        def classify(params, batch_stats, images):
            logits, _ = self.drnet.classify(index, params, batch_stats, images)
            return jax.lax.top_k(logits, min(TOP, logits.shape[-1]))[1].astype(jnp.int32)

        return self._run(f"classify {self.drnet.resolutions[index]}px", classify, images)

    def warm_up(self) -> None:
        """Compiles everything."""
        base = self.drnet.resolutions[0]
        images = np.zeros((self.batch_size, base, base, 3), np.uint8)
        self.choose(images)
        for index in range(len(self.drnet.resolutions)):
            self.classify(index, images)

    def _run(self, name: str, function: Callable, images: np.ndarray) -> np.ndarray:
        count = len(images)
        if count < self.batch_size:
            padding = np.repeat(images[:1], self.batch_size - count, axis=0)
            images = np.concatenate([images, padding])
        batch = put_batch(self.mesh, {"image": images})["image"]
        mapped = per_device(self.mesh, function, (P(), P(), P(AXIS)), P(AXIS))
        result = self._programs.run(f"{name} x{self.batch_size}", mapped, *self._variables, batch)
        return np.asarray(result)[:count]


@dataclasses.dataclass
class Queues:
    """Images waiting for the bucket of their resolution to fill."""

    server: Server

    def __post_init__(self):
        size, base = self.server.batch_size, self.server.drnet.resolutions[0]
        resolutions = len(self.server.drnet.resolutions)
        self._images = [np.empty((size, base, base, 3), np.uint8) for _ in range(resolutions)]
        self._tickets = [np.empty(size, np.int64) for _ in range(resolutions)]
        self._waiting = [0] * resolutions

    def put(
        self, images: np.ndarray, choice: np.ndarray, tickets: np.ndarray
    ) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Queues images [N, ...] by choice [N]; yields (tickets, top classes) of full buckets.

        A ticket is any number by which the caller knows the image again.
        """
        for index in np.unique(choice):
            rows = np.flatnonzero(choice == index)
            while len(rows):
                start = self._waiting[index]
                taken, rows = np.split(rows, [self.server.batch_size - start])
                end = start + len(taken)
                self._images[index][start:end] = images[taken]
                self._tickets[index][start:end] = tickets[taken]
                self._waiting[index] = end
                if end == self.server.batch_size:
                    yield self._flush(index)

    def drain(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yields what is left, run in padded buckets."""
        for index, waiting in enumerate(self._waiting):
            if waiting:
                yield self._flush(index)

    def _flush(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        count, self._waiting[index] = self._waiting[index], 0
        top = self.server.classify(index, self._images[index][:count])
        return self._tickets[index][:count].copy(), top
