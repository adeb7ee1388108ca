"""Lowering: every program, for GPUs and TPUs, in the forms meant for them, on any host."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from drnet_jax.devices import Programs
from drnet_jax.drnet import DRNet
from drnet_jax.inference.engine import (
    append_program,
    choose_program,
    classify_program,
    predict_program,
)
from drnet_jax.ops import traced_for
from drnet_jax.resolutions import only
from drnet_jax.train.finetune_step import FinetuneStep
from drnet_jax.train.objectives import OutcomeObjective
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.pretrain_step import PretrainStep
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import create_state
from tests.tiny import OBJECTIVE, mesh_of, tiny_config

# A bottleneck has 1x1 convolutions, the stem of the predictor 3 channels: both have forms for CPUs.
VALUES = {
    "classifier.name": "tests.tiny:TinyResNet", "classifier.width": 0.0625, "resolutions": (32, 24),
    "predictor.name": "convnet", "predictor.width": 0.125, "predictor.resolution": 16,
    "dtype": "bfloat16", "pretrain.distillation": 0.5,
}
# The paper's predictor, and one that knows the classes, too.
CONFIG, KNOWING = tiny_config(VALUES), tiny_config(VALUES | {"predictor.classifies": True})
# Two inverted residual blocks, with squeeze-and-excitation.
MOBILE = tiny_config(VALUES | {"classifier.name": "tests.tiny:TinyMobileNet"})
MODERN = tiny_config(VALUES | {
    "predictor.classifies": True, "pretrain.teacher": "ensemble", "pretrain.label_smoothing": 0.1,
    "pretrain.mixup": 0.2, "pretrain.cutmix": 1.0, "pretrain.schedule": "cosine",
    "optimizer.name": "rmsprop", "optimizer.ema": 0.999,
})
BATCH = {"image": jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8),
         "label": jax.ShapeDtypeStruct((8,), np.int32)}
KEY = jax.eval_shape(lambda: jax.random.key(0))
OUTCOME = OutcomeObjective((100, 20, 0), 60.0, 0.2)
GUMBEL = dataclasses.replace(OBJECTIVE, costs=(100, 20))


# Of each group those that no group before it has: buckets know no objective, one stands for those
# of other resolutions, and of the dense estimator only the pass over all of them is its own.
OWN = {
    "pretrain": "", "modern": "ensemble|update|mix",
    "outcome": "noise|route|bucket 24px|update", "gumbel": "route|update", "dense": "dense",
    "inference": "", "mobile": "bucket 24px",
}


def programs(which):
    """The programs of a stage, or of inference, with their arguments' shapes."""
    config = {"gumbel": CONFIG, "dense": CONFIG, "modern": MODERN, "mobile": MOBILE}.get(
        which, KNOWING)
    drnet, mesh = DRNet.from_config(config, config.classifier.classes), mesh_of(1)
    stage, objective, estimator = {
        "pretrain": ("pretrain", OUTCOME, "selected"),
        "modern": ("pretrain", OUTCOME, "selected"),
        "outcome": ("finetune", OUTCOME, "selected"),
        "gumbel": ("finetune", GUMBEL, "selected"),
        "dense": ("finetune", GUMBEL, "dense"),
        "mobile": ("finetune", GUMBEL, "selected"),
        "inference": ("finetune", OUTCOME, "selected"),
    }[which]
    shared = drnet, make_optimizer(config, stage, 1), config.optimizer.ema, mesh, Programs()
    step = PretrainStep(*shared, config.pretrain) if stage == "pretrain" else FinetuneStep(
        *shared, objective, Sizes(4, 0), dense=estimator == "dense")
    state = jax.eval_shape(functools.partial(create_state, drnet, step.optimizer, step.ema), KEY)
    if which != "inference":
        return list(step.all_programs(state, BATCH, [[4], [8]]))
    trees = state.params, state.batch_stats
    predictor = [{"predictor": tree["predictor"]} for tree in trees]
    images, costs, price, slots = BATCH["image"], *(
        jax.ShapeDtypeStruct(shape, kind)
        for shape, kind in (((3,), np.float32), ((), np.float32), ((8,), np.int32))
    )
    return [
        (predict_program(drnet, mesh, 8), (*predictor, images)),
        (choose_program(drnet, mesh, 8), (*predictor, images, costs, price)),
        (append_program(mesh, 8, 8), (images, images, slots)),
        *(
            (classify_program(drnet, mesh, index, 8),
             (*(only(tree, key) for tree in trees), images))
            for index, key in enumerate(drnet.norm_keys)
        ),
    ]


def lowered(which, names, *platforms):
    """Programs as StableHLO text, by name, in the forms for the first of the platforms.

    Those of `programs` whose names begin as the pattern `names` says.
    """
    with traced_for(platforms[0]):
        return {
            program.name: jax.export.export(program.jitted, platforms=platforms)(
                *program.abstract(*arguments)).mlir_module()
            for program, arguments in programs(which) if re.match(names, program.name)
        }


@pytest.mark.parametrize(("which", "names"), OWN.items())
def test_every_program_lowers_without_what_accelerators_lack(which, names):
    texts = lowered(which, names, "tpu", "cuda")
    assert len(texts) == {"pretrain": 4, "inference": 5}.get(which, names.count("|") + 1)
    for name, text in texts.items():
        assert "callback" not in text, name  # to Python, which has to be waited for
        assert not re.search(r"\bf64\b|xf64>", text), name  # which TPUs lack


def test_accelerators_convolve_and_the_cpu_multiplies():
    def counts(platform):
        (text,) = lowered("inference", "classify 32px", platform).values()
        return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

    # The stem, three and a shortcut a block, and the head. Six of them are 1x1.
    assert counts("tpu") == counts("cuda") == (9, 1)
    assert counts("cpu") == (3, 7)


def test_accelerators_convolve_depthwise_and_the_cpu_adds_slices():
    def counts(platform):
        (text,) = lowered("mobile", "bucket 24px", platform).values()
        grouped = re.findall(r"(?:batch|feature)_group_count = (\d+)", text)
        several_sums = re.search(r"stablehlo\.reduce\(.*tensor<f32>, tensor<f32>\) ->", text)
        return sum(int(count) > 1 for count in grouped), several_sums is not None

    # Two depthwise convolutions, each forward and with two gradients.
    assert counts("tpu") == counts("cuda") == (6, False)
    assert counts("cpu") == (0, True)
