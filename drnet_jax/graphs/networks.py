"""Networks as functions of images alone, from pixels to what is used of the answer.

What these return is what the graphs of an export return, by these names.
"""

from collections.abc import Callable

import jax

from drnet_jax.drnet import DRNet, Tree

Network = Callable[[jax.Array], dict[str, jax.Array]]  # of uint8 [B, H, W, 3] at the base size


def predictor(drnet: DRNet, params: Tree, batch_stats: Tree) -> Network:
    """Images -> "scores" [B, O] of the options (`routing.SCORES`), and "log_p" [B, C] of the
    classes from a predictor that knows these."""
    def predict(images: jax.Array) -> dict[str, jax.Array]:
        prediction, _ = drnet.predict(params, batch_stats, images)
        own = prediction.classes
        found = {"scores": drnet.scores(prediction.options)}
        return found if own is None else found | {"log_p": jax.nn.log_softmax(own)}

    return predict


def classifier(drnet: DRNet, index: int, params: Tree, batch_stats: Tree) -> Network:
    """Images -> "log_p" [B, C], by the classifier at one resolution."""
    def classify(images: jax.Array) -> dict[str, jax.Array]:
        logits, _ = drnet.classify(index, params, batch_stats, images)
        return {"log_p": jax.nn.log_softmax(logits)}

    return classify
