"""Base step: what the host launches for a training step, in what both stages have in common.

Every host calls a step alike, with global arrays: the state replicated, the batch split. The state
given to it is donated. What the programs compute is in `drnet_jax.train.device`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax.devices import AXIS, Program, Programs
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.resolutions import only
from drnet_jax.train import device, update
from drnet_jax.train.device import Bucket, Plan, Sums
from drnet_jax.train.state import TrainState

EVERYWHERE, SPLIT = P(), P(AXIS)
Calls = Iterator[tuple[Program, tuple[Any, ...]]]  # programs with the shapes of their arguments


def run_buckets(
    step: "Step", sizes: Sequence[int], state: TrainState, batch: Tree, plan: Plan, sums: Sums
) -> Sums:
    """Adds the buckets to the sums in turn, padded to `sizes` [R]; those of 0 are not run."""
    for index, size in enumerate(sizes):
        if size:
            arguments = step.bucket_arguments(index, state, batch, plan, sums)
            added: Sums = step.programs.run(step.bucket_program(index, size), *arguments)
            norms = sums.grads["norms"] | added.grads["norms"]
            sums = added.replace(
                grads=added.grads | {"norms": norms}, moments=sums.moments | added.moments
            )
    return sums


@dataclasses.dataclass(frozen=True)
class Step:
    """What the steps of both stages have in common: `(state, batch, key) -> (state, metrics)`.

    Metrics are sums over the global batch (see `drnet_jax.train.device`).
    """

    drnet: DRNet
    optimizer: optax.GradientTransformation
    ema: float  # decay of the state's moving average; 0: it has none
    mesh: Mesh
    programs: Programs

    def bucket(self, index: int, size: int) -> Bucket:
        """What is static of a bucket of this stage."""
        raise NotImplementedError

    def bucket_arguments(
        self, index: int, state: TrainState, batch: Tree, plan: Plan, sums: Sums
    ) -> tuple[Tree, Tree, Tree, Plan, Sums]:
        """The arguments of a bucket's program: nothing of the other resolutions' norms."""
        key = self.drnet.norm_keys[index]
        own = sums.replace(grads=only(sums.grads, key), moments={key: sums.moments[key]})
        return only(state.params, key), only(state.batch_stats, key), batch, plan, own

    @functools.cached_property
    def bucket_program(self) -> Callable[[int, int], Program]:
        """(index, size) -> the program that adds one bucket to the sums; made once."""
        return functools.cache(self._bucket_program)

    def _bucket_program(self, index: int, size: int) -> Program:
        bucket = self.bucket(index, size)
        name = f"bucket {self.drnet.resolutions[index]}px x{size}" + " of stage 1" * bucket.whole
        add = functools.partial(device.add_bucket, self.drnet, bucket)
        specs = (EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, SPLIT)
        return Program.mapped(name, self.mesh, add, specs, SPLIT, donate=(4,))

    def moving(self, name: str, gradients: Callable[..., Any], specs: tuple[P, ...]) -> Program:
        """(state, what `specs` are of) -> (state, metrics): a step of these gradients."""
        def move(state, *rest):
            *found, metrics = gradients(state, *rest)
            return update.apply_gradients(self.optimizer, self.ema, state, *found), metrics

        return Program.mapped(name, self.mesh, move, (EVERYWHERE, *specs), EVERYWHERE, donate=(0,))

    def rows(self, batch: Tree) -> int:
        """Of a global batch those of one device."""
        return batch["label"].shape[0] // self.mesh.size
