"""The device mesh: one axis, `data`; state replicated, batches split."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drnet_jax.errors import UserError
from drnet_jax.forms import traced_for_mesh

AXIS = "data"


def join_hosts() -> None:
    """Joins the processes of all hosts into one run.

    JAX finds them by itself on TPU slices and under Slurm and the like; elsewhere the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are.
    """
    def number(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    # JAX itself reads the address.
    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID")
    )


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over the given devices, by default all devices of all hosts."""
    devices = jax.devices() if devices is None else devices
    # Auto: with explicit axis types the gradients of linen modules fail to trace.
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def check_batch(size: int, devices: int) -> None:
    """Raises UserError unless a global batch of `size` can be split evenly over the devices."""
    if size % devices:
        raise UserError(
            f"config.batch_size (or --batch): expected a multiple of the {devices} devices, "
            f"received {size}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a whole copy on every device."""
    return NamedSharding(mesh, P())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its leading axis split over the devices."""
    return NamedSharding(mesh, P(AXIS))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's share of a batch -> global arrays, split over all devices."""
    sharding = split(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def per_device(mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Maps a function over the devices: what it sees are each device's own shards.

    Its operations are traced in the forms for the platform of the mesh.
    """
    def traced(*args: Any) -> Any:
        with traced_for_mesh(mesh):
            return function(*args)

    return jax.shard_map(traced, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
