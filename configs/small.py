"""The paper's experiments in small: stand-ins on drawn shapes, a minute or two a run on two cores.

`--config configs/small.py:NETWORK,...` with one of the paper's networks, resnet50, resnet101 or
mobilenetv2; `single` is the network trained at the base size alone, `shared_norm` has one set of
BatchNorms for all resolutions, and any key can be set as in `alpha=0.0068`. `drnet reproduce`
makes its tables of these.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override
from drnet_jax.errors import UserError

# Of each: classifier, its width, resolutions, predictor, its width and resolution.
NETWORKS = {
    "resnet50": ("resnet18", 0.25, (64, 48, 32), "convnet", 1.0, 32),
    "resnet101": ("resnet34", 0.25, (64, 48, 32), "convnet", 1.0, 32),
    "mobilenetv2": ("mobilenetv2", 0.5, (64, 56, 48), "mobilenetv2_tiny", 0.25, 32),
}

WORDS = ("single", "shared_norm")


def get_config(argument: str = "resnet50") -> ConfigDict:
    network, *words = argument.split(",")
    if network not in NETWORKS:
        raise UserError(f"config argument: expected {', '.join(NETWORKS)}, received {network!r}")
    config = default_beside(__file__)
    config.batch_size = 128
    config.bucket_multiple = 32
    config.bucket_lead = 0
    config.data.name = "drnet_shapes"
    config.data.threads = 2
    # Images are 73 x 73: a 64-pixel crop keeps their pixels, and so their fine stripes, as drawn.
    config.data.crop_area = (0.77, 0.77)
    config.data.crop_ratio = (1.0, 1.0)
    (
        config.classifier.name, config.classifier.width, config.resolutions,
        config.predictor.name, config.predictor.width, config.predictor.resolution,
    ) = NETWORKS[network]
    config.predictor.classifies = False
    config.router.objective = "gumbel"
    config.budget = 0.0
    config.optimizer.predictor_rate = 0.1
    config.optimizer.clip_norm = 1.0
    for stage in (config.pretrain, config.finetune):
        stage.epochs = 8
        stage.warmup_epochs = 1
        stage.decay_epochs = 6
    config.evaluation.batch_size = 256
    config.evaluation.every_epochs = 100
    if "shared_norm" in words:
        config.classifier.resolution_aware_norm = False
    if "single" in words:
        config.resolutions = config.resolutions[:1]
        config.finetune.epochs = 0
    return override(config, ",".join(word for word in words if word not in WORDS))
