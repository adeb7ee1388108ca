"""Imagenette at 64 pixels, from scratch: a study of routing on real images that a laptop can run.

`--config configs/imagenette.py --config.data.dir=DIR`, DIR with train/<wnid>/* and val/<wnid>/*.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.batch_size = 128
    config.bucket_multiple = 32
    config.bucket_lead = 0
    config.data.name = "folder"
    config.data.val_split = "val"
    # Crops down to a quarter of the image cost so small a network, in so few epochs, accuracy.
    config.data.crop_area = (0.5, 1.0)
    config.data.threads = 4
    config.classifier.name = "resnet18"
    config.classifier.width = 0.25
    # Multiples of 32, by which ResNet divides: the maps of 48 pixels round up, to 65 % of the cost.
    config.resolutions = (64, 32)
    config.predictor.name = "convnet"
    config.predictor.width = 1.0
    config.predictor.resolution = 32
    config.budget = 0.0067  # of 0.0111 at 64 pixels
    config.optimizer.clip_norm = 5.0
    config.optimizer.weight_decay = 5e-4
    # The classifier's rate is that of one run of 22 epochs: 0.1, and 0.01 from the 17th on.
    config.pretrain.epochs = 19
    config.pretrain.learning_rate = 0.1
    config.pretrain.warmup_epochs = 1
    config.pretrain.decay_epochs = 16
    config.pretrain.distillation = 0.5
    config.finetune.epochs = 3
    config.finetune.learning_rate = 0.01
    config.finetune.warmup_epochs = 0
    config.finetune.decay_epochs = 3
    config.optimizer.predictor_rate = 1.0
    # Enough for two candidates: there is none between to lose.
    config.router.outcome.exploration = 0.1
    config.evaluation.batch_size = 128
    config.evaluation.every_epochs = 4
    return override(config, argument)
