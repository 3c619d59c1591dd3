"""Streams equal the offline transforms, whatever the chunk, with one compilation per chunk length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff import features

CASES = [
    dict(n_fft=256, hop_length=64),
    dict(n_fft=256, hop_length=60),
    dict(n_fft=255, hop_length=50, win_length=200),
    dict(n_fft=256, hop_length=128, center=False),
    dict(n_fft=200, hop_length=70, center=False),
]


def wave(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def run(stream, chunks, axis: int):
    """All outputs of a stream, `delay` dropped; chunks are scanned over."""
    state, out = jax.lax.scan(stream.step, stream.init(chunks.shape[1:axis]), chunks)
    return jnp.concatenate([*out, stream.finish(state)], axis=-1)[..., stream.delay :]


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("hops", [1, 4])
def test_analysis_in_chunks(options, hops):
    chunk = hops * options["hop_length"]
    pairs = (
        (features.stft_stream(**options), functools.partial(features.stft, **options)),
        (
            features.melspectrogram_stream(n_mels=20, **options),
            functools.partial(features.melspectrogram, n_mels=20, **options),
        ),
    )

    @jax.jit
    def both(y):
        chunks = jnp.moveaxis(y.reshape(2, 12, chunk), 1, 0)
        return [(run(stream, chunks, -1), whole(y)) for stream, whole in pairs]

    for out, offline in both(wave(2, 12 * chunk)):
        assert max_relative(out[..., : offline.shape[-1]], offline) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("frames", [1, 5])
def test_synthesis_in_chunks(options, frames):

    @jax.jit
    def both(y):
        X = features.stft(y, **options)
        X = X[..., : X.shape[-1] // frames * frames]
        chunks = jnp.moveaxis(X.reshape(*X.shape[:-1], -1, frames), -2, 0)
        return run(features.istft_stream(**options), chunks, -2), features.istft(X, **options)

    ours, offline = both(wave(2, 40 * options["hop_length"]))
    assert ours.shape == offline.shape
    # As offline, a sample's rounding is divided by a window sum that is next to nothing at an uncentred end.
    inside = slice(None) if options.get("center", True) else slice(64, -64)
    assert max_relative(ours[..., inside], offline[..., inside]) <= 1e-6


def test_one_compilation_per_chunk_length():
    stream, traces = features.melspectrogram_stream(n_fft=256, hop_length=64, n_mels=10), []

    @jax.jit
    def step(state, chunk):
        traces.append(chunk.shape)
        return stream.step(state, chunk)

    state = stream.init()
    for length in (64, 64, 128, 64, 128, 128):
        state, _ = step(state, wave(length))
    assert traces == [(64,), (128,)]


def test_a_broken_chunk_is_refused():
    stream = features.stft_stream(n_fft=256, hop_length=64)
    with pytest.raises(ValueError, match="a chunk of 100 samples is not a multiple of hop_length 64"):
        stream.step(stream.init(), jnp.asarray(wave(100)))
    with pytest.raises(ValueError, match="hop_length 256 cannot be inverted"):
        features.istft_stream(n_fft=256, hop_length=256)
