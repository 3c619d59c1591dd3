"""One mesh for every machine, from a laptop to many hosts: which part of the batch and of the state each device holds.

The mesh has the axes `data` and `fsdp`. Rows of a batch are split over both. Over `fsdp` the large arrays of the state
are split too, parameters, optimiser state and averages by one rule: along the longest axis that divides. XLA does the
rest: it gathers what a layer needs and sums gradients where they belong.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SMALLEST = 2**16  # numbers of an array that is worth splitting
_ROWS = PartitionSpec(("data", "fsdp"))


def data_mesh(fsdp: int = 1) -> Mesh:
    """All devices of all processes, `fsdp` of them sharing one copy of the state.

    Each process holds neighbouring rows of a batch.
    """
    shape, axes = (jax.device_count() // fsdp, fsdp), ("data", "fsdp")
    mesh = jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    owners = [device.process_index for device in mesh.devices.flat]
    if sum(a != b for a, b in zip(owners, owners[1:], strict=False)) < jax.process_count():
        return mesh
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )  # a torus may be wound otherwise
    return Mesh(np.array(devices).reshape(shape), axes)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Where the arrays of a state belong, a sharding for each."""

    def of(leaf: Any) -> NamedSharding:
        parts, spec = mesh.shape["fsdp"], [None] * len(leaf.shape)
        axes = [i for i, size in enumerate(leaf.shape) if size % parts == 0]
        if parts > 1 and axes and math.prod(leaf.shape) >= SMALLEST:
            spec[max(axes, key=lambda i: leaf.shape[i])] = "fsdp"  # type: ignore
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(of, tree)


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes that say where their arrays belong."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree, the same in all processes, on every device."""
    tree = tree if jax.process_count() == 1 else jax.device_get(tree)  # to other machines it goes from the host alone
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def share(mesh: Mesh) -> tuple[int, int]:
    """Which of how many equal parts of a batch's rows this process holds."""
    owners = [device.process_index for device in mesh.devices.flat]
    return owners.index(jax.process_index()) * jax.process_count() // len(owners), jax.process_count()


def split_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows as part of the global batch, split along their first axis."""
    sharding = NamedSharding(mesh, _ROWS)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
