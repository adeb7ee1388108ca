"""What a model costs: parameters, and multiply-adds for one image at each resolution.

What the paper calls FLOPs are multiply-adds of convolutions and matrix products
(`drnet_jax.counting`); resizing the image counts nothing.

    python -m drnet_jax.cost --config configs/imagenet_resnet50.py --mix 0.2,0.3,0.5
"""

import dataclasses
import json
from collections.abc import Sequence

import jax
from absl import flags

from drnet_jax import cli
from drnet_jax.config import Config
from drnet_jax.counting import Layer, layer_costs, multiply_adds, parameters, variable_shapes
from drnet_jax.data.sources import open_source, resolve_classes
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.resolutions import norm_keys, split
from drnet_jax.text import short, table

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

    def mean(self, mix: Sequence[float], with_predictor: bool) -> float:
        """Mean multiply-adds of an image, E[F] of Eq. 6.

        Args:
            mix: [R], the share of the images at each resolution.
            with_predictor: add the predictor's own, as the paper's tables do; its target alpha
                leaves them out.

        Raises:
            UserError: if `mix` is not R shares that sum to 1 within 0.001.
        """
        # A hair more than 0.001, so that 0.333 three times will do.
        if (
            len(mix) != len(self.resolutions)
            or not all(share >= 0 for share in mix)
            or not abs(sum(mix) - 1) < 1.001e-3
        ):
            raise UserError(
                f"mix: expected {len(self.resolutions)} shares, one for each resolution "
                f"{self.resolutions}, none negative and 1 in sum, received {tuple(mix)}"
            )
        mean = sum(p * c for p, c in zip(mix, self.classifier, strict=True)) / sum(mix)
        return mean + (self.predictor if with_predictor else 0)


def model_costs(config: Config, classes: int) -> Costs:
    """The costs of the model that `config` describes.

    Args:
        config: of which `model` and `predictor` matter.
        classes: of the classifier; `config.model.classes` may leave them to the data set.

    Raises:
        UserError: if a network is unknown or cannot be counted (see `layer_costs`).
    """
    drnet = DRNet.from_config(config, classes)
    classifier, predictor = drnet.classifier, drnet.predictor
    resolutions = config.model.resolutions
    layers = [layer_costs(classifier, resolution) for resolution in resolutions]
    router = layer_costs(predictor, config.predictor.resolution)
    _, norms, _ = split(variable_shapes(classifier, resolutions[0]))
    extra_sets = len(set(norm_keys(config.model))) - 1
    return Costs(
        resolutions=resolutions,
        classifier=tuple(map(multiply_adds, layers)),
        predictor=multiply_adds(router),
        parameters=Parameters(
            classifier=parameters(layers[0]),
            predictor=parameters(router),
            extra_norms=extra_sets * sum(leaf.size for leaf in jax.tree.leaves(norms)),
        ),
    )


def text_report(config: Config, mix: Sequence[float] | None, layers: bool) -> str:
    """Costs as tables for people."""
    costs = model_costs(config, config.model.classes)
    base, held = costs.classifier[0], costs.parameters
    sections = [
        f"{config.model.classifier}, {config.model.classes} classes; "
        f"predictor {config.predictor.name} at {config.predictor.resolution}",
        table([
            ("resolution", "multiply-adds", "relative"),
            *((str(size), short(count), f"{count / base:.3f}")
              for size, count in zip(costs.resolutions, costs.classifier, strict=True)),
            ("predictor", short(costs.predictor), f"{costs.predictor / base:.3f}"),
        ]),
        table([
            ("parameters", "", ""),
            ("classifier, one set of norms", f"{held.classifier:,}", short(held.classifier)),
            ("predictor", f"{held.predictor:,}", short(held.predictor)),
            ("both, as the paper counts", f"{held.classifier + held.predictor:,}",
             short(held.classifier + held.predictor)),
            ("norms of the other resolutions", f"{held.extra_norms:,}", short(held.extra_norms)),
            ("all", f"{held.total:,}", short(held.total)),
        ]),
    ]
    if mix is not None:
        alone, whole = costs.mean(mix, False), costs.mean(mix, True)
        sections.append(table([
            (f"mean of {', '.join(f'{share:g}' for share in mix)}", "multiply-adds", "relative"),
            ("classifier (compare with alpha)", short(alone), f"{alone / base:.3f}"),
            ("with the predictor", short(whole), f"{whole / base:.3f}"),
        ]))
    if layers:
        sections += [_layer_table(*named) for named in _layers(config)]
    sections.append(
        "Multiply-adds are not time: to measure that on your device, run\n"
        "python -m drnet_jax.benchmark"
    )
    return "\n\n".join(sections)


def json_report(config: Config, mix: Sequence[float] | None) -> str:
    """All of it, down to each layer at each resolution, as JSON."""
    costs = model_costs(config, config.model.classes)
    return json.dumps({
        "model": dataclasses.asdict(config.model),
        "predictor": dataclasses.asdict(config.predictor),
        "multiply_adds": {
            "classifier": dict(zip(costs.resolutions, costs.classifier, strict=True)),
            "predictor": costs.predictor,
        },
        "parameters": dataclasses.asdict(costs.parameters) | {"total": costs.parameters.total},
        "mean": None if mix is None else {
            "mix": list(mix),
            "classifier": costs.mean(mix, False),
            "with_predictor": costs.mean(mix, True),
        },
        "layers": {
            name: {size: [dataclasses.asdict(layer) for layer in found]
                   for size, found in by_size.items()}
            for name, by_size in _layers(config)
        },
    }, indent=2)


def _layers(config: Config) -> list[tuple[str, dict[int, tuple[Layer, ...]]]]:
    drnet = DRNet.from_config(config, config.model.classes)
    classifier, predictor = drnet.classifier, drnet.predictor
    sizes, seen = config.model.resolutions, config.predictor.resolution
    return [
        ("classifier", {size: layer_costs(classifier, size) for size in sizes}),
        ("predictor", {seen: layer_costs(predictor, seen)}),
    ]


def _layer_table(name: str, by_size: dict[int, tuple[Layer, ...]]) -> str:
    largest = max(by_size)
    rows = [
        (layers[0].path or "(network)", layers[0].kind, "x".join(map(str, layers[0].output)),
         f"{layers[0].parameters:,}", *(f"{layer.multiply_adds:,}" for layer in layers))
        for layers in zip(*by_size.values(), strict=True)
    ]
    header = (name, "kind", f"output at {largest}", "parameters", *(f"at {s}" for s in by_size))
    return table([header, *rows])


def parse_mix(text: list[str]) -> list[float]:
    """The flag --mix as numbers; `Costs.mean` checks that they are shares."""
    try:
        return [float(share) for share in text]
    except ValueError as error:
        raise UserError(f"--mix: expected numbers such as 0.2,0.3,0.5; {error}") from error


def with_classes(config: Config) -> Config:
    """The config with `model.classes` set, if it is not, to what the data set has.

    Raises:
        UserError: if it is not set and the data set cannot be opened.
    """
    if config.model.classes:
        return config
    try:
        classes = resolve_classes(open_source(config.data, training=False), 0)
    except UserError as error:
        raise UserError(
            "config.model.classes: expected a number of classes, received 0; set "
            f"--config.model.classes, or open the data set to it, for that failed:\n{error}"
        ) from error
    return dataclasses.replace(config, model=dataclasses.replace(config.model, classes=classes))


if __name__ == "__main__":
    read_config = cli.define_config()
    MIX = flags.DEFINE_list("mix", None, "Share of the images at each resolution: 0.2,0.3,0.5.")
    LAYERS = flags.DEFINE_bool("layers", False, "Also list every layer.")
    JSON = flags.DEFINE_bool("json", False, "Print JSON, with every layer, in place of tables.")

    def main() -> None:
        config = with_classes(read_config())
        mix = None if MIX.value is None else parse_mix(MIX.value)
        print(json_report(config, mix) if JSON.value else text_report(config, mix, LAYERS.value))

    cli.run(main)
