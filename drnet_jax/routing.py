"""Routing: the choice of an option for each image. It moves no data (see `buckets`).

Options are the resolutions and, if the predictor knows the classes, its own answer. The predictor's
logits become scores, one for each option; an image goes where its score is highest after every
option has been charged what it costs, at a price. The price is the Lagrange multiplier of the
constraint that images cost so much on average: 0 leaves a router as it was trained, a positive
price saves, a negative one spends. A cascade decides by how sure each answer is instead. Axes as in
`buckets`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def choice_scores(logits: jax.Array) -> jax.Array:
    """Of predictor logits [..., O] the log-probability of choosing each option (Eq. 1)."""
    return jax.nn.log_softmax(logits)


def outcome_scores(logits: jax.Array) -> jax.Array:
    """Of predictor logits [..., O] the probability that each option answers right.

    What is taken for right is told by `train.objectives`: the label, or in stage 1 the base's view.
    """
    return jax.nn.sigmoid(logits)


# What the logits say, by config.router.objective.
SCORES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gumbel": choice_scores, "outcome": outcome_scores,
}


def charge(scores: Array, costs: Array, price: Array | float) -> Array:
    """Scores [B, O] less what each option costs: `score_j - price * C_j / max C`.

    Of numpy arrays it makes a numpy array.
    """
    return scores - price * costs / costs.max()


def choose(scores: jax.Array) -> jax.Array:
    """The index of the highest score, int32 [B], of scores [B, O] (Eq. 9; without noise: Eq. 1)."""
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def choose_at(scores: np.ndarray, costs: np.ndarray, price: float) -> np.ndarray:
    """Where images of these scores, float32 [N, O], go at a price: int32 [N], on the host.

    The same as `choose(charge(...))` on a device, operation by operation in float32.
    """
    return np.argmax(charge(scores, costs, np.float32(price)), axis=1).astype(np.int32)


def search_price(scores: jax.Array, costs: jax.Array, budget: jax.Array | float) -> jax.Array:
    """The smallest price at which images cost at most `budget` on average.

    Args:
        scores: float32 [N, O] of the images to meet the budget on. No labels: nothing is fitted.
        costs: float32 [O], multiply-adds.
        budget: mean multiply-adds of an image.

    Returns:
        float32 scalar, by bisection. The mean cost falls as the price rises, in steps of one image
        unless scores are tied.
    """
    def mean_cost(price: jax.Array) -> jax.Array:
        return jnp.mean(costs[choose(charge(scores, costs, price))])

    # Beyond this every image goes to the cheapest (or dearest) option.
    gaps = jnp.diff(jnp.sort(costs)) / jnp.max(costs)
    gap = jnp.min(jnp.where(gaps > 0, gaps, 1), initial=1)
    bound = (jnp.max(scores) - jnp.min(scores) + 1) / gap

    def halve(_, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        fits = mean_cost(middle) <= budget
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    return jax.lax.fori_loop(0, 40, halve, (-bound, bound))[1]


_search_price = jax.jit(search_price)


def find_price(scores: np.ndarray, costs: np.ndarray, budget: float) -> float:
    """`search_price` on the host, a hair on the safe side.

    The search ends where the last image has only just moved; another program may round otherwise.
    """
    price = float(_search_price(scores, costs, budget))
    return price + 1e-5 * (1 + abs(price))


def relax(scores: jax.Array, temperature: float) -> jax.Array:
    """The soft choice [B, O] whose gradient stands in for that of the hard one (Eq. 11).

    The straight-through trick needs no more than this: the forward pass runs the hard choice, and
    d(loss)/d(choice) is pulled back through `relax` to the predictor.
    """
    return jax.nn.softmax(scores / temperature)


def shuffled(choice: np.ndarray, seed: int) -> np.ndarray:
    """A random router of exactly the same mix: the choices [N], dealt out to other images."""
    return np.random.default_rng(seed).permutation(choice)


def entropy(mix: np.ndarray) -> float:
    """Entropy in nats of shares [O]: 0 where all are alike, ln O where they are even."""
    some = mix[mix > 0]
    return float(-(some * np.log(some)).sum()) + 0.0  # not -0.0


DONE = -1  # in place of an option: none is needed any more


def probability(log_p: np.ndarray) -> np.ndarray:
    """The best class's probability, float64 [N], of log-probabilities [N, C]."""
    return np.exp(log_p.max(axis=1).astype(float))


def margin(log_p: np.ndarray) -> np.ndarray:
    """By how much the best class is more probable than the second, float64 [N], of [N, C]."""
    best = np.exp(np.partition(log_p, -2, axis=1)[:, -2:].astype(float))
    return best[:, 1] - best[:, 0]


# How sure an answer is, by the name of the rule.
RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "margin": margin, "probability": probability,
}


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Answer cheaply first, and again by the next option where the answer leaves doubt."""

    options: tuple[int, ...]  # in the order in which they are tried, two at least
    rule: str  # of RULES
    threshold: float = np.inf  # an answer that is at least so sure is the last

    def name(self, options: Sequence[str]) -> str:
        """Such as "predictor>32>64 by margin", of the names of all options [O]."""
        return f"{'>'.join(options[each] for each in self.options)} by {self.rule}"

    def doubts(self, log_p: np.ndarray) -> np.ndarray:
        """Which answers, log-probabilities [N, C], are not sure enough, bool [N]."""
        # Not "less than": what is no number is not sure of anything.
        return ~(RULES[self.rule](log_p) >= self.threshold)

    def after(self, option: int) -> int:
        """The option that is tried next; DONE after the last."""
        return dict(itertools.pairwise(self.options)).get(option, DONE)
