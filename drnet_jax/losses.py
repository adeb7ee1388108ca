"""Cross-entropies (of labels: Eq. 5) and the cost regulariser (Eqs. 6-8)."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], float32 [B], of logits [B, C] and integer labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def soft_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Cross-entropy, float32 [B], of softmax(logits [B, C]) against probabilities [B, C]."""
    return optax.softmax_cross_entropy(logits, probabilities)


def binary_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Cross-entropy, float32 [B], of sigmoid(logits [B]) against probabilities [B]."""
    return optax.sigmoid_binary_cross_entropy(logits, probabilities)


def mean_cost(mix: jax.Array, costs: jax.Array) -> jax.Array:
    """E[F] of Eq. 6: mix [R], the share of the global batch at each resolution, and costs [R]."""
    return jnp.dot(mix, costs)


def cost_regulariser(mean: jax.Array, costs: jax.Array, alpha: float) -> jax.Array:
    """L_reg of Eq. 7: how far the mean cost exceeds the target, on the scale of the candidates'.

    Args:
        mean: scalar, E[F] over the global batch, in multiply-adds.
        costs: [R], multiply-adds of the classifier at each resolution.
        alpha: target in multiply-adds, predictor excluded.

    Returns:
        Scalar; zero, and without gradient, when the mean is at or below the target. Zero for a
        single candidate, for which nothing can be chosen.
    """
    span = jnp.max(costs) - jnp.min(costs)
    return jnp.where(span > 0, jax.nn.relu(mean - alpha) / jnp.where(span > 0, span, 1), 0.0)
