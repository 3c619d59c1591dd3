"""Windows; cutting a signal into overlapping frames; adding overlapping frames back together.

Framing works on blocks of `hop_length` samples: a frame of `n_fft` samples is `ceil(n_fft / hop_length)` neighbouring
blocks, so framing is a few slices and overlap-add a few shifted sums, for any ratio of the two lengths. That moves each
sample once per block instead of gathering or scattering single elements.
"""

import functools

import jax.numpy as jnp
import numpy as np
import scipy.signal
from jaxtyping import Array, Float, Num

Window = str | tuple


@functools.cache
def fft_window(window: Window, win_length: int, n_fft: int) -> np.ndarray:
    """Periodic window of `win_length` samples, zero-padded on both sides to `n_fft` (float64, as librosa).

    `window` is a name or a (name, parameter) tuple that `scipy.signal.get_window` knows.
    """
    try:
        values = scipy.signal.get_window(window, win_length, fftbins=True)
    except (ValueError, KeyError) as error:
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


def frame(y: Float[Array, "... samples"], frame_length: int, hop_length: int) -> Float[Array, "... frames length"]:
    """Overlapping frames of `frame_length` samples, `hop_length` apart; an incomplete last frame is dropped."""
    frames = 1 + (y.shape[-1] - frame_length) // hop_length
    blocks = -(-frame_length // hop_length)
    length = (frames + blocks - 1) * hop_length
    y = jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, max(0, length - y.shape[-1]))])[..., :length]
    y = y.reshape(*y.shape[:-1], frames + blocks - 1, hop_length)
    return jnp.concatenate([y[..., k : k + frames, :] for k in range(blocks)], axis=-1)[..., :frame_length]


def overlap_add(frames: Num[Array, "... frames length"], hop_length: int) -> Num[Array, "... samples"]:
    """Sum of the frames, each shifted by `hop_length` samples from the one before; the adjoint of `frame`."""
    count, length = frames.shape[-2:]
    blocks = -(-length // hop_length)
    lead = [(0, 0)] * (frames.ndim - 2)
    frames = jnp.pad(frames, [*lead, (0, 0), (0, blocks * hop_length - length)])
    frames = frames.reshape(*frames.shape[:-1], blocks, hop_length)
    total = sum(jnp.pad(frames[..., k, :], [*lead, (k, blocks - 1 - k), (0, 0)]) for k in range(blocks))
    return total.reshape(*total.shape[:-2], -1)[..., : (count - 1) * hop_length + length]
