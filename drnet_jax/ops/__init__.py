"""Operations: convolution, pooling, sums and resize, as defined and as CPUs run them fastest.

What decides on the form is the devices that a program is traced *for*: a mesh of TPUs described on
a host without any gets the forms that TPUs are to run. Accelerators get every operation as it is
defined, which is the form that their compilers know how to fuse. docs/cpu.md has what was measured
of the forms for CPUs. Axis letters are those of `drnet_jax.buckets`.
"""

from drnet_jax.ops.convolution import conv, depthwise_conv, max_pool
from drnet_jax.ops.forms import in_graph, plain_forms, traced_for, traced_for_mesh
from drnet_jax.ops.resizing import resize
from drnet_jax.ops.sums import moments, scale_and_shift

__all__ = [
    "conv",
    "depthwise_conv",
    "in_graph",
    "max_pool",
    "moments",
    "plain_forms",
    "resize",
    "scale_and_shift",
    "traced_for",
    "traced_for_mesh",
]
