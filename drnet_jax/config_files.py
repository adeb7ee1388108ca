"""Config files: how they are read, and what those in configs/ share.

Each is Python that defines `get_config()`, or `get_config(argument)` for `FILE:ARGUMENT`, and
returns a ConfigDict; those in configs/ start from default.py and override a few keys.
"""

import ast
import os
import re
import runpy
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from drnet_jax.errors import UserError, first_line

Variant = Callable[[ConfigDict], None]  # sets keys, in place

EXPECTED = "a Python file that defines get_config(), as configs/default.py does"


def load(text: str) -> ConfigDict:
    """The config of `FILE` or `FILE:ARGUMENT`.

    Raises:
        UserError: for a file that is missing, is no such Python, or fails; the message names the
            file and, where one is at fault, the line.
    """
    path, colon, argument = text.partition(":")
    path = os.path.expanduser(path)  # shells leave the ~ of --config=~/my.py
    if not Path(path).is_file():
        raise UserError(
            f"--config: expected {EXPECTED}; found no file {path!r} in {Path.cwd()}"
        )
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"{path}: expected {EXPECTED}, found no get_config in it")
        config = get_config(*[argument] * bool(colon))
    except UserError:
        raise
    except Exception as error:  # whatever the file raises
        # What is no Python, such as JSON, fails by one of these.
        hint = f"; expected {EXPECTED}" if isinstance(error, (SyntaxError, NameError)) else ""
        raise UserError(
            f"{path}{_line_at_fault(path, error)}: {type(error).__name__}: {_message(error)}{hint}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: expected get_config() to return a ConfigDict, received "
            f"{type(config).__name__}"
        )
    return config


def _line_at_fault(path: str, error: Exception) -> str:
    """", line N" of the last line of the file that ran, or that is no Python; or ""."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    return f", line {lines[-1]}" if lines else ""


def _message(error: Exception) -> str:
    # The text of a SyntaxError repeats file and line.
    return str(error.msg) if isinstance(error, SyntaxError) else first_line(error)


def default_beside(file: str) -> ConfigDict:
    """The config of the default.py in the same directory as `file`, a config's `__file__`.

    Config files are run by path, from anywhere, so they cannot import one another.
    """
    return runpy.run_path(str(Path(file).with_name("default.py")))["get_config"]()


def variants_beside(file: str) -> tuple[Variant, ...]:
    """The VARIANTS of the variants.py in the same directory as `file`, a config's `__file__`."""
    return runpy.run_path(str(Path(file).with_name("variants.py")))["VARIANTS"]


def override(
    config: ConfigDict, argument: str, variants: Sequence[Variant] = ()
) -> ConfigDict:
    """Sets keys from the text after the colon of `--config FILE:ARGUMENT`, in place.

    Args:
        config: what to override.
        argument: "key=value,...". A key is one of the `router.gumbel` group ("alpha=2.5,eta=0.2")
            or a path from the root ("seed=1,resolutions=(224,112)"); "" overrides nothing. The name
            of a variant may stand among them.
        variants: functions that can be named; those that are go first, in this order.

    Returns:
        `config`.

    Raises:
        UserError: for an unknown variant or key, a value of the wrong type, or text of another
            form.
    """
    # Commas within brackets belong to a tuple.
    items = re.split(r",(?![^(]*\))", argument) if argument else []
    named = [item for item in items if "=" not in item]
    known = [variant.__name__ for variant in variants]
    if unknown := [name for name in named if name not in known]:
        of_variants = f"{', '.join(known)}, or " if known else ""
        raise UserError(
            f"config argument: expected {of_variants}key=value,..., received {unknown[0]!r}"
        )
    for variant in variants:
        if variant.__name__ in named:
            variant(config)
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            continue
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
