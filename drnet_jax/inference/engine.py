"""Inference through queues: an image waits for the bucket of its resolution, which runs when full.

Nothing is simulated: an image is resized to, and classified at, its own resolution only. Queues
fill across batches, so that buckets are full ones whatever the mix; what is left is run padded.
Every host serves its own images on its own devices, without waiting for any other.
"""


import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.devices import AXIS, Program, Programs, data_mesh, put_batch, replicated
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.resolutions import only

# The tickets of some images, the resolution index that answers for them, and its log-probabilities,
# float32 [images, C]. A ticket is any number by which the caller knows an image again.
Answers = tuple[np.ndarray, int, np.ndarray]


class Engine:
    """The compiled networks of one host, for batches of one static size.

    Images are uint8 [N, H, W, 3] at the base size, N at most `batch_size`; shorter batches are
    padded, and N may be 0.
    """

    def __init__(
        self, drnet: DRNet, costs: Costs, batch_size: int, programs: Programs
    ):
        """An engine without parameters; `load` gives it some.

        Args:
            drnet: the networks.
            batch_size: rounded up to a multiple of the number of this host's devices.
            programs: where the compiled networks are kept.
            costs: by which the price of `choose` charges.
        """
        self.drnet = drnet
        self.costs = costs
        self.mesh = data_mesh(jax.local_devices())
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        self._programs = programs
        self._scores = scores_program(drnet, self.mesh, self.batch_size)
        self._classify = [
            classify_program(drnet, self.mesh, index, self.batch_size)
            for index in range(len(drnet.resolutions))
        ]

    def load(self, params: Tree, batch_stats: Tree) -> None:
        """Takes parameters, replicated over any devices, this host's among them; copies them."""
        # This host's copy of a replicated array is whole.
        variables = jax.tree.map(lambda leaf: leaf.addressable_data(0), (params, batch_stats))
        params, batch_stats = jax.device_put(variables, replicated(self.mesh))
        # A program is handed only what it uses: the hundreds of arrays of all resolutions make each
        # call longer.
        self._predictor = tuple({"predictor": tree["predictor"]} for tree in (params, batch_stats))
        self._classifiers = [
            (only(params, key), only(batch_stats, key)) for key in self.drnet.norm_keys
        ]

    def scores(self, images: np.ndarray) -> np.ndarray:
        """What the predictor says for each resolution (see `routing.scores`): float32 [N, R]."""
        return self._run(self._scores, self._predictor, images)

    def choose(self, images: np.ndarray, price: float = 0.0) -> np.ndarray:
        """The predictor's choice, without noise, at a price (see `routing.charge`): int32 [N]."""
        # On the host: no price is ever compiled in, and a table of scores gives the same choice.
        return routing.choose_at(self.scores(images), self.costs.array, price)

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


def scores_program(drnet: DRNet, mesh: Mesh, batch_size: int) -> Program:
    """(params, batch_stats, images uint8 [N, H, W, 3]) -> the predictor's scores [N, R]."""
    def scores(params, batch_stats, images):
        logits, _ = drnet.score(params, batch_stats, images)
        return drnet.scores(logits)

    return Program.mapped(f"scores x{batch_size}", mesh, scores, (P(), P(), P(AXIS)), P(AXIS))


def classify_program(drnet: DRNet, mesh: Mesh, index: int, batch_size: int) -> Program:
    """(params, batch_stats, images uint8 [N, H, W, 3]) -> log-probabilities [N, C]."""
    def classify(params, batch_stats, images):
        logits, _ = drnet.classify(index, params, batch_stats, images)
        return jax.nn.log_softmax(logits)

    name = f"classify {drnet.resolutions[index]}px x{batch_size}"
    return Program.mapped(name, mesh, classify, (P(), P(), P(AXIS)), P(AXIS))
