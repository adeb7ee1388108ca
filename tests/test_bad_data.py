"""Images that cannot be read, data that is not there, and workers that are gone or hang."""

import json
import os
import re
import shutil
import signal
import threading
import time

import pytest

from drnet_jax.checkpoints.existing import newest
from drnet_jax.data import examples
from tests import runs
from tests.processes import Running, alive, ended, error_line, last_line, workers

SHORT = {"pretrain.epochs": 2, "finetune.epochs": 0, "resolutions": (32, 16)}
BAD = ("train/class0/3.png", "train/class2/11.png", "val/class1/2.png")


@pytest.fixture
def damaged(images, tmp_path):
    """A folder of 48 images to train on, of which two cannot be read, and one of 15 to validate."""
    shutil.copytree(images, tmp_path / "images")
    for name in BAD:
        (tmp_path / "images" / name).write_bytes(b"\x89PNG, but no more than that")
    return tmp_path / "images"


@pytest.mark.parametrize("most", [2, 0.05])
def test_bad_images_are_passed_over_counted_and_listed(damaged, tmp_path, capsys, most):
    workdir = tmp_path / "run"
    assert runs.call(*runs.arguments(damaged, workdir, SHORT | {"data.max_bad": most})) == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in (workdir / "bad_images.jsonl").read_text().splitlines()]
    assert {each["image"] for each in found} == {str(damaged / name) for name in BAD[:2]}
    assert all("cannot" in each["error"] and 1 <= each["step"] <= 6 for each in found)
    for name in BAD[:2]:  # once, though each comes in two epochs
        assert out.count(f"left out {damaged / name}: ") == 1
    assert f"warning: left out {damaged / BAD[2]}: " in err
    # Every batch was whole.
    assert newest(str(workdir)).progress.examples == 96
    # A run that goes on tells of none twice.
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert runs.call(*runs.arguments(damaged, workdir, SHORT | {"data.max_bad": most})) == 0
    assert len((workdir / "bad_images.jsonl").read_text().splitlines()) == 2


def test_more_than_may_be(damaged, tmp_path, capsys):
    command = runs.arguments(damaged, tmp_path / "run", SHORT | {"data.max_bad": 1})
    assert runs.call(*command) == 2
    assert re.match(
        "error: config.data.max_bad: expected at most 1 images that cannot be read, found 2, the "
        f"last of which is {damaged}/train/class[02]/(3|11).png: ",
        last_line(capsys.readouterr().err))


def test_by_default_the_first_one_stops_a_run(damaged, tmp_path, capsys):
    assert runs.call(*runs.arguments(damaged, tmp_path / "run", SHORT)) == 2
    error = last_line(capsys.readouterr().err)
    assert re.match(f"error: {damaged}/(train|val)/class[0-2]/[0-9]+.png: ", error)


def test_data_that_is_back_in_time_is_waited_for(images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    running = Running(runs.start(*runs.arguments(folder, tmp_path / "run", SHORT)))
    with ended(running):
        running.reaches(3)
        folder.rename(tmp_path / "away")
        time.sleep(2)
        assert alive(running.pid), running.err
        (tmp_path / "away").rename(folder)
        assert running.end() == 0, running.err
    assert newest(str(tmp_path / "run")).progress.examples == 96


def test_data_that_never_comes_back(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(examples, "PATIENCE", (0.1, 0.2))
    folder, workdir = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, folder)

    def move_away() -> None:
        deadline = time.monotonic() + 60
        while newest(str(workdir)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        folder.rename(tmp_path / "away")

    moving = threading.Thread(target=move_away)
    moving.start()
    assert runs.call(*runs.arguments(folder, workdir, SHORT | {"pretrain.epochs": 90})) == 2
    moving.join()
    assert re.match(f"error: {folder}/train/class[0-2]/[0-9]+.png: .*No such file",
                    last_line(capsys.readouterr().err))


@pytest.fixture
def working(images, tmp_path):
    """A run whose images one worker process makes, and that process."""
    running = Running(runs.start(*runs.arguments(images, tmp_path / "run", {
        "data.workers": 1, "data.timeout": 5.0, "pretrain.epochs": 99})))
    with ended(running):
        running.reaches(3)
        (worker,) = workers(running.pid)
        yield running, worker


def test_a_worker_that_is_killed_ends_the_run_in_a_line(working):
    running, worker = working
    os.kill(worker, signal.SIGKILL)
    assert running.end(60) == 2, running.err
    assert error_line(running.err).startswith("error: a worker process of the loader ")


def test_a_worker_that_hangs_ends_the_run_within_the_time_out(working):
    running, worker = working
    os.kill(worker, signal.SIGSTOP)
    assert running.end(60) == 2, running.err
    os.kill(worker, signal.SIGCONT)  # upon which it sees that it is alone, and ends
    assert error_line(running.err).startswith(
        "error: no batch of images came within 5 s (config.data.timeout); expected ")


def test_workers_end_with_a_run_that_is_killed(working):
    running, worker = working
    running.send(signal.SIGKILL)
    assert running.end() == -9
    deadline = time.monotonic() + 20
    while alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
