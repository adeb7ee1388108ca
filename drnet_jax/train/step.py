"""One training step on a mesh: which programs run, and at which static sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax import buckets
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.mesh import AXIS, per_device
from drnet_jax.programs import Programs
from drnet_jax.train import steps
from drnet_jax.train.objectives import Objective
from drnet_jax.train.state import TrainState
from drnet_jax.train.steps import Plan, Sums


@dataclasses.dataclass(frozen=True)
class Step:
    """`(state, batch, key) -> (state, metrics)`, for either stage.

    Called by every host alike with global arrays: the state replicated, the batch split. The
    state given to it is donated. Metrics are sums over the global batch (see `steps`).
    """

    drnet: DRNet
    optimizer: optax.GradientTransformation
    mesh: Mesh
    programs: Programs
    stage: str  # "pretrain" or "finetune"
    estimator: str  # "selected" or "dense"
    bucket_multiple: int
    objective: Objective
    distillation: float  # of pretraining, see `steps.bucket`

    def __call__(self, state: TrainState, batch: Tree, key: jax.Array) -> tuple[TrainState, Tree]:
        """Runs one step; `key` is folded with the step's number."""
        if self.stage == "pretrain":
            return self.pretrain(state, batch)
        return self.finetune(state, batch, key)

    def pretrain(self, state: TrainState, batch: Tree) -> tuple[TrainState, Tree]:
        """All samples at all resolutions, their losses summed."""
        def begin(params, batch_stats, batch):
            sums = steps.start(self.drnet, params, batch_stats, batch, self.distillation > 0)
            return steps.everyone(self.drnet, batch), _to_global(sums)

        begin = self._map(begin, (P(), P(), P(AXIS)), (P(AXIS), P(AXIS)))
        plan, sums = self.programs.run(
            "begin", begin, state.params, state.batch_stats, batch
        )
        counts = [self._local(batch)] * self._resolutions
        sums = self._run_buckets(state, batch, plan, sums, counts, self.distillation)

        def update(state, sums):
            return steps.pretrain_update(self.optimizer, state, _to_local(sums))

        update = self._map(update, (P(), P(AXIS)), (P(), P()))
        return self.programs.run("update", update, state, sums, donate=(0,))

    def finetune(
        self, state: TrainState, batch: Tree, key: jax.Array
    ) -> tuple[TrainState, Tree]:
        """Each sample at the resolution that the predictor draws for it."""
        plan, noise, sums, counts = self.route(state, batch, key)
        if self.estimator == "dense":
            def dense(params, batch_stats, batch, plan, sums):
                return _to_global(steps.dense(
                    self.drnet, self._global(batch), params, batch_stats, batch, plan,
                    _to_local(sums),
                ))

            dense = self._map(dense, (P(), P(), P(AXIS), P(AXIS), P(AXIS)), P(AXIS))
            sums = self.programs.run(
                "dense", dense, state.params, state.batch_stats, batch, plan, sums, donate=(4,)
            )
        else:
            # The one place where the host waits: the sizes of this step's programs.
            sums = self._run_buckets(state, batch, plan, sums, np.asarray(counts))

        def update(state, batch, noise, plan, sums):
            return steps.finetune_update(
                self.drnet, self.optimizer, self.objective, state, batch, noise, plan,
                _to_local(sums),
            )

        specs = (P(), P(AXIS), P(AXIS), P(AXIS), P(AXIS))
        update = self._map(update, specs, (P(), P()))
        return self.programs.run(
            "update", update, state, batch, noise, plan, sums, donate=(0,)
        )

    def route(
        self, state: TrainState, batch: Tree, key: jax.Array
    ) -> tuple[Plan, jax.Array, Sums, jax.Array]:
        """The plan of a finetuning step, its Gumbel noise, empty sums, and the counts [R]."""
        def route(params, batch_stats, batch, noise):
            plan, counts = steps.route(
                self.drnet, self.objective, params, batch_stats, batch, noise
            )
            sums = steps.start(self.drnet, params, batch_stats, batch)
            return plan, _to_global(sums), counts

        mapped = self._map(route, (P(), P(), P(AXIS), P(AXIS)), (P(AXIS), P(AXIS), P()))

        def with_noise(params, batch_stats, batch, key, step):
            # Drawn for the global batch: the choices do not depend on the number of devices.
            shape = (batch["label"].shape[0], self._resolutions)
            noise = jax.random.gumbel(jax.random.fold_in(key, step), shape)
            noise = jax.lax.with_sharding_constraint(
                noise, jax.sharding.NamedSharding(self.mesh, P(AXIS))
            )
            plan, sums, counts = mapped(params, batch_stats, batch, noise)
            return plan, noise, sums, counts

        return self.programs.run(
            "route", with_noise, state.params, state.batch_stats, batch, key, state.step
        )

    def _run_buckets(
        self, state: TrainState, batch: Tree, plan: Plan, sums: Sums,
        counts: list[int] | np.ndarray, distillation: float = 0.0,
    ) -> Sums:
        for index, count in enumerate(counts):
            size = buckets.padded_size(int(count), self.bucket_multiple, self._local(batch))
            if not size:
                continue
            resolution = self.drnet.resolutions[index]
            sums = self.programs.run(
                f"bucket {resolution}px x{size}", self._bucket(index, size, distillation),
                state.params, state.batch_stats, batch, plan, sums, donate=(4,),
            )
        return sums

    def _bucket(self, index: int, size: int, distillation: float):
        def bucket(params, batch_stats, batch, plan, sums):
            return _to_global(steps.bucket(
                self.drnet, index, size, self._global(batch), distillation,
                params, batch_stats, batch, plan, _to_local(sums),
            ))

        return self._map(bucket, (P(), P(), P(AXIS), P(AXIS), P(AXIS)), P(AXIS))

    def _map(self, function, in_specs, out_specs):
        return per_device(self.mesh, function, in_specs, out_specs)

    def _local(self, batch: Tree) -> int:
        return batch["label"].shape[0] // self.mesh.size

    def _global(self, batch: Tree) -> int:
        return batch["label"].shape[0] * self.mesh.size

    @functools.cached_property
    def _resolutions(self) -> int:
        return len(self.drnet.resolutions)


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
