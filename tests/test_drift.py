"""A run whose mix drifts, on tiny networks, and the mix itself."""

import numpy as np
import pytest

from drnet_jax.benchmark import drift
from drnet_jax.errors import UserError
from tests.tiny import mesh_of, tiny_config

CONFIG = tiny_config({
    "batch_size": 32, "bucket_multiple": 16, "bucket_lead": 4, "budget": 0.0,
    "router.objective": "gumbel", "classifier.name": "tests.tiny:TinyPredictor",
})


def test_every_resolution_in_turn_has_most_of_the_images():
    choices = list(drift.drifting(3, 1000, 30, seed=0))
    mixes = np.array([np.bincount(choice, minlength=3) for choice in choices]) / 1000
    assert mixes[[0, 10, 20]].argmax(1).tolist() == [0, 1, 2]
    assert mixes.max() > 0.75 and mixes.min() < 0.05


def test_a_drifting_run_says_what_it_compiled_and_waited_for(monkeypatch):
    monkeypatch.setattr(drift, "data_mesh", lambda: mesh_of(1))
    report = drift.drift(CONFIG, steps=16)
    names = [each["name"] for each in report["programs"]]
    assert names[:6] == ["noise", "route", "bucket 16px x32", "bucket 12px x32", "bucket 8px x32",
                         "update of stage 2"]
    assert len(names) == len(set(names)) > 6
    for each in report["programs"]:
        # The first step compiles the whole batch; what comes after has had four steps to compile.
        assert (each["step"] == 0) == (each["name"] in names[:6])
        assert each["step"] == 0 or each["step"] >= 4
    assert report["waited_after_the_first_step"] == sum(
        each["waited"] for each in report["programs"][6:])
    assert len(report["padding"]) == len(report["images_per_second"]) == 4
    # At first every bucket is padded to the whole batch.
    assert report["padding"][0] > report["padding"][-1] > 0
    text = drift.text(report)
    assert f"{len(names)} programs, 6 of them of the first step" in text


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="expected a multiple of the 8 devices, received 31"):
        drift.drift(tiny_config({"batch_size": 31, "budget": 1.2e-5}), 8)
