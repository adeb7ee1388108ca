"""Buckets: the batch, sorted by chosen resolution, into sub-batches of static shape.

No sample is dropped and no choice is changed. Each bucket is padded to one of few sizes, so that
few programs are compiled; padding repeats real rows, and a mask tells them apart.

Axes, here and wherever an array's are named: B samples of a batch, R candidate resolutions, O
options (the resolutions, and after them the predictor's own answer if it classifies), S slots of a
bucket (its padded size), C classes, H height, W width.
"""

import jax
import jax.numpy as jnp

SIZES = 7  # of one resolution's buckets, at most


def plan(choice: jax.Array, resolutions: int) -> tuple[jax.Array, jax.Array]:
    """Sorts a device's samples by chosen resolution.

    Args:
        choice: int32 [B], the option of each sample; those beyond R are in no bucket.
        resolutions: R.

    Returns:
        order: int32 [B, R]; column r lists the samples of bucket r first, in batch order, and then
            all others, which serve as its padding.
        counts: int32 [R], how many samples each bucket holds.
    """
    member = choice[:, None] == jnp.arange(resolutions)
    order = jnp.argsort(~member, axis=0, stable=True).astype(jnp.int32)
    return order, jnp.sum(member, axis=0, dtype=jnp.int32)


def everyone(batch: int, resolutions: int) -> tuple[jax.Array, jax.Array]:
    """The plan in which every bucket holds every sample, as pretraining wants it."""
    order = jnp.tile(jnp.arange(batch, dtype=jnp.int32)[:, None], (1, resolutions))
    return order, jnp.full((resolutions,), batch, jnp.int32)


def sizes(limit: int, multiple: int) -> tuple[int, ...]:
    """The static sizes to which buckets of at most `limit` samples are padded, smallest first.

    From `limit` down each is a share of the one above, to the nearest multiple of `multiple`: four
    fifths, so that a tenth of a bucket is padding on average, or the largest share that makes no
    more than SIZES of them. For each a program is compiled.
    """
    for percent in range(80, 0, -1):
        steps, found = -(-limit // multiple), [limit]
        while steps > 1:
            steps = max(1, min(round(steps * percent / 100), steps - 1))
            found.append(multiple * steps)
        if len(found) <= SIZES:
            break
    return tuple(reversed(found))


def padded_size(count: int, multiple: int, limit: int) -> int:
    """The smallest of these sizes that holds `count` samples.

    Zero for an empty bucket, which is not run at all.
    """
    return min(size for size in (0, *sizes(limit, multiple)) if size >= count)


def padding(images: float, rows: float) -> float:
    """The share of the rows of buckets that are none of the images in them; 0 without any rows."""
    return float(1 - images / rows) if rows else 0.0


def gather(tree, order: jax.Array, size: int):
    """The first `size` rows of a bucket: leaves [B, ...] -> [S, ...], by order [B]."""
    return jax.tree.map(lambda leaf: leaf[order[:size]], tree)


def mask(count: jax.Array, size: int) -> jax.Array:
    """bool [S], true for the real rows of a bucket of `count` samples."""
    return jnp.arange(size) < count


def scatter(values: jax.Array, order: jax.Array, real: jax.Array, batch: int) -> jax.Array:
    """The inverse of `gather`: values [S, ...] -> [B, ...], zero where no real row goes."""
    real = real.reshape(real.shape + (1,) * (values.ndim - 1))
    result = jnp.zeros((batch, *values.shape[1:]), values.dtype)
    # `order` names each sample once, so the padded rows write their zeros to samples of other
    # buckets, never over a real row of this one.
    return result.at[order[: values.shape[0]]].set(jnp.where(real, values, 0))
