"""The predictor that knows the classes: any network, with a class head beside its option head.

Both heads are linear in the network's pooled features. What makes an image hard shows best in what
the predictor makes of it itself, so the options are also told how sure its own answer is.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

SURENESS = 3  # numbers that tell how sure an answer is


class ClassifyingPredictor(nn.Module):
    """Logits of the classes and of the options, side by side."""

    network: nn.Module  # images [B, H, W, 3] -> [B, C + O]: its last layer is both linear heads
    classes: int  # C
    options: int  # O

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Images x [B, H, W, 3] -> float32 logits [B, C + O]: of the classes, and of the options.

        `train` and `mask` are for the network's norms.
        """
        outputs = self.network(x, train, mask).astype(jnp.float32)
        classes, options = outputs[:, : self.classes], outputs[:, self.classes :]
        # The options learn from how sure the answer is; they do not teach it to be sure.
        sure = sureness(jax.lax.stop_gradient(classes))
        options = options + nn.Dense(self.options, use_bias=False, name="sure")(sure)
        return jnp.concatenate([classes, options], axis=1)


def sureness(logits: jax.Array) -> jax.Array:
    """Of class logits [B, C]: the best probability, its margin over the second, and the entropy.

    float32 [B, SURENESS]; the entropy is in units of ln C, so that all three lie in [0, 1].
    """
    log_p = jax.nn.log_softmax(logits)
    best = jnp.exp(jax.lax.top_k(log_p, 2)[0])
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=1) / jnp.log(logits.shape[1])
    return jnp.stack([best[:, 0], best[:, 0] - best[:, 1], entropy], axis=1)
