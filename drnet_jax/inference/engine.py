"""Engine: the compiled networks of one host, for batches of a few static sizes.

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

    A batch is uint8 [S, H, W, 3] on the devices at the base size, S one of `sizes`: what `upload`
    made of at most so many images. The rows beyond those are padding, and mean nothing.
    """

    def __init__(
        self, drnet: DRNet, costs: Costs, batch_size: int,
        announce: Callable[[Compilation], None] = lambda compilation: None,
        smallest: int | None = None,
    ):
        """An engine without parameters.

        Args:
            drnet: the networks.
            costs: by which a price charges the options.
            batch_size: the largest size; all are multiples of the number of this host's devices.
            announce: is told of every program that is compiled.
            smallest: size from which on others double until the largest; None for that alone.
        """
        self.drnet = drnet
        self.costs = costs
        self.mesh = data_mesh(jax.local_devices())
        self.batch_size = self._multiple(batch_size)
        self.sizes = _doubling(self._multiple(smallest or batch_size), self.batch_size)
        self.programs = Programs(announce)
        # Each is made once for a size: a program is known by its identity.
        made = functools.cache
        self._predict = made(functools.partial(predict_program, drnet, self.mesh))
        self._choose = made(functools.partial(choose_program, drnet, self.mesh))
        self._classify = made(functools.partial(classify_program, drnet, self.mesh))
        self._append = made(functools.partial(append_program, self.mesh))
        self._cut = made(functools.partial(cut_program, self.mesh))

    def _multiple(self, size: int) -> int:
        return -(-size // self.mesh.size) * self.mesh.size

    def size_for(self, images: int) -> int:
        """The smallest size that holds so many images, `batch_size` at most."""
        return next(size for size in self.sizes if images <= size)

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
        padded = np.zeros((self.size_for(len(images)), *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return jax.device_put(padded, split(self.mesh))

    def empty(self, size: int | None = None) -> jax.Array:
        """A batch of padding alone; of the largest size unless told."""
        base = self.drnet.resolutions[0]
        shape = size or self.batch_size, base, base, 3
        return jnp.zeros(shape, np.uint8, device=split(self.mesh))  # made there, not sent

    def predict(self, batch: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """What the predictor says of each option (see `routing.SCORES`), float32 [S, O]; and the
        log-probabilities of the classes, float32 [S, C], None of a predictor that knows none.
        """
        return self.programs.run(self._predict(len(batch)), *self._predictor, batch)

    def choose(
        self, batch: jax.Array, price: float
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Where the predictor sends images, without noise, at a price: int32 [S]; and what it says
        of them, as of `predict`.

        The price is an argument of the program: no price is ever compiled in.
        """
        return self.programs.run(
            self._choose(len(batch)), *self._predictor, batch, self._costs,
            jax.device_put(np.float32(price), replicated(self.mesh)),
        )

    def classify(self, index: int, batch: jax.Array) -> jax.Array:
        """The log-probabilities of the classes at one resolution: float32 [S, C]."""
        program = self._classify(index, len(batch))
        return self.programs.run(program, *self._classifiers[index], batch)

    def append(self, queue: jax.Array, batch: jax.Array, slots: np.ndarray) -> jax.Array:
        """A batch `queue` with rows of `batch` put into it; `queue` itself is used up.

        Args:
            slots: int32 [S], which row of the queue each row of the batch is put into; one beyond
                its end for those that are not put anywhere.
        """
        slots = jax.device_put(slots, split(self.mesh))
        return self.programs.run(self._append(len(queue), len(batch)), queue, batch, slots)

    def cut(self, batch: jax.Array, images: int) -> jax.Array:
        """A batch of the first so many images of one, in the smallest size that holds them."""
        size = self.size_for(images)
        if size == len(batch):
            return batch
        return self.programs.run(self._cut(len(batch), size), batch)

    def warm_up(self) -> None:
        """Compiles everything."""
        for size in self.sizes:
            batch = self.empty(size)
            self.predict(batch)
            self.choose(batch, 0.0)
            for index in range(len(self.drnet.resolutions)):
                self.classify(index, batch)
            for queue in {size, self.batch_size}:
                self.append(self.empty(queue), batch, np.full(size, queue, np.int32))
                self.cut(self.empty(queue), size)


def _doubling(smallest: int, largest: int) -> tuple[int, ...]:
    """The smallest, twice that, and so on, below the largest; and that."""
    sizes = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= 2
    return (*sizes, largest)


def predict_program(drnet: DRNet, mesh: Mesh, size: int) -> Program:
    """(params, batch_stats, images uint8 [S, H, W, 3]) -> what `Engine.predict` returns."""
    predict = functools.partial(_predict, drnet)
    return Program.mapped(f"predict x{size}", mesh, predict, (P(), P(), P(AXIS)), P(AXIS))


def choose_program(drnet: DRNet, mesh: Mesh, size: int) -> Program:
    """(params, batch_stats, images, costs [O], price) -> what `Engine.choose` returns."""
    def choose(params, batch_stats, images, costs, price):
        scores, log_p = _predict(drnet, params, batch_stats, images)
        return routing.choose(routing.charge(scores, costs, price)), scores, log_p

    specs = (P(), P(), P(AXIS), P(), P())
    return Program.mapped(f"choose x{size}", mesh, choose, specs, P(AXIS))


def _predict(
    drnet: DRNet, params: Tree, batch_stats: Tree, images: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    prediction, _ = drnet.predict(params, batch_stats, images)
    own = prediction.classes
    return drnet.scores(prediction.options), None if own is None else jax.nn.log_softmax(own)


def classify_program(drnet: DRNet, mesh: Mesh, index: int, size: int) -> Program:
    """(params, batch_stats, images uint8 [S, H, W, 3]) -> log-probabilities [S, C]."""
    def classify(params, batch_stats, images):
        logits, _ = drnet.classify(index, params, batch_stats, images)
        return jax.nn.log_softmax(logits)

    name = f"classify {drnet.resolutions[index]}px x{size}"
    return Program.mapped(name, mesh, classify, (P(), P(), P(AXIS)), P(AXIS))


def append_program(mesh: Mesh, queue_size: int, size: int) -> Program:
    """(queue, images, slots) -> the queue with images put into slots; the rest is dropped."""
    def append(queue: jax.Array, images: jax.Array, slots: jax.Array) -> jax.Array:
        queue = queue.at[slots].set(images, mode="drop")
        return jax.lax.with_sharding_constraint(queue, split(mesh))

    # Of global arrays: an image may come from another device than the one that will classify it.
    return Program(f"append x{size} to x{queue_size}", mesh, append, (P(AXIS),) * 3, donate=(0,))


def cut_program(mesh: Mesh, queue_size: int, size: int) -> Program:
    """(queue) -> its first images."""
    def cut(queue: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(queue[:size], split(mesh))

    return Program(f"cut x{queue_size} to x{size}", mesh, cut, (P(AXIS),))
