"""Networks that compile in well under a second, and what the tests of the training step share.

The networks plug into a config by name, as any user's do: `"classifier": "tests.tiny:TinyNet"`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from drnet_jax import config_files
from drnet_jax.config import Config
from drnet_jax.config_check import parse
from drnet_jax.cost import Costs, Parameters
from drnet_jax.devices import Programs, data_mesh, put_batch, replicated, split
from drnet_jax.drnet import DRNet
from drnet_jax.models.layers import Conv, scaled
from drnet_jax.models.mobile import MobileNet, Stage
from drnet_jax.models.norm import BatchNorm
from drnet_jax.models.resnet import Bottleneck, ResNet
from drnet_jax.train.device import Plan, plan_of
from drnet_jax.train.finetune_step import FinetuneStep
from drnet_jax.train.objectives import GumbelObjective, Objective
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.pretrain_step import PretrainStep
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import TrainState

RESOLUTIONS = (16, 12, 8)
CLASSES = 7
# With the targets of the tests below the mean, so that the regulariser pulls.
OBJECTIVE = GumbelObjective(costs=(100, 60, 20), alpha=10.0, eta=0.3, temperature=0.7)
# For tables worked by hand: a model, and which of six images each resolution answers right.
COSTS = Costs(RESOLUTIONS, (100, 60, 20), 5, Parameters(0, 0, 0))
RIGHT = np.array([[1, 1, 1],
                  [1, 1, 0],
                  [1, 0, 1],
                  [1, 0, 0],
                  [0, 0, 0],
                  [0, 1, 0]], bool)


class TinyNet(nn.Module):
    """Strided convolutions with norms, global average pooling and a dense layer."""

    classes: int
    width: float = 1.0
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Images x [S, H, W, 3] -> float32 logits [S, classes]."""
        for layer in range(1, self.layers + 1):
            x = Conv(layer * scaled(4, self.width), 3, 2, self.dtype, name=f"conv{layer}")(x)
            x = nn.relu(self.norm(dtype=self.dtype, name=f"norm{layer}")(x, train, mask))
        x = jnp.mean(x, (1, 2), dtype=jnp.float32)
        return nn.Dense(self.classes, name="head")(x)


TinyPredictor = functools.partial(TinyNet, layers=1)
# With all that a ResNet-50 has: the stem, a bottleneck that strides, and its shortcut.
TinyResNet = functools.partial(ResNet, blocks=(1, 1), block=Bottleneck)
# With all that an EfficientNet has.
TinyMobileNet = functools.partial(
    MobileNet, stages=(Stage(1, 128, 1, 1), Stage(2, 256, 1, 2, 5)), last=256, squeeze_excite=True,
    activation=nn.silu, padding="same")


def tiny_config(overrides: dict[str, Any] | None = None) -> Config:
    """The default config with tiny networks, the paper's predictor, and `overrides` by dotted key.
    """
    default = config_files.default_beside(str(Path(__file__).parents[1] / "configs" / "default.py"))
    leaves = traverse_util.flatten_dict(default.to_dict(), sep=".") | {
        "batch_size": 8, "bucket_multiple": 4, "bucket_lead": 0,
        "classifier.name": "tests.tiny:TinyNet", "classifier.width": 1.0,
        "classifier.classes": CLASSES, "resolutions": RESOLUTIONS,
        "predictor.name": "tests.tiny:TinyPredictor", "predictor.width": 2.0,
        "predictor.resolution": 8, "predictor.classifies": False,
    } | (overrides or {})
    return parse(traverse_util.unflatten_dict(leaves, sep="."))


def tiny_drnet(overrides: dict[str, Any] | None = None) -> DRNet:
    """The DRNet of `tiny_config`."""
    return DRNet.from_config(tiny_config(overrides), CLASSES)


def random_variables(drnet: DRNet, seed: int = 0) -> tuple[Any, Any]:
    """(params, batch_stats) as numpy arrays in which no two leaves are alike.

    Fresh ones would hide mistakes: there every resolution has the same norms, of scale 1, mean 0.
    """
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name, noise = path[-1].key, random.normal(size=leaf.shape)
        value = {
            "kernel": lambda: noise * np.sqrt(2 / np.prod(leaf.shape[:-1])),
            "scale": lambda: np.exp(0.3 * noise),
            "var": lambda: np.exp(0.3 * noise),
        }.get(name, lambda: 0.3 * noise)()
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(drnet.init, jax.random.key(0)))


def random_batch(size: int, seed: int = 0, base: int = RESOLUTIONS[0]) -> dict[str, np.ndarray]:
    """Images with gradients and contrasts of their own, so that logits differ from row to row."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (size, 4, 4, 3)).repeat(base // 4, 1).repeat(base // 4, 2)
    fine = random.uniform(0, 255, (size, base, base, 3))
    share = random.uniform(0, 1, (size, 1, 1, 1))
    return {
        "image": (share * coarse + (1 - share) * fine).astype(np.uint8),
        "label": random.integers(CLASSES, size=size).astype(np.int32),
    }


def numbered(*numbers: int) -> np.ndarray:
    """Images that show their number: uint8 [N, 4, 4, 3]."""
    return np.array(numbers, np.uint8).reshape(-1, 1, 1, 1).repeat(4, 1).repeat(4, 2).repeat(3, 3)


def mesh_of(devices: int) -> jax.sharding.Mesh:
    """A mesh of so many devices; on an accelerator with fewer (launch/gpu_check.sh), a skip."""
    if devices > len(jax.devices()):
        pytest.skip(f"needs {devices} devices, and here are {len(jax.devices())}")
    return data_mesh(jax.devices()[:devices])


def make_plan(choice: np.ndarray, resolutions: int = len(RESOLUTIONS)) -> Plan:
    """The plan of one device with these choices."""
    return plan_of(jnp.asarray(choice, jnp.int32), resolutions)


def kept_gradients() -> optax.GradientTransformation:
    """Changes nothing; its state is the last gradient, for tests to look at."""
    return optax.GradientTransformation(
        init=functools.partial(jax.tree.map, jnp.zeros_like),
        update=lambda grads, state, params=None: (grads, grads),
    )


class Trainer:
    """A step with all that it needs, and a state which each test starts anew."""

    def __init__(
        self, devices: int = 1, stage: str = "finetune", estimator: str = "selected",
        objective: Objective = OBJECTIVE, drnet: DRNet | None = None,
        overrides: dict[str, Any] | None = None,
    ):
        config = tiny_config(overrides)
        self.drnet = drnet or DRNet.from_config(config, CLASSES)
        self.mesh = mesh_of(devices)
        self.optimizer = optax.chain(
            kept_gradients(), make_optimizer(config, stage, steps_per_epoch=1)
        )
        self.announced: list[str] = []
        programs = Programs(lambda compilation: self.announced.append(compilation.name))
        shared = self.drnet, self.optimizer, config.optimizer.ema, self.mesh, programs
        self.step = {
            "pretrain": lambda: PretrainStep(*shared, config.pretrain),
            "finetune": lambda: FinetuneStep(
                *shared, objective, Sizes(config.bucket_multiple, config.bucket_lead),
                dense=estimator == "dense"),
        }[stage]()
        self._init = jax.jit(self.optimizer.init, out_shardings=replicated(self.mesh))

    def state(self, variables: tuple[Any, Any] | None = None) -> TrainState:
        """A state of random variables at step 0, on the mesh."""
        variables = variables or random_variables(self.drnet)
        put = functools.partial(jax.device_put, device=replicated(self.mesh))
        # Copies: a step donates its state.
        (params, batch_stats), (of_params, of_stats) = (
            put(jax.tree.map(np.copy, variables)) for _ in range(2))
        average = {"params": of_params, "batch_stats": of_stats} if self.step.ema else None
        return TrainState(put(jnp.int32(0)), params, batch_stats, self._init(params), average)

    def run(
        self, state: TrainState, batch: dict[str, np.ndarray], seed: int = 0,
        noise: np.ndarray | None = None,
    ) -> tuple[TrainState, dict[str, Any]]:
        """One step, with `noise` [B, O] if given; (state, metrics) with numpy leaves in the latter.
        """
        batch = put_batch(self.mesh, batch)
        key = jax.device_put(jax.random.key(seed), replicated(self.mesh))
        if noise is None:
            state, metrics = self.step(state, batch, key)
        else:
            noise = jax.device_put(noise, split(self.mesh))
            state, metrics = self.step.with_noise(state, batch, noise, key)
        return state, jax.tree.map(np.asarray, metrics)


def gradients(state: TrainState) -> Any:
    """The gradient that the last step of a `Trainer` moved by."""
    return state.opt_state[0]


def assert_close(found: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Compares two trees leaf by leaf, `atol` on the scale of each leaf's largest entry."""
    found, expected = _flat(found), _flat(expected)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        scale = np.max(np.abs(leaf), initial=0)
        np.testing.assert_allclose(found[name], leaf, rtol, atol * scale, err_msg=name)


def assert_equal(found: Any, expected: Any) -> None:
    """Compares two trees leaf by leaf, bit for bit."""
    found, expected = _flat(found), _flat(expected)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def _flat(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
