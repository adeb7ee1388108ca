"""What stops a run: a number of a step, of a validation or of a state that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.errors import UserError
from drnet_jax.train.finite import check_state, check_step, check_validation
from drnet_jax.train.objectives import OutcomeObjective
from drnet_jax.train.state import TrainState
from tests.tiny import OBJECTIVE, Trainer, random_batch, random_variables


class Saved:
    """Checkpoints of which only the newest step is asked for."""

    def __init__(self, step=None):
        self._step, self.waited = step, False

    def wait(self):
        self.waited = True

    def latest(self):
        assert self.waited  # else it may not be whole
        return self._step


class Source:
    def key(self, index):
        return f"image {index}"


SUMS = {"count": np.float32(8), "loss": np.float32(3), "correct": np.ones(2, np.float32),
        "router_loss": np.float32(0), "logits": np.float32(1), "slots": np.array([4, 8])}


@pytest.mark.parametrize(("name", "value", "message"), [
    ("loss", np.float32("nan"), "the loss of step 7 is nan"),
    ("router_loss", np.float32("inf"), "the router's loss of step 7 is inf"),
    ("logits", np.float32("nan"), "the sum of the predictor's logits of step 7 is nan"),
    ("correct", np.array([1, np.nan]), "correct of step 7"),
])
def test_every_scalar_of_a_step_is_checked(name, value, message):
    check_step(SUMS, 7, Source(), np.array([3]), Saved())
    with pytest.raises(UserError, match=rf"{message}.* of step 4; .*image 3, image 1"):
        check_step(SUMS | {name: value}, 7, Source(), np.array([3, 1]), Saved(4))


@pytest.mark.parametrize(("values", "name"), [
    ({"price": float("nan")}, "price"),
    ({"top1": float("nan"), "price": 0.1}, "top1"),
    ({"top1_by_resolution": {"32": 0.5, "16": float("nan")}}, "top1_by_resolution 16"),
])
def test_the_price_and_all_else_of_a_validation_is_checked(values, name):
    fine = {"top1": 0.5, "price": -0.1, "mix": {"32": 1.0}, "missed": "by far"}
    check_validation(fine, 7, Saved())
    with pytest.raises(UserError, match=f"{name} of the validation at step 7 is nan"):
        check_validation(fine | values, 7, Saved())


@pytest.mark.parametrize(("part", "words"), [
    ("params", "parameters"), ("batch_stats", "BatchNorm statistics"),
    ("opt_state", "optimiser state"),
])
def test_no_checkpoint_is_made_of_a_state_that_is_not_finite(part, words):
    trees = {name: {"a": jnp.ones(3), "b": jnp.zeros((2, 2)), "count": jnp.int32(1)}
             for name in ("params", "batch_stats", "opt_state")}
    check_state(TrainState(jnp.int32(7), **trees), 7, Saved())
    trees[part]["b"] = trees[part]["b"].at[1, 0].set(jnp.inf)
    with pytest.raises(UserError, match=f"after step 7 the {words} .*no checkpoint yet"):
        check_state(TrainState(jnp.int32(7), **trees), 7, Saved())


@pytest.mark.parametrize(("objective", "estimator"), [
    (OBJECTIVE, "selected"), (OBJECTIVE, "dense"),
    (OutcomeObjective(OBJECTIVE.costs, 50.0, 0.1), "selected"),
], ids=["gumbel", "dense", "outcome"])
def test_the_metrics_of_a_step_show_a_predictor_that_is_nan(objective, estimator):
    """Though its choices, and so all else of the step, are as if all were well."""
    trainer = Trainer(2, estimator=estimator, objective=objective)
    params, batch_stats = random_variables(trainer.drnet)
    params["predictor"] = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params["predictor"])
    _, metrics = trainer.run(trainer.state((params, batch_stats)), random_batch(8))
    assert metrics["chosen"].tolist() == [8, 0, 0]
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["logits"])
