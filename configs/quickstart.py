"""The demo: a small DRNet on drawn shapes, minutes on a laptop's CPU.

What the other settings that were tried came to is in the README.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.batch_size = 96
    config.bucket_multiple = 16
    config.data.name = "drnet_shapes"
    config.data.threads = 2
    # Images are 73 x 73: a 64-pixel crop keeps their pixels, and so their fine stripes, as drawn.
    config.data.crop_area = (0.77, 0.77)
    config.data.crop_ratio = (1.0, 1.0)
    config.model.classifier = "resnet18"
    config.model.width = 16
    config.model.resolutions = (64, 48, 32)
    config.predictor.width = 8
    config.predictor.resolution = 32
    # Of the resolution that ran alone, a correct answer and a calibrated doubt both pull at the
    # choice with almost no force: the `selected` gradient does not find out in minutes which image
    # needs which resolution. The full gradient does, at three times the cost of a step.
    config.router.objective = "gumbel"
    config.router.estimator = "dense"
    config.router.alpha = 0.0065
    config.router.eta = 2.0
    config.router.predictor_rate = 1.0
    # A bucket of one or two images now and then has a gradient of its own scale.
    config.optimizer.clip_norm = 1.0
    config.pretrain.epochs = 10
    config.pretrain.learning_rate = 0.04
    config.pretrain.warmup_epochs = 1
    config.pretrain.decay_epochs = 8
    config.finetune.epochs = 8
    config.finetune.learning_rate = 0.02
    config.finetune.warmup_epochs = 1
    config.finetune.decay_epochs = 6
    config.evaluation.batch_size = 96
    config.evaluation.every_epochs = 2
    return override(config, argument)
