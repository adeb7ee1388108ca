"""Imagenette at 64 pixels, from scratch: a study of routing on real images that a laptop can run.

`--config configs/imagenette.py --config.data.dir=DIR`, DIR with train/<wnid>/* and val/<wnid>/*.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.batch_size = 128
    config.bucket_multiple = 32
    config.data.name = "folder"
    config.data.val_split = "val"
    config.data.crop_area = (0.25, 1.0)
    config.data.threads = 4
    config.model.classifier = "resnet18"
    config.model.width = 16
    # Multiples of 32, by which ResNet divides: the maps of 48 pixels round up, to 65 % of the cost.
    config.model.resolutions = (64, 32)
    config.predictor.name = "convnet"
    config.predictor.width = 8
    config.predictor.resolution = 32
    config.budget.target = 0.0067  # of 0.0111 at 64 pixels
    config.router.predictor_rate = 1.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 5e-4
    config.pretrain.epochs = 16
    config.pretrain.learning_rate = 0.1
    config.pretrain.warmup_epochs = 1
    config.pretrain.decay_epochs = 12
    config.finetune.epochs = 6
    config.finetune.learning_rate = 0.05
    config.finetune.warmup_epochs = 1
    config.finetune.decay_epochs = 4
    config.evaluation.batch_size = 128
    config.evaluation.every_epochs = 4
    return override(config, argument)
