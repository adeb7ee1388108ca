"""Holding: a budget is met on images that are unlike those of which the price was read off."""

import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.inference.holding import EVERY, Holding
from tests.tiny import COSTS

CHARGED = COSTS.charged


def images(count, seed=0, worth=1.0):
    """What a predictor says of them: the dearer the better, of some more than of others."""
    rng = np.random.default_rng(seed)
    gain = worth * rng.uniform(0, 1, (count, 1))
    return (gain * np.array([1.0, 0.8, 0.0])).astype(np.float32)


def spent(scores, holding, batch=64, lag=2):
    """Mean multiply-adds where each batch is sent before what two before came to is known."""
    waiting, found = [], []
    for start in range(0, len(scores), batch):
        part = scores[start : start + batch]
        choice = routing.choose_at(part, CHARGED, holding.price)
        waiting.append((part, choice))
        found.append(choice)
        if len(waiting) == lag:
            holding.saw(*waiting.pop(0))
    return CHARGED[np.concatenate(found)].mean() + COSTS.predictor


@pytest.mark.parametrize("budget", [35.0, 50.0, 75.0, 90.0])
@pytest.mark.parametrize("worth", [0.5, 1.0, 2.0])
def test_a_budget_is_met_whatever_the_images_are_like(budget, worth):
    price = routing.find_price(images(2000), CHARGED, budget - COSTS.predictor)
    others = images(1500, seed=1, worth=worth)
    unheld = CHARGED[routing.choose_at(others, CHARGED, price)].mean() + COSTS.predictor
    held = spent(others, Holding(price, COSTS, budget, lag=128))
    assert held == pytest.approx(budget, rel=0.03)
    assert worth == 1.0 or abs(unheld - budget) > 0.03 * budget


def test_the_price_stays_until_enough_have_come():
    holding = Holding(0.7, COSTS, 50.0, lag=64)
    holding.saw(images(EVERY - 1), np.zeros(EVERY - 1, int))
    assert holding.price == 0.7
    holding.saw(images(1), np.zeros(1, int))
    assert holding.price != 0.7
