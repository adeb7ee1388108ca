"""Engine: the compiled networks of one host, for batches of one static size.

An image is uploaded once; the predictor's answers, the choice at a price and the gathering into
buckets happen on the devices. Nothing here waits for them: what is returned is computed while the
host goes on. Every host serves its own images on its own devices, without waiting for any other.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.devices import AXIS, Compilation, Program, Programs, data_mesh, replicated, split
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.resolutions import only


class Engine:
    """The networks of a DRNet on this host's devices; `load` gives it parameters.

    A batch is uint8 [B, H, W, 3] on the devices at the base size, B the batch size: what `upload`
    made of at most so many images. The rows beyond those are padding, and mean nothing.
    """

    def __init__(
        self, drnet: DRNet, costs: Costs, batch_size: int,
        announce: Callable[[Compilation], None] = lambda compilation: None,
    ):
        """An engine without parameters.

        Args:
            drnet: the networks.
            costs: by which a price charges the options.
            batch_size: rounded up to a multiple of the number of this host's devices.
            announce: is told of every program that is compiled.
        """
        self.drnet = drnet
        self.costs = costs
        self.mesh = data_mesh(jax.local_devices())
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        self.programs = Programs(announce)
        self._predict = predict_program(drnet, self.mesh, self.batch_size)
        self._choose = choose_program(drnet, self.mesh, self.batch_size)
        self._classify = [
            classify_program(drnet, self.mesh, index, self.batch_size)
            for index in range(len(drnet.resolutions))
        ]
        self._append = append_program(self.mesh, self.batch_size)

    def load(self, params: Tree, batch_stats: Tree) -> None:
        """Takes parameters, replicated over any devices, this host's among them.

        Where they lie there already they are not copied: what donates them takes them away.
        """
        # This host's copy of a replicated array is whole.
        variables = jax.tree.map(lambda leaf: leaf.addressable_data(0), (params, batch_stats))
        params, batch_stats = jax.device_put(variables, replicated(self.mesh))
        # A program is handed only what it uses: the hundreds of arrays of all resolutions make each
        # call longer.
        self._predictor = tuple({"predictor": tree["predictor"]} for tree in (params, batch_stats))
        self._classifiers = [
            (only(params, key), only(batch_stats, key)) for key in self.drnet.norm_keys
        ]
        self._costs = jax.device_put(self.costs.charged, replicated(self.mesh))

    def upload(self, images: np.ndarray) -> jax.Array:
        """A batch of images, uint8 [N, H, W, 3] at the base size, N at most the batch size."""
        # A copy: JAX reads it at some time later, or for as long as the batch lives.
        padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return jax.device_put(padded, split(self.mesh))

    def empty(self) -> jax.Array:
        """A batch of padding alone."""
        base = self.drnet.resolutions[0]
        shape = self.batch_size, base, base, 3
        return jnp.zeros(shape, np.uint8, device=split(self.mesh))  # made there, not sent

    def predict(self, batch: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """What the predictor says of each option (see `routing.SCORES`), float32 [B, O]; and the
        log-probabilities of the classes, float32 [B, C], None of a predictor that knows none.
        """
        return self.programs.run(self._predict, *self._predictor, batch)

    def choose(self, batch: jax.Array, price: float) -> tuple[jax.Array, jax.Array | None]:
        """Where the predictor sends images, without noise, at a price: int32 [B]; and its own
        log-probabilities of the classes, as of `predict`.

        The price is an argument of the program: no price is ever compiled in.
        """
        return self.programs.run(
            self._choose, *self._predictor, batch, self._costs,
            jax.device_put(np.float32(price), replicated(self.mesh)),
        )

    def classify(self, index: int, batch: jax.Array) -> jax.Array:
        """The log-probabilities of the classes at one resolution: float32 [B, C]."""
        return self.programs.run(self._classify[index], *self._classifiers[index], batch)

    def append(self, queue: jax.Array, batch: jax.Array, slots: np.ndarray) -> jax.Array:
        """A batch `queue` with rows of `batch` put into it; `queue` itself is used up.

        Args:
            slots: int32 [B], which row of the queue each row of the batch is put into; the batch
                size for those that are not put anywhere.
        """
        slots = jax.device_put(slots, split(self.mesh))
        return self.programs.run(self._append, queue, batch, slots)

    def warm_up(self) -> None:
        """Compiles everything."""
        batch = self.empty()
        self.predict(batch)
        self.choose(batch, 0.0)
        for index in range(len(self.drnet.resolutions)):
            self.classify(index, batch)
        nowhere = np.full(self.batch_size, self.batch_size, np.int32)
        self.append(self.empty(), batch, nowhere)


def predict_program(drnet: DRNet, mesh: Mesh, batch_size: int) -> Program:
    """(params, batch_stats, images uint8 [B, H, W, 3]) -> what `Engine.predict` returns."""
    predict = functools.partial(_predict, drnet)
    return Program.mapped(f"predict x{batch_size}", mesh, predict, (P(), P(), P(AXIS)), P(AXIS))


def choose_program(drnet: DRNet, mesh: Mesh, batch_size: int) -> Program:
    """(params, batch_stats, images, costs [O], price) -> what `Engine.choose` returns."""
    def choose(params, batch_stats, images, costs, price):
        scores, log_p = _predict(drnet, params, batch_stats, images)
        return routing.choose(routing.charge(scores, costs, price)), log_p

    specs = (P(), P(), P(AXIS), P(), P())
    return Program.mapped(f"choose x{batch_size}", mesh, choose, specs, P(AXIS))


def _predict(
    drnet: DRNet, params: Tree, batch_stats: Tree, images: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    prediction, _ = drnet.predict(params, batch_stats, images)
    own = prediction.classes
    return drnet.scores(prediction.options), None if own is None else jax.nn.log_softmax(own)


def classify_program(drnet: DRNet, mesh: Mesh, index: int, batch_size: int) -> Program:
    """(params, batch_stats, images uint8 [B, H, W, 3]) -> log-probabilities [B, C]."""
    def classify(params, batch_stats, images):
        logits, _ = drnet.classify(index, params, batch_stats, images)
        return jax.nn.log_softmax(logits)

    name = f"classify {drnet.resolutions[index]}px x{batch_size}"
    return Program.mapped(name, mesh, classify, (P(), P(), P(AXIS)), P(AXIS))


def append_program(mesh: Mesh, batch_size: int) -> Program:
    """(queue, images, slots) -> the queue with images put into slots; the rest is dropped."""
    def append(queue: jax.Array, images: jax.Array, slots: jax.Array) -> jax.Array:
        queue = queue.at[slots].set(images, mode="drop")
        return jax.lax.with_sharding_constraint(queue, split(mesh))

    # Of global arrays: an image may come from another device than the one that will classify it.
    return Program(f"append x{batch_size}", mesh, append, (P(AXIS),) * 3, donate=(0,))
