"""DRNet: a classifier and a predictor, and how their parameters are kept.

Axis letters are those of `drnet_jax.buckets`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax import images, models, resolutions, routing
from drnet_jax.config import AXIS, Config
from drnet_jax.models.norm import MOMENTS

Tree = Any  # a nested dict of arrays
PREDICTOR = "predictor"  # the name of the option to let the predictor answer


class Prediction(NamedTuple):
    """What the predictor says of images, before any choice."""

    options: jax.Array  # float32 [B, O], logits (Eq. 1)
    classes: jax.Array | None  # float32 [B, C], logits of its own answer; None: it has none


@dataclasses.dataclass(frozen=True)
class DRNet:
    """A classifier for every candidate resolution, and the predictor that chooses among them."""

    classifier: nn.Module
    predictor: nn.Module
    resolutions: tuple[int, ...]
    norm_keys: tuple[str, ...]
    predictor_resolution: int
    classifies: bool  # whether the predictor knows the classes, and may answer by itself
    scores: Callable[[jax.Array], jax.Array]  # of the options' logits, see `routing.SCORES`
    mean: tuple[float, ...] = images.MEAN  # of the pixels that the networks expect
    deviation: tuple[float, ...] = images.DEVIATION
    interpolation: str = "bilinear"  # by which images were resized that the networks know

    @classmethod
    def from_config(cls, config: Config, classes: int) -> "DRNet":
        """Builds and checks the networks, on shapes alone.

        Args:
            config: of which networks and resolutions matter.
            classes: C; `config.classifier.classes` may leave them to the data set.

        Raises:
            UserError: if the config names no network, or one that cannot be trained and routed
                here (see `models.check`).
        """
        classifier, sizes = config.classifier, config.resolutions
        seen, classifies = config.predictor.resolution, config.predictor.classifies
        axis = AXIS if config.sync_norm else ""
        return cls(
            classifier=models.build_classifier(classifier, classes, config.dtype, sizes, axis),
            predictor=models.build_predictor(
                config.predictor, len(sizes) + classifies, classes, config.dtype, (seen,), axis
            ),
            resolutions=sizes,
            norm_keys=resolutions.norm_keys(sizes, classifier.resolution_aware_norm),
            predictor_resolution=seen,
            classifies=classifies,
            scores=routing.SCORES[config.router.objective],
            mean=config.preprocessing.mean,
            deviation=config.preprocessing.deviation,
            interpolation=config.preprocessing.interpolation,
        )

    @property
    def options(self) -> int:
        """O: the resolutions, and the predictor's own answer if it classifies."""
        return len(self.resolutions) + self.classifies

    def answering(self, option: int) -> tuple[str, int]:
        """The network that an option is an answer of, and the pixels at which it sees images."""
        if option < len(self.resolutions):
            return "classifier", self.resolutions[option]
        return PREDICTOR, self.predictor_resolution

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (params, batch_stats) in the layout of `drnet_jax.resolutions`."""
        classifier_key, predictor_key = jax.random.split(key)
        smallest = min(self.resolutions)
        plain = _init(self.classifier, classifier_key, smallest)
        predictor = _init(self.predictor, predictor_key, self.predictor_resolution)
        shared, norms, stats = resolutions.split(plain)
        params = {
            "predictor": predictor["params"],
            "shared": shared,
            "norms": resolutions.replicate_norms(norms, self.norm_keys),
        }
        batch_stats = {
            "predictor": predictor.get("batch_stats", {}),
            "norms": resolutions.replicate_norms(stats, self.norm_keys),
        }
        return params, batch_stats

    def classify(
        self, index: int, params: Tree, batch_stats: Tree, batch: jax.Array,
        train: bool = False, mask: jax.Array | None = None, key: jax.Array | None = None,
    ) -> tuple[jax.Array, Tree]:
        """Resizes a batch to one candidate resolution and classifies it.

        Args:
            index: which candidate, 0 the largest.
            params: with `shared` and `norms`.
            batch_stats: with `norms`.
            batch: uint8 [S, H, W, 3] at the base size.
            train: whether to normalise by the batch.
            mask: bool [S], the real rows; None counts all.
            key: for dropout in training; networks without any need none.

        Returns:
            float32 logits [S, C] and the BatchNorm moments of a training pass (else {}).
        """
        variables = resolutions.plain_variables(params, batch_stats, self.norm_keys[index])
        view = self._view(batch, self.resolutions[index])
        return _apply(self.classifier, variables, view, train, mask, key)

    def predict(
        self, params: Tree, batch_stats: Tree, batch: jax.Array, train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[Prediction, Tree]:
        """What the predictor says of uint8 images [B, H, W, 3], and its moments.

        `train` and `key` are as of `classify`.
        """
        variables = {"params": params["predictor"], "batch_stats": batch_stats["predictor"]}
        view = self._view(batch, self.predictor_resolution)
        logits, moments = _apply(self.predictor, variables, view, train, None, key)
        classes, options = logits[:, : -self.options], logits[:, -self.options :]
        return Prediction(options, classes if self.classifies else None), moments

    def _view(self, batch: jax.Array, size: int) -> jax.Array:
        return images.view(batch, size, self.mean, self.deviation, self.interpolation)


def _init(network: nn.Module, key: jax.Array, size: int) -> Tree:
    return network.init(key, jnp.zeros((1, size, size, 3)), False)


def _apply(
    network: nn.Module, variables: Tree, view: jax.Array, train: bool, mask: jax.Array | None,
    key: jax.Array | None,
) -> tuple[jax.Array, Tree]:
    if not train:
        return network.apply(variables, view, False, mask).astype(jnp.float32), {}
    rngs = None if key is None else {"dropout": key}
    logits, mutated = network.apply(variables, view, True, mask, mutable=[MOMENTS], rngs=rngs)
    return logits.astype(jnp.float32), mutated.get(MOMENTS, {})
