"""Graph engine: the networks of a DRNet as graphs, which another runtime runs on the host's CPU."""

import functools
from collections.abc import Callable

import numpy as np

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.graphs import networks

Run = Callable[[np.ndarray], dict[str, np.ndarray]]  # images -> results by name
Build = Callable[[bytes], Run]  # of a graph as ONNX has it in a file


class GraphEngine:
    """What `Engine` does, with the same names, on arrays of numpy.

    A batch is uint8 [S, H, W, 3] at the base size, of any S: nothing is padded.
    """

    def __init__(
        self, drnet: DRNet, costs: Costs, variables: tuple[Tree, Tree], batch_size: int,
        build: Build,
    ):
        """An engine whose graphs are built when they are first needed.

        Args:
            drnet: the networks.
            costs: by which a price charges the options.
            variables: params and batch_stats.
            batch_size: how many images a queue holds.
            build: makes of a graph what runs it.
        """
        self.drnet, self.costs, self.batch_size = drnet, costs, batch_size
        self._variables, self._build = variables, build

    def size_for(self, images: int) -> int:
        """The size of a batch of so many images."""
        return images

    def upload(self, images: np.ndarray) -> np.ndarray:
        return images

    def empty(self, size: int | None = None) -> np.ndarray:
        base = self.drnet.resolutions[0]
        return np.empty((size or self.batch_size, base, base, 3), np.uint8)

    def predict(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        found = self._predictor(batch)
        return found["scores"], found.get("log_p")

    def choose(
        self, batch: np.ndarray, price: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        scores, log_p = self.predict(batch)
        return routing.choose_at(scores, self.costs.charged, price), scores, log_p

    def classify(self, index: int, batch: np.ndarray) -> np.ndarray:
        # An integer of numpy is another key to `functools.cache`.
        return self._classifier(int(index))(batch)["log_p"]

    def append(self, queue: np.ndarray, batch: np.ndarray, slots: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(slots < len(queue))
        for row in rows:  # one by one, without a copy of them all between
            queue[slots[row]] = batch[row]
        return queue

    def cut(self, batch: np.ndarray, images: int) -> np.ndarray:
        return batch[:images]

    def warm_up(self) -> None:
        """Builds everything."""
        batch = self.empty(1)
        self.predict(batch)
        for index in range(len(self.drnet.resolutions)):
            self.classify(index, batch)

    @functools.cached_property
    def _predictor(self) -> Run:
        return self._built(networks.predictor(self.drnet, *self._variables), "predictor")

    @functools.cached_property
    def _classifier(self) -> Callable[[int], Run]:
        return functools.cache(lambda index: self._built(
            networks.classifier(self.drnet, index, *self._variables),
            f"classifier at {self.drnet.resolutions[index]} px",
        ))

    def _built(self, function: networks.Network, about: str) -> Run:
        from drnet_jax.graphs.onnx import to_onnx  # onnx is of the extra `runtimes`

        base = self.drnet.resolutions[0]
        return self._build(to_onnx(function, (base, base, 3), about).SerializeToString())
