"""The one table of commands: what starts which, and errors of one line."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import drnet_jax
from drnet_jax import commands
from drnet_jax.commands import shared
from drnet_jax.errors import UserError
from tests import runs

CONFIG = str(runs.REPOSITORY / "configs" / "imagenet_resnet50.py")


def test_every_command_is_a_module_of_its_name():
    modules = {path.stem for path in (runs.REPOSITORY / "drnet_jax/commands").glob("[a-z]*.py")}
    names = {name.replace("-", "_") for name in commands.COMMANDS}
    assert modules - {"shared", "model_flags"} == names


@pytest.mark.parametrize(("arguments", "name", "rest"), [
    ([], None, []),
    (["--workdir=a"], "train", ["--workdir=a"]),
    (["eval", "--workdir=a"], "eval", ["--workdir=a"]),
    (["--mode=eval", "--workdir=a"], "eval", ["--workdir=a"]),
    (["--workdir=a", "--mode", "eval"], "eval", ["--workdir=a"]),
    (["--help"], None, []),
])
def test_which_command_runs(arguments, name, rest):
    assert commands._command(arguments) == (name, rest)


def test_the_version(capsys):
    assert runs.call("--version") == 0
    assert capsys.readouterr().out == f"drnet_jax {drnet_jax.__version__}\n"


def test_of_an_override_given_twice_the_last_counts(capsys):
    arguments = ("--config.resolutions=64", "--config.resolutions=(48,32)",
                 "--config.predictor.resolution=32", "--config.predictor.resolution=16")
    assert runs.call("cost", "--config", CONFIG, *arguments) == 0
    out = capsys.readouterr().out
    assert "predictor resnet10 at 16" in out
    assert [line.split()[0] for line in out.splitlines()[3:6]] == ["48", "32", "predictor"]


@pytest.mark.parametrize(("given", "left"), [
    (["--config.a", "1,2", "--config.b=3", "--config.a", "3"], ["--config.b=3", "--config.a", "3"]),
    (["--config.a=1", "-config.a", "-3"], ["-config.a", "-3"]),
    (["--config.a", "1", "--config.a=3"], ["--config.a=3"]),
    (["--config.true", "--mix", "1", "--config.true"], ["--mix", "1", "--config.true"]),
    (["--mix", "1", "--mix", "2"], ["--mix", "1", "--mix", "2"]),
])
def test_an_override_and_its_value_may_be_two_words(given, left):
    assert commands._last_of_each_override(given) == left


def test_whoever_reads_may_leave(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert runs.call("--help") == 1
        print("what is left does not fail", flush=True)


@pytest.mark.parametrize("process", [0, 1])
def test_one_process_prints_the_config(tmp_path, capsys, monkeypatch, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr("drnet_jax.commands.train.train", lambda *arguments: None)
    assert runs.call("train", "--config", CONFIG, "--workdir", str(tmp_path)) == 0
    assert ('"batch_size"' in capsys.readouterr().out) == (process == 0)


def test_a_config_takes_an_argument(capsys):
    assert runs.call("cost", "--config", f"{CONFIG}:resolutions=(224,112)", "--mix=0.5,0.5") == 0
    assert "mean of 0.5, 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (("fly",), "expected a command (train, eval, "),
    (("--mode=fly",), "expected a command (train, eval, "),
    (("cost", "more", "--config", CONFIG), "expected --flags only, received 'more'"),
    (("cost",), "--config: expected FILE, such as configs/default.py, received none"),
    (("cost", "--config=nowhere.py"), "nowhere.py"),
    (("cost", "--config", CONFIG, "--confg=1"), "confg"),
    (("cost", "--config", CONFIG, "--config.router.tau=1"), "unknown key"),
    (("cost", "--config", f"{CONFIG}:alpa=1"), "unknown key 'alpa'"),
    (("cost", "--config", CONFIG, "--config.seed=x"),
     "--config.seed=x: expected a whole number, received 'x'"),
    (("train", "--config", CONFIG), "--workdir: expected a directory, received none"),
    (("cost", "--config", CONFIG, "--config.router.gumbel.alpha=-1"), "alpha: expected more"),
    (("cost", "--config", CONFIG, "--mix=0.5,x,0.5"), "--mix: expected numbers"),
    (("train", "--config", CONFIG, "--workdir=a", "--budget=1"), "budget"),
    (("eval", "--workdir=a", "--warm-up"), "warm-up"),
    (("cost", "--config", CONFIG, "--config.resolutions[9]=3"), "unknown key tuple index"),
    (("cost", "--config", CONFIG, "--config.=3"), "unknown key"),
    (("cost", "--config", CONFIG, "--config.seed.x=3"), "seed.x"),
    (("cost", "--config", CONFIG, "--config.router=3"), "is not a dict"),
    (("train", "--config", CONFIG, "--workdir="), "--workdir: expected a directory, received ''"),
    (("train", "--config", CONFIG, "--workdir", __file__), "test_commands.py is a file"),
    (("train", "--config", CONFIG, "--workdir", f"{__file__}/a"), "test_commands.py is a file"),
    (("train", "--config", CONFIG, "--workdir=gs://bucket/a"), "mount the bucket"),
    (("eval", "--workdir=gs://bucket/a"), "mount the bucket"),
    (("eval", "--workdir=~nobody_of_that_name/a"), "--workdir: expected a directory"),
    (("eval", "--workdir", "a" * 300), "--workdir: expected a directory"),
])
def test_errors_are_one_line_and_status_2(capsys, arguments, message):
    assert runs.call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and message in err
    assert err.count("\n") == 1


def test_a_network_is_looked_for_before_data_is_prepared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert runs.call("train", "--config", str(runs.REPOSITORY / "configs/quickstart.py"),
                     "--workdir=run", "--config.data.dir=data",
                     "--config.classifier.name=resnet19") == 2
    assert "error: config.classifier.name: expected one of" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# A file, and what is said of it: name, line and what is wrong.
CONFIGS = {
    "config.json": ('{"seed": 3,\n "curve": true}', "config.json, line 2: NameError"),
    "literal.json": ('{"seed": 3}', "literal.json: expected a Python file that defines"),
    "syntax.py": ("a = 1\ndef get_config(\n", "syntax.py, line 2: SyntaxError: '('"),
    "binary.py": ("\0", "binary.py: SyntaxError"),
    "raises.py": ("def get_config():\n    a = 0\n    return 1 / a\n",
                  "raises.py, line 3: ZeroDivisionError: division by zero\n"),
    "imports.py": ("\nimport no_such_module\n", "imports.py, line 2: ModuleNotFoundError"),
    "lines.py": ("def get_config():\n  raise KeyError('a\\nb')\n", "lines.py, line 2: KeyError"),
    "empty.py": ("", "empty.py: expected a Python file that defines get_config()"),
    "nothing.py": ("def get_config():\n    pass\n", "a ConfigDict, received NoneType"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_file_that_is_none_is_one_line(tmp_path, capsys, name):
    text, message = CONFIGS[name]
    (tmp_path / name).write_text(text)
    assert runs.call("cost", "--config", str(tmp_path / name)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_a_missing_config_file_says_where_it_was_looked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.call("cost", "--config=configs/default.py") == 2
    assert f"found no file 'configs/default.py' in {tmp_path}" in capsys.readouterr().err


def test_a_tilde_is_the_home_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert runs.call("eval", "--workdir=~/runs/a") == 2
    assert f"error: {tmp_path}/runs/a: expected a working directory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # nor is anything made by a check
    (tmp_path / "my.py").touch()
    assert runs.call("cost", "--config=~/my.py") == 2
    assert f"error: {tmp_path}/my.py: expected a Python file" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="a directory that can be written"):
        shared.directory("--workdir", str(tmp_path / "run"))
    assert shared.directory("--workdir", str(tmp_path), to_write=False) == tmp_path


def test_a_relative_directory_stays_one():
    assert shared.directory("--workdir", "runs/a") == Path("runs/a")


def test_a_report_survives_a_terminal_without_its_letters(monkeypatch):
    """And undecodable bytes of a class name, which Python holds as lone surrogates."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert runs.call("--help") == 0
    print("71.2 \u00b1 0.3, class \udcff")
    assert terminal.buffer.getvalue().decode().endswith("71.2 \\xb1 0.3, class \\udcff\n")


def test_help_lists_commands_and_flags(capsys):
    assert runs.call("--help") == 0
    assert "prepare" in capsys.readouterr().out
    assert runs.call("cost", "--help") == 0
    out = capsys.readouterr().out
    assert "drnet cost --config" in out.splitlines()[0]
    assert "\n  --mix=VALUE\n      Share of the images" in out and "\n  --layers\n" in out
    assert "drnet_jax.commands" not in out
    assert runs.call("benchmark", "--help") == 0
    assert "Default: 5." in capsys.readouterr().out


@pytest.mark.parametrize("module", ["drnet_jax", "drnet_jax.main"])
def test_the_ways_in_lead_to_the_same_table(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=runs.REPOSITORY, text=True,
        capture_output=True, timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: drnet COMMAND" in done.stdout


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "drnet_jax", "cost", "--config", CONFIG], cwd=runs.REPOSITORY,
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: a file could not be written")
    assert "make room" in done.stderr
    assert done.stderr.count("\n") == 1
