"""What tables and figures need is run once, gone on with, recognised, and drawn."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drnet_jax.api import load
from drnet_jax.benchmark import trained
from drnet_jax.cost import Costs, Parameters, model_costs
from drnet_jax.errors import UserError
from drnet_jax.reproduce import (
    figures,
    jobs,
    latency,
    paper,
    report,
    reproduce,
    running,
    worker,
)
from drnet_jax.reproduce.latency import Point
from drnet_jax.reproduce.paper import NEEDS, Dynamic, Single
from drnet_jax.reproduce.running import Display
from drnet_jax.reproduce.scales import PAPER, SMALL, Run, runs_of
from drnet_jax.reproduce.study import Study
from tests import runs

TINY = dataclasses.replace(
    SMALL, files={network: f"{Path(__file__).parent}/tiny_paper.py:" for network in SMALL.files},
    sizes={224: 32, 192: 24}, alpha=1e-5 / 4.1, widths={}, alone=(),
)
ALL = tuple(NEEDS)


def study_of(folder, images, *names, **overrides):
    return Study(TINY, Path(folder), names, {"data.dir": str(images)} | overrides, given=True)


def test_runs_that_rows_share_are_made_once(tmp_path):
    chains = jobs.jobs_of(SMALL, [each for name in ALL for each in NEEDS[name]], tmp_path, {})
    made = jobs.distinct(chains.values())
    assert [job.run.name for job in made] == [
        "resnet50-64px", "resnet50-stage1", "resnet50-eta0", "resnet50-eta0.2-alpha2.5",
        "resnet50-shared-norm-stage1", "resnet50-shared-norm-eta0.2-alpha2.5",
        "resnet50-eta0.2-alpha2", "resnet50-eta0.2-alpha3", "resnet50-eta0.2-alpha3.5",
        "resnet50-eta0.1-alpha3", "resnet50-eta0.5-alpha3", "resnet50-eta1-alpha3",
        "resnet101-64px", "resnet101-stage1", "resnet101-eta0", "resnet50-55px",
        "mobilenetv2-64px", "mobilenetv2-55px", "mobilenetv2-width0.75-64px",
        "mobilenetv2-stage1", "mobilenetv2-eta0"]
    known = set()
    for job in made:  # what a run begins with is made before it
        assert job.run.origin in known | {""}
        assert job.config.init_from == (
            str(tmp_path / "runs" / job.run.origin) if job.run.origin else "")
        known.add(job.run.name)
        stages = [stage for stage in ("pretrain", "finetune") if job.config.stage(stage).epochs]
        assert stages == [job.stage]
        assert (job.stage == "finetune") == bool(job.run.origin)


def test_the_papers_own_runs():
    on_100 = Dynamic("resnet50", "imagenet100", 0.2, 2.5, shared_norm=True)
    assert runs_of(PAPER, on_100) == (
        Run("imagenet100-resnet50-shared-norm-stage1",
            "imagenet_resnet50.py:imagenet100,shared_norm,finetune.epochs=0",
            "ResNet-50 on ImageNet-100, shared BN, stage 1"),
        Run("imagenet100-resnet50-shared-norm-eta0.2-alpha2.5",
            "imagenet_resnet50.py:imagenet100,shared_norm,pretrain.epochs=0,eta=0.2,alpha=2.5",
            "ResNet-50 on ImageNet-100, shared BN, eta 0.2, alpha 2.5, stage 2",
            "imagenet100-resnet50-shared-norm-stage1"))
    assert runs_of(PAPER, Single("mobilenetv2", width=0.75)) == (
        Run("imagenet-mobilenetv2-width0.75-224px",
            "imagenet_mobilenetv2.py:single,classifier.width=0.75",
            "MobileNetV2 x 0.75, 224 px alone"),)
    assert runs_of(PAPER, Single("resnet50", size=192))[0].config == (
        "imagenet_resnet50.py:single,resolutions=(192,)")
    assert len({run for name in ALL for each in NEEDS[name] for run in runs_of(PAPER, each)}) == 28


def test_an_alpha_of_the_small_scale_is_the_papers_share_of_the_base(tmp_path):
    drnet = Dynamic("resnet50", eta=0.2, alpha=2.0)
    job = jobs.jobs_of(SMALL, [drnet], tmp_path, {})[drnet][-1]
    base = model_costs(job.config, 12).classifier[0]
    assert 1e9 * job.config.router.gumbel.alpha / base == pytest.approx(2.0 / 4.1, rel=1e-3)


class Here:
    """A process of a worker that is this one."""

    def __init__(self, order, folder, log, cores):
        assert cores is None
        self._order, self._looked = order, False
        self.began = time.time()

    def ended(self):
        if not self._looked:
            self._looked = True
            return False
        worker.WORK[self._order["kind"]](self._order | {"began": self.began})
        return True

    def stop(self):
        pass


@pytest.fixture(scope="module")
def done(images, tmp_path_factory):
    """A study that is done, and what was said of it."""
    study = study_of(tmp_path_factory.mktemp("study"), images, "table5", "figure1")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        # In this process, where programs are compiled already.
        patch.setattr(worker, "_watch", lambda tick: tick())
        patch.setattr(reproduce, "Process", Here)
        patch.setattr(reproduce, "POLL", 0)
        reproduce.reproduce(study, Display(said), 1)
    return study, said.getvalue()


def test_a_study_is_run_and_reported(done):
    study, said = done
    first, *lines = said.splitlines()
    assert re.fullmatch(
        r"\[1/2\] ResNet-50, stage 1: starting, \d+ s left \(of all: 1 min \d+ s\)", first)
    stage1, stage2, table, figure = lines
    assert re.fullmatch(
        r"\[1/2\] ResNet-50, stage 1: [\d.]+ % at 1.00, [\d.]+ % at 0.56, [\d.]+ % at 0.25 of the "
        r"base's cost; \d+ s", stage1)
    assert re.fullmatch(
        r"\[2/2\] ResNet-50, eta 0, stage 2: [\d.]+ % at [\d.]+ of the base's cost; \d+ s", stage2)
    assert table == f"table5: {study.folder}/table5.md and .csv"
    assert figure == f"figure1: {study.folder}/figure1.png"
    assert (study.folder / "figure1.png").read_bytes().startswith(b"\x89PNG")
    text = (study.folder / "table5.md").read_text()
    assert "# resnet50-stage1: seed 3, " in text and text.count("not run") == 5  # the baseline
    assert study.result(Dynamic("resnet50")).record["environment"]["jax"]


def test_a_row_says_what_its_evaluation_has_found(done):
    study, _ = done
    *_, mean, drnet = (report.line(study, row) for row in paper.TABLES["table5"].rows)
    result = study.result(drnet.row.experiment)
    routed = result.policy("routed")
    assert (drnet.ours.top1, drnet.ours.multiply_adds) == (routed["top1"], routed["multiply_adds"])
    # What is drawn is what was measured.
    answers = result.answers
    chosen = answers.right[np.arange(len(answers.label)), answers.scores.argmax(axis=1)]
    assert chosen.mean() == routed["top1"]
    assert abs(mean.ours.top1 - answers.right.mean()) < 0.2 and mean.ours.deviation >= 0


def test_what_is_done_is_not_done_again(done, images):
    study = study_of(done[0].folder, images, "table5", "figure1")
    items = study.items()
    assert [item.progress.done for item in items] == [True, True]
    text = report.plan_text(study, items, 2)
    assert "2 runs" in text and "2 done; about 0 s to go, 2 at once" in text
    assert "as the 2 runs done here took" in text


def test_a_run_of_another_config_or_of_other_images_is_refused(done, images, tmp_path):
    study = done[0]
    job = study.needed()[1]
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, batch_size=4))
    with pytest.raises(UserError, match=r"eta0: expected a run with config.batch_size=4, found one "
                                        r"with 8; remove it, or use another --workdir$"):
        jobs.progress(other, None)
    with pytest.raises(UserError, match=r"expected a run on the images of .*, found one on others"):
        jobs.progress(job, "0" * 16)
    # Where things lie is no matter.
    moved = dataclasses.replace(job.config, init_from="elsewhere")
    assert jobs.progress(dataclasses.replace(job, config=moved), None).done


def test_a_job_is_begun_when_what_it_begins_with_is_done(tmp_path, images):
    items = study_of(tmp_path, images, "table1", "table4").items()
    names = [item.job.run.name for item in items]

    def ready(done, running):
        items_now = [dataclasses.replace(item, progress=jobs.Progress(done=name in done))
                     for name, item in zip(names, items, strict=True)]
        found = reproduce._ready(items_now, [names.index(name) for name in running], jobs=1)
        return [names[number] for number in found]

    first = ["resnet50-32px", "resnet50-stage1", "resnet50-shared-norm-stage1", "resnet50-24px"]
    assert ready([], []) == first
    assert ready([], first[:2]) == first[2:]
    assert ready(first[:2], first[2:3])[:2] == ["resnet50-eta0", "resnet50-eta0.2-alpha2.5"]
    assert "resnet50-shared-norm-eta0.2-alpha2.5" not in ready(first[:2], first[2:3])
    assert ready(names, []) == []


def test_a_chain_that_would_be_left_over_at_the_end_is_begun_in_time(tmp_path, images):
    items = study_of(tmp_path, images, "table1", "table4").items()
    names = [item.job.run.name for item in items]

    def first(**left):
        items_now = [
            dataclasses.replace(
                item, progress=jobs.Progress(),
                work=dataclasses.replace(item.work, left=left.get(item.job.run.name, 1.0)))
            for item in items]
        return names[reproduce._ready(items_now, [], jobs=2)[0]]

    chain = {"resnet50-shared-norm-stage1": 20.0, "resnet50-shared-norm-eta0.2-alpha2.5": 9.0}
    assert first() == names[0]
    assert first(**chain) == "resnet50-shared-norm-stage1"  # twice 29 are more than all
    assert first(**chain, **{names[0]: 28.0}) == names[0]


def test_how_far_a_job_has_come(done):
    job = done[0].needed()[0]
    assert jobs.progress(job, None) == jobs.Progress(18, trained=True, done=True)
    nowhere = dataclasses.replace(job, workdir=job.workdir / "none")
    assert jobs.progress(nowhere, None) == jobs.Progress()
    longer = dataclasses.replace(job.config.pretrain, epochs=4.0)
    with pytest.raises(UserError, match=r"pretrain\.epochs=4\.0"):
        jobs.progress(dataclasses.replace(
            job, config=dataclasses.replace(job.config, pretrain=longer)), None)


STUDY = """
import sys
from tests.test_reproduce_runs import *
study = study_of(sys.argv[1], sys.argv[2], "figure1", **{"pretrain.epochs": 15})
reproduce.reproduce(study, Display(sys.stdout), 2)
"""


def start_study(folder, images):
    return subprocess.Popen(
        [sys.executable, "-c", STUDY, str(folder), str(images)], text=True,
        env=runs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(holds, seconds=120):
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.02)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_killed_study_goes_on(images, tmp_path):
    workdir = tmp_path / "runs" / "resnet50-stage1"
    first = start_study(tmp_path, images)
    try:
        wait_for(lambda: (workdir / "checkpoints" / "8").exists() or first.poll() is not None)
        (worker_id,) = map(
            int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.communicate()
    # Nobody is left to write where the next one will.
    wait_for(lambda: not alive(worker_id))
    before = json.loads((workdir / "run.json").read_text())["seconds"]
    assert not (workdir / "eval.json").exists()

    second = start_study(tmp_path, images)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert re.search(r"going on from step \d+", (workdir / "log.txt").read_text())
    assert json.loads((workdir / "run.json").read_text())["seconds"] > before > 0
    assert json.loads((workdir / "eval.json").read_text())["checkpoint"] == 90
    assert out.splitlines()[-1] == f"figure1: {tmp_path}/figure1.png"


def test_a_job_that_fails_is_told_in_a_line(tmp_path):
    order = {"kind": "time", "runs": str(tmp_path), "path": "", "points": [{"run": "none"}]}
    with pytest.raises(UserError, match=r"log: .*none: expected a working directory") as error:
        running.run(order, tmp_path, tmp_path / "log")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="log: ended with status 1, saying KeyError: 'fly'"):
        running.run({"kind": "fly"}, tmp_path, tmp_path / "log")


# As worked out in test_cost and test_products: multiply-adds by size, and parameters, by width.
SIZES = {"resnet50": {224: 4_089_184_256, 192: 3_004_842_000, 168: 2_503_027_712,
                      112: 1_077_899_264},
         "resnet101": {224: 7_801_405_440, 168: 4_780_000_000, 112: 2_050_000_000},
         "mobilenetv2": {224: 300_774_272, 196: 259_955_264, 192: 221_317_000, 168: 188_942_096}}
PARAMETERS = {("resnet50", 1.0): 25_557_032, ("resnet101", 1.0): 44_549_160,
              ("mobilenetv2", 1.0): 3_504_872, ("mobilenetv2", 0.75): 2_636_424}
PREDICTORS = {"resnet10": (290_194_944, 4_907_331), "mobilenetv2_tiny": (15_153_888, 259_203)}
# The paper adds 44.5 and 4.9; MobileNetV2's 300.8 M its authors round down.
OTHERWISE = {("DRNet-ResNet-101", "49.4 M / 49.5 M / +0.1 M"),
             ("MobileNetV2-baseline", "300 M / 301 M / +1 M")}


def known_costs(config, classes):
    name, width, sizes = config.classifier.name, config.classifier.width, config.resolutions
    narrow = {1.0: SIZES[name], 0.75: {224: 209_070_000}}[width]
    spent, held = PREDICTORS[config.predictor.name]
    return Costs(sizes, tuple(narrow[size] for size in sizes), spent,
                 Parameters(PARAMETERS[name, width], held, 0))


def test_costs_are_compared_with_the_paper_without_imagenet(tmp_path, capsys, monkeypatch):
    def missing(data, training):
        raise UserError(f"no {data.name} here")

    monkeypatch.setattr("drnet_jax.reproduce.study.open_source", missing)
    monkeypatch.setattr("drnet_jax.reproduce.study.model_costs", known_costs)
    names = ["table3", "table4", "table6"]
    workdir = tmp_path / "study"
    assert runs.call("reproduce", *names, "--scale=paper", "--workdir", str(workdir)) == 0
    out = capsys.readouterr().out
    assert "16 runs" in out and "imagenet-resnet50-eta0.2-alpha2" in out
    assert out.splitlines()[-1] == "not run, as the images are not at hand: no imagenet2012 here"
    assert not (workdir / "runs").exists()
    compared = set()
    for name in names:
        table = paper.TABLES[name]
        lines = (workdir / f"{name}.md").read_text().splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines
                if line.startswith("| ")][1:]
        for row, (label, *cells) in zip(table.rows, rows, strict=True):
            params, flops, _, top1 = cells[len(table.labels) :][:4]
            if row.experiment:
                compared |= {(label, params), (label, flops)}
                assert top1.endswith(" / not run")  # of an accuracy nothing is said
    assert {each for each in compared if not re.search(r"/ 0$|not run \(", each[1])} == OTHERWISE
    assert len(compared) == 23


def test_latencies_are_of_models_that_answer_every_image(done, images, monkeypatch):
    monkeypatch.setattr("drnet_jax.benchmark.timing.TURN", 0.0)
    monkeypatch.setattr(latency, "REPEATS", 1)
    folder = done[0].folder / "runs"
    points = [Point("resnet50-stage1", 24), Point("resnet50-eta0")]
    found = latency.measure(folder, points)
    assert found["points"] == [
        {"run": "resnet50-stage1", "size": 24}, {"run": "resnet50-eta0", "size": None}]
    assert found["batch_sizes"] == [1, 8]
    assert [len(of_size) for of_size in found["milliseconds"]] == [2, 2]
    for each in (each for of_size in found["milliseconds"] for each in of_size):
        assert 0 < each["fastest"] <= each["median"] <= each["slowest"]
    model = load(folder / "resnet50-eta0")
    shown = trained.images_of(model, model.source(), 99)
    assert shown.shape == (15, 32, 32, 3)
    for size in (1, 8):
        for fixed in (None, 1):
            way = trained.Way(fixed=fixed)
            streams = trained.answering(model.engine_for(size), way, shown, size)()
            answers = [answer for stream in streams for answer in stream]
            tickets = np.concatenate([each.tickets for each in answers])
            assert sorted(tickets.tolist()) == list(range(15))
            assert fixed is None or {each.option for each in answers} == {1}


def test_figure_3_has_networks_of_one_size_resolutions_and_drnets(tmp_path, images):
    study = study_of(tmp_path, images, "figure3")
    points = figures.points(study)
    assert points == [
        Point("resnet50-32px", 32), Point("resnet50-24px", 24), Point("resnet50-stage1", 32),
        Point("resnet50-stage1", 24), Point("resnet50-stage1", 16), Point("resnet50-eta0"),
        Point("resnet50-eta0.2-alpha2"), Point("resnet50-eta0.2-alpha2.5"),
        Point("resnet50-eta0.2-alpha3"), Point("resnet50-eta0.2-alpha3.5")]
    assert figures.times(study) is None
    assert figures.draw(study, "figure3").startswith("figure3: not drawn; not run: resnet50-32px, ")
    for shown, known in ((points, True), (points[1:], False)):
        (tmp_path / "latency.json").write_text(
            json.dumps({"points": [dataclasses.asdict(point) for point in shown]}))
        assert (figures.times(study) is not None) == known
