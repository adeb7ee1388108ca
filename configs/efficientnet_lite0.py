"""EfficientNet-Lite0 with ImageNet weights, to be imported, adapted and fine-tuned on two cores.

`drnet import-torch FILE --config configs/efficientnet_lite0.py --workdir DIR`: docs/pretrained.md.
To fine-tune on a folder of photographs, `--config.init_from=DIR --config.data.dir=IMAGES`.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.batch_size = 64
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
    # Adapted norms have those of the base, and a bucket of few images has none that are worth much.
    config.classifier.fixed_statistics = True
    config.resolutions = (224, 168, 112)
    config.predictor.name = "mobilenetv2_tiny"
    config.predictor.resolution = 64
    config.predictor.classifies = False
    config.budget = 0.2  # of 0.39 at 224 pixels
    config.optimizer.clip_norm = 1.0
    config.optimizer.predictor_rate = 20.0  # it begins from nothing
    # The classifier knows its task already: few steps, small ones.
    config.pretrain.epochs = 0
    config.finetune.epochs = 2
    config.finetune.learning_rate = 0.002
    config.finetune.warmup_epochs = 0.2
    config.finetune.schedule = "cosine"
    config.evaluation.batch_size = 32
    config.evaluation.speed_images = 512
    return override(config, argument)
