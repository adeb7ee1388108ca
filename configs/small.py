"""The paper's experiments in small: stand-ins on drawn shapes, minutes a run on one core.

A stand-in for ResNet-50 by itself, for the others with `:resnet101` or `:mobilenetv2`. Variants
(configs/variants.py) and keys as of configs/imagenet_resnet50.py. `drnet reproduce --scale small`
makes the paper's tables of these: docs/reproduce.md.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override, variants_beside


def resnet101(config: ConfigDict) -> None:
    """For ResNet-101: twice the cost of the stand-in for ResNet-50, by its width."""
    config.classifier.width = 0.1875


def mobilenetv2(config: ConfigDict) -> None:
    """For MobileNetV2, with resolutions of 1, 0.875 and 0.75 times the base."""
    config.classifier.name = "mobilenetv2"
    config.classifier.width = 0.5
    config.resolutions = (64, 56, 48)
    config.predictor.name = "mobilenetv2_tiny"
    config.predictor.width = 0.25
    # Deep and narrow, it is slow to learn: with the keys of the others 38 % of the training images
    # after 200 steps, with these 81 % after 400 of half as many images.
    config.batch_size = config.bucket_multiple = 64
    config.classifier.zero_init = True
    config.optimizer.clip_norm = 4.0
    config.optimizer.decay_norms_and_biases = False
    for stage in (config.pretrain, config.finetune):
        stage.schedule = "cosine"


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.batch_size = 128
    config.bucket_multiple = 128
    config.bucket_lead = 0
    config.data.name = "drnet_shapes"
    config.data.threads = 2
    # Images are 73 x 73: a 64-pixel crop keeps their pixels, and so their fine stripes, as drawn.
    config.data.crop_area = (0.77, 0.77)
    config.data.crop_ratio = (1.0, 1.0)
    config.classifier.name = "resnet18"
    config.classifier.width = 0.125
    config.resolutions = (64, 48, 32)
    config.predictor.name = "convnet"  # with this width 8 % of the base's cost; the paper's: 7 %
    config.predictor.width = 0.5
    config.predictor.resolution = 32
    config.predictor.classifies = False
    config.router.objective = "gumbel"
    # Of the resolution that ran alone, "selected" learns too little in so few epochs.
    config.router.gumbel.estimator = "dense"
    config.router.gumbel.alpha = 0.00205  # of 0.00337 at 64 pixels: the paper's 2.5 of 4.1
    config.router.gumbel.eta = 2.0
    config.budget = 0.0
    config.optimizer.predictor_rate = 0.3
    config.optimizer.clip_norm = 1.0
    config.pretrain.epochs = 10
    config.pretrain.learning_rate = 0.1
    config.pretrain.warmup_epochs = 1
    config.pretrain.decay_epochs = 8
    config.finetune.epochs = 8
    config.finetune.learning_rate = 0.06
    config.finetune.warmup_epochs = 1
    config.finetune.decay_epochs = 6
    config.evaluation.batch_size = 256
    config.evaluation.every_epochs = 100  # at the end of a stage alone
    config.checkpoint.every_steps = 400
    named = resnet101, mobilenetv2
    return override(config, argument, (*named, *variants_beside(__file__)))
