"""DRNet-ResNet-50 on ImageNet-1K (tables 3 and 5 of the paper).

A string argument sets keys of the router, or any key by its path:
`--config configs/imagenet_resnet50.py:alpha=2.0` is the paper's second row.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.router.objective = "gumbel"
    config.predictor.classifies = False
    config.optimizer.predictor_rate = 0.1
    config.budget = 0.0
    config.classifier.classes = 1000  # known beforehand: costs need no data set
    return override(config, argument)
