"""The shared command line, through small programs of their own (they never import jax)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs" / "imagenet_resnet50.py")

PROGRAM = """
import os

from drnet_jax import cli
from drnet_jax.errors import UserError

config = cli.define_config()

def main():
    router = config().router
    if router.alpha == 1:
        raise UserError("an error of the program's own")
    print(router.alpha, router.eta)
    if router.alpha == 3:
        os._exit(9)  # as if killed: nothing is flushed

cli.run(main)
"""


@pytest.fixture
def run(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(program), *arguments], cwd=tmp_path, text=True,
            capture_output=True, timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        )

    return run


@pytest.mark.parametrize(("arguments", "printed"), [
    (("--config", CONFIG), "2.5 0.2"),
    ((f"--config={CONFIG}:alpha=2.0", "--config.router.eta=1"), "2.0 1.0"),
])
def test_config_file_argument_and_override(run, arguments, printed):
    done = run(*arguments)
    assert (done.returncode, done.stdout.strip()) == (0, printed), done.stderr


def test_a_log_file_holds_every_line_as_it_comes(run):
    done = run("--config", f"{CONFIG}:alpha=3.0")
    assert (done.returncode, done.stdout.strip()) == (9, "3.0 0.2"), done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "--config must have a value"),
    (("--config=absent.py",), "No such file or directory: 'absent.py'"),
    (("--config=absent.py", "--config.seed=1"), "No such file or directory: 'absent.py'"),
    ((f"--config={CONFIG}", "surplus"), "expected --flags only, received 'surplus'"),
    ((f"--config={CONFIG}", "--confg"), "Unknown command line flag 'confg'"),
    ((f"--config={CONFIG}", "--config.router.alpa=1"), "unknown key 'alpa'; Did you mean"),
    ((f"--config={CONFIG}", "--config.seed=x"), "--config.seed=x"),
    ((f"--config={CONFIG}", "--config.router.alpha=-1"), "config.router.alpha: expected more"),
    ((f"--config={CONFIG}:alpa=2",), "config argument: unknown key 'alpa'"),
    ((f"--config={CONFIG}:alpha=x",), "config argument: alpha expects float"),
    ((f"--config={CONFIG}:alpha=1",), "an error of the program's own"),
])
def test_errors_are_one_line_and_status_2(run, arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_defects_keep_their_traceback(run, tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    done = run("--config=broken.py")
    assert done.returncode == 1
    assert 'broken.py", line 2' in done.stderr


def test_help_lists_the_config_flag(run):
    assert "--config:" in run("--help").stdout
