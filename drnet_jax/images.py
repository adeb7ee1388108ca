"""Images as networks see them: the one definition of normalisation, run on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.ops import in_graph, resize

# Per-channel mean and deviation of ImageNet in [0, 255].
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)


def normalise(
    images: jax.Array, mean: tuple[float, ...] = MEAN, deviation: tuple[float, ...] = DEVIATION
) -> jax.Array:
    """uint8 or float [B, H, W, 3] in [0, 255], less `mean` and over `deviation`, as float32."""
    batch, height, width, channels = images.shape
    # A line of pixels as one axis: arithmetic along an axis of 3 is not vectorised.
    lines = images.reshape(batch, height, width * channels).astype(jnp.float32)
    lines = (lines - np.tile(np.float32(mean), width)) / np.tile(np.float32(deviation), width)
    return lines.reshape(images.shape)


def view(
    images: jax.Array, size: int, mean: tuple[float, ...] = MEAN,
    deviation: tuple[float, ...] = DEVIATION, interpolation: str = "bilinear",
) -> jax.Array:
    """What a network at `size` sees of uint8 images [B, H, W, 3]: float32 [B, size, size, 3]."""
    # Resized first, there is less to normalise; the weights of a pixel sum to 1.
    resized = resize(images, size, interpolation)
    if in_graph() and resized.shape != images.shape:  # its products leave the channels apart
        return (resized - np.float32(mean)) / np.float32(deviation)
    return normalise(resized, mean, deviation)
