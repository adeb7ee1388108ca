"""The demo: a small DRNet on drawn shapes, minutes on a laptop's CPU.

What the other settings that were tried came to is in docs/routing.md.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.batch_size = 192
    config.bucket_multiple = 32
    config.bucket_lead = 0  # on two cores a program is sooner compiled than run at a larger size
    config.data.name = "drnet_shapes"
    config.data.threads = 2
    # Images are 73 x 73: a 64-pixel crop keeps their pixels, and so their fine stripes, as drawn.
    config.data.crop_area = (0.77, 0.77)
    config.data.crop_ratio = (1.0, 1.0)
    config.classifier.name = "resnet18"
    config.classifier.width = 0.5
    config.resolutions = (64, 48, 32)
    config.predictor.name = "convnet"
    config.predictor.width = 1.0
    config.predictor.resolution = 32
    config.budget = 0.0285  # of 0.0394 at 64 pixels
    config.optimizer.predictor_rate = 2.0
    # A bucket of one or two images now and then has a gradient of its own scale.
    config.optimizer.clip_norm = 1.0
    config.pretrain.epochs = 6
    config.pretrain.learning_rate = 0.1
    config.pretrain.warmup_epochs = 1
    config.pretrain.decay_epochs = 5
    config.finetune.epochs = 12
    config.finetune.learning_rate = 0.06
    config.finetune.warmup_epochs = 1
    config.finetune.decay_epochs = 9
    config.evaluation.batch_size = 256
    config.evaluation.every_epochs = 6
    return override(config, argument)
