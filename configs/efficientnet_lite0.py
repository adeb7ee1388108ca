"""EfficientNet-Lite0 with ImageNet weights, to be imported, adapted and fine-tuned on two cores.

`drnet import-torch FILE --config configs/efficientnet_lite0.py --workdir DIR`: docs/pretrained.md.
To fine-tune on a folder of photographs, `--config.init_from=DIR --config.data.dir=IMAGES`.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.batch_size = 32
    config.bucket_multiple = 8
    config.bucket_lead = 0
    config.data.name = "folder"
    config.data.val_split = "val"
    config.data.crop_area = (0.25, 1.0)
    config.data.threads = 2
    # What the weights expect; of a validation image they are shown the whole.
    config.preprocessing.mean = (127.0, 127.0, 127.0)
    config.preprocessing.deviation = (128.0, 128.0, 128.0)
    config.preprocessing.interpolation = "bicubic"
    config.preprocessing.val_crop = 1.0
    config.classifier.name = "tf_efficientnet_lite0"
    config.resolutions = (224, 168, 112)
    config.predictor.name = "mobilenetv2_tiny"
    config.predictor.resolution = 64
    config.budget = 0.2  # of 0.39 at 224 pixels
    config.optimizer.clip_norm = 1.0
    # The classifier knows its task already: few steps, small ones.
    config.pretrain.epochs = 0
    config.finetune.epochs = 1
    config.finetune.learning_rate = 0.005
    config.finetune.warmup_epochs = 0.1
    config.finetune.schedule = "cosine"
    config.evaluation.batch_size = 32
    config.evaluation.speed_images = 512
    return override(config, argument)
