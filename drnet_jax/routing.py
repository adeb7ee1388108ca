"""Who goes where: the choice of a resolution for each image. It moves no data (see `buckets`)."""

import jax
import jax.numpy as jnp
import numpy as np


def perturb(logits: jax.Array, noise: jax.Array) -> jax.Array:
    """log p + g of Eq. 9: predictor logits [B, R] and Gumbel noise [B, R] (Eq. 10)."""
    return jax.nn.log_softmax(logits) + noise


def choose(scores: jax.Array) -> jax.Array:
    """The index of the highest score, int32 [B], of scores [B, R] (Eq. 9; without noise: Eq. 1)."""
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def relax(scores: jax.Array, temperature: float) -> jax.Array:
    """The soft choice [B, R] whose gradient stands in for that of the hard one (Eq. 11).

    The straight-through trick needs no more than this: the forward pass runs the hard choice, and
    d(loss)/d(choice) is pulled back through `relax` to the predictor.
    """
    return jax.nn.softmax(scores / temperature)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy in nats, float32 [B], of the distribution over resolutions of logits [B, R]."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def shuffled(choice: np.ndarray, seed: int) -> np.ndarray:
    """A random router of exactly the same mix: the choices [N], dealt out to other images."""
    return np.random.default_rng(seed).permutation(choice)
