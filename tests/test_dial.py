"""The dial by hand: three settings of a model of two resolutions, of costs 100 and 20."""

import numpy as np
import pytest

from drnet_jax import dial as dials
from drnet_jax.dial import Dial, Setting, milliseconds_of
from drnet_jax.errors import UserError
from drnet_jax.routing import Cascade

EACH = (100, 20, 5)
ROUTER = Dial((
    Setting(0.8, (0.0, 1.0, 1.0), 0.6),  # 25
    Setting(0.4, (0.5, 0.5, 1.0), 0.8),  # 65
    Setting(0.0, (1.0, 0.0, 1.0), 0.8),  # 105
))
CHAIN = Cascade((1, 0), "margin", 0.2)
OTHER = Cascade((2, 1, 0), "margin", 0.6)
CASCADES = Dial((
    Setting(CHAIN, (0.1, 1.0, 0.0), 0.6),  # 30
    Setting(Cascade((1, 0), "margin", 0.4), (0.3, 1.0, 0.0), 0.7),  # 50
    Setting(OTHER, (0.5, 0.5, 1.0), 0.9),  # 65
    Setting(Cascade((2, 1, 0), "margin", np.inf), (1.0, 1.0, 1.0), 0.9),  # 125
))


def at(dial, budget, each=EACH):
    return dial.at_cost(budget, each, "budget", lambda cost: f"{cost:g}")


@pytest.mark.parametrize(("budget", "price"), [
    (25, 0.8), (65, 0.4), (105, 0.0), (45, 0.6), (75, 0.3), (24.99, 0.8), (105.05, 0.0),
])
def test_a_price_between_two_settings(budget, price):
    assert at(ROUTER, budget) == pytest.approx(price)


@pytest.mark.parametrize(("budget", "cascade"), [
    (30, CHAIN), (40, Cascade((1, 0), "margin", 0.3)), (50, Cascade((1, 0), "margin", 0.4)),
    (60, Cascade((1, 0), "margin", 0.4)),  # the next is another cascade
    (65, OTHER), (100, OTHER),  # no threshold lies between one and infinity
    (125, Cascade((2, 1, 0), "margin", np.inf)),
])
def test_a_threshold_between_two_settings_of_one_cascade(budget, cascade):
    found = at(CASCADES, budget)
    assert (found.options, found.rule) == (cascade.options, cascade.rule)
    assert found.threshold == pytest.approx(cascade.threshold)


@pytest.mark.parametrize("budget", [0, 24, 106, 1e9])
def test_out_of_reach(budget):
    with pytest.raises(UserError) as refused:
        at(ROUTER, budget)
    assert str(refused.value) == f"budget: expected 25 to 105, received {budget:g}"


def test_milliseconds_of_a_pass_are_costs_too():
    """Also where the cheapest setting takes longest: the dearer of two counts."""
    assert at(ROUTER, 2.5, (4, 1, 0)) == pytest.approx(0.4)
    slow = (1, 4, 0)
    assert [setting.cost(slow) for setting in ROUTER.settings] == [4, 2.5, 1]
    assert at(ROUTER, 4, slow) == 0.8
    with pytest.raises(UserError, match=r"expected 4 to 4, received 2.5"):
        at(ROUTER, 2.5, slow)


def test_milliseconds_as_multiply_adds():
    """Of the same price, between two settings too."""
    assert ROUTER.converted(2.5, (4, 1, 0), EACH) == pytest.approx(65)
    assert at(ROUTER, ROUTER.converted(2.0, (4, 1, 0), EACH)) == pytest.approx(
        at(ROUTER, 2.0, (4, 1, 0)))


def test_an_accuracy_takes_the_cheapest_setting_that_had_it():
    for top1, policy in ((0.0, 0.8), (0.6, 0.8), (0.61, 0.4), (0.8, 0.4)):
        assert ROUTER.at_accuracy(top1, "min_accuracy") == policy
    with pytest.raises(UserError, match=r"min_accuracy: expected at most 0\.8, which was "):
        ROUTER.at_accuracy(0.81, "min_accuracy")
    assert ROUTER.most_accurate() == 0.4 and CASCADES.most_accurate() == OTHER


def test_dials_are_read_as_they_were_written():
    both = {"router": ROUTER, "cascade": CASCADES}
    assert dials.from_json(dials.to_json(both)) == both


@pytest.mark.parametrize(("text", "expected"), [
    ("12ms", 12.0), ("0.5ms", 0.5), ("2.5e9", None), (2.5e9, None), (None, None)])
def test_milliseconds_are_told_by_their_unit(text, expected):
    assert milliseconds_of(text) == expected


@pytest.mark.parametrize("text", ["ms", "12s", "-1ms", "nanms", "infms", "fast"])
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match=f"received '{text}'"):
        milliseconds_of(text)
