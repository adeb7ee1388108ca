"""Programs: those of a run on described devices, and what their compiler says of them."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax import buckets
from drnet_jax.config import STAGES, Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.devices import Program, Programs, check_batch
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.inference.engine import (
    append_program,
    choose_program,
    classify_program,
    predict_program,
)
from drnet_jax.models.resnet import ResNet
from drnet_jax.plan import flax_baseline
from drnet_jax.plan.compiler import Analysis, Failure, analyse, analyse_all
from drnet_jax.plan.target import Target
from drnet_jax.resolutions import only
from drnet_jax.train.base_step import Step
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.state import TrainState, create_state
from drnet_jax.train.step import Setup, batch_shapes, make_step

TURNS = 3  # of compiling the blocks, for medians of the seconds


def state_of(config: Config, drnet: DRNet, stage: str) -> TrainState:
    """The shapes of a stage's state."""
    create = functools.partial(
        create_state, drnet, make_optimizer(config, stage, 1), config.optimizer.ema
    )
    return jax.eval_shape(create, jax.random.key(0))


def bytes_of(tree: Tree) -> int:
    """Of all its arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def exchanged(state: TrainState, stage: str, classifies: bool) -> Tree:
    """What a step's one all-reduce adds up: gradients and moments, of what the stage trains."""
    trained = [*state.params] if stage == "finetune" or classifies else ["shared", "norms"]
    gradients = {name: state.params[name] for name in trained}
    moments = {name: state.batch_stats[name] for name in trained if name in state.batch_stats}
    return gradients, moments  # two sums a channel, as many as statistics


def compiled(
    config: Config, target: Target, drnet: DRNet, costs: Costs, mix: Sequence[float],
    states: dict[str, TrainState],
) -> dict[str, Any]:
    """What the compiler says: "programs", and the "largest_batch" that fits, None if not known."""
    local = config.batch_size // target.devices
    wanted = [
        buckets.padded_size(
            min(local, math.ceil(share / sum(mix) * local)), config.bucket_multiple, local
        )
        for share in mix[: len(drnet.resolutions)]
    ]
    of_group = {
        # The whole batch serves until a smaller size is compiled.
        stage: list(_step(config, target, drnet, costs, stage).all_programs(
            states[stage], batch_shapes(config),
            [sorted({size, local} - {0}) for size in wanted],
        ))
        for stage in STAGES
    }
    of_group["inference"] = list(_inference(config, target, drnet, states["finetune"]))
    # The largest bucket of stage 1 at half of its size.
    half = []
    if target.chip and local > 1:
        half = list(_step(config, target, drnet, costs, "pretrain").all_programs(
            states["pretrain"], batch_shapes(config, local // 2 * target.devices)
        ))[1:2]
    found = analyse_all([*(each for group in of_group.values() for each in group), *half])

    def resident(group: str, rows: int) -> int:
        """Bytes that a device holds all the while: the state, sums, and this and the next batch."""
        if group == "inference":
            return bytes_of((states["finetune"].params, states["finetune"].batch_stats))
        of_row = bytes_of(batch_shapes(config, 1))
        summed = exchanged(states[group], group, drnet.classifies)
        return bytes_of((states[group], summed)) + 2 * rows * of_row

    rows = [
        _row(target, config, group, found[program.name], resident(group, local))
        for group, programs in of_group.items() for program, _ in programs
    ]
    largest = None
    if half:
        whole, part = (
            _row(target, config, "pretrain", found[program.name], resident("pretrain", size))
            for program, size in ((of_group["pretrain"][1][0], local), (half[0][0], local // 2))
        )
        if "failed" not in whole | part:
            largest = largest_batch(target.chip.memory, local, whole["memory"], part["memory"])
    return {"programs": rows, "largest_batch": largest and largest * target.devices}


def largest_batch(memory: float, rows: int, whole: int, half: int) -> int | None:
    """The most rows of one device that fit its memory, what is needed being linear in them.

    Args:
        memory: bytes of the device.
        rows: that need `whole` bytes; half of them, rounded down, need `half`.

    Returns:
        None if more rows do not need more.
    """
    each = (whole - half) / (rows - rows // 2)
    return max(0, math.floor((memory - whole) / each) + rows) if each > 0 else None


def _step(config: Config, target: Target, drnet: DRNet, costs: Costs, stage: str) -> Step:
    setup = Setup(config, drnet, costs, target.mesh, Programs())
    return make_step(setup, stage, make_optimizer(config, stage, 1))


def _inference(
    config: Config, target: Target, drnet: DRNet, state: TrainState
) -> Iterator[tuple[Program, tuple[Any, ...]]]:
    size = -(-config.evaluation.batch_size * target.hosts // target.devices) * target.devices
    images = batch_shapes(config, size)["image"]
    params, stats = state.params, state.batch_stats
    predictor = {"predictor": params["predictor"]}, {"predictor": stats["predictor"]}
    yield predict_program(drnet, target.mesh, size), (*predictor, images)
    costs = jax.ShapeDtypeStruct((drnet.options,), np.float32)
    price = jax.ShapeDtypeStruct((), np.float32)
    yield choose_program(drnet, target.mesh, size), (*predictor, images, costs, price)
    slots = jax.ShapeDtypeStruct((size,), np.int32)
    yield append_program(target.mesh, size, size), (images, images, slots)
    for index, key in enumerate(drnet.norm_keys):
        program = classify_program(drnet, target.mesh, index, size)
        yield program, (only(params, key), only(stats, key), images)


def _row(
    target: Target, config: Config, group: str, found: Analysis | Failure, resident: int = 0
) -> dict[str, Any]:
    """A program of the report; "bound_seconds" is the roofline's, "memory" what a device needs."""
    if isinstance(found, Failure):
        return {"group": group, "name": found.name, "failed": found.reason}
    chip, bound = target.chip, None
    if chip and found.bytes_moved is not None:
        bound = max(
            (found.flops or 0) / chip.flops[config.dtype],
            found.bytes_moved / chip.bandwidth,
        )
    memory = max(resident, found.arguments) + found.outputs + found.temporaries
    return {
        "group": group, **dataclasses.asdict(found), "memory": memory,
        "fits": chip and memory <= chip.memory, "bound_seconds": bound,
    }


def reference(config: Config, target: Target) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Our layers beside flax's: the largest bucket of stage 1, and three blocks of a ResNet-50.

    Returns:
        Pairs of ours and flax's, each as one of a plan's "programs": the bucket, the blocks, and
        the blocks with padded rows masked (whose seconds are medians of three compilations).

    Raises:
        UserError: if there is no compiler for the devices, they cannot share the batch evenly, or
            the network is not one of ours.
    """
    if target.mesh is None:
        raise UserError(f"--reference: {target.missing}")
    check_batch(config.batch_size, target.devices)
    drnet = DRNet.from_config(config, config.classifier.classes)
    if not isinstance(drnet.classifier, ResNet):
        raise UserError(
            f"--reference: expected config.classifier.name to be a ResNet of this package, "
            f"received {config.classifier.name!r}"
        )
    costs = model_costs(config, config.classifier.classes)
    rows = config.batch_size // target.devices
    step = _step(config, target, drnet, costs, "pretrain")
    _, largest, *_ = step.all_programs(
        state_of(config, drnet, "pretrain"), batch_shapes(config)
    )
    twin = flax_baseline.training_program(
        target.mesh, flax_baseline.flax_twin(drnet.classifier), config.resolutions[0], rows
    )
    blocks = functools.partial(
        flax_baseline.blocks_program, target.mesh, jnp.dtype(config.dtype), rows
    )
    # One at a time, so that the seconds can be compared; in turns where they are few.
    bucket, bucket_of_flax = (
        _row(target, config, "reference", analyse(*each)) for each in (largest, twin)
    )
    turns = [
        [
            _row(target, config, "reference", analyse(*blocks(**which)))
            for which in ({"ours": True}, {"ours": False}, {"ours": True, "masked": True})
        ] for _ in range(TURNS)
    ]
    ours, of_flax, masked = (
        {**rows[0], "seconds": statistics.median(row.get("seconds", 0) for row in rows)}
        for rows in zip(*turns, strict=True)
    )
    return [(bucket, bucket_of_flax), (ours, of_flax), (masked, of_flax)]
