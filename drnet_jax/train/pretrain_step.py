"""Pretraining step: all samples at all resolutions, in turn or, to learn from all of them, at once.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax

from drnet_jax.config import Pretrain
from drnet_jax.devices import Program
from drnet_jax.drnet import Tree
from drnet_jax.train import device, mixing, passes, update
from drnet_jax.train.base_step import EVERYWHERE, SPLIT, Calls, Step, run_buckets
from drnet_jax.train.device import Bucket
from drnet_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class PretrainStep(Step):
    """A step of stage 1: all samples at all resolutions, their losses summed."""

    settings: Pretrain

    @property
    def teaches(self) -> bool:
        """Whether anybody learns from a teacher."""
        return self.settings.distillation > 0 or self.drnet.classifies

    @property
    def at_once(self) -> bool:
        """Whether the teacher is the mean of several resolutions, so that none can go first."""
        several = len(self.drnet.resolutions) > 1
        return self.teaches and several and self.settings.teacher == "ensemble"

    def __call__(self, state: TrainState, batch: Tree, key: jax.Array) -> tuple[TrainState, Tree]:
        """Runs one step; `key`, folded with the step's number, is for dropout and for mixing."""
        run = self.programs.run
        if mixing.mixes(self.settings):
            batch = run(self.mix_program, batch, key, state.step)
        weights = state.params, state.batch_stats
        plan, sums = run(self.begin_program, *weights, batch, key, state.step)
        if self.at_once:
            sums = run(self.ensemble_program, *weights, batch, plan, sums)
        else:
            whole = [self.rows(batch)] * len(self.drnet.resolutions)
            sums = run_buckets(self, whole, state, batch, plan, sums)
        return run(self.update_program, state, batch, plan, sums)

    def bucket(self, index: int, size: int) -> Bucket:
        settings = self.settings
        return Bucket(
            index, size, whole=True, distillation=settings.distillation,
            label_smoothing=settings.label_smoothing,
        )

    @functools.cached_property
    def mix_program(self) -> Program:
        """(batch, key, step) -> batch, of mixed images."""
        mix = functools.partial(mixing.mix, self.settings)
        return Program.mapped("mix", self.mesh, mix, (SPLIT, EVERYWHERE, EVERYWHERE), SPLIT)

    @functools.cached_property
    def begin_program(self) -> Program:
        """(params, batch_stats, batch, key, step) -> (plan, sums): of everyone, and empty."""
        def begin(params, batch_stats, batch, key, step):
            sums = device.start(self.drnet, params, batch_stats, batch, self.teaches)
            return device.everyone(self.drnet, batch, device.device_key(key, step)), sums

        specs = (EVERYWHERE, EVERYWHERE, SPLIT, EVERYWHERE, EVERYWHERE)
        return Program.mapped("begin", self.mesh, begin, specs, (SPLIT, SPLIT))

    @functools.cached_property
    def ensemble_program(self) -> Program:
        """(params, batch_stats, batch, plan, sums) -> sums."""
        add = functools.partial(passes.add_ensemble, self.drnet, self.settings)
        specs = (EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, SPLIT)
        return Program.mapped("ensemble", self.mesh, add, specs, SPLIT, donate=(4,))

    @functools.cached_property
    def update_program(self) -> Program:
        """(state, batch, plan, sums) -> (state, metrics)."""
        gradients = functools.partial(update.pretrain_gradients, self.drnet, self.settings)
        return self.moving("update of stage 1", gradients, (SPLIT,) * 3)

    def all_programs(
        self, state: TrainState, batch: Tree, sizes: Sequence[Sequence[int]] = ()
    ) -> Calls:
        """Every program of a step; nothing is computed, so that shapes will do for `__call__`'s
        state and batch. `sizes` are for the other stage: here every bucket has the whole batch.
        """
        key = jax.eval_shape(jax.random.key, 0)
        mix = self.mix_program, (batch, key, state.step)
        mixes = mixing.mixes(self.settings)
        if mixes:
            batch = jax.eval_shape(mix[0].function, *mix[1])
        weights = state.params, state.batch_stats
        begin = self.begin_program, (*weights, batch, key, state.step)
        plan, sums = jax.eval_shape(begin[0].function, *begin[1])
        yield begin
        if self.at_once:
            yield self.ensemble_program, (*weights, batch, plan, sums)
        else:
            for index in range(len(self.drnet.resolutions)):
                arguments = self.bucket_arguments(index, state, batch, plan, sums)
                yield self.bucket_program(index, self.rows(batch)), arguments
        yield self.update_program, (state, batch, plan, sums)
        if mixes:
            yield mix
