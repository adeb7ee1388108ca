"""What a run will take on given devices, before any of them is rented.

    python -m drnet_jax.plan --config configs/imagenet_resnet50.py --devices tpu:v5e:4x4

Where a compiler for the devices is installed (extra `tpu` for TPUs, `cuda` for GPUs; the host
needs neither a TPU nor a GPU), every program of both stages and of inference is compiled for them,
and its FLOPs, bytes and memory are the compiler's. Elsewhere the plan has exact counts alone, and
says so. Neither knows seconds: those of the roofline are bounds, from what the maker publishes, and
device-hours follow from a utilisation that is assumed.

`--reference` compiles, in place of all that, the largest bucket, and three blocks of it alone,
beside the same network of flax's own layers.
"""

import concurrent.futures
import dataclasses
import functools
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from drnet_jax import buckets, cli, flax_baseline
from drnet_jax.analysis import Analysis, Failure, analyse, analyse_all
from drnet_jax.benchmark_cases import cores
from drnet_jax.config import Config
from drnet_jax.cost import TRAINING_PASSES, Costs, model_costs, parse_mix, with_classes
from drnet_jax.data import transforms
from drnet_jax.data.sources import open_source
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.inference import classify_program, scores_program
from drnet_jax.models.resnet import ResNet
from drnet_jax.programs import Program, Programs
from drnet_jax.resolutions import only
from drnet_jax.target import Target, parse
from drnet_jax.text import short, table
from drnet_jax.train.objectives import make_objective
from drnet_jax.train.sizes import PER_RESOLUTION, Sizes
from drnet_jax.train.state import STAGES, TrainState, create_state, make_optimizer
from drnet_jax.train.step import Step

DECODE_SECONDS = 2.0  # that decoding is timed for
Batch = dict[str, jax.ShapeDtypeStruct]


def plan(
    config: Config, target: Target, mix: Sequence[float] | None, utilisation: float,
    images: int | None,
) -> dict[str, Any]:
    """What training and inference take.

    Args:
        config: with `model.classes` set; `batch_size` is the global batch.
        target: the devices.
        mix: [R], the share of the images at each resolution in stage 2; None is the same for all.
        utilisation: the share of the devices' published FLOP/s that is assumed to be reached.
        images: in an epoch; None: not known.

    Returns:
        What `--json` prints: "devices", "config", "mix", "parameters", "multiply_adds",
        "checkpoint_bytes", "exchanged_bytes" and "schedule" by stage, "decoding", "most_programs",
        "programs" (None where there is no compiler, "missing" saying why) and "largest_batch".

    Raises:
        UserError: if the mix, the budget or the batch size will not do.
    """
    costs = model_costs(config, config.model.classes)
    if mix is None:
        mix = [1 / len(costs.resolutions)] * len(costs.resolutions)
    costs.mean(mix, with_predictor=True)  # checks it
    if config.batch_size % target.devices:
        raise UserError(
            f"--batch: expected a multiple of the {target.devices} devices, received "
            f"{config.batch_size}"
        )
    drnet = DRNet.from_config(config, config.model.classes)
    states = {stage: _state(config, drnet, stage) for stage in STAGES}
    report = {
        "devices": {
            "name": target.name, "count": target.devices, "hosts": target.hosts,
            "memory": target.chip and target.chip.memory,
        },
        "config": dataclasses.asdict(config),
        "mix": list(mix),
        "parameters": dataclasses.asdict(costs.parameters) | {"total": costs.parameters.total},
        "multiply_adds": {
            **{str(size): count
               for size, count in zip(costs.resolutions, costs.classifier, strict=True)},
            "predictor": costs.predictor,
        },
        "checkpoint_bytes": {stage: _bytes(state) for stage, state in states.items()},
        "exchanged_bytes": {
            stage: _bytes(_exchanged(state, stage)) for stage, state in states.items()
        },
        "schedule": {
            stage: _schedule(config, target, costs, mix, utilisation, images, stage)
            for stage in STAGES
        },
        "utilisation": utilisation,
        "decoding": {"images_per_second": _decoding_rate(config), "cores": cores()},
        "most_programs": _most_programs(config, target, costs),
        "programs": None,
        "missing": target.missing,
        "largest_batch": None,
    }
    if target.mesh is not None:
        report |= _compiled(config, target, drnet, costs, mix, states)
    return report


def _state(config: Config, drnet: DRNet, stage: str) -> TrainState:
    """The shapes of a stage's state."""
    create = functools.partial(create_state, drnet, make_optimizer(config, stage, 1))
    return jax.eval_shape(create, jax.random.key(0))


def _bytes(tree: Tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _exchanged(state: TrainState, stage: str) -> Tree:
    """What a step's one all-reduce adds up: gradients and moments, of what the stage trains."""
    trained = [*state.params] if stage == "finetune" else ["shared", "norms"]
    gradients = {name: state.params[name] for name in trained}
    moments = {name: state.batch_stats[name] for name in trained if name in state.batch_stats}
    return gradients, moments  # two sums a channel, as many as statistics


def _schedule(
    config: Config, target: Target, costs: Costs, mix: Sequence[float], utilisation: float,
    images: int | None, stage: str,
) -> dict[str, float | None]:
    """Multiply-adds of a training step, steps, and device-hours at the assumed utilisation."""
    forward = sum(costs.classifier)
    if stage == "finetune":
        forward = costs.mean(mix, with_predictor=True)
    step = TRAINING_PASSES * forward * config.batch_size
    steps = None
    if images is not None:
        steps = getattr(config, stage).epochs * (images // config.batch_size)
    peak = target.chip and target.chip.flops[config.model.dtype]
    seconds = peak and 2 * step / (peak * utilisation * target.devices)
    return {
        "multiply_adds_of_a_step": step,
        "steps": steps,
        "seconds_of_a_step": seconds,
        "images_per_second_of_a_host": seconds and config.batch_size / target.hosts / seconds,
        "device_hours": seconds and steps and seconds * steps * target.devices / 3600,
    }


def _decoding_rate(config: Config) -> float:
    """Training images of 500 x 375 pixels that this machine decodes in a second, on all cores."""
    rows, columns = np.mgrid[0:375, 0:500]
    photo = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    photo ^= np.random.default_rng(0).integers(0, 32, photo.shape, np.uint8)
    encoded = cv2.imencode(".jpg", photo)[1].tobytes()
    data, size = config.data, config.model.resolutions[0]

    def decode(seed: int) -> int:
        random, count, began = np.random.default_rng(seed), 0, time.perf_counter()
        while time.perf_counter() - began < DECODE_SECONDS:
            image = transforms.decode(encoded)
            transforms.random_resized_crop(image, random, size, data.crop_area, data.crop_ratio)
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return sum(pool.map(decode, range(cores()))) / DECODE_SECONDS


def _most_programs(config: Config, target: Target, costs: Costs) -> dict[str, int]:
    """How many programs a run can come to compile."""
    resolutions = len(costs.resolutions)
    sizes = len(buckets.sizes(config.batch_size // target.devices, config.bucket_multiple))
    bucketed = min(sizes, PER_RESOLUTION) * resolutions
    return {
        "pretrain": 2 + resolutions,
        "finetune": 2 + (1 if config.router.estimator == "dense" else bucketed),
        "inference": 1 + resolutions,
    }


def _compiled(
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
        _state(config, drnet, "pretrain"), _batch(config, config.batch_size), None, []
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


def text(report: dict[str, Any]) -> str:
    """The report as tables."""
    config, devices, held = report["config"], report["devices"], report["parameters"]
    model, chip = config["model"], devices["memory"]
    mix = "/".join(f"{100 * share:.3g}" for share in report["mix"])
    sections = [
        f"{model['classifier']} of width {model['width']}, {model['dtype']}, batch "
        f"{config['batch_size']} on {devices['count']} devices of {devices['hosts']} "
        f"host{'s' * (devices['hosts'] > 1)} ({devices['name']}), {mix} % at "
        f"{'/'.join(map(str, model['resolutions']))} px in stage 2",
        "parameters " + short(held["total"]) + "; multiply-adds of an image: " + ", ".join(
            f"{short(count)} {'of the predictor' if at == 'predictor' else f'at {at} px'}"
            for at, count in report["multiply_adds"].items()
        ),
        _stages(report),
        f"decoding: this machine, of {report['decoding']['cores']} cores, makes "
        f"{report['decoding']['images_per_second']:.0f} training images/s of photographs of "
        "500 x 375 pixels, while it does nothing else",
    ]
    programs = report["programs"]
    most = report["most_programs"]
    sections.append(
        f"programs that a run can come to compile: {most['pretrain']} in stage 1, "
        f"{most['finetune']} in stage 2, {most['inference']} of inference"
    )
    if programs is None:
        sections.append(f"By exact counts alone: {report['missing']}.")
        return "\n\n".join(sections)
    whole = [row for row in programs if "failed" not in row]
    if whole:
        mean = sum(row["seconds"] for row in whole) / len(whole)
        sections[-1] += f"; here a program takes {mean:.1f} s on average"
    sections.append(_program_table(programs))
    sections.append(
        "By the compiler, for one device; memory is what it must hold at once"
        + (f", of {chip / 1e9:.0f} GB" if chip else "")
        + ". Bounds follow from the maker's figures: no device was timed."
    )
    if report["largest_batch"] is not None:
        sections.append(
            f"largest batch that fits: about {report['largest_batch']} (memory taken as linear "
            "between two sizes of the largest bucket)"
        )
    for row in programs:
        if "failed" in row:
            sections.append(f"does NOT compile: {row['name']}: {row['failed']}")
        elif row["fits"] is False:
            sections.append(f"does NOT fit: {row['name']}")
    return "\n\n".join(sections)


def _stages(report: dict[str, Any]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "not known" if value is None else format(value, form)

    header = (
        "stage", "steps", "multiply-adds a step", "checkpoint MB", "exchanged MB a step",
        "device-hours", "images/s a host",
    )
    share = report["utilisation"]
    return table([header, *(
        (stage, cell(of["steps"], ",d"), short(of["multiply_adds_of_a_step"]),
         f"{report['checkpoint_bytes'][stage] / 1e6:.1f}",
         f"{report['exchanged_bytes'][stage] / 1e6:.1f}",
         cell(of["device_hours"], ".3g"), cell(of["images_per_second_of_a_host"], ".0f"))
        for stage, of in report["schedule"].items()
    )]) + (
        f"\nDevice-hours, and the images/s that a host must then decode, assume {100 * share:g} % "
        "of the published FLOP/s. Checkpoints are counted before compression."
    )


def _program_table(rows: Sequence[dict[str, Any]]) -> str:
    header = (
        "program", "GFLOP", "GB moved", "arguments MiB", "temporaries MiB", "memory MiB",
        "bound ms", "compile s",
    )
    return table([header, *map(_cells, rows)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def cell(value: float | None, scale: float, form: str) -> str:
        return "" if value is None else format(value / scale, form)

    name = f"{row['group']}: {row['name']}"
    if "failed" in row:
        return (name, "failed", *[""] * 6)
    return (
        name, cell(row["flops"], 1e9, ".1f"), cell(row["bytes_moved"], 1e9, ".3f"),
        *(f"{row[key] / 2**20:.0f}" for key in ("arguments", "temporaries", "memory")),
        cell(row["bound_seconds"], 1e-3, ".2f"), f"{row['seconds']:.1f}",
    )


def reference_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `reference` with the ratios of ours to flax's."""
    lines = [_program_table(rows[:-1])]  # the last is there twice
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        if "failed" in ours or "failed" in theirs:
            lines += [f"failed: {row['failed']}" for row in (ours, theirs) if "failed" in row]
            continue
        ratios = [
            f"{what} {ours[key] / theirs[key]:.3f}"
            for key, what in (("flops", "FLOPs"), ("bytes_moved", "bytes moved"),
                              ("temporaries", "temporaries"), ("seconds", "compile seconds"))
            if theirs[key]
        ]
        lines.append(f"{ours['name']} over {theirs['name']}: {', '.join(ratios)}")
    return "\n\n".join(lines)


def _images(config: Config) -> int | None:
    """The training images of the config's data set; None if it cannot be opened here."""
    try:
        return len(open_source(config.data, training=True))
    except UserError:
        return None


if __name__ == "__main__":
    read_config = cli.define_config()
    DEVICES = flags.DEFINE_string(
        "devices", None, "tpu:TYPE:TOPOLOGY, gpu:N, gpu:TYPE:N or cpu:N, such as tpu:v5e:4x4.",
        required=True,
    )
    BATCH = flags.DEFINE_integer(
        "batch", None, "Global batch size; default: config.batch_size.", lower_bound=1
    )
    MIX = flags.DEFINE_list("mix", None, "Share of the images at each resolution; default: even.")
    IMAGES = flags.DEFINE_integer(
        "images", None, "Training images in an epoch; default: of the data set, if it is here.",
        lower_bound=1,
    )
    UTILISATION = flags.DEFINE_float(
        "utilisation", 0.4, "Assumed share of the published FLOP/s.", lower_bound=0.01,
        upper_bound=1.0,
    )
    REFERENCE = flags.DEFINE_bool(
        "reference", False, "Only compile our layers beside flax's own, and print the ratios."
    )
    JSON = flags.DEFINE_bool("json", False, "Print JSON in place of tables.")

    def main() -> None:
        target = parse(DEVICES.value)
        mix = None if MIX.value is None else parse_mix(MIX.value)
        config = with_classes(read_config())
        if BATCH.value:
            config = dataclasses.replace(config, batch_size=BATCH.value)
        if REFERENCE.value:
            found = rows = reference(config, target)
            told = reference_text(rows)
        else:
            found = plan(config, target, mix, UTILISATION.value, IMAGES.value or _images(config))
            rows, told = found["programs"] or [], text(found)
        print(json.dumps(found, indent=2) if JSON.value else told)
        if any("failed" in row for row in rows):
            raise UserError("some programs do not compile for these devices; see above")

    cli.run(main)
