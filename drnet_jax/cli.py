"""What every program's command line shares: `--config`, and errors without a traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from drnet_jax.config import Config, parse
from drnet_jax.errors import UserError

# Flags defined here belong to the program that asks for them, and so appear in its --help.
flags.disclaim_key_flags()


def define_config(required: bool = True) -> Callable[[], Config | None]:
    """Defines the flag `--config FILE[:ARGUMENT]` with its `--config.KEY=VALUE`.

    Returns:
        A function that gives the checked Config once `run` has parsed the flags, or None if none
        was given; it raises UserError for a file that cannot be read and for impossible values.
    """
    holder = config_flags.DEFINE_config_file(
        "config", None, "A config file, such as configs/default.py; override any of its keys "
        "with --config.KEY=VALUE.",
    )
    if required:
        flags.mark_flag_as_required("config")

    def config() -> Config | None:
        try:
            return None if holder.value is None else parse(holder.value)
        except OSError as error:  # a file that cannot be read is an error at the first touch only
            raise UserError(f"--config: {_last_line(error)}") from error

    return config


def run(main: Callable[[], None]) -> NoReturn:
    """Parses the command line, calls `main()` and exits.

    A wrong flag or a UserError prints `error: ...` and exits with status 2. Any other exception
    is a defect, ours or the config file's, and keeps its traceback.
    """

    def guarded(positional: list[str]) -> None:
        # orbax tells every rename it makes at INFO.
        logging.set_verbosity(logging.WARNING)
        # Into a log file, too, the lines of a long run are to be seen as they come.
        sys.stdout.reconfigure(line_buffering=True)
        try:
            if positional[1:]:
                raise UserError(f"expected --flags only, received {positional[1]!r}; see --help")
            main()
        except UserError as error:
            _fail(str(error))

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(str(_user_error(error) or error))
    # An override reads the config: here config_flags lets the errors of doing so through.
    except OSError as error:
        _fail(f"--config: {_last_line(error)}")
    except (AttributeError, KeyError) as error:
        reason = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
        _fail(f"--config.KEY=VALUE: unknown key {'; '.join(str(reason).splitlines())}")


def _user_error(error: BaseException) -> UserError | None:
    """The UserError that absl and config_flags have wrapped in errors of their own, if any."""
    found = None
    while error := error.__context__:
        found = error if isinstance(error, UserError) else found
    return found


def _last_line(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
