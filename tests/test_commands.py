"""The one table of commands: what starts which, and errors of one line."""

import subprocess
import sys

import pytest

from drnet_jax import commands
from tests import runs

CONFIG = str(runs.REPOSITORY / "configs" / "imagenet_resnet50.py")


def test_every_command_is_a_module_of_its_name():
    modules = {path.stem for path in (runs.REPOSITORY / "drnet_jax/commands").glob("[a-z]*.py")}
    assert modules - {"shared"} == set(commands.COMMANDS)


@pytest.mark.parametrize(("arguments", "name", "rest"), [
    ([], "train", []),
    (["--workdir=a"], "train", ["--workdir=a"]),
    (["eval", "--workdir=a"], "eval", ["--workdir=a"]),
    (["--mode=eval", "--workdir=a"], "eval", ["--workdir=a"]),
    (["--workdir=a", "--mode", "eval"], "eval", ["--workdir=a"]),
    (["--help"], None, []),
])
def test_which_command_runs(arguments, name, rest):
    assert commands._command(arguments) == (name, rest)


def test_of_an_override_given_twice_the_last_counts(capsys):
    arguments = ("--config.resolutions=64", "--config.resolutions=(48,32)",
                 "--config.predictor.resolution=32", "--config.predictor.resolution=16")
    assert runs.call("cost", "--config", CONFIG, *arguments) == 0
    out = capsys.readouterr().out
    assert "predictor resnet10 at 16" in out
    assert [line.split()[0] for line in out.splitlines()[3:6]] == ["48", "32", "predictor"]


def test_a_config_takes_an_argument(capsys):
    assert runs.call("cost", "--config", f"{CONFIG}:resolutions=(224,112)", "--mix=0.5,0.5") == 0
    assert "mean of 0.5, 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (("fly",), "expected a command (train, eval, "),
    (("--mode=fly",), "expected a command (train, eval, "),
    (("cost", "more", "--config", CONFIG), "expected --flags only, received 'more'"),
    (("cost",), "--config"),
    (("cost", "--config=nowhere.py"), "nowhere.py"),
    (("cost", "--config", CONFIG, "--confg=1"), "confg"),
    (("cost", "--config", CONFIG, "--config.router.tau=1"), "unknown key"),
    (("cost", "--config", f"{CONFIG}:alpa=1"), "unknown key 'alpa'"),
    (("cost", "--config", CONFIG, "--config.seed=x"), "--config.seed=x"),
    (("cost", "--config", CONFIG, "--config.router.gumbel.alpha=-1"), "alpha: expected more"),
    (("cost", "--config", CONFIG, "--mix=0.5,x,0.5"), "--mix: expected numbers"),
    (("train", "--config", CONFIG, "--workdir=a", "--budget=1"), "budget"),
    (("eval", "--workdir=a", "--warm-up"), "warm-up"),
])
def test_errors_are_one_line_and_status_2(capsys, arguments, message):
    assert runs.call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and message in err
    assert err.count("\n") == 1


def test_help_lists_commands_and_flags(capsys):
    assert runs.call("--help") == 0
    assert "prepare" in capsys.readouterr().out
    assert runs.call("cost", "--help") == 0
    assert "--mix" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["drnet_jax", "drnet_jax.main"])
def test_the_ways_in_lead_to_the_same_table(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=runs.REPOSITORY, text=True,
        capture_output=True, timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: drnet COMMAND" in done.stdout
