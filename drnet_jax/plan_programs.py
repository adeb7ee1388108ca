"""The programs of a run on described devices, and what their compiler says of them."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax import buckets, flax_baseline
from drnet_jax.analysis import Analysis, Failure, analyse, analyse_all
from drnet_jax.config import Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.inference import classify_program, scores_program
from drnet_jax.models.resnet import ResNet
from drnet_jax.programs import Program, Programs
from drnet_jax.resolutions import only
from drnet_jax.target import Target
from drnet_jax.train.objectives import make_objective
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import STAGES, TrainState, create_state, make_optimizer
from drnet_jax.train.step import Step

Batch = dict[str, jax.ShapeDtypeStruct]


def state_of(config: Config, drnet: DRNet, stage: str) -> TrainState:
    """The shapes of a stage's state."""
    create = functools.partial(create_state, drnet, make_optimizer(config, stage, 1))
    return jax.eval_shape(create, jax.random.key(0))


def compiled(
    config: Config, target: Target, drnet: DRNet, costs: Costs, mix: Sequence[float],
    states: dict[str, TrainState],
) -> dict[str, Any]:
    """What the compiler says: "programs", and the "largest_batch" that fits, None if not known."""
    local = config.batch_size // target.devices
    wanted = [
        buckets.padded_size(math.ceil(share * local), config.bucket_multiple, local)
        for share in mix
    ]
    of_group = {
        # The whole batch serves until a smaller size is compiled.
        stage: list(_step(config, target, drnet, costs, stage).all_programs(
            states[stage], _batch(config, config.batch_size), jax.eval_shape(jax.random.key, 0),
            [sorted({size, local} - {0}) for size in wanted],
        ))
        for stage in STAGES
    }
    of_group["inference"] = list(_inference(config, target, drnet, states["finetune"]))
    probe = []
    if target.chip and local > 1:
        half = _batch(config, local // 2 * target.devices)
        probe = list(_step(config, target, drnet, costs, "pretrain").all_programs(
            states["pretrain"], half, None, []
        ))[1:2]
    found = analyse_all([*(each for group in of_group.values() for each in group), *probe])
    rows = [
        _row(target, config, group, found[program.name])
        for group, programs in of_group.items() for program, _ in programs
    ]
    whole = found[of_group["pretrain"][1][0].name]
    largest = None
    if probe and isinstance(whole, Analysis) and isinstance(found[probe[0][0].name], Analysis):
        largest = _largest_batch(target, local, whole, found[probe[0][0].name])
    return {"programs": rows, "largest_batch": largest}


def _batch(config: Config, size: int) -> Batch:
    base = config.model.resolutions[0]
    return {
        "image": jax.ShapeDtypeStruct((size, base, base, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
    }


def _step(config: Config, target: Target, drnet: DRNet, costs: Costs, stage: str) -> Step:
    return Step(
        drnet=drnet, optimizer=make_optimizer(config, stage, 1), mesh=target.mesh,
        programs=Programs(), stage=stage, estimator=config.router.estimator,
        sizes=Sizes(config.bucket_multiple, config.bucket_lead),
        objective=make_objective(config, costs), distillation=config.pretrain.distillation,
    )


def _inference(
    config: Config, target: Target, drnet: DRNet, state: TrainState
) -> Iterator[tuple[Program, tuple[Any, ...]]]:
    size = -(-config.evaluation.batch_size * target.hosts // target.devices) * target.devices
    images = _batch(config, size)["image"]
    params, stats = state.params, state.batch_stats
    program = scores_program(drnet, target.mesh, config.router.objective, size)
    yield program, ({"predictor": params["predictor"]}, {"predictor": stats["predictor"]}, images)
    for index, key in enumerate(drnet.norm_keys):
        program = classify_program(drnet, target.mesh, index, size)
        yield program, (only(params, key), only(stats, key), images)


def _row(
    target: Target, config: Config, group: str, found: Analysis | Failure
) -> dict[str, Any]:
    """A program of the report; "bound_seconds" is the roofline's."""
    if isinstance(found, Failure):
        return {"group": group, "name": found.name, "failed": found.reason}
    chip, bound = target.chip, None
    if chip and found.bytes_moved is not None:
        bound = max(
            (found.flops or 0) / chip.flops[config.model.dtype],
            found.bytes_moved / chip.bandwidth,
        )
    return {
        "group": group, **dataclasses.asdict(found), "memory": found.memory,
        "fits": chip and found.memory <= chip.memory, "bound_seconds": bound,
    }


def _largest_batch(target: Target, local: int, whole: Analysis, half: Analysis) -> int:
    """The largest global batch that fits, the memory of the largest bucket being linear in it."""
    each = (whole.memory - half.memory) / (local - local // 2)
    fixed = whole.memory - each * local
    return max(0, math.floor((target.chip.memory - fixed) / each)) * target.devices


def reference(config: Config, target: Target) -> list[dict[str, Any]]:
    """Our layers beside flax's: the largest bucket of stage 1, and three blocks of a ResNet-50.

    Returns:
        As in a plan's "programs", each of ours followed by flax's: the bucket, the blocks, and the
        blocks with padded rows masked.

    Raises:
        UserError: if there is no compiler for the devices, or the network is not one of ours.
    """
    if target.mesh is None:
        raise UserError(f"--reference: {target.missing}")
    drnet = DRNet.from_config(config, config.model.classes)
    if not isinstance(drnet.classifier, ResNet):
        raise UserError(
            f"--reference: expected config.model.classifier to be a ResNet of this package, "
            f"received {config.model.classifier!r}"
        )
    costs, rows = model_costs(config, config.model.classes), config.batch_size // target.devices
    base, dtype = config.model.resolutions[0], jnp.dtype(config.model.dtype)
    step = _step(config, target, drnet, costs, "pretrain")
    _, largest, *_ = step.all_programs(
        state_of(config, drnet, "pretrain"), _batch(config, config.batch_size), None, []
    )
    twin = flax_baseline.flax_twin(drnet.classifier)
    theirs = (
        flax_baseline.training_program(target.mesh, twin, base, rows),
        flax_baseline.training_arguments(target.mesh, twin, base, rows),
    )
    blocks = functools.partial(flax_baseline.blocks_program, target.mesh, dtype, rows)
    ours, masked, plain = blocks(ours=True), blocks(ours=True, masked=True), blocks(ours=False)
    # One at a time, so that the seconds can be compared.
    found = [
        _row(target, config, "reference", analyse(*each))
        for each in (largest, theirs, ours, plain, masked)
    ]
    return [*found, found[3]]
