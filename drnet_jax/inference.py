"""Inference through queues: an image waits for the bucket of its resolution, which runs when full.

Nothing is simulated: an image is resized to, and classified at, its own resolution only. Queues
fill across batches, so that buckets are full ones whatever the mix; what is left is run padded.
Every host serves its own images on its own devices, without waiting for any other.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax import policies, routing
from drnet_jax.cost import Costs
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.mesh import AXIS, data_mesh, put_batch, replicated
from drnet_jax.programs import Program, Programs
from drnet_jax.resolutions import only

# The tickets of some images, the resolution index that answers for them, and its log-probabilities,
# float32 [images, C]. A ticket is any number by which the caller knows an image again.
Answers = tuple[np.ndarray, int, np.ndarray]


class Server:
    """The compiled networks of one host, for batches of one static size.

    Images are uint8 [N, H, W, 3] at the base size, N at most `batch_size`; shorter batches are
    padded, and N may be 0.
    """

    def __init__(
        self, drnet: DRNet, params: Tree, batch_stats: Tree, batch_size: int, programs: Programs,
        objective: str, costs: Costs,
    ):
        """Copies the parameters to all devices of this host.

        Args:
            drnet: the networks.
            params: replicated over any devices, this host's among them; `batch_stats` likewise.
            batch_size: rounded up to a multiple of the number of this host's devices.
            programs: where the compiled networks are kept.
            objective: config.router.objective, which says what the predictor's logits mean.
            costs: by which the dial of `choose` charges.
        """
        self.drnet = drnet
        self.costs = costs
        self.mesh = data_mesh(jax.local_devices())
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        self._programs = programs
        # This host's copy of a replicated array is whole.
        variables = jax.tree.map(lambda leaf: leaf.addressable_data(0), (params, batch_stats))
        params, batch_stats = jax.device_put(variables, replicated(self.mesh))
        # A program is handed only what it uses: the hundreds of arrays of all resolutions make each
        # call longer.
        self._predictor = tuple({"predictor": tree["predictor"]} for tree in (params, batch_stats))
        self._classifiers = [
            (only(params, key), only(batch_stats, key)) for key in drnet.norm_keys
        ]
        self._scores = scores_program(drnet, self.mesh, objective, self.batch_size)
        self._classify = [
            classify_program(drnet, self.mesh, index, self.batch_size)
            for index in range(len(drnet.resolutions))
        ]

    def scores(self, images: np.ndarray) -> np.ndarray:
        """What the predictor says for each resolution (see `routing.scores`): float32 [N, R]."""
        return self._run(self._scores, self._predictor, images)

    def choose(self, images: np.ndarray, dial: float = 0.0) -> np.ndarray:
        """The predictor's choice, without noise, at a dial (see `routing.charge`): int32 [N]."""
        # On the host: no dial is ever compiled in, and a table of scores gives the same choice.
        return policies.choose(self.scores(images), self.costs, dial)

    def classify(self, index: int, images: np.ndarray) -> np.ndarray:
        """The log-probabilities of the classes at one resolution: float32 [N, C]."""
        return self._run(self._classify[index], self._classifiers[index], images)

    def warm_up(self) -> None:
        """Compiles everything."""
        base = self.drnet.resolutions[0]
        images = np.zeros((self.batch_size, base, base, 3), np.uint8)
        self.choose(images)
        for index in range(len(self.drnet.resolutions)):
            self.classify(index, images)

    def _run(
        self, program: Program, variables: tuple[Tree, Tree], images: np.ndarray
    ) -> np.ndarray:
        count = len(images)
        if count < self.batch_size:
            padding = ((0, self.batch_size - count), (0, 0), (0, 0), (0, 0))
            images = np.pad(images, padding)
        batch = put_batch(self.mesh, {"image": images})["image"]
        return np.asarray(self._programs.run(program, *variables, batch))[:count]


def scores_program(drnet: DRNet, mesh: Mesh, objective: str, batch_size: int) -> Program:
    """(params, batch_stats, images uint8 [N, H, W, 3]) -> the predictor's scores [N, R]."""
    def scores(params, batch_stats, images):
        logits, _ = drnet.route(params, batch_stats, images)
        return routing.scores(logits, objective)

    return Program.mapped(f"scores x{batch_size}", mesh, scores, (P(), P(), P(AXIS)), P(AXIS))


def classify_program(drnet: DRNet, mesh: Mesh, index: int, batch_size: int) -> Program:
    """(params, batch_stats, images uint8 [N, H, W, 3]) -> log-probabilities [N, C]."""
    def classify(params, batch_stats, images):
        logits, _ = drnet.classify(index, params, batch_stats, images)
        return jax.nn.log_softmax(logits)

    name = f"classify {drnet.resolutions[index]}px x{batch_size}"
    return Program.mapped(name, mesh, classify, (P(), P(), P(AXIS)), P(AXIS))


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
    ) -> Iterable[Answers]:
        """Queues images [N, ...] with tickets [N] by choice [N]; yields what full buckets give."""
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

    def drain(self) -> Iterable[Answers]:
        """Yields what is left, run in padded buckets."""
        for index, waiting in enumerate(self._waiting):
            if waiting:
                yield self._flush(index)

    def _flush(self, index: int) -> Answers:
        count, self._waiting[index] = self._waiting[index], 0
        log_p = self.server.classify(index, self._images[index][:count])
        return self._tickets[index][:count].copy(), index, log_p


class CascadeQueues:
    """Every image is classified small as it comes, and queued for a larger pass if in doubt."""

    def __init__(self, server: Server, cascades: Sequence[policies.Cascade]):
        self._server, self._queues = server, Queues(server)
        self._low = np.array([cascade.low for cascade in cascades])
        self._high = np.array([cascade.high for cascade in cascades])
        self._fused = np.array([cascade.fused for cascade in cascades])
        self._threshold = np.array([cascade.threshold for cascade in cascades])
        # By ticket, of the images in the queues: which cascade, and the first pass's answer.
        self._first: dict[int, tuple[int, np.ndarray]] = {}

    def put(self, images: np.ndarray, which: np.ndarray, tickets: np.ndarray) -> Iterable[Answers]:
        """Sends images [N, ...] with tickets [N] through cascades number which [N].

        N is at most the server's batch size. Yields the answers that are final.
        """
        for index in np.unique(self._low[which]):
            rows = np.flatnonzero(self._low[which] == index)
            first = self._server.classify(index, images[rows])
            sure = policies.confidence(first) >= self._threshold[which[rows]]
            yield tickets[rows[sure]], index, first[sure]
            again = rows[~sure]
            for row, log_p in zip(again, first[~sure], strict=True):
                self._first[int(tickets[row])] = (which[row], log_p)
            choice = self._high[which[again]]
            yield from map(self._merge, self._queues.put(images[again], choice, tickets[again]))

    def drain(self) -> Iterable[Answers]:
        """Yields what is left."""
        yield from map(self._merge, self._queues.drain())

    def _merge(self, answers: Answers) -> Answers:
        tickets, index, second = answers
        which, first = zip(*map(self._first.pop, tickets.tolist()), strict=True)
        fused = self._fused[list(which)][:, None]
        return tickets, index, np.where(fused, policies.fuse(np.stack(first), second), second)
