import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from drnet_jax import routing


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_four_choices_by_hand():
    # Without noise the largest logit wins; noise of 2 on the last resolution turns all but one.
    logits = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [9.0, 0.0, 0.0]])
    noise = jnp.array([[0.0, 0.0, 2.0]] * 4)
    choice = routing.choose(logits)
    assert choice.dtype == jnp.int32
    np.testing.assert_array_equal(choice, [0, 1, 2, 0])
    np.testing.assert_array_equal(routing.choose(jax.nn.log_softmax(logits) + noise), [2, 2, 2, 0])


def test_gumbel_choices_follow_the_softmax():
    logits = jnp.array([1.2, 0.0, -0.7])
    draws = 20_000
    noise = jax.random.gumbel(jax.random.key(0), (draws, 3))
    choice = routing.choose(jax.nn.log_softmax(jnp.tile(logits, (draws, 1))) + noise)
    expected = draws * softmax(np.array(logits, float))
    assert stats.chisquare(np.bincount(choice, minlength=3), expected).pvalue > 0.01
    # The test has teeth: it tells a neighbouring distribution apart.
    other = draws * softmax(np.array(logits, float) * 1.1)
    assert stats.chisquare(np.bincount(choice, minlength=3), other).pvalue < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_relax_and_its_gradient_against_numpy(temperature):
    random = np.random.default_rng(0)
    scores = random.normal(size=(4, 3)).astype(np.float32)
    weights = random.normal(size=(4, 3)).astype(np.float32)
    soft, pull_back = jax.vjp(lambda scores: routing.relax(scores, temperature), scores)
    p = softmax(scores / temperature)
    np.testing.assert_allclose(soft, p, rtol=1e-5)
    # d softmax(s / tau)_j / d s_k = p_j (delta_jk - p_k) / tau.
    expected = p * (weights - (p * weights).sum(-1, keepdims=True)) / temperature
    np.testing.assert_allclose(pull_back(weights)[0], expected, rtol=1e-4, atol=1e-6)


def test_relax_tends_to_the_hard_choice_as_the_temperature_falls():
    scores = jnp.array([[0.3, 0.1, 0.2], [-5.0, -4.0, -4.5]])
    hard = jax.nn.one_hot(routing.choose(scores), 3)
    np.testing.assert_allclose(routing.relax(scores, 1e-3), hard, atol=1e-6)


def test_shuffled_keeps_the_mix_and_is_seeded():
    choice = np.repeat([0, 1, 2], [50, 30, 20])
    dealt = routing.shuffled(choice, 3)
    np.testing.assert_array_equal(np.bincount(dealt), [50, 30, 20])
    np.testing.assert_array_equal(dealt, routing.shuffled(choice, 3))
    assert (dealt != choice).any() and (dealt != routing.shuffled(choice, 4)).any()


# --- The price ------------------------------------------------------------------------------------

COSTS = jnp.array([100.0, 60.0, 20.0])
SCORES = jnp.array([[0.9, 0.8, 0.1], [0.9, 0.2, 0.1], [0.9, 0.9, 0.9], [0.5, 0.6, 0.0]])


@pytest.mark.parametrize(("price", "choice"), [
    # Scores less price * (1, 0.6, 0.2); ties go to the larger resolution.
    (0.0, [0, 0, 0, 1]), (0.1, [0, 0, 2, 1]), (0.5, [1, 0, 2, 1]), (0.98, [1, 0, 2, 1]),
    (1.1, [1, 2, 2, 1]), (2.0, [2, 2, 2, 2]), (-1.0, [0, 0, 0, 0]),
])
def test_the_price_trades_scores_for_cost_by_hand(price, choice):
    np.testing.assert_array_equal(routing.choose(routing.charge(SCORES, COSTS, price)), choice)


@pytest.mark.parametrize(("target", "cost"), [
    (100, 100), (70, 70), (60, 60), (45, 40), (20, 20), (10, 20), (1000, 100),
])
def test_the_price_meets_a_target_from_below(target, cost):
    price = routing.search_price(SCORES, COSTS, target)
    choice = routing.choose(routing.charge(SCORES, COSTS, price))
    assert COSTS[choice].mean() == cost
    if 20 < cost < 100:  # and no smaller price does
        less = routing.choose(routing.charge(SCORES, COSTS, price - 1e-3))
        assert COSTS[less].mean() > target


@pytest.mark.parametrize("objective", ["gumbel", "outcome"])
@pytest.mark.parametrize("target", [30.0, 55.0, 90.0])
def test_a_thousand_images_cost_what_was_asked_for(objective, target):
    logits = 3 * jax.random.normal(jax.random.key(0), (1000, 3))
    scores = routing.SCORES[objective](logits)
    price = routing.search_price(scores, COSTS, target)
    choice = routing.choose(routing.charge(scores, COSTS, price))
    np.testing.assert_allclose(COSTS[choice].mean(), target, rtol=2e-3)


def test_candidates_of_the_same_cost_do_not_confuse_the_price():
    costs = jnp.array([100.0, 100.0, 25.0])
    scores = jax.random.uniform(jax.random.key(0), (1000, 3))
    price = routing.search_price(scores, costs, 60.0)
    choice = routing.choose(routing.charge(scores, costs, price))
    np.testing.assert_allclose(costs[choice].mean(), 60, rtol=2e-3)
    assert (np.bincount(choice) > 0).all()


@pytest.mark.parametrize(("target", "choice"), [
    # Below the cheapest resolution some must go where nothing more is spent, and for less all.
    (100, [0, 0, 0, 0]), (35, [0, 2, 1, 2]), (34, [1, 2, 1, 2]), (15, [1, 2, 2, 2]),
    (10, [1, 2, 2, 2]), (0, [2, 2, 2, 2]), (-1e-6, [2, 2, 2, 2]),
])
def test_an_answer_that_costs_nothing_more_by_hand(target, choice):
    # Of a second resolution (costs 100, 40) and of the predictor's own answer.
    scores = jnp.array([[0.9, 0.8, 0.1], [0.7, 0.6, 0.6], [0.9, 0.85, 0.7], [0.5, 0.5, 0.5]])
    costs = jnp.array([100.0, 40.0, 0.0])
    price = routing.search_price(scores, costs, target)
    np.testing.assert_array_equal(routing.choose(routing.charge(scores, costs, price)), choice)


def test_a_single_candidate_needs_no_price():
    scores = jnp.array([[0.3], [0.7]])
    price = routing.search_price(scores, COSTS[:1], 100.0)
    np.testing.assert_array_equal(routing.choose(routing.charge(scores, COSTS[:1], price)), [0, 0])


def test_scores_of_either_objective():
    logits = jnp.array([0.0, jnp.log(3.0), -jnp.log(3.0)])
    np.testing.assert_allclose(routing.SCORES["outcome"](logits), [0.5, 0.75, 0.25], rtol=1e-6)
    shares = np.array([1, 3, 1 / 3]) / (1 + 3 + 1 / 3)
    np.testing.assert_allclose(routing.SCORES["gumbel"](logits), np.log(shares), rtol=1e-5)


def test_entropy_by_hand():
    assert routing.entropy(np.array([0.0, 1.0, 0.0])) == 0
    assert routing.entropy(np.array([0.5, 0.5, 0.0])) == pytest.approx(np.log(2))


# --- Cascades -------------------------------------------------------------------------------------

LOG_P = np.log(np.array([
    [0.5, 0.3, 0.2],
    [0.1, 0.1, 0.8],
    [0.4, 0.4, 0.2],  # a tie
    [1e-30, 1.0, 1e-30],  # an answer that leaves no doubt
    [0.2, 0.3, 0.5],
], np.float32))


@pytest.mark.parametrize(("rule", "expected"), [
    ("margin", [0.2, 0.7, 0.0, 1.0, 0.2]), ("probability", [0.5, 0.8, 0.4, 1.0, 0.5]),
])
def test_how_sure_answers_are_by_hand(rule, expected):
    found = routing.RULES[rule](LOG_P)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-7)
    # In whatever order the classes are.
    np.testing.assert_array_equal(found, routing.RULES[rule](LOG_P[:, [2, 0, 1]]))
    assert routing.RULES[rule](LOG_P[:0]).shape == (0,)
    of_two = np.log(np.array([[0.25, 0.75]], np.float32))
    np.testing.assert_allclose(
        routing.RULES[rule](of_two), {"margin": 0.5, "probability": 0.75}[rule])


def test_a_cascade_by_hand():
    cascade = routing.Cascade((3, 2, 0), "margin", threshold=0.6)
    assert cascade.name(["64", "48", "32", "predictor"]) == "predictor>32>64 by margin"
    assert [cascade.after(option) for option in (3, 2, 0, 1)] == [2, 0, routing.DONE, routing.DONE]
    np.testing.assert_array_equal(cascade.doubts(LOG_P[:4]), [True, False, True, False])
    # Without a threshold every answer is in doubt.
    assert routing.Cascade((3, 2), "probability").doubts(LOG_P).all()


@pytest.mark.parametrize("rule", sorted(routing.RULES))
def test_what_is_no_number_is_in_doubt(rule):
    unknown = np.full((1, 3), np.nan, np.float32)
    for threshold in (0.0, 0.5, np.inf):
        assert routing.Cascade((1, 0), rule, threshold).doubts(unknown).tolist() == [True]
    # At a threshold of 0 nothing else is.
    assert not routing.Cascade((1, 0), rule, 0.0).doubts(LOG_P).any()


def test_an_option_without_cost_of_its_own_is_charged_nothing():
    costs = np.array([100, 60, 20, 0], np.float32)
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.9, 0.2, 0.1, 0.9]], np.float32)
    np.testing.assert_allclose(
        routing.charge(scores, costs, 0.5), [[0.4, 0.5, 0.0, 0.2], [0.4, -0.1, 0.0, 0.9]],
        atol=1e-6)
    for price, choice in ((0.0, [0, 0]), (0.5, [1, 3]), (1.1, [3, 3]), (-0.1, [0, 0])):
        np.testing.assert_array_equal(routing.choose_at(scores, costs, price), choice)
    many = np.random.default_rng(0).random((1000, 4)).astype(np.float32)
    for budget in (0.0, 1.0, 30.0, 99.0):
        choice = routing.choose_at(many, costs, routing.find_price(many, costs, budget))
        assert budget - 0.2 < costs[choice].mean() <= budget
