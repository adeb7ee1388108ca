"""Cost: parameters, and multiply-adds of one image by each option, worked out, not measured.

How they are counted, layer by layer, is in `drnet_jax.products`. Axes as in `drnet_jax.buckets`.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from drnet_jax.config import GIGA, Config
from drnet_jax.drnet import PREDICTOR, DRNet
from drnet_jax.errors import UserError
from drnet_jax.products import Layer, layer_costs, multiply_adds, parameters, variable_shapes
from drnet_jax.resolutions import split

# A training step counts as three forward passes: forward, and two products per layer back.
TRAINING_PASSES = 3

@dataclasses.dataclass(frozen=True)
class Parameters:
    """How many trainable numbers a model holds (running statistics are not among them)."""

    classifier: int  # the plain network, with one set of norms
    predictor: int
    extra_norms: int  # the norm sets of the other resolutions; 0 where all share one

    @property
    def total(self) -> int:
        return self.classifier + self.predictor + self.extra_norms


@dataclasses.dataclass(frozen=True)
class Costs:
    """Multiply-adds for one image and parameters of a whole model."""

    resolutions: tuple[int, ...]  # [R], as in the config
    classifier: tuple[int, ...]  # [R], multiply-adds at each resolution
    predictor: int  # multiply-adds at the size at which the predictor sees the image
    parameters: Parameters
    classifies: bool = False  # whether the predictor's own answer is an option
    layers: Mapping[str, Mapping[int, Sequence[Layer]]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False)  # of "classifier" and "predictor", by size

    @property
    def uncounted(self) -> tuple[str, ...]:
        """What `multiply_adds` leave out, such as "fft in module 'mix' of the classifier"."""
        return tuple(dict.fromkeys(
            f"{name} in module {layer.path!r} of the {network}"
            for network, by_size in self.layers.items() for layers in by_size.values()
            for layer in layers for name in layer.uncounted
        ))

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options, [O]: each resolution, and "predictor" if that may answer."""
        return (*map(str, self.resolutions), *[PREDICTOR] * self.classifies)

    @property
    def networks(self) -> tuple[int, ...]:
        """Multiply-adds of a pass at each resolution, and of the predictor, [R + 1]."""
        return (*self.classifier, self.predictor)

    @property
    def added(self) -> tuple[int, ...]:
        """Multiply-adds that each option adds to the predictor's, [O]: its own answer adds none."""
        return (*self.classifier, *[0] * self.classifies)

    @property
    def charged(self) -> np.ndarray:
        """`added` as routing charges it, float32 [O]."""
        return np.array(self.added, np.float32)

    @property
    def routed(self) -> np.ndarray:
        """Multiply-adds of an image that is routed to each option, predictor included, [O]."""
        return np.array(self.added, float) + self.predictor

    @property
    def passes(self) -> np.ndarray:
        """Multiply-adds of one pass of each option's network alone, float64 [O]."""
        return np.array((*self.classifier, *[self.predictor] * self.classifies), float)

    def can_cost(self, budget: float) -> bool:
        """Whether routing, the predictor included, can cost `budget` multiply-adds on average."""
        # A hair more on both sides, so that the ends as `check_budget` prints them will do.
        return 0.999 * self.routed.min() <= budget <= 1.001 * self.routed.max()

    def check_budget(self, budget: float) -> None:
        """Raises UserError unless `budget` is 0, for none, or routing `can_cost` it."""
        if budget and not self.can_cost(budget):
            least = "" if self.classifies else f", and {min(self.resolutions)} px for all"
            raise UserError(
                f"config.budget (or --budget): expected {self.routed.min() / GIGA:.4g} (the "
                f"predictor{least}) to {self.routed.max() / GIGA:.4g} (the predictor, and "
                f"{max(self.resolutions)} px for all) 1e9 multiply-adds, received "
                f"{budget / GIGA:.4g}"
            )

    def mean(self, mix: Sequence[float], with_predictor: bool) -> float:
        """Mean multiply-adds of an image, E[F] of Eq. 6.

        Args:
            mix: [O], the share of the images at each option.
            with_predictor: add the predictor's own, as the paper's tables do; its target alpha
                leaves them out.

        Raises:
            UserError: if `mix` is not O shares that sum to 1 within 0.001.
        """
        # A hair more than 0.001, so that 0.333 three times will do.
        shares = all(share >= 0 for share in mix) and abs(sum(mix) - 1) < 1.001e-3
        if len(mix) != len(self.options) or not shares:
            raise UserError(
                f"mix: expected {len(self.options)} shares, one for each of "
                f"{', '.join(self.options)}, none negative and 1 in sum, received {tuple(mix)}"
            )
        mean = float(np.dot(mix, self.routed - self.predictor)) / sum(mix)
        return mean + (self.predictor if with_predictor else 0)


def model_costs(config: Config, classes: int) -> Costs:
    """The costs of the model that `config` describes.

    Args:
        config: of which the networks and resolutions matter.
        classes: of the classifier; `config.classifier.classes` may leave them to the data set.

    Raises:
        UserError: if a network is unknown, will not do (see `models.check`), cannot be counted (see
            `layer_costs`), or costs no less at the smallest resolution than at the largest.
    """
    drnet = DRNet.from_config(config, classes)
    sizes, shapes = drnet.resolutions, variable_shapes(drnet.classifier, min(drnet.resolutions))
    by_size = {size: layer_costs(drnet.classifier, size, shapes) for size in sizes}
    predictor = layer_costs(drnet.predictor, drnet.predictor_resolution)
    classifier = tuple(map(multiply_adds, by_size.values()))
    if len(sizes) > 1 and classifier[0] <= classifier[-1]:
        raise UserError(
            f"config.classifier.name: {config.classifier.name!r}: expected less work at "
            f"{sizes[-1]} than at {sizes[0]} px, received {classifier[-1]} and {classifier[0]} "
            "multiply-adds; let it work on images as large as they come"
        )
    _, norms, _ = split(shapes)
    return Costs(
        resolutions=sizes,
        classifier=classifier,
        predictor=multiply_adds(predictor),
        parameters=Parameters(
            classifier=parameters(by_size[sizes[0]]),
            predictor=parameters(predictor),
            extra_norms=(len(set(drnet.norm_keys)) - 1)
            * sum(leaf.size for leaf in jax.tree.leaves(norms)),
        ),
        classifies=drnet.classifies,
        layers={"classifier": by_size, "predictor": {drnet.predictor_resolution: predictor}},
    )


if __name__ == "__main__":
    from drnet_jax.commands import main

    main(["drnet", "cost", *sys.argv[1:]])
