"""Processes of several hosts: they come, stop and fail together."""

import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from drnet_jax.checkpoints.existing import newest
from drnet_jax.hosts.join import VARIABLES
from tests import runs
from tests.processes import Running, ended, last_line
from tests.test_end_to_end import final_parameters, lines


def variables_of_hosts(monkeypatch, values):
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("values", "message"), [
    (("localhost:9999", "x", "0"), "JAX_NUM_PROCESSES: expected a number from 1 to 1000000, re"),
    (("localhost:9999", "0", "0"), "JAX_NUM_PROCESSES: expected a number from 1"),
    (("localhost:9999", "2", "2"), "JAX_PROCESS_ID: expected a number from 0 to 1, received '2'"),
    (("localhost:9999", "2", "-1"), "JAX_PROCESS_ID: expected a number from 0 to 1, received '-1'"),
    (("localhost", "2", "0"), "JAX_COORDINATOR_ADDRESS: expected HOST:PORT, received 'localhost'"),
    (("", "2", "0"), "JAX_COORDINATOR_ADDRESS: expected HOST:PORT, received ''"),
])
def test_wrong_variables_of_hosts(monkeypatch, capsys, tmp_path, values, message):
    variables_of_hosts(monkeypatch, values)
    assert runs.call("--distributed", *runs.arguments(tmp_path, tmp_path / "run")) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


JOIN = """
import os
from drnet_jax import errors
from drnet_jax.hosts.join import VARIABLES, join

for names in ([], VARIABLES[:1], VARIABLES[:2], VARIABLES[1:]):
    values = dict(zip(VARIABLES, ("localhost:9999", "2", "0")))
    os.environ.update({name: values[name] for name in names})
    try:
        join()
    except errors.UserError as error:
        print(error)
    for name in names:
        del os.environ[name]
"""


def test_missing_variables_of_hosts_are_named():
    """In a process of its own, as JAX is to find out by itself where it is."""
    done = runs.python(JOIN)
    assert done.stderr == ""
    every_missing = (
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID",
        "JAX_NUM_PROCESSES, JAX_PROCESS_ID", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS",
    )
    for line, missing in zip(done.stdout.splitlines(), every_missing, strict=True):
        assert line.startswith("--distributed: expected a TPU slice, Slurm or the like, or the ")
        assert re.search(f"; missing: {missing}( [(]|$)", line)


@pytest.mark.parametrize(("index", "message"), [
    (0, "--distributed: expected 2 processes within 1 s, of which 1 did not come"),
    (1, "--distributed: expected process 0 at localhost:{port} within 1 s, received no answer ("),
])
def test_one_that_does_not_come_is_named(tmp_path, index, message):
    with runs.socket_port() as port:
        pass
    began = time.monotonic()
    running = start(index, 2, port, "train", *runs.arguments(tmp_path, tmp_path / "run"),
                    DRNET_HOSTS_TIMEOUT="1")
    assert running.end(60) == 2
    assert time.monotonic() - began < 30
    assert last_line(running.err).startswith(f"error: {message.format(port=port)}")
    assert running.err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_two_of_the_same_number(tmp_path):
    with runs.socket_port() as port:
        pass
    command = runs.arguments(tmp_path, tmp_path / "run")
    running = [start(index, 3, port, "train", *command, DRNET_HOSTS_TIMEOUT="20")
               for index in (0, 1, 1)]
    with ended(*running):
        for each in running:
            assert each.end(60) == 2
        for each in running[1:]:
            assert last_line(each.err).startswith(
                "error: --distributed: expected processes of different numbers, received two of "
                "number 1, on ")


def start(index, count, port, *flags, devices=1, **variables):
    """Starts process `index` of `count`, of so many virtual devices."""
    return Running(runs.start(
        *flags, "--distributed", devices=devices, JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
        JAX_NUM_PROCESSES=str(count), JAX_PROCESS_ID=str(index), **variables))


def together(*flags, count=2, devices=2):
    """Starts all processes of a run."""
    with runs.socket_port() as port:
        pass
    return [start(index, count, port, *flags, devices=devices) for index in range(count)]


def complete(*flags, **options):
    """Runs it by several processes to its end."""
    running = together(*flags, **options)
    with ended(*running):
        for each in running:
            assert each.end() == 0, each.err
    return running


SHORT = {"resolutions": (32, 16), "pretrain.epochs": 2, "finetune.epochs": 2, "sync_norm": True}


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir) if line["kind"] == "train"}


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The workdir of a run of one process, of one device, whose norms see the whole batch."""
    workdir = tmp_path_factory.mktemp("alone")
    status, _, err = runs.run(*runs.arguments(images, workdir, SHORT))
    assert status == 0, err
    return workdir


def assert_same_training(workdir, expected):
    assert losses(workdir).keys() == losses(expected).keys()
    for step, loss in losses(expected).items():
        assert losses(workdir)[step] == pytest.approx(loss, rel=1e-4), step
    for ours, theirs in zip(jax.tree.leaves(final_parameters(workdir)),
                            jax.tree.leaves(final_parameters(expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_two_processes_of_two_devices_train_and_evaluate_as_one(images, alone, tmp_path):
    workdir = tmp_path / "two"
    first, second = complete(*runs.arguments(images, workdir, SHORT))
    assert_same_training(workdir, alone)
    # Process 0 tells, and the other has nothing to say but what Gloo prints, by several threads.
    assert "going on" not in first.out
    assert re.sub(r"\[Gloo\] Rank |\d is connected to \d peer ranks\. |\s|"
                  r"Expected number of connected peer ranks is : \d", "", second.out) == ""
    complete("eval", "--workdir", str(workdir))
    assert runs.call("eval", "--workdir", str(alone)) == 0
    found, expected = (
        json.loads((each / "eval.json").read_text()) for each in (workdir, alone))
    assert found["images"] == expected["images"] == 15
    assert [each["top1"] for each in found["policies"]] == [
        each["top1"] for each in expected["policies"]]


def test_one_process_of_four_devices_trains_as_one_device(images, alone, tmp_path):
    status, _, err = runs.run(*runs.arguments(images, tmp_path, SHORT), devices=4)
    assert status == 0, err
    assert_same_training(tmp_path, alone)


def test_a_run_moves_from_one_device_to_two_processes_of_two_and_to_two_devices(
    images, alone, tmp_path
):
    command = runs.arguments(images, tmp_path, SHORT)
    first = Running(runs.start(*command))
    with ended(first):
        first.reaches(5)
        first.send(signal.SIGTERM)
        assert first.end() == 0
    second = together(*command)
    with ended(*second):
        second[0].reaches(15)
        second[1].send(signal.SIGTERM)  # any of them
        for each in second:
            assert each.end() == 0, each.err
            assert re.fullmatch(
                r"stopped by SIGTERM after step \d+, which is saved; the same command goes on",
                last_line(each.err))
    assert 15 <= newest(str(tmp_path)).step < 24
    status, out, err = runs.run(*command, devices=2)
    assert status == 0 and "going on from step" in out, err
    assert_same_training(tmp_path, alone)


def test_an_error_of_one_process_ends_the_others_with_it(images, tmp_path):
    """The image that the second one is to read is gone."""
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    running = together(*runs.arguments(folder, tmp_path / "run", SHORT | {
        "batch_size": 16, "pretrain.epochs": 99}))
    with ended(*running):
        running[0].reaches(3)
        for path in (folder / "train").rglob("*.png"):
            path.write_bytes(b"no image")
        statuses = [each.end(90) for each in running]
    # Who meets it first says so, and the other whose fault it is, if it has not met one itself.
    assert sorted(statuses) in ([1, 2], [2, 2]), [each.err for each in running]
    for status, each in zip(statuses, running, strict=True):
        named = last_line(each.err)
        assert re.search(f"{folder}/train/class[0-2]/[0-9]+.png: ", named)
        assert status == 2 or re.match(r"error: process [01] on \S+ failed: ", named)
