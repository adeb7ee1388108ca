"""Any folder of images: DIR/train/<class>/* and DIR/val/<class>/*.

`--config configs/folder.py --config.data.dir=DIR`; the classes are the names of the folders.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import default_beside, override


def get_config(argument: str = "") -> ConfigDict:
    config = default_beside(__file__)
    config.data.name = "folder"
    config.data.train_split = "train"
    config.data.val_split = "val"
    return override(config, argument)
