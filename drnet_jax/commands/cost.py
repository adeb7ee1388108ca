"""Costs of a model: drnet cost --config configs/imagenet_resnet50.py --mix 0.2,0.3,0.5."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from drnet_jax.commands.shared import define_config, define_mix, with_classes
from drnet_jax.config import Config
from drnet_jax.cost import model_costs
from drnet_jax.formatting import by_option, short, table
from drnet_jax.products import Layer


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config, mix = define_config(values, argv), define_mix(values)
    layers = flags.DEFINE_bool("layers", False, "Also list every layer.", flag_values=values)
    as_json = flags.DEFINE_bool(
        "json", False, "Print JSON, with every layer, in place of tables.", flag_values=values
    )

    def command() -> None:
        checked, shares = with_classes(config()), mix()
        if as_json.value:
            print(json_report(checked, shares))
        else:
            print(text_report(checked, shares, layers.value))

    return command


def text_report(config: Config, mix: Sequence[float] | None, layers: bool) -> str:
    """Costs as tables for people."""
    costs = model_costs(config, config.classifier.classes)
    base, held = costs.classifier[0], costs.parameters
    sections = [
        f"{config.classifier.name}, {config.classifier.classes} classes; "
        f"predictor {config.predictor.name} at {config.predictor.resolution}"
        + ", which may answer" * costs.classifies,
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
        sections += [_layer_table(*named) for named in costs.layers.items()]
    sections += [f"uncounted: {operation}" for operation in costs.uncounted]
    sections.append(
        "Multiply-adds are not time: to measure that on your device, run\n"
        "drnet benchmark --config C"
    )
    return "\n\n".join(sections)


def json_report(config: Config, mix: Sequence[float] | None) -> str:
    """All of it, down to each layer at each resolution, as JSON."""
    costs = model_costs(config, config.classifier.classes)
    return json.dumps({
        "classifier": dataclasses.asdict(config.classifier),
        "predictor": dataclasses.asdict(config.predictor),
        "multiply_adds": {
            "classifier": dict(zip(costs.resolutions, costs.classifier, strict=True)),
            "predictor": costs.predictor,
        },
        "uncounted": costs.uncounted,
        "parameters": dataclasses.asdict(costs.parameters) | {"total": costs.parameters.total},
        "mean": None if mix is None else {
            "mix": by_option(costs.options, mix),
            "classifier": costs.mean(mix, False),
            "with_predictor": costs.mean(mix, True),
        },
        "layers": {
            name: {size: [dataclasses.asdict(layer) for layer in layers]
                   for size, layers in by_size.items()}
            for name, by_size in costs.layers.items()
        },
    }, indent=2)


def _layer_table(name: str, by_size: Mapping[int, Sequence[Layer]]) -> str:
    largest = max(by_size)
    rows = [
        (layers[0].path or "(network)", layers[0].kind, "x".join(map(str, layers[0].output)),
         f"{layers[0].parameters:,}", *(f"{layer.multiply_adds:,}" for layer in layers))
        for layers in zip(*by_size.values(), strict=True)
    ]
    header = (name, "kind", f"output at {largest}", "parameters", *(f"at {s}" for s in by_size))
    return table([header, *rows])
