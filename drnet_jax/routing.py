"""Who goes where: the choice of a resolution for each image. It moves no data (see `buckets`)."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def perturb(logits: jax.Array, noise: jax.Array) -> jax.Array:
    """log p + g of Eq. 9: predictor logits [B, R] and Gumbel noise [B, R] (Eq. 10)."""
    return jax.nn.log_softmax(logits) + noise


def scores(logits: jax.Array, objective: str) -> jax.Array:
    """What the predictor's logits [..., R] say for each resolution, on the scale of the dial.

    Of "gumbel" the log-probability of choosing it; of "outcome" the probability that it answers
    right.
    """
    return jax.nn.sigmoid(logits) if objective == "outcome" else jax.nn.log_softmax(logits)


def choose(scores: jax.Array) -> jax.Array:
    """The index of the highest score, int32 [B], of scores [B, R] (Eq. 9; without noise: Eq. 1)."""
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def charge(scores: Array, costs: Array, dial: Array | float) -> Array:
    """Scores [B, R] less what each resolution costs: `score_j - dial * C_j / max C`.

    The dial moves a trained router along its curve of accuracy over cost: 0 leaves it as trained,
    a positive one saves, a negative one spends. Of numpy arrays it makes a numpy array.
    """
    return scores - dial * costs / costs.max()


def dial_for(scores: jax.Array, costs: jax.Array, target: jax.Array | float) -> jax.Array:
    """The smallest dial at which choosing by `charge` costs at most `target` on average.

    Args:
        scores: float32 [N, R] of the images to meet the target on. No labels: nothing is fitted.
        costs: float32 [R], multiply-adds.
        target: mean multiply-adds of an image.

    Returns:
        float32 scalar, by bisection. The mean cost falls as the dial rises, in steps of one image
        unless scores are tied.
    """
    def mean_cost(dial: jax.Array) -> jax.Array:
        return jnp.mean(costs[choose(charge(scores, costs, dial))])

    # Beyond this every image goes to the cheapest (or dearest) resolution.
    gaps = jnp.diff(jnp.sort(costs)) / jnp.max(costs)
    gap = jnp.min(jnp.where(gaps > 0, gaps, 1), initial=1)
    bound = (jnp.max(scores) - jnp.min(scores) + 1) / gap

    def halve(_, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        fits = mean_cost(middle) <= target
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    return jax.lax.fori_loop(0, 40, halve, (-bound, bound))[1]


def relax(scores: jax.Array, temperature: float) -> jax.Array:
    """The soft choice [B, R] whose gradient stands in for that of the hard one (Eq. 11).

    The straight-through trick needs no more than this: the forward pass runs the hard choice, and
    d(loss)/d(choice) is pulled back through `relax` to the predictor.
    """
    return jax.nn.softmax(scores / temperature)


def shuffled(choice: np.ndarray, seed: int) -> np.ndarray:
    """A random router of exactly the same mix: the choices [N], dealt out to other images."""
    return np.random.default_rng(seed).permutation(choice)
