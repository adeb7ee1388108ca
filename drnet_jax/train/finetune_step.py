"""Finetuning step: each sample by the option that is drawn for it, at sizes that the host picks."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from drnet_jax.devices import Program, split
from drnet_jax.drnet import Tree
from drnet_jax.train import device, passes, update
from drnet_jax.train.base_step import EVERYWHERE, SPLIT, Calls, Step, run_buckets
from drnet_jax.train.device import Bucket, Plan, Sums
from drnet_jax.train.objectives import Objective
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import TrainState


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
        return Bucket(index, size, label_smoothing=self.objective.label_smoothing)

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
            smooth = self.objective.label_smoothing > 0
            sums = device.start(self.drnet, params, batch_stats, batch, smooth=smooth)
            return plan, sums, counts

        specs = EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, EVERYWHERE, EVERYWHERE
        return Program.mapped("route", self.mesh, route, specs, (SPLIT, SPLIT, EVERYWHERE))

    @functools.cached_property
    def dense_program(self) -> Program:
        """(params, batch_stats, batch, plan, sums) -> sums."""
        add = functools.partial(passes.add_dense, self.drnet, self.objective.label_smoothing)
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
