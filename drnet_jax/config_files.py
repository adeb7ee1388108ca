"""What the files in configs/ share: each starts from default.py and overrides a few keys."""

import ast
import re
import runpy
from pathlib import Path

from ml_collections import ConfigDict

from drnet_jax.errors import UserError


def default_beside(file: str) -> ConfigDict:
    """The config of the default.py in the same directory as `file`, a config's `__file__`.

    Config files are run by path, from anywhere, so they cannot import one another.
    """
    return runpy.run_path(str(Path(file).with_name("default.py")))["get_config"]()


def override(config: ConfigDict, argument: str) -> ConfigDict:
    """Sets keys from the text after the colon of `--config FILE:ARGUMENT`, in place.

    Args:
        config: what to override.
        argument: "key=value,...". A key is one of the `router.gumbel` group ("alpha=2.5,eta=0.2") or a
            path from the root ("seed=1,resolutions=(224,112)"); "" overrides nothing.

    Returns:
        `config`.

    Raises:
        UserError: for an unknown key, a value of the wrong type, or text of another form.
    """
    # Commas within brackets belong to a tuple.
    for item in re.split(r",(?![^(]*\))", argument) if argument else ():
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"config argument: expected key=value,..., received {item!r}")
        path = f"router.gumbel.{key}" if key in config.router.gumbel else key
        *groups, leaf = path.split(".")
        group = config
        for name in groups:
            group = group.get(name) if isinstance(group, ConfigDict) else None
        if not isinstance(group, ConfigDict) or leaf not in group:
            raise UserError(
                f"config argument: unknown key {key!r}; expected one of "
                f"{', '.join(config.router.gumbel)}, or a path such as classifier.classes"
            )
        if isinstance(group[leaf], ConfigDict):
            raise UserError(f"config argument: {key!r} is a group; expected one of its keys")
        try:
            group[leaf] = _value(text)
        except TypeError as error:
            raise UserError(
                f"config argument: {key} expects {type(group[leaf]).__name__}, received {text!r}"
            ) from error
    return config


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a bare word is a string
