"""STFT, mel spectrogram and inverse STFT of sound that arrives in chunks, equal to the offline transforms.

A `Stream` is a state and pure functions on it:

    state = stream.init(lead, dtype)      state, out = stream.step(state, chunk)      out = stream.finish(state)

`step` fits `lax.scan` and compiles once per chunk length, which must be a multiple of the hop. The outputs of all
steps, followed by `finish`, are the offline result once the first `delay` frames (or samples) are dropped: what comes
before the signal while the state is still filled with the padding of a centred transform.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .arguments import check_wave, checked
from .mel import Norm, mel_energy, mel_filterbank
from .spectral import Method, check_invertible, frame_sizes, irfft, rfft
from .windows import Window, fft_window, frame, overlap_add


class Stream(NamedTuple):
    """`init(lead, dtype) -> state`, `step(state, chunk) -> (state, out)`, `finish(state) -> out`; see the module."""

    init: Callable[..., Any]
    step: Callable[[Any, Array], tuple[Any, Array]]
    finish: Callable[[Any], Array]
    delay: int


def _frame_stream(of_frames: Callable[[Array], Array], n_fft: int, hop_length: int, center: bool) -> Stream:
    """A stream of `of_frames(frames [..., frames, n_fft])`; the state is the samples that later frames still need.

    The state is long enough for its start to lie a whole number of hops before the first frame of the signal.
    """
    pad = n_fft // 2 if center else 0
    delay = -(-(n_fft - hop_length - pad) // hop_length) if n_fft - hop_length > pad else 0
    size = pad + delay * hop_length

    def init(lead: tuple[int, ...] = (), dtype=jnp.float32) -> Array:
        return jnp.zeros((*lead, size), dtype)

    def cut(samples: Array, frames: int) -> Array:
        return of_frames(frame(samples[..., : (frames - 1) * hop_length + n_fft], n_fft, hop_length))

    def step(state: Array, chunk: Array) -> tuple[Array, Array]:
        check_wave(chunk, "step")
        if chunk.shape[-1] == 0 or chunk.shape[-1] % hop_length:
            raise ValueError(f"a chunk of {chunk.shape[-1]} samples is not a multiple of hop_length {hop_length}")
        samples = jnp.concatenate([state, chunk], axis=-1)
        return samples[..., chunk.shape[-1] :], cut(samples, chunk.shape[-1] // hop_length)

    def finish(state: Array) -> Array:
        samples = jnp.pad(state, [(0, 0)] * (state.ndim - 1) + [(0, pad)])
        frames = 1 + (samples.shape[-1] - n_fft) // hop_length
        if frames < 1:
            return cut(jnp.pad(samples, [(0, 0)] * (state.ndim - 1) + [(0, n_fft)]), 1)[..., :0]
        return cut(samples, frames)

    return Stream(init, step, finish, delay)


@checked
def stft_stream(
    *,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    method: Method = "auto",
) -> Stream:
    """`stft` in chunks: `[..., samples]` in, `[..., bins, frames]` out, one frame per hop.

    >>> stream = stft_stream(n_fft=256, hop_length=64)
    >>> state, out = stream.step(stream.init(), jnp.ones(320))
    >>> out.shape, stream.delay
    ((129, 5), 1)
    """
    hop_length, win_length = frame_sizes(n_fft, hop_length, win_length)
    weight = fft_window(window, win_length, n_fft)
    return _frame_stream(lambda f: rfft(f * jnp.asarray(weight, f.dtype), method).mT, n_fft, hop_length, center)


@checked
def melspectrogram_stream(
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    power: float = 2.0,
    n_mels: int = 128,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: Norm = "slaney",
    method: Method = "auto",
) -> Stream:
    """`melspectrogram` in chunks: `[..., samples]` in, `[..., mels, frames]` out, one frame per hop.

    >>> stream = melspectrogram_stream(n_fft=256, hop_length=64, n_mels=20)
    >>> stream.step(stream.init((2,)), jnp.ones((2, 128)))[1].shape
    (2, 20, 2)
    """
    hop_length, win_length = frame_sizes(n_fft, hop_length, win_length)
    weight = fft_window(window, win_length, n_fft)
    filters = mel_filterbank(sr, n_fft, n_mels, fmin, fmax, htk, norm)
    spectra = lambda frames: rfft(frames * jnp.asarray(weight, frames.dtype), method)  # noqa: E731
    return _frame_stream(lambda frames: mel_energy(spectra(frames), filters, power), n_fft, hop_length, center)


@checked
def istft_stream(
    *,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    method: Method = "auto",
) -> Stream:
    """`istft` in chunks of frames: `[..., bins, frames]` in, `hop_length` samples out per frame, the rest at the end.

    The state holds the sums of windowed frames and of squared windows that later frames still add to. `delay` counts
    samples. `finish` gives `n_fft - hop_length` samples, less the padding of a centred transform.

    >>> stream = istft_stream(n_fft=256, hop_length=64)
    >>> stream.step(stream.init(), jnp.ones((129, 3), jnp.complex64))[1].shape, stream.delay
    ((192,), 128)
    """
    hop_length, win_length = frame_sizes(n_fft, hop_length, win_length)
    check_invertible(1 + n_fft // 2, window, win_length, n_fft, hop_length)
    weight = fft_window(window, win_length, n_fft)
    tail, pad = n_fft - hop_length, n_fft // 2 if center else 0

    def init(lead: tuple[int, ...] = (), dtype=jnp.float32) -> tuple[Array, Array]:
        return jnp.zeros((*lead, tail), dtype), jnp.zeros(tail, dtype)

    def divide(total: Array, envelope: Array) -> Array:
        heard = envelope > np.finfo(np.float32).tiny
        return total / jnp.where(heard, envelope, 1)

    def step(state: tuple[Array, Array], chunk: Array) -> tuple[tuple[Array, Array], Array]:
        frames = irfft(chunk.mT, n_fft, method)
        w = jnp.asarray(weight, frames.dtype)
        sums = [overlap_add(frames * w, hop_length), overlap_add(jnp.broadcast_to(w**2, frames.shape[-2:]), hop_length)]
        done = chunk.shape[-1] * hop_length
        sums = [s.at[..., :tail].add(old) for s, old in zip(sums, state, strict=True)]
        return (sums[0][..., done:], sums[1][..., done:]), divide(sums[0][..., :done], sums[1][..., :done])

    def finish(state: tuple[Array, Array]) -> Array:
        total, envelope = (s[..., : max(0, tail - pad)] for s in state)
        return divide(total, envelope)

    return Stream(init, step, finish, pad)
