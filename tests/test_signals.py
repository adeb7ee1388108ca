"""Signals: a run stops after its present step, or dies at once, and goes on as if it had not."""

import os
import random
import signal
import time

import pytest

from drnet_jax.checkpoints.existing import newest
from drnet_jax.checkpoints.manager import TEMPORARY
from tests import runs
from tests.processes import Running, ended, last_line, steps_told, workers
from tests.test_end_to_end import final_parameters, lines
from tests.tiny import assert_equal

STATUS = {signal.SIGTERM: 0, signal.SIGHUP: 0, signal.SIGINT: 130, signal.SIGKILL: -9}
MOMENTS = ("start", "step", "save")


@pytest.fixture
def whole(thorough, images, finished, tmp_path):
    """(overrides, the workdir of a run with these that nothing interrupted, how many signals)."""
    if not thorough:
        return {}, finished, 6
    overrides = {"pretrain.epochs": 30, "finetune.epochs": 30}
    status, _, err = runs.run(*runs.arguments(images, tmp_path / "whole", overrides))
    assert status == 0, err
    return overrides, tmp_path / "whole", 50


def test_signals_at_random_moments_change_nothing(images, whole, tmp_path):
    overrides, expected, count = whole
    workdir, rng = tmp_path / "run", random.Random(0)
    command = runs.arguments(images, workdir, overrides)
    kinds = [kind for _ in range(count // len(STATUS) + 1) for kind in STATUS][:count]
    rng.shuffle(kinds)
    for kind in kinds:
        running = Running(runs.start(*command))
        moment = rng.choice(MOMENTS)
        if moment == "save":
            running.reaches(1)  # what a killed run has left half written is gone by then
            running.waits_for(lambda: any(workdir.glob(f"checkpoints/*{TEMPORARY}*")))
        else:
            running.waits_for(
                lambda running=running, first=moment == "start":
                len(steps_told(running.out)) >= (1 if first else 3))
            time.sleep(rng.uniform(0, 0.05))
        told = steps_told(running.out)
        running.send(kind)
        assert running.end() == STATUS[kind], running.err
        if kind == signal.SIGKILL:
            continue
        after = newest(str(workdir)).step
        # Nothing that was told of is lost.
        assert after >= max(told, default=0)
        assert last_line(running.err) == (
            f"stopped by {kind.name} after step {after}, which is saved; the same command goes on")
        assert f"{kind.name}: stopping after this step; a second signal" in running.err
    running = Running(runs.start(*command))
    assert running.end() == 0, running.err
    assert_equal(final_parameters(workdir), final_parameters(expected))
    steps = [line["step"] for line in lines(workdir) if line["kind"] == "train"]
    assert steps == [line["step"] for line in lines(expected) if line["kind"] == "train"]


def test_a_second_signal_stops_at_once(images, tmp_path):
    """While a step does not end, as its images do not come: what makes them is halted."""
    running = Running(runs.start(*runs.arguments(images, tmp_path, {
        "data.workers": 1, "data.timeout": 0.0})))
    with ended(running):
        running.reaches(2)
        for worker in workers(running.pid):
            os.kill(worker, signal.SIGSTOP)
        running.send(signal.SIGTERM)
        running.waits_for(lambda: "stopping after this step" in running.err)
        running.send(signal.SIGTERM)
        assert running.end(20) == 128 + signal.SIGTERM
        assert "Traceback" not in running.err
