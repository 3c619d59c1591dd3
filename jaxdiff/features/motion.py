"""Motion of pictures: what moves between two of them, block by block, and where it stops or turns round.

The picture before, evened out in gain and level, is shifted by up to `REACH` pixels either way; each block of 8 x 8
pixels of the picture after takes the shift at which the mean |difference| is least, between pixels where two lines of
one slope meet, which is what an absolute difference looks like around its least. A block counts as moving by how much
nearer the match is than what the camera alone explains, the median shift of all blocks with texture.

An impact is motion before and none, or the reverse of it, after: the loss of speed of a block along its own motion,
against the blocks around it in the next pair of pictures. Velocities are in widths of the picture per pair of
pictures.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BLOCK, REACH = 8, 7  # pixels
LEVELS = 255.0
_STEP = 0.03  # of a grey level and of the noise that a pixel of shift costs: of equal matches the nearest
_LEAST, _MOST = 0.5, 3.0  # grey levels by which a match is nearer where a block hardly moves and where it surely does
_OF_NOISE = 0.5
_TEXTURE = 4.0  # grey levels by which a block differs from its shifts, on average, where its shift can be told
_TEXTURED = 0.3  # share of blocks with texture, at least, where the camera's motion can be told


class Matches(NamedTuple):
    """The match of each block: its shift in pixels (right, down), how surely it moves otherwise than the camera
    (0 to 1), the mean |difference| in grey levels that is left, and the camera's shift."""

    shift: Float[Array, "pairs rows columns 2"]
    sure: Float[Array, "pairs rows columns"]
    left: Float[Array, "pairs rows columns"]
    camera: Float[Array, "pairs 2"]


def starts(size: int) -> np.ndarray:
    """Where blocks begin that cover `size` pixels evenly, overlapping where they must."""
    return np.round(np.linspace(0, size - BLOCK, -(-size // BLOCK))).astype(int)


def even_out(
    before: Float[Array, "pairs height width"], after: Float[Array, "pairs height width"]
) -> Float[Array, "pairs height width"]:
    """The picture before with the gain and level of the picture after, by least squares; a gain of 1/2 to 2."""
    axes = (1, 2)
    mean, own = before.mean(axes, keepdims=True), after.mean(axes, keepdims=True)
    b, a = before - mean, after - own
    covariance, variance = (a * b).mean(axes, keepdims=True), (b * b).mean(axes, keepdims=True)
    gain = jnp.where(covariance > 0.5 * jnp.sqrt(variance * (a * a).mean(axes, keepdims=True)), covariance, variance)
    return jnp.clip(gain / (variance + 1e-3), 0.5, 2.0) * b + own


def match_blocks(before: Float[Array, "pairs height width"], after: Float[Array, "pairs height width"]) -> Matches:
    """The blocks of pictures in grey levels among those of the pictures before, which have the same light."""
    pairs, height, width = after.shape
    rows, columns = (_membership(size) for size in (height, width))
    padded = jnp.pad(before, ((0, 0), (REACH, REACH), (REACH, REACH)), mode="edge")
    reach = jnp.arange(-REACH, REACH + 1)
    shifts = jnp.stack(jnp.meshgrid(reach, reach), axis=-1).reshape(-1, 2)  # row by row: (right, down)

    def cost(shift: Array) -> Array:
        moved = jax.lax.dynamic_slice(padded, (0, REACH - shift[1], REACH - shift[0]), after.shape)
        across = jnp.abs(after - moved).reshape(-1, width) @ columns.T
        return jnp.einsum("rh,phc->prc", rows, across.reshape(pairs, height, -1))

    costs = jnp.moveaxis(jax.lax.map(cost, shifts), 0, -1)  # [pairs, rows, columns, shifts]
    noise = _median(costs.min(-1).reshape(pairs, -1))[:, None, None]
    length = jnp.linalg.norm(shifts.astype(jnp.float32), axis=-1)
    at = jnp.argmin(costs + _STEP * (1 + noise[..., None]) * length, axis=-1)
    take = lambda index: jnp.take_along_axis(costs, index[..., None], axis=-1)[..., 0]  # noqa: E731
    best, side = take(at), 2 * REACH + 1

    def fraction(index: Array, step: int) -> tuple[Array, Array]:
        """Where between pixels the least lies, and the slope to it in grey levels per pixel."""
        low, high = (take(jnp.clip(at + sign * step, 0, side * side - 1)) for sign in (-1, 1))
        slope = jnp.maximum(jnp.maximum(low, high) - best, 1e-3)
        inside = (index > 0) & (index < side - 1)
        most = jnp.minimum(0.5, best / slope)  # beyond it the least would be below 0
        return jnp.where(inside, jnp.clip(0.5 * (low - high) / slope, -most, most), 0.0), slope

    x, y = at % side, at // side
    (part_x, slope_x), (part_y, slope_y) = fraction(x, 1), fraction(y, side)
    shift, slope = jnp.stack([x - REACH + part_x, y - REACH + part_y], -1), jnp.stack([slope_x, slope_y], -1)
    camera = _camera(shift, costs.mean(-1) - best > _TEXTURE + noise)
    near = jnp.round(camera).astype(jnp.int32) + REACH
    index = (near[:, 1] * side + near[:, 0])[:, None, None]
    apart = jnp.abs(shift - camera[:, None, None])
    closely = (slope * apart).sum(-1)  # costs between pixels, where the camera explains nearly all
    nearer = jnp.where(apart.max(-1) < 1, closely, take(jnp.broadcast_to(index, at.shape)) - best)
    sure = jnp.clip((nearer - _LEAST - _OF_NOISE * noise) / _MOST, 0, 1)
    return Matches(shift, sure, best, camera)


def _membership(size: int) -> Array:
    """[blocks, size]: a block's mean is a product with this."""
    begin = starts(size)[:, None]
    return jnp.asarray(((np.arange(size) >= begin) & (np.arange(size) < begin + BLOCK)) / BLOCK, jnp.float32)


def _camera(shift: Array, textured: Array) -> Array:
    """The median shift of the blocks with texture, where enough have some."""
    weights = textured.astype(jnp.float32).reshape(len(shift), -1)
    middle = jnp.stack([_median(shift[..., axis].reshape(weights.shape), weights) for axis in (0, 1)], axis=-1)
    return jnp.where(weights.mean(-1, keepdims=True) >= _TEXTURED, middle, 0.0)


def _median(values: Array, weights: Array | None = None) -> Array:
    """The lower median of each row, by ranks: sorting takes long to compile."""
    weights = jnp.ones_like(values) if weights is None else weights
    below = (weights[:, None] * (values[:, None] <= values[..., None])).sum(-1)
    half = (below >= weights.sum(-1, keepdims=True) / 2) & (weights > 0)
    return jnp.where(half, values, jnp.inf).min(-1)


CURVES = (
    "difference", "left", "likeness", "brightness", "camera_x", "camera_y", "right_going", "left_going", "falling",
    "rising", "area", "fastest", "moved", "stop", "stop_falling", "stop_rising", "stop_aside", "hardest", "start",
    "ceased", "begun", "turned", "most_ceased", "most_turned",
)  # fmt: skip
_LOSSES = ("stop", "stop_falling", "stop_rising", "stop_aside", "hardest", "start")
CHANGES = ("moved", "ceased", "begun", "turned", "most_ceased", "most_turned")  # of grey levels, small numbers
JOINTS = (*_LOSSES, *CHANGES[1:])  # where two pairs of pictures meet
VELOCITIES = ("camera_x", "camera_y", "right_going", "left_going", "falling", "rising", "fastest", *_LOSSES)


@functools.partial(jax.jit)
def motion_curves(
    pictures: Float[Array, "pictures height width"], seconds: Float[Array, " pictures"]
) -> dict[str, Float[Array, " places"]]:
    """A curve of each name in `CURVES`, for the pictures between the first and the last of them, and two centres.

    Grey levels are in 0 to 255 and `seconds` are the times of the pictures, ascending. At picture i stands what
    happened since the picture before it; `JOINTS` compare that with what happens until the next. Differences are shares
    of full scale, velocities widths of the picture per second. "centre" and "stop_centre" are where it moves and where
    it stops, -1 at the left edge to 1 at the right.
    """
    height, width = pictures.shape[1:]
    before, after = pictures[:-1], pictures[1:]
    evened = even_out(before, after)
    found = match_blocks(evened, after)
    passed = jnp.maximum(jnp.diff(seconds), 1e-3)
    own = (found.shift - found.camera[:, None, None]) / width / passed[:, None, None, None]
    speed = jnp.linalg.norm(own, axis=-1) * found.sure
    mean = lambda values: values.mean((1, 2))  # noqa: E731
    going = lambda axis, sign: mean(found.sure * jnp.maximum(sign * own[..., axis], 0))  # noqa: E731
    stop = _lost(own[:-1], found.sure[:-1], own[1:], found.sure[1:])
    start = _lost(own[1:], found.sure[1:], own[:-1], found.sure[:-1])
    heading = own[:-1] / (jnp.linalg.norm(own[:-1], axis=-1, keepdims=True) + 1e-6)
    parts = jnp.concatenate([jnp.maximum(heading, 0), jnp.maximum(-heading, 0)], axis=-1)  # right, down, left, up
    moved = _changed(evened, after, found.camera)
    both = _changed(even_out(pictures[:-2], pictures[2:]), pictures[2:], found.camera[:-1] + found.camera[1:])
    wide = _around(moved[..., None])[..., 0] / 9
    ceased, turned = jnp.maximum(wide[:-1] - wide[1:], 0), jnp.maximum(jnp.minimum(moved[:-1], moved[1:]) - both, 0)
    places = jnp.asarray((starts(width) + BLOCK / 2) / width * 2 - 1)
    camera = found.camera / width / passed[:, None]
    pairs = {
        "difference": jnp.abs(after - before).mean((1, 2)) / LEVELS,
        "left": mean(found.left) / LEVELS,
        "likeness": _likeness(before, after),
        "brightness": (after - before).mean((1, 2)) / LEVELS,
        "camera_x": camera[:, 0],
        "camera_y": camera[:, 1],
        "right_going": going(0, 1),
        "left_going": going(0, -1),
        "falling": going(1, 1),
        "rising": going(1, -1),
        "area": mean(found.sure),
        "fastest": speed.max((1, 2)),
        "moved": mean(moved),
        "centre": _centre(speed, places),
    }
    joints = {
        "stop": mean(stop),
        "stop_falling": mean(stop * parts[..., 1]),
        "stop_rising": mean(stop * parts[..., 3]),
        "stop_aside": mean(stop * (parts[..., 0] + parts[..., 2])),
        "hardest": stop.max((1, 2)),
        "start": mean(start),
        "ceased": mean(ceased),
        "begun": mean(jnp.maximum(wide[1:] - wide[:-1], 0)),
        "turned": mean(turned),
        "most_ceased": ceased.max((1, 2)),
        "most_turned": turned.max((1, 2)),
        "stop_centre": _centre(stop, places),
    }
    return {name: curve[:-1] for name, curve in pairs.items()} | joints


def _lost(own: Array, sure: Array, other: Array, other_sure: Array) -> Array:
    """The speed along its own motion that a block has lost in the mean of the nine around it in the other pair."""
    weight = other_sure[..., None]
    nearby = _around(weight * other) / (_around(weight) + 0.1)
    speed = jnp.linalg.norm(own, axis=-1)
    along = (own * nearby).sum(-1) / (speed + 1e-6)
    return sure * jnp.maximum(speed - along, 0)


def _around(values: Array) -> Array:
    """The sum over a block and the eight around it of [pairs, rows, columns, features]."""
    return jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def _changed(before: Array, after: Array, camera: Array) -> Array:
    """The mean |difference| of each block that is no noise, as a share of full scale, where the camera's whole pixels
    are undone."""
    _, height, width = after.shape
    whole = jnp.clip(jnp.round(camera).astype(jnp.int32), -REACH, REACH)
    padded = jnp.pad(before, ((0, 0), (REACH, REACH), (REACH, REACH)), mode="edge")
    moved = jax.vmap(lambda p, s: jax.lax.dynamic_slice(p, (REACH - s[1], REACH - s[0]), (height, width)))(
        padded, whole
    )
    rows, columns = (_membership(size) for size in (height, width))
    blocks = jnp.einsum("rh,phw,cw->prc", rows, jnp.abs(after - moved), columns)
    noise = _median(blocks.reshape(len(blocks), -1))[:, None, None]
    return jnp.maximum(blocks - 1.2 * noise, 0) / LEVELS


def _centre(weights: Array, places: Array) -> Array:
    return (weights * places).sum((1, 2)) / (weights.sum((1, 2)) + 1e-6)


def _likeness(before: Array, after: Array) -> Array:
    """The correlation of two pictures, each grey level of noise taken as like."""
    b, a = (x - x.mean((1, 2), keepdims=True) for x in (before, after))
    power = lambda x: (x * x).mean((1, 2)) + 4.0  # noqa: E731
    return ((a * b).mean((1, 2)) + 4.0) / jnp.sqrt(power(a) * power(b))
