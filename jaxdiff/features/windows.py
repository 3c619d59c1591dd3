"""Windows; cutting a signal into overlapping frames; adding overlapping frames back together.

Framing works on blocks of `hop_length` samples: a frame of `n_fft` samples is `ceil(n_fft / hop_length)` neighbouring
blocks, so framing is a few slices and overlap-add a few shifted sums, for any ratio of the two lengths. That moves each
sample once per block instead of gathering or scattering single elements. Where a frame spans more than `MAX_COPIES`
blocks the program would be long to compile, and frames are gathered after all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Window = str | tuple[str | float, ...]
MAX_COPIES = 32  # of whatever is written out once per lag, band or neighbour


@functools.lru_cache(maxsize=64)
def fft_window(window: Window, win_length: int, n_fft: int) -> np.ndarray:
    """Periodic window of `win_length` samples, zero-padded on both sides to `n_fft` (float64, as librosa).

    `window` is a name or a (name, parameter) tuple that `scipy.signal.get_window` knows.
    """
    import scipy.signal  # takes half a second, which what needs no window does not wait for

    try:
        values = scipy.signal.get_window(window, win_length, fftbins=True)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"window {window!r} is unknown to scipy.signal.get_window ({error}); use 'hann'") from None
    left = (n_fft - win_length) // 2
    values = np.pad(values, (left, n_fft - win_length - left))
    values.flags.writeable = False
    return values


@functools.lru_cache(maxsize=32)
def squared_envelope(window: Window, win_length: int, n_fft: int, hop_length: int, count: int) -> np.ndarray:
    """Sum of `count` squared windows, each `hop_length` samples after the one before (float64)."""
    squared = fft_window(window, win_length, n_fft) ** 2
    total = np.zeros((count - 1) * hop_length + n_fft)
    for m in range(count):
        total[m * hop_length : m * hop_length + n_fft] += squared
    return total


def pad(y: Num[Array, "... samples"], before: int, after: int, mode: str) -> Num[Array, "... padded"]:
    """The last axis extended by a mode of `jax.numpy.pad`, which mirrors and repeats a short signal by one gather."""
    if mode in ("reflect", "symmetric", "wrap") and max(before, after) >= y.shape[-1]:
        return y[..., np.pad(np.arange(y.shape[-1]), (before, after), mode=mode)]
    try:
        return jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(before, after)], mode=mode)
    except NotImplementedError:
        raise ValueError(f"pad_mode {mode!r} is unknown to jax.numpy.pad; use 'constant' or 'reflect'") from None


def frame(
    y: Float[Array, "... samples"], frame_length: int, hop_length: int, window: np.ndarray | Array | None = None
) -> Float[Array, "... frames length"]:
    """Frames of `frame_length` samples, `hop_length` apart, times `window`; an incomplete last one is dropped."""
    return join_blocks(cut_blocks(y, frame_length, hop_length), frame_length, window)


def cut_blocks(
    y: Float[Array, "... samples"], frame_length: int, hop_length: int
) -> Float[Array, "... blocks hop_length"]:
    """The samples of all complete frames as blocks of `hop_length`, the last one filled up with zeros."""
    count = (y.shape[-1] - frame_length) // hop_length + -(-frame_length // hop_length)
    length = count * hop_length
    y = jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, max(0, length - y.shape[-1]))])[..., :length]
    return y.reshape(*y.shape[:-1], count, hop_length)


def join_blocks(
    blocks: Float[Array, "... blocks hop_length"],
    frame_length: int,
    window: np.ndarray | Array | None = None,
    into: Float[Array, "... frames length"] | None = None,
) -> Float[Array, "... frames length"]:
    """Frames of `frame_length` samples from the blocks that `cut_blocks` made, times `window`.

    On CPU each run of `hop_length` columns is written on its own, which is copying; one fused program that looks up
    where every element comes from is slower there, and faster on GPU and TPU. On CPU the frames may be written `into`
    an array whose memory a loop uses again.
    """
    hop_length = blocks.shape[-1]
    runs = -(-frame_length // hop_length)
    frames = blocks.shape[-2] - runs + 1
    window = None if window is None else jnp.asarray(window, blocks.dtype)

    def columns(blocks: Array, k: int) -> Array:
        width = min(hop_length, frame_length - k * hop_length)
        block = blocks[..., k : k + frames, :width]
        return block if window is None else block * window[k * hop_length : k * hop_length + width]

    def copy(blocks: Array) -> Array:
        out = jnp.zeros((*blocks.shape[:-2], frames, frame_length), blocks.dtype) if into is None else into
        for k in range(runs):
            out = jax.lax.dynamic_update_slice(out, columns(blocks, k), (*[0] * (blocks.ndim - 2), 0, k * hop_length))
        return out

    def look_up(blocks: Array) -> Array:
        return jnp.concatenate([columns(blocks, k) for k in range(runs)], axis=-1)

    if runs > MAX_COPIES:
        gathered = _gather(blocks.reshape(*blocks.shape[:-2], -1), frame_length, hop_length, frames)
        return gathered if window is None else gathered * window
    return jax.lax.platform_dependent(blocks, cpu=copy, default=look_up)


def _gather(y: Num[Array, "... samples"], length: int, hop_length: int, count: int) -> Num[Array, "... frames length"]:
    cut = lambda start: jax.lax.dynamic_slice_in_dim(y, start, length, axis=-1)  # noqa: E731
    return jax.vmap(cut, out_axes=-2)(jnp.arange(count) * hop_length)


def overlap_add(frames: Num[Array, "... frames length"], hop_length: int) -> Num[Array, "... samples"]:
    """Sum of the frames, each shifted by `hop_length` samples from the one before; the adjoint of `frame`.

    A block that all runs of a frame reach is one sum over neighbouring frames. On CPU these are computed on their own,
    without the zeros that the few blocks at both ends need; one fused program for all is faster on GPU and TPU.
    """
    count, length = frames.shape[-2:]
    runs = -(-length // hop_length)
    if runs > MAX_COPIES:
        total = jax.ShapeDtypeStruct((*frames.shape[:-2], (count - 1) * hop_length + length), frames.dtype)
        return jax.linear_transpose(lambda y: _gather(y, length, hop_length, count), total)(frames)[0]
    edge = runs - 1
    lead = [(0, 0)] * (frames.ndim - 2)

    def columns(frames: Array, k: int) -> Array:
        block = frames[..., k * hop_length : (k + 1) * hop_length]
        return jnp.pad(block, [*lead, (0, 0), (0, hop_length - block.shape[-1])])

    def with_zeros(frames: Array) -> Array:
        return jnp.asarray(sum(jnp.pad(columns(frames, k), [*lead, (k, edge - k), (0, 0)]) for k in range(runs)))

    def in_parts(frames: Array) -> Array:
        inner = sum(columns(frames[..., edge - k : count - k, :], k) for k in range(runs))
        head = with_zeros(frames[..., :edge, :])[..., :edge, :]
        tail = with_zeros(frames[..., count - edge :, :])[..., edge:, :]
        total = jnp.zeros((*frames.shape[:-2], count + edge, hop_length), frames.dtype)
        for start, part in ((edge, inner), (0, head), (count, tail)):
            total = jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=-2)
        return total

    cpu = in_parts if edge < count else with_zeros
    total = jax.lax.platform_dependent(frames, cpu=cpu, default=with_zeros)
    return total.reshape(*total.shape[:-2], -1)[..., : (count - 1) * hop_length + length]
