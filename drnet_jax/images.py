"""The one definition of resize and normalisation, run on the device by every program."""

import jax
import jax.numpy as jnp

# Per-channel mean and deviation of ImageNet in [0, 255].
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)


def normalise(images: jax.Array) -> jax.Array:
    """uint8 or float [B, H, W, 3] in [0, 255] -> float32 of about zero mean and unit deviation."""
    images = images.astype(jnp.float32)
    return (images - jnp.array(MEAN)) / jnp.array(DEVIATION)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Antialiased bilinear resize, as Pillow's: float [B, H, W, 3] -> [B, size, size, 3]."""
    batch, height, width, channels = images.shape
    if (height, width) == (size, size):
        return images
    shape = (batch, size, size, channels)
    return jax.image.resize(images, shape, "bilinear", antialias=True)


def view(images: jax.Array, size: int) -> jax.Array:
    """What a network at `size` sees of uint8 images [B, H, W, 3]: float32 [B, size, size, 3]."""
    return resize(normalise(images), size)
