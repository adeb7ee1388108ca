"""StableHLO: a network as one artifact for CPUs, CUDA and TPUs, its weights left out."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export

from drnet_jax import ops
from drnet_jax.drnet import Tree

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    function: Callable[[Tree, jax.Array], dict[str, jax.Array]], variables: Tree,
    shape: tuple[int, ...],
) -> bytes:
    """What `jax.export.deserialize` reads: of (variables, uint8 images [B, H, W, C]), for any B.

    Both forms of every operation are in it, the one for CPUs and the plain one; the platform that
    it is called on takes its own. Later releases of JAX read it for six months.

    Args:
        function: -> results by name.
        variables: a tree of arrays, of which the shapes matter.
        shape: (H, W, C).
    """
    def form(platform: str) -> Callable[..., Any]:
        def traced(variables: Tree, images: jax.Array) -> dict[str, jax.Array]:
            with ops.traced_for(platform):
                return function(variables, images)

        return traced

    def either(variables: Tree, images: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.platform_dependent(
            variables, images, cpu=form("cpu"), default=form("none")
        )

    (batch,) = export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    return export.export(jax.jit(either), platforms=PLATFORMS)(shapes, images).serialize()
