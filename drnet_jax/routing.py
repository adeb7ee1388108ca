"""Routing: the choice of a resolution for each image. It moves no data (see `buckets`).

The predictor's logits become scores, one for each resolution; an image goes where its score is
highest after every resolution has been charged what it costs, at a price. The price is the Lagrange
multiplier of the constraint that images cost so much on average: 0 leaves a router as it was
trained, a positive price saves, a negative one spends. A cascade decides by the confidence of its
first answer instead. Axes as in `buckets`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def choice_scores(logits: jax.Array) -> jax.Array:
    """Of predictor logits [..., R] the log-probability of choosing each resolution (Eq. 1)."""
    return jax.nn.log_softmax(logits)


def outcome_scores(logits: jax.Array) -> jax.Array:
    """Of predictor logits [..., R] the probability that each resolution answers right."""
    return jax.nn.sigmoid(logits)


# What the logits say, by config.router.objective.
SCORES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gumbel": choice_scores, "outcome": outcome_scores,
}


def charge(scores: Array, costs: Array, price: Array | float) -> Array:
    """Scores [B, R] less what each resolution costs: `score_j - price * C_j / max C`.

    Of numpy arrays it makes a numpy array.
    """
    return scores - price * costs / costs.max()


def choose(scores: jax.Array) -> jax.Array:
    """The index of the highest score, int32 [B], of scores [B, R] (Eq. 9; without noise: Eq. 1)."""
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def choose_at(scores: np.ndarray, costs: np.ndarray, price: float) -> np.ndarray:
    """Where images of these scores, float32 [N, R], go at a price: int32 [N], on the host.

    The same as `choose(charge(...))` on a device, operation by operation in float32.
    """
    return np.argmax(charge(scores, costs, np.float32(price)), axis=1).astype(np.int32)


def search_price(scores: jax.Array, costs: jax.Array, budget: jax.Array | float) -> jax.Array:
    """The smallest price at which images cost at most `budget` on average.

    Args:
        scores: float32 [N, R] of the images to meet the budget on. No labels: nothing is fitted.
        costs: float32 [R], multiply-adds.
        budget: mean multiply-adds of an image.

    Returns:
        float32 scalar, by bisection. The mean cost falls as the price rises, in steps of one image
        unless scores are tied.
    """
    def mean_cost(price: jax.Array) -> jax.Array:
        return jnp.mean(costs[choose(charge(scores, costs, price))])

    # Beyond this every image goes to the cheapest (or dearest) resolution.
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
    """The soft choice [B, R] whose gradient stands in for that of the hard one (Eq. 11).

    The straight-through trick needs no more than this: the forward pass runs the hard choice, and
    d(loss)/d(choice) is pulled back through `relax` to the predictor.
    """
    return jax.nn.softmax(scores / temperature)


def shuffled(choice: np.ndarray, seed: int) -> np.ndarray:
    """A random router of exactly the same mix: the choices [N], dealt out to other images."""
    return np.random.default_rng(seed).permutation(choice)


def entropy(mix: np.ndarray) -> float:
    """Entropy in nats of shares [R]: 0 where all are alike, ln R where they are even."""
    some = mix[mix > 0]
    return float(-(some * np.log(some)).sum()) + 0.0  # not -0.0


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Classify small first, and again larger where the first answer is not sure."""

    low: int  # resolution index of the first pass
    high: int  # of the second
    fused: bool  # whether the answer is that of both passes together, or of the second alone
    threshold: float = -np.inf  # an image whose `confidence` is at least this is done

    def name(self, resolutions: Sequence[int]) -> str:
        """Such as "32>64 fused"."""
        fused = " fused" if self.fused else ""
        return f"{resolutions[self.low]}>{resolutions[self.high]}{fused}"


def confidence(log_p: np.ndarray) -> np.ndarray:
    """The logarithm of the best class's probability, float64 [N], of log-probabilities [N, C]."""
    return log_p.max(axis=1).astype(float)


def fuse(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two answers [N, C] as one: the mean of their log-probabilities, normalised again."""
    mean = (first + second) / 2
    mean -= mean.max(axis=1, keepdims=True)
    return mean - np.log(np.exp(mean).sum(axis=1, keepdims=True))
