"""Export a model for other runtimes, and for years: drnet export --workdir DIR --out DIRECTORY.

docs/inference.md says what is written. `drnet export --refresh DIRECTORY` traces anew what is for
JAX alone.
"""

from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from drnet_jax.api import Model, load
from drnet_jax.bundle import files
from drnet_jax.bundle.check import check
from drnet_jax.bundle.files import FORMS, Contents
from drnet_jax.commands.model_flags import define_budget, define_checkpoint, define_policy
from drnet_jax.commands.shared import (
    announce_devices,
    define_classes,
    directory,
    expect_installed,
)
from drnet_jax.errors import UserError
from drnet_jax.inference import inputs
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.predict import prepared

CHECKED = 16  # images
NEEDED = {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}  # by each form


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    workdir = flags.DEFINE_string(
        "workdir", None, "Directory of a training run, or of one checkpoint in it.",
        flag_values=values,
    )
    out = flags.DEFINE_string("out", None, "Directory to write.", flag_values=values)
    refresh = flags.DEFINE_string(
        "refresh", None, "Export whose StableHLO to trace anew, by the JAX that is installed.",
        flag_values=values,
    )
    checkpoint = define_checkpoint(values)
    forms = flags.DEFINE_list(
        "forms", list(FORMS), f"Of the networks: some of {', '.join(FORMS)}.", flag_values=values
    )
    images = flags.DEFINE_string(
        "images", None, "Folder of images to check the export on; by default those of validation.",
        flag_values=values,
    )
    budget = define_budget(values)
    policy = define_policy(values)
    among = define_classes(values, "answers are among these of the model's classes only.")

    def command() -> None:
        if (refresh.value is None) == (workdir.value is None):
            raise UserError("expected --workdir and --out, or --refresh; see --help")
        if refresh.value is not None:
            expect_installed("export", "runtimes", NEEDED["stablehlo"])
            place = directory("--refresh", refresh.value)
            announce_devices()
            files.refresh(place)
            print(f"{place}: traced anew")
            return
        if out.value is None:
            raise UserError("--out: expected a directory, received none")
        _check_forms(forms.value)
        place, classes = directory("--out", out.value), among()
        if place.exists() and not files.is_bundle(str(place)) and any(place.iterdir()):
            raise UserError(
                f"--out: expected a new directory, or an export to replace, received {out.value!r}"
            )
        announce_devices()
        model = load(
            str(directory("--workdir", workdir.value, to_write=False)), checkpoint.value,
            classes=classes, runtime="jax", precision="float32",
        )
        contents = Contents(
            model.meta, model.classes, model.variables, model.dials,
            model.policy(budget(), kind=policy.value),
        )
        shown = _images(model, images.value)
        files.write(contents, model.costs, place, forms.value)
        engine = Engine(files.drnet_of(contents), model.costs, len(shown))
        engine.load(*model.variables)
        for line in check(place, forms.value, engine, shown):
            print(line)
        print(f"{place}: {', '.join(sorted(path.name for path in place.iterdir()))}")

    return command


def _check_forms(forms: Sequence[str]) -> None:
    """Raises UserError if one is none, or cannot be written with what is installed."""
    for form in forms:
        if form not in FORMS:
            raise UserError(f"--forms: expected some of {', '.join(FORMS)}, received {form!r}")
        expect_installed("export", "runtimes", NEEDED[form])


def _images(model: Model, folder: str | None) -> np.ndarray:
    """Some images, uint8 [N, H, W, 3], evenly over those there are."""
    base = model.resolutions[0]
    if folder is not None:
        items, _ = inputs.items_of([folder])
        chosen = items[:: -(-len(items) // CHECKED)]
        return np.stack([prepared(image, model.square, base) for image in inputs.read(chosen)])
    try:
        source = model.source()
    except UserError as error:
        raise UserError(
            "--images: expected a folder of images to check the export on, received none, and the "
            f"model's own cannot be opened: {error}"
        ) from error
    chosen = range(0, len(source), -(-len(source) // CHECKED))
    return np.stack([prepared(source[each]["image"], model.square, base) for each in chosen])
