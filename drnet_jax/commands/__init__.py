"""Commands: one table for `drnet`, `python -m drnet_jax` and `python -m drnet_jax.main`.

Each is a module of this package, "_" for "-", whose `define(values, argv)` defines its flags and
returns the function that runs it once they are parsed.
"""

import importlib
import io
import os
import signal
import sys
import textwrap
import traceback
from logging import LogRecord, getLogger
from typing import Any, NoReturn

from absl import flags, logging

from drnet_jax import __version__
from drnet_jax.errors import REMEDIES, Stopped, UserError, first_line
from drnet_jax.hosts.join import others

COMMANDS = {
    "train": "train both stages, or go on where a stopped run left off (the default)",
    "eval": "evaluate a checkpoint under several policies",
    "predict": "classify images, each at the resolution it needs",
    "serve": "answer over HTTP, with a page to try it",
    "export": "a model for other runtimes, and for years",
    "adapt": "fit a trained network for other resolutions, without labels",
    "cost": "parameters and multiply-adds of a model",
    "plan": "what a run takes on devices that are not at hand",
    "benchmark": "images/s of training and inference",
    "load-test": "a server under as many requests as it can answer",
    "drift": "programs, waiting and padding of a run whose mix drifts",
    "reproduce": "the tables and figures of the paper",
    "import-torch": "take the weights of a network trained with PyTorch",
    "prepare": "download a tfds data set and write it as ArrayRecord files",
}

# What Python says of texts that are no numbers.
PLAIN = {
    "invalid literal for int() with base 10:": "expected a whole number, received",
    "could not convert string to float:": "expected a number, received",
}
# Files, a model, or tables and figures, besides flags.
TAKING_NAMES = ("predict", "serve", "load-test", "import-torch", "reproduce")


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs `argv`, by default this process's own, and exits with the status of `run`."""
    sys.unraisablehook = _print_unraisable
    sys.exit(run(sys.argv if argv is None else argv))


def run(argv: list[str]) -> int:
    """Runs the command `PROGRAM [COMMAND] [--FLAGS]`: of flags alone train, or `--mode COMMAND`.

    Returns:
        The exit status: 0; 2 after a wrong flag or a UserError, of which `error: ...` is printed
        to stderr; 1 if whoever read stdout has left; 130 after Ctrl-C. Any other exception is a
        defect of ours and keeps its traceback.
    """
    # orbax tells every rename it makes at INFO, and at ERROR, with a stack, what it raises as well.
    logging.set_verbosity(logging.WARNING)
    for name in ("absl", "asyncio"):
        getLogger(name).addFilter(_is_news)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Into a log file, too, the lines of a long run are to be seen as they come. And what
            # a terminal has no letters for is escaped: no report is to end at a plus-minus sign.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        _run(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _ended(2, str(error))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as in `drnet predict ... | head`
        _drop_output()
        return 1
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        _drop_output()
        print(
            f"error: a file could not be written ({error}); {REMEDIES[error.errno]}",
            file=sys.stderr,
        )
        return _ended(2, str(error))
    except Exception as error:
        if watch := others():  # who would wait for this one for ever
            if type(error).__name__ == "JaxRuntimeError":
                watch.outlast()  # it may be that one of them is gone, which is told then
            traceback.print_exc()
            _ended(1, first_line(error))
        raise
    return 0


def _run(argv: list[str]) -> None:
    if argv[1:] == ["--version"]:
        print(f"drnet_jax {__version__}")
        return
    name, rest = _command(argv[1:])
    if name is None:
        print(_overview())
        return
    argv = [argv[0], *_last_of_each_override(rest)]
    values = flags.FlagValues()
    module = importlib.import_module(f"drnet_jax.commands.{name.replace('-', '_')}")
    command = module.define(values, argv)
    if {"-h", "--help"} & set(argv):
        print(_help(module.__doc__, values))
        return
    positional = _parse(values, argv)[1:]
    if name in TAKING_NAMES:
        command(positional)
        return
    if positional:
        raise UserError(f"expected --flags only, received {positional[0]!r}; see --help")
    command()


def _is_news(record: LogRecord) -> bool:
    by_orbax = "orbax" in record.pathname or "orbax" in record.getMessage()
    return not (record.exc_info and by_orbax)


def _print_unraisable(unraisable: Any) -> None:
    # When one write of a checkpoint has failed, TensorStore's threads find, for each of the others,
    # that orbax does not wait for it any more.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _ended(status: int, message: str) -> int:
    """The status, unless there are other hosts, which are told; then this process ends here."""
    if watch := others():
        watch.fail(message)
        # Not by way of JAX, which would wait for the others.
        sys.stdout.flush()
        os._exit(status)
    return status


def _drop_output() -> None:
    """What is left in the buffer of stdout is written at exit, and must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(args: list[str]) -> tuple[str | None, list[str]]:
    """The command's name, None for the overview, and its own arguments."""
    if not args or args[0] in ("help", "-h", "--help"):
        return None, []
    name = "train"
    if not args[0].startswith("-"):
        name, *args = args
    elif (mode := _mode(args)) is not None:
        name, args = mode
    if name not in COMMANDS:
        raise UserError(f"expected a command ({', '.join(COMMANDS)}), received {name!r}")
    return name, args


def _mode(args: list[str]) -> tuple[str, list[str]] | None:
    """`--mode NAME` or `--mode=NAME`, the command as a flag, and the arguments without it."""
    for at, arg in enumerate(args):
        if arg.startswith("--mode="):
            return arg.partition("=")[2], [*args[:at], *args[at + 1 :]]
        if arg == "--mode" and at + 1 < len(args):
            return args[at + 1], [*args[:at], *args[at + 2 :]]
    return None


def _last_of_each_override(args: list[str]) -> list[str]:
    """Of `--config.KEY=VALUE`, or KEY VALUE, given twice the last; config_flags would join tuples.
    """
    left, found = list(args), []  # (key or None, its words)
    while left:
        words = [left.pop(0)]
        key, equals, _ = words[0].lstrip("-").partition("=")
        override = words[0].startswith("-") and key.startswith("config.")
        # After a key that is true or false no value comes, but the next flag.
        if override and not equals and left and not left[0].startswith("--"):
            words.append(left.pop(0))
        found.append((key if override else None, words))
    last = {key: at for at, (key, _) in enumerate(found) if key}
    return [word for at, (key, words) in enumerate(found) if last.get(key, at) == at
            for word in words]


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {does}" for name, does in COMMANDS.items()]
    return "\n".join(["usage: drnet COMMAND [--FLAGS]; drnet COMMAND --help", "", *lines])


def _help(does: str, values: flags.FlagValues) -> str:
    """What a command does, and its flags, each with its default if it has one."""
    sections = [does.strip(), "flags:"]
    for name in values:
        flag = values[name]
        default = f" Default: {flag.default}." if flag.default not in (None, False, "") else ""
        sections.append(textwrap.fill(
            f"{flag.help}{default}", width=96, initial_indent=" " * 6, subsequent_indent=" " * 6,
        ))
        sections[-1] = f"  --{name}{'' if flag.boolean else '=VALUE'}\n{sections[-1]}"
    return "\n\n".join(sections)


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
    try:
        return values(argv)
    except flags.Error as error:
        text = " ".join(str(_user_error(error) or error).split("\n"))
        for theirs, ours in PLAIN.items():
            text = text.replace(theirs, ours)
        raise UserError(text) from error
    # An override looks its key up in the config, and config_flags lets the errors through.
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        reason = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
        raise UserError(
            f"--config.KEY=VALUE: unknown key {'; '.join(str(reason).splitlines())}"
        ) from error


def _user_error(error: BaseException) -> UserError | None:
    """The UserError that absl and config_flags have wrapped in errors of their own, if any."""
    found = None
    while error := error.__context__:
        found = error if isinstance(error, UserError) else found
    return found
