"""One training step on a mesh: which programs run, and at which static sizes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax.devices import AXIS, Program, Programs, per_device, split
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.resolutions import only
from drnet_jax.train import device
from drnet_jax.train.device import Plan, Sums
from drnet_jax.train.objectives import Objective
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import TrainState

EVERYWHERE, SPLIT = P(), P(AXIS)


@dataclasses.dataclass(frozen=True)
class Step:
    """`(state, batch, key) -> (state, metrics)`, for either stage.

    Called by every host alike with global arrays: the state replicated, the batch split. The
    state given to it is donated. Metrics are sums over the global batch (see `steps`); those of
    finetuning have `slots` besides: the rows that each resolution [R] was run on, on all devices,
    padding included.
    """

    drnet: DRNet
    optimizer: optax.GradientTransformation
    mesh: Mesh
    programs: Programs
    stage: str  # "pretrain" or "finetune"
    estimator: str  # "selected" or "dense"
    sizes: Sizes
    objective: Objective
    distillation: float  # of pretraining, see `device.bucket`

    def __call__(self, state: TrainState, batch: Tree, key: jax.Array) -> tuple[TrainState, Tree]:
        """Runs one step; `key` is folded with the step's number."""
        if self.stage == "pretrain":
            return self.pretrain(state, batch, key)
        return self.finetune(state, batch, key)

    def pretrain(
        self, state: TrainState, batch: Tree, key: jax.Array
    ) -> tuple[TrainState, Tree]:
        """All samples at all resolutions, their losses summed."""
        plan, sums = self.programs.run(
            self.begin_program, state.params, state.batch_stats, batch, key, state.step
        )
        for index in range(len(self.drnet.resolutions)):
            sums = self._add_bucket(index, self._local(batch), state, batch, plan, sums)
        return self.programs.run(self.pretrain_program, state, sums)

    def finetune(
        self, state: TrainState, batch: Tree, key: jax.Array
    ) -> tuple[TrainState, Tree]:
        """Each sample at the resolution that the predictor draws for it."""
        plan, noise, sums, counts = self.route(state, batch, key)
        if self.estimator == "dense":
            sizes = [self._local(batch)] * len(self.drnet.resolutions)
            sums = self.programs.run(
                self.dense_program, state.params, state.batch_stats, batch, plan, sums
            )
        else:
            # The one place where the host waits: the sizes of this step's programs.
            sizes = self.sizes.advance(np.asarray(counts).tolist(), self._local(batch))
            for index, size in enumerate(sizes):
                if size:
                    sums = self._add_bucket(index, size, state, batch, plan, sums)
            for index, size in self.sizes.ahead():
                arguments = self._of_bucket(index, state, batch, plan, sums)
                self.programs.prepare(self.bucket_program(index, size), *arguments)
        state, metrics = self.programs.run(
            self.finetune_program, state, batch, noise, plan, sums
        )
        return state, metrics | {"slots": self.mesh.size * np.array(sizes)}

    def _add_bucket(
        self, index: int, size: int, state: TrainState, batch: Tree, plan: Plan, sums: Sums
    ) -> Sums:
        arguments = self._of_bucket(index, state, batch, plan, sums)
        found: Sums = self.programs.run(self.bucket_program(index, size), *arguments)
        norms = sums.grads["norms"] | found.grads["norms"]
        return found.replace(
            grads=found.grads | {"norms": norms}, moments=sums.moments | found.moments
        )

    def _of_bucket(
        self, index: int, state: TrainState, batch: Tree, plan: Plan, sums: Sums
    ) -> tuple[Tree, Tree, Tree, Plan, Sums]:
        """The arguments of a bucket's program: nothing of the other resolutions' norms."""
        key = self.drnet.norm_keys[index]
        own = sums.replace(
            grads=only(sums.grads, key), moments={key: sums.moments[key]}
        )
        return only(state.params, key), only(state.batch_stats, key), batch, plan, own

    def route(
        self, state: TrainState, batch: Tree, key: jax.Array
    ) -> tuple[Plan, jax.Array, Sums, jax.Array]:
        """The plan of a finetuning step, its Gumbel noise, empty sums, and the counts [R]."""
        return self.programs.run(
            self.route_program, state.params, state.batch_stats, batch, key, state.step
        )

    @functools.cached_property
    def begin_program(self) -> Program:
        def begin(params, batch_stats, batch, key, step):
            sums = device.start(self.drnet, params, batch_stats, batch, self.distillation > 0)
            plan = device.everyone(self.drnet, batch, device.device_key(key, step))
            return plan, _to_global(sums)

        specs = (EVERYWHERE, EVERYWHERE, SPLIT, EVERYWHERE, EVERYWHERE)
        return Program.mapped("begin", self.mesh, begin, specs, (SPLIT, SPLIT))

    @functools.cached_property
    def route_program(self) -> Program:
        def route(params, batch_stats, batch, noise, key, step):
            plan, counts = device.route(
                self.drnet, self.objective, params, batch_stats, batch, noise,
                device.device_key(key, step),
            )
            sums = device.start(self.drnet, params, batch_stats, batch)
            return plan, _to_global(sums), counts

        specs = (EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, EVERYWHERE, EVERYWHERE)
        mapped = per_device(self.mesh, route, specs, (SPLIT, SPLIT, EVERYWHERE))

        def with_noise(params, batch_stats, batch, key, step):
            # Drawn for the global batch: the choices do not depend on the number of devices.
            shape = (batch["label"].shape[0], len(self.drnet.resolutions))
            noise = jax.random.gumbel(jax.random.fold_in(key, step), shape)
            noise = jax.lax.with_sharding_constraint(noise, split(self.mesh))
            plan, sums, counts = mapped(params, batch_stats, batch, noise, key, step)
            return plan, noise, sums, counts

        specs = (EVERYWHERE, EVERYWHERE, SPLIT, EVERYWHERE, EVERYWHERE)
        return Program("route", self.mesh, with_noise, specs)

    @functools.cached_property
    def bucket_program(self) -> Callable[[int, int], Program]:
        """(index, size) -> the program that adds one bucket to the sums; made once."""
        return functools.cache(self._bucket_program)

    def _bucket_program(self, index: int, size: int) -> Program:
        whole = self.stage == "pretrain"
        distillation = self.distillation if whole else 0.0

        def bucket(params, batch_stats, batch, plan, sums):
            global_batch = batch["label"].shape[0] * self.mesh.size
            return _to_global(device.bucket(
                self.drnet, index, size, global_batch, distillation, whole,
                params, batch_stats, batch, plan, _to_local(sums),
            ))

        resolution = self.drnet.resolutions[index]
        name = f"bucket {resolution}px x{size}" + (" of stage 1" if whole else "")
        specs = (EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, SPLIT)
        return Program.mapped(name, self.mesh, bucket, specs, SPLIT, donate=(4,))

    @functools.cached_property
    def dense_program(self) -> Program:
        def dense(params, batch_stats, batch, plan, sums):
            global_batch = batch["label"].shape[0] * self.mesh.size
            return _to_global(device.dense(
                self.drnet, global_batch, params, batch_stats, batch, plan, _to_local(sums)
            ))

        specs = (EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, SPLIT)
        return Program.mapped("dense", self.mesh, dense, specs, SPLIT, donate=(4,))

    @functools.cached_property
    def pretrain_program(self) -> Program:
        def update(state, sums):
            return device.pretrain_update(self.optimizer, state, _to_local(sums))

        specs, out_specs = (EVERYWHERE, SPLIT), (EVERYWHERE, EVERYWHERE)
        return Program.mapped("update of stage 1", self.mesh, update, specs, out_specs, donate=(0,))

    @functools.cached_property
    def finetune_program(self) -> Program:
        def update(state, batch, noise, plan, sums):
            return device.finetune_update(
                self.drnet, self.optimizer, self.objective, state, batch, noise, plan,
                _to_local(sums),
            )

        specs, out_specs = (EVERYWHERE, SPLIT, SPLIT, SPLIT, SPLIT), (EVERYWHERE, EVERYWHERE)
        return Program.mapped("update of stage 2", self.mesh, update, specs, out_specs, donate=(0,))

    def all_programs(
        self, state: TrainState, batch: Tree, key: jax.Array, sizes: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Program, tuple]]:
        """Every program of a step, with the shapes of its arguments; nothing is computed.

        Args:
            state, batch, key: as of `__call__`, or their shapes.
            sizes: of the buckets of each resolution [R]; pretraining has the whole batch.
        """
        if self.stage == "pretrain":
            sizes = [[self._local(batch)]] * len(self.drnet.resolutions)
            first = self.begin_program, (
                state.params, state.batch_stats, batch, key, state.step
            )
            plan, sums = jax.eval_shape(first[0].function, *first[1])
            last = self.pretrain_program, (state, sums)
        else:
            arguments = state.params, state.batch_stats, batch, key, state.step
            first = self.route_program, arguments
            plan, noise, sums, _ = jax.eval_shape(self.route_program.function, *arguments)
            last = self.finetune_program, (state, batch, noise, plan, sums)
        yield first
        if self.stage == "finetune" and self.estimator == "dense":
            yield self.dense_program, (state.params, state.batch_stats, batch, plan, sums)
        else:
            for index, of_resolution in enumerate(sizes):
                arguments = self._of_bucket(index, state, batch, plan, sums)
                for size in of_resolution:
                    yield self.bucket_program(index, size), arguments
        yield last

    def _local(self, batch: Tree) -> int:
        return batch["label"].shape[0] // self.mesh.size


def _to_global(sums: Sums) -> Sums:
    """Gives what is local to a device a leading device axis, to leave `shard_map` by."""
    def grow(tree):
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)

    return sums.replace(grads=grow(sums.grads), moments=grow(sums.moments))


def _to_local(sums: Sums) -> Sums:
    """The inverse of `_to_global`, inside `shard_map`."""
    def shrink(tree):
        return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)

    return sums.replace(grads=shrink(sums.grads), moments=shrink(sums.moments))
