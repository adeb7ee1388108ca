"""DRNet-ResNet-101 on ImageNet-1K, as the paper trains it (table 3).

The argument is as of configs/imagenet_resnet50.py; `:single` is the baseline.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override, variants_beside


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.router.objective = "gumbel"
    # Its row has no alpha, which we take for no regulariser; with one, 6.7 would be what it costs.
    config.router.gumbel.eta = 0.0
    config.router.gumbel.alpha = 6.7
    config.predictor.classifies = False
    config.optimizer.predictor_rate = 0.1
    config.budget = 0.0
    config.classifier.name = "resnet101"
    config.classifier.classes = 1000
    return override(config, argument, variants_beside(__file__))
