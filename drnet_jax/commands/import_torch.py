"""Import PyTorch weights: drnet import-torch CHECKPOINT --config C --workdir DIR."""

from collections.abc import Callable

from absl import flags

from drnet_jax.commands.shared import (
    announce_devices,
    define_classes,
    define_config,
    define_workdir,
)
from drnet_jax.errors import UserError
from drnet_jax.weights.imports import import_torch


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[list[str]], None]:
    config = define_config(values, argv)
    workdir = define_workdir(values, "Directory to make, for a checkpoint of these weights.")
    named = define_classes(
        values, "those of the last layer, in its order; by default ImageNet's 1,000."
    )

    def command(files: list[str]) -> None:
        if len(files) != 1:
            raise UserError(
                "expected a file of weights (.safetensors, or .pth of torch.save), received "
                f"{len(files)}; see --help"
            )
        checked, where, classes = config(), workdir(), named()
        announce_devices()
        meta, tensors, costs = import_torch(files[0], checked, where, classes)
        name, sizes = meta.config.classifier.name, ", ".join(map(str, meta.resolutions))
        print(
            f"{files[0]}: {tensors} tensors, {costs.parameters.classifier:,} parameters of a "
            f"{name} of {len(meta.classes)} classes ({', '.join(meta.classes[:3])}, ...)\n"
            f"{where}: a checkpoint of step 0 for {sizes} px, all with the same norms; its "
            "predictor is not trained"
        )

    return command
