"""A config file: the paper's experiments with networks that compile in no time, on a folder."""

from pathlib import Path

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override, variants_beside

DEFAULT = str(Path(__file__).parents[1] / "configs" / "default.py")
TINY = {
    "seed": 3, "batch_size": 8, "bucket_multiple": 8, "bucket_lead": 0, "log_every": 1,
    "data.name": "folder", "data.val_split": "val", "data.threads": 2,
    "data.crop_area": (0.5, 1.0),
    "classifier.name": "tests.tiny:TinyNet", "classifier.width": 1.0, "resolutions": (32, 24, 16),
    "predictor.name": "tests.tiny:TinyPredictor", "predictor.width": 1.0,
    "predictor.resolution": 16, "predictor.classifies": False, "router.objective": "gumbel",
    "budget": 0.0, "pretrain.epochs": 3, "finetune.epochs": 3, "pretrain.learning_rate": 0.02,
    "finetune.learning_rate": 0.02, "evaluation.batch_size": 8, "checkpoint.every_steps": 4,
}


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(DEFAULT)
    config.update_from_flattened_dict(TINY)
    return override(config, argument, variants_beside(DEFAULT))
