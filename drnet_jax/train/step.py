"""Steps: what the host launches for one step of training, and at which static sizes.

Every host calls a step alike, with global arrays: the state replicated, the batch split. The state
given to it is donated. What the programs compute is in `drnet_jax.train.device`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax.config import STAGES, Config
from drnet_jax.cost import Costs
from drnet_jax.devices import AXIS, Program, Programs, split
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.resolutions import only
from drnet_jax.train import device, update
from drnet_jax.train.device import Bucket, Plan, Sums
from drnet_jax.train.objectives import Objective, make_objective
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import TrainState

EVERYWHERE, SPLIT = P(), P(AXIS)
Calls = Iterator[tuple[Program, tuple[Any, ...]]]  # programs with the shapes of their arguments


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the steps of both stages are made of."""

    config: Config
    drnet: DRNet
    costs: Costs
    mesh: Mesh
    programs: Programs


def make_step(
    setup: Setup, stage: str, optimizer: optax.GradientTransformation, sizes: Sizes | None = None
) -> "Step":
    """The step of a stage; `sizes` those of a run's buckets so far, None at its beginning."""
    config, shared = setup.config, (setup.drnet, optimizer, setup.mesh, setup.programs)
    if stage == STAGES[0]:
        return PretrainStep(*shared, config.pretrain.distillation)
    return FinetuneStep(
        *shared, make_objective(config, setup.costs),
        sizes or Sizes(config.bucket_multiple, config.bucket_lead),
        dense=config.router.gumbel.estimator == "dense",
    )


def batch_shapes(config: Config, size: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch, of `config.batch_size` images or of `size`."""
    size, base = size or config.batch_size, config.resolutions[0]
    return {
        "image": jax.ShapeDtypeStruct((size, base, base, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
    }


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
            return update.apply_gradients(self.optimizer, state, *found), metrics

        return Program.mapped(name, self.mesh, move, (EVERYWHERE, *specs), EVERYWHERE, donate=(0,))

    def rows(self, batch: Tree) -> int:
        """Of a global batch those of one device."""
        return batch["label"].shape[0] // self.mesh.size


@dataclasses.dataclass(frozen=True)
class PretrainStep(Step):
    """A step of stage 1: all samples at all resolutions, their losses summed."""

    distillation: float  # see `device.Bucket`

    def __call__(self, state: TrainState, batch: Tree, key: jax.Array) -> tuple[TrainState, Tree]:
        """Runs one step; `key`, folded with the step's number, is for networks with dropout."""
        plan, sums = self.programs.run(
            self.begin_program, state.params, state.batch_stats, batch, key, state.step
        )
        whole = [self.rows(batch)] * len(self.drnet.resolutions)
        sums = run_buckets(self, whole, state, batch, plan, sums)
        return self.programs.run(self.update_program, state, batch, plan, sums)

    def bucket(self, index: int, size: int) -> Bucket:
        return Bucket(index, size, whole=True, distillation=self.distillation)

    @functools.cached_property
    def begin_program(self) -> Program:
        """(params, batch_stats, batch, key, step) -> (plan, sums): of everyone, and empty."""
        def begin(params, batch_stats, batch, key, step):
            teach = self.distillation > 0 or self.drnet.classifies
            sums = device.start(self.drnet, params, batch_stats, batch, teach)
            return device.everyone(self.drnet, batch, device.device_key(key, step)), sums

        specs = (EVERYWHERE, EVERYWHERE, SPLIT, EVERYWHERE, EVERYWHERE)
        return Program.mapped("begin", self.mesh, begin, specs, (SPLIT, SPLIT))

    @functools.cached_property
    def update_program(self) -> Program:
        """(state, batch, plan, sums) -> (state, metrics)."""
        gradients = functools.partial(update.pretrain_gradients, self.drnet, self.distillation)
        return self.moving("update of stage 1", gradients, (SPLIT,) * 3)

    def all_programs(
        self, state: TrainState, batch: Tree, sizes: Sequence[Sequence[int]] = ()
    ) -> Calls:
        """Every program of a step; nothing is computed, so that shapes will do for `__call__`'s
        state and batch. `sizes` are for the other stage: here every bucket has the whole batch.
        """
        key = jax.eval_shape(jax.random.key, 0)
        begin = self.begin_program, (state.params, state.batch_stats, batch, key, state.step)
        plan, sums = jax.eval_shape(begin[0].function, *begin[1])
        yield begin
        for index in range(len(self.drnet.resolutions)):
            arguments = self.bucket_arguments(index, state, batch, plan, sums)
            yield self.bucket_program(index, self.rows(batch)), arguments
        yield self.update_program, (state, batch, plan, sums)


@dataclasses.dataclass(frozen=True)
class FinetuneStep(Step):
    """A step of stage 2: each sample by the option that the predictor draws for it.

    Its metrics have `slots` besides: the rows that each resolution [R] was run on, on all devices,
    padding included.
    """

    objective: Objective
    sizes: Sizes
    dense: bool  # whether to run all resolutions for all samples, for the full gradient of Eq. 11

    def __call__(self, state: TrainState, batch: Tree, key: jax.Array) -> tuple[TrainState, Tree]:
        """Runs one step with noise of `key` folded with the step's number."""
        draw = self.noise_program(batch["label"].shape[0])
        return self.with_noise(state, batch, self.programs.run(draw, key, state.step), key)

    def with_noise(
        self, state: TrainState, batch: Tree, noise: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Tree]:
        """Runs one step with Gumbel noise, float32 [B, O], split like the batch.

        `key`, folded with the step's number, is for networks with dropout.
        """
        plan, sums, counts = self.route(state, batch, noise, key)
        if self.dense:
            sizes = [self.rows(batch)] * len(self.drnet.resolutions)
            sums = self.programs.run(
                self.dense_program, state.params, state.batch_stats, batch, plan, sums
            )
        else:
            # The one place where the host waits: the sizes of this step's programs.
            sizes = self.sizes.advance(np.asarray(counts).tolist(), self.rows(batch))
            sums = run_buckets(self, sizes, state, batch, plan, sums)
            self._prepare(state, batch, plan, sums)
        state, metrics = self.programs.run(self.update_program, state, batch, noise, plan, sums)
        return state, metrics | {"slots": self.mesh.size * np.array(sizes)}

    def _prepare(self, state: TrainState, batch: Tree, plan: Plan, sums: Sums) -> None:
        """Has the sizes that will be used compiled while the device works."""
        for index, size in self.sizes.ahead():
            program = self.bucket_program(index, size)
            # Asked first, as to gather the arguments takes a while, and nearly all are there.
            if not self.programs.knows(program):
                arguments = self.bucket_arguments(index, state, batch, plan, sums)
                self.programs.prepare(program, *arguments)

    def route(
        self, state: TrainState, batch: Tree, noise: jax.Array, key: jax.Array
    ) -> tuple[Plan, Sums, jax.Array]:
        """The plan of a step, empty sums, and the largest counts of any device [R]."""
        return self.programs.run(
            self.route_program, state.params, state.batch_stats, batch, noise, key, state.step
        )

    def bucket(self, index: int, size: int) -> Bucket:
        return Bucket(index, size)

    @functools.cached_property
    def noise_program(self) -> Callable[[int], Program]:
        """Size of the global batch -> the program (key, step) -> Gumbel noise; made once."""
        return functools.cache(self._noise_program)

    def _noise_program(self, size: int) -> Program:
        def draw(key, step):
            # For the global batch: the choices do not depend on the number of devices.
            shape = size, self.drnet.options
            noise = jax.random.gumbel(jax.random.fold_in(key, step), shape)
            return jax.lax.with_sharding_constraint(noise, split(self.mesh))

        return Program("noise", self.mesh, draw, (EVERYWHERE, EVERYWHERE))

    @functools.cached_property
    def route_program(self) -> Program:
        """(params, batch_stats, batch, noise, key, step) -> (plan, empty sums, counts)."""
        def route(params, batch_stats, batch, noise, key, step):
            plan, counts = device.route(
                self.drnet, self.objective, params, batch_stats, batch, noise,
                device.device_key(key, step),
            )
            return plan, device.start(self.drnet, params, batch_stats, batch), counts

        specs = EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, EVERYWHERE, EVERYWHERE
        return Program.mapped("route", self.mesh, route, specs, (SPLIT, SPLIT, EVERYWHERE))

    @functools.cached_property
    def dense_program(self) -> Program:
        """(params, batch_stats, batch, plan, sums) -> sums."""
        add = functools.partial(device.add_dense, self.drnet)
        specs = (EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, SPLIT)
        return Program.mapped("dense", self.mesh, add, specs, SPLIT, donate=(4,))

    @functools.cached_property
    def update_program(self) -> Program:
        """(state, batch, noise, plan, sums) -> (state, metrics)."""
        gradients = functools.partial(update.finetune_gradients, self.drnet, self.objective)
        return self.moving("update of stage 2", gradients, (SPLIT,) * 4)

    def all_programs(
        self, state: TrainState, batch: Tree, sizes: Sequence[Sequence[int]]
    ) -> Calls:
        """Every program of a step; nothing is computed, so that shapes will do for `__call__`'s
        state and batch. `sizes` are those of the buckets of each resolution [R].
        """
        draw = self.noise_program(batch["label"].shape[0])
        of_draw = jax.eval_shape(jax.random.key, 0), state.step
        noise = jax.eval_shape(draw.function, *of_draw)
        of_route = state.params, state.batch_stats, batch, noise, *of_draw
        plan, sums, _ = jax.eval_shape(self.route_program.function, *of_route)
        yield draw, of_draw
        yield self.route_program, of_route
        if self.dense:
            yield self.dense_program, (state.params, state.batch_stats, batch, plan, sums)
        else:
            for index, of_resolution in enumerate(sizes):
                arguments = self.bucket_arguments(index, state, batch, plan, sums)
                for size in of_resolution:
                    yield self.bucket_program(index, size), arguments
        yield self.update_program, (state, batch, noise, plan, sums)
