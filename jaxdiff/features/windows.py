"""Cut a signal into overlapping frames and add overlapping frames back together.

Both work on blocks of `hop_length` samples: a frame of `n_fft` samples is `ceil(n_fft / hop_length)` neighbouring
blocks, so framing is a few slices and overlap-add a few shifted sums, for any ratio of the two lengths. That moves each
sample once per block instead of gathering or scattering single elements.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


@functools.cache
def hann(win_length: int, n_fft: int) -> np.ndarray:
    """Periodic Hann window of `win_length` samples, zero-padded on both sides to `n_fft` (float64, as librosa)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    left = (n_fft - win_length) // 2
    window = np.pad(window, (left, n_fft - win_length - left))
    window.flags.writeable = False
    return window


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
