"""DRNet-ResNet-50 on ImageNet-1K, as the paper trains it (tables 3 to 5).

A string argument names variants (configs/variants.py), and sets keys of the router, or any key by
its path: `--config configs/imagenet_resnet50.py:alpha=2.0` is the row of that alpha, `:eta=0` the
one of none, `:single` and `:single,resolutions=(192,)` are the baselines, and `:imagenet100,...`
the rows of tables 1 and 2.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override, variants_beside


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.router.objective = "gumbel"
    config.predictor.classifies = False
    config.optimizer.predictor_rate = 0.1
    config.budget = 0.0
    config.classifier.classes = 1000  # known beforehand: costs need no data set
    return override(config, argument, variants_beside(__file__))
