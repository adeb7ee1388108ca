"""Small photographs, from scratch: routing on real images that a laptop can run.

`--config configs/imagenette.py --config.data.dir=DIR`, DIR with train/<class>/* and val/<class>/*:
Imagenette, on which it was made, or any other folder of some thousand photographs.
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
    # 7 % of the base's cost, and right nearly as often as the classifier at 32 pixels.
    config.predictor.name = "convnet"
    config.predictor.width = 1.0
    config.predictor.resolution = 32
    config.budget = 0.0067  # of 0.0111 at 64 pixels
    config.optimizer.clip_norm = 5.0
    config.optimizer.weight_decay = 5e-4
    config.pretrain.epochs = 22
    config.pretrain.learning_rate = 0.1
    config.pretrain.warmup_epochs = 1
    config.pretrain.decay_epochs = 16
    config.pretrain.distillation = 0.5
    # A predictor that knows the classes learns to route in stage 1, too, and better: see
    # docs/routing.md.
    config.finetune.epochs = 0
    config.evaluation.batch_size = 128
    config.evaluation.every_epochs = 4
    return override(config, argument)
