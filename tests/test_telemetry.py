"""Windows of step metrics, the warning of a collapsed router, and the record of a run."""

import dataclasses
import json
import os
import struct
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from drnet_jax.cost import Costs, Parameters
from drnet_jax.devices import Compilation
from drnet_jax.train import loop, telemetry
from drnet_jax.train.telemetry import Telemetry, Window

COSTS = Costs((32, 16), (100, 20), 5, Parameters(1, 1, 1))


def sums(chosen, loss=8.0):
    count = sum(chosen)
    return jax.tree.map(np.float32, {
        "count": count, "loss": loss, "correct": [1, 2], "chosen": chosen,
        "router_loss": 0,
    }, is_leaf=lambda value: isinstance(value, list))


def test_a_window_weighs_steps_by_their_images():
    window = Window(COSTS)
    window.add(sums([1, 3], loss=8.0))
    window.add(sums([5, 3], loss=4.0))
    values = window.values(steps_left=0)
    assert values["loss"] == pytest.approx(12 / 12)
    assert values["mix"] == {"32": pytest.approx(0.5), "16": pytest.approx(0.5)}
    assert values["accuracy"] == pytest.approx(6 / 12)
    assert values["multiply_adds"] == pytest.approx(0.5 * 100 + 0.5 * 20 + 5)
    assert values["entropy"] == pytest.approx(np.log(2))
    assert values["seconds_left"] == 0


ANSWERING = dataclasses.replace(COSTS, classifies=True)


def test_a_predictor_that_answers_has_a_share_of_the_mix_and_no_bucket():
    window = Window(ANSWERING)
    window.add(sums([1, 3, 4]) | {"correct": np.array([1, 2, 1]), "slots": np.array([4, 4])})
    values = window.values(steps_left=0)
    assert values["mix"] == {"32": 1 / 8, "16": 3 / 8, "predictor": 4 / 8}
    assert values["accuracy"] == pytest.approx(4 / 8)
    assert values["multiply_adds"] == pytest.approx((100 + 60) / 8 + 5)
    assert values["padding"] == pytest.approx(0.5)  # 4 images in 8 rows


def test_where_the_predictor_answers_everything_nothing_is_padding():
    window = Window(ANSWERING)
    window.add(sums([0, 0, 8]) | {"slots": np.array([0, 0])})
    assert window.values(steps_left=0)["padding"] == 0


def test_in_stage_1_accuracy_is_that_of_each_option():
    window = Window(ANSWERING)
    window.add({"count": np.float32(4), "loss": np.float32(8), "correct": np.float32([3, 2, 1]),
                "router_loss": np.float32(2), "logits": np.float32(0)})
    values = window.values(steps_left=0)
    assert values["accuracy"] == {"32": 3 / 4, "16": 2 / 4, "predictor": 1 / 4}
    assert values["router_loss"] == 0.5 and "mix" not in values
    assert not window.collapsed()


@pytest.mark.parametrize(("steps", "collapsed"), [
    ([[200, 0]], True),
    ([[0, 200], [1, 199]], True),
    ([[0, 200], [100, 100]], False),
    ([[3, 97]], False),
])
def test_collapse_is_one_resolution_with_nearly_all_images(steps, collapsed):
    window = Window(COSTS)
    for chosen in steps:
        window.add(sums(chosen))
    assert window.collapsed() == collapsed


def test_pretraining_and_a_single_candidate_cannot_collapse():
    window = Window(COSTS)
    pretrained = sums([4, 0])
    del pretrained["chosen"]
    window.add(pretrained)
    assert not window.collapsed()
    alone = Window(Costs((32,), (100,), 5, Parameters(1, 1, 0)))
    alone.add(sums([4]))
    assert not alone.collapsed()


@pytest.mark.parametrize("cut", ['{"kind": "train", "st', '{"step": 1, "mix": {"32": 0.5}'])
def test_going_on_drops_later_and_broken_lines(tmp_path, cut):
    with opened(tmp_path) as log:
        for step in (1, 2, 3):
            log.write("train", step, {"loss": 1.0})
        log.compiled(Compilation("bucket 32px x8", 0.5, 0.5, False))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(cut)
    with opened(tmp_path, 2) as log:
        log.write("train", 3, {"loss": 2.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("strange", [
    b"a remark", b"", b"[1, 2]", b'{"kind": "train"}', b'{"step": "three"}', b"\xff\xfe",
])
def test_lines_that_are_not_ours_are_named_and_kept(tmp_path, capsys, strange):
    path = tmp_path / "metrics.jsonl"
    one, three = b'{"kind": "train", "step": 1}', b'{"kind": "train", "step": 3}'
    path.write_bytes(b"\n".join([one, strange, three, strange, b""]))
    with opened(tmp_path, 2):
        pass
    assert path.read_bytes() == b"\n".join([one, strange, strange, b""])
    assert "metrics.jsonl: expected a record of a run in every line; left as they are: lines 2, 4" \
        in capsys.readouterr().out
    # A record at the end may lack no more than its end of line.
    path.write_bytes(one)
    with opened(tmp_path, 2):
        pass
    assert path.read_bytes() == one + b"\n"


def test_tensorboard_has_what_a_kill_left_and_no_step_twice(tmp_path):
    killed = opened(tmp_path)
    assert not any(event.HasField("session_log") for event in events(tmp_path))
    for step in (1, 2, 3):
        killed.write("train", step, {"loss": 1.0})
    killed.flush()  # as at a checkpoint
    assert scalars(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0)]
    with opened(tmp_path, 2) as log:
        log.write("train", 3, {"loss": 2.0})
    assert scalars(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]
    killed.__exit__(None, None, None)


def opened(workdir, step=0):
    log = Telemetry(str(workdir))
    log.open(step)
    return log


def events(workdir):
    """The events of all files, in the order that they were written in."""
    found = []
    for path in sorted((workdir / "tensorboard").glob("events*"), key=os.path.getmtime):
        data = path.read_bytes()
        while data:  # length, its checksum, event, its checksum
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def scalars(workdir):
    """(step, value) as TensorBoard shows them: from where a session starts, it replaces others."""
    shown = []
    for event in events(workdir):
        if event.HasField("session_log"):
            shown = [(step, value) for step, value in shown if step < event.step]
        shown += [(event.step, value.simple_value) for value in event.summary.value]
    return shown


def test_a_compilation_is_recorded(tmp_path, capsys):
    with opened(tmp_path) as log:
        log.compiled(Compilation("route", 1.5, 1.5, False))
        log.compiled(Compilation("bucket 32px x8", 2.5, 0.25, True))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["program"], line["seconds"], line["waited"]) for line in lines] == [
        ("compile", "route", 1.5, 1.5), ("compile", "bucket 32px x8", 2.5, 0.25)]
    assert capsys.readouterr().out.splitlines() == [
        "compiled route in 1.5 s",
        "compiled bucket 32px x8 in 2.5 s, in the background (0.2 s waited)",
    ]


def test_a_missed_budget_is_recorded_and_left_to_its_warning(tmp_path, capsys):
    with opened(tmp_path) as log:
        log.write("validation", 1, {"top1": 0.5, "missed": "the scores are all alike"})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["missed"]
    assert capsys.readouterr().out == "validation 1: top1 0.5\n"


def test_a_missed_budget_is_a_warning(tmp_path, capsys):
    missed = {"top1": 0.5, "price": 0.1, "missed": "the scores are all alike"}
    with opened(tmp_path) as log:
        run = types.SimpleNamespace(
            validation=lambda stage, state: missed, telemetry=log, checkpoints=None)
        assert loop._validate(run, "finetune", None, 7) == missed
    assert capsys.readouterr().out.splitlines()[1] == "warning: step 7: the scores are all alike"


def test_padding_and_waiting_are_shares_of_a_window(monkeypatch):
    monkeypatch.setattr(telemetry.time, "perf_counter", iter([100.0, 110.0]).__next__)
    window = Window(COSTS)
    for slots in ([4, 4], [0, 8]):
        window.add(sums([1, 3]) | {"slots": np.array(slots)})
    window.waited(1.0, 0.5)
    window.waited(1.0, 2.0)
    values = window.values(steps_left=3)
    assert values["padding"] == pytest.approx(0.5)  # 8 images in 16 rows
    assert (values["data_wait"], values["compile_wait"]) == (0.2, 0.25)
    assert values["seconds_left"] == 15.0
