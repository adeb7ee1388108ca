"""DRNet-MobileNetV2 on ImageNet-1K, as the paper trains it (table 6).

The argument is as of configs/imagenet_resnet50.py: `:single`, `:single,resolutions=(192,)` and
`:single,classifier.width=0.75` are the baselines. Section 4.4: "the training setting of MobileNetV2
follows that in the original paper", which is section 6.1 of Sandler et al., CVPR 2018.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override, variants_beside


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.resolutions = (224, 196, 168)
    config.router.objective = "gumbel"
    # Its row has no alpha, which we take for no regulariser; with one, 0.27 would be what it costs.
    config.router.gumbel.eta = 0.0
    config.router.gumbel.alpha = 0.27
    config.predictor.name = "mobilenetv2_tiny"
    config.predictor.resolution = 64
    config.predictor.classifies = False
    config.optimizer.predictor_rate = 0.1
    config.budget = 0.0
    config.classifier.name = "mobilenetv2"
    config.classifier.classes = 1000
    # Of 16 workers each took steps of 96 images, without waiting for one another.
    config.batch_size = 96
    config.optimizer.name = "rmsprop"
    config.optimizer.weight_decay = 4e-5
    config.optimizer.decay_norms_and_biases = False  # as its code; that spares depthwise ones, too
    # How many epochs there were neither paper tells: they are those of the other networks.
    for stage in (config.pretrain, config.finetune):
        stage.learning_rate = 0.045
        stage.warmup_epochs = 0
        stage.decay_epochs = 1
        stage.decay_factor = 0.98
    return override(config, argument, variants_beside(__file__))
