"""Distances between sounds that gradients can follow: multi-resolution STFT, log-mel, and two for speech in noise.

    spectral convergence |X - Y|_F / |X|_F,      log magnitude mean |log |X| - log |Y||,      X of the target

All compare spectra above a floor: between silence and silence they and their gradients are 0. Each item of the leading
axes has its own loss. For training, `auxiliary` of `jaxdiff.diffusion.diffusion_loss` takes them of decoded sound.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .mel import melspectrogram
from .spectral import count_frames, magnitude_power, stft
from .transform import transform

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # n_fft, hop_length, win_length
_POWER_FLOOR = 1e-7  # of a bin, the -70 dB of a sine of unit amplitude that the public vocoders use


@transform
def multi_resolution_stft_loss(
    y: Float[Array, "... samples"],
    target: Float[Array, "... samples"],
    *,
    resolutions: tuple[tuple[int, int, int], ...] = RESOLUTIONS,
) -> Float[Array, "..."]:
    """Spectral convergence plus log-magnitude distance, averaged over STFTs (Yamamoto et al. 2020, eq. 3-6).

    `resolutions` holds (n_fft, hop_length, win_length) in samples; the default is the paper's (table 1).

    >>> y = jnp.sin(jnp.arange(4096.0))
    >>> float(multi_resolution_stft_loss(y, y)) < 1e-6 < float(multi_resolution_stft_loss(0.5 * y, y))
    True
    """
    return mean_stft_distance(y, target, None, resolutions)


def mean_stft_distance(
    y: Float[Array, "... samples"],
    target: Float[Array, "... samples"],
    samples: Int[Array, ""] | int | None = None,
    resolutions: tuple[tuple[int, int, int], ...] = RESOLUTIONS,
) -> Float[Array, "..."]:
    """`multi_resolution_stft_loss` of the first `samples` of waveforms that are silent after them; None: of all."""
    samples = y.shape[-1] if samples is None else samples

    def distance(n_fft: int, hop_length: int, win_length: int) -> Array:
        options: dict[str, Any] = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length)
        Y, X = (jnp.maximum(magnitude_power(stft(wave, **options), 2), _POWER_FLOOR) for wave in (y, target))
        frames = count_frames(samples, n_fft, hop_length)

        def total(values: Array) -> Array:
            return jnp.where(jnp.arange(values.shape[-1]) < frames, values, 0).sum((-2, -1))

        difference = total((jnp.sqrt(X) - jnp.sqrt(Y)) ** 2)
        same = difference == 0  # where the square root has no gradient
        convergence = jnp.where(same, 0, jnp.sqrt(jnp.where(same, 1, difference) / total(X)))
        return convergence + 0.5 * total(jnp.abs(jnp.log(X) - jnp.log(Y))) / (X.shape[-2] * frames)

    return jnp.asarray(sum(distance(*resolution) for resolution in resolutions)) / len(resolutions)


@transform
def mel_loss(
    y: Float[Array, "... samples"],
    target: Float[Array, "... samples"],
    *,
    sr: float = 22050,
    n_fft: int = 1024,
    hop_length: int = 256,
    n_mels: int = 80,
    fmin: float = 0.0,
    fmax: float | None = None,
    floor: float = 1e-5,
) -> Float[Array, "..."]:
    """Mean absolute difference of log-mel magnitudes, in nepers (Kong et al. 2020, eq. 5, HiFi-GAN).

    `sr`, `fmin` and `fmax` in Hz, lengths in samples; magnitudes below `floor` count as `floor`.

    >>> y = jnp.sin(jnp.arange(4096.0))
    >>> round(float(mel_loss(2 * y, y, floor=1e-9)), 4)
    0.6931
    """
    options: dict[str, Any] = dict(
        sr=sr, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels, fmin=fmin, fmax=fmax, power=1.0
    )
    ours, theirs = (jnp.log(jnp.maximum(melspectrogram(wave, **options), floor)) for wave in (y, target))
    return jnp.abs(ours - theirs).mean((-2, -1))


@transform
def compressed_stft_loss(
    y: Float[Array, "... samples"],
    target: Float[Array, "... samples"],
    *,
    n_fft: int = 512,
    hop_length: int = 256,
    exponent: float = 0.3,
    phase: float = 0.4,
) -> Float[Array, "..."]:
    """Mean squared difference of STFTs with magnitudes raised to `exponent`: the share `phase` of complex numbers, the
    rest of magnitudes (Braun & Tashev 2021, eq. 3).

    With both sounds louder by a factor g it is g^(2 exponent) times as large. Magnitudes below 1e-4 are not bent: there
    complex numbers are scaled as at 1e-4, and magnitudes count as equal.

    >>> y = jnp.sin(jnp.arange(4096.0))
    >>> float(compressed_stft_loss(y, y)), float(compressed_stft_loss(-y, y, phase=0.0))
    (0.0, 0.0)
    """
    sizes: dict[str, Any] = dict(n_fft=n_fft, hop_length=hop_length)
    spectra = [stft(wave, **sizes) for wave in (y, target)]
    powers = [jnp.maximum(X.real**2 + X.imag**2, 1e-8) for X in spectra]  # below it magnitudes are linear
    X, Y = (X * P ** (exponent / 2 - 0.5) for X, P in zip(spectra, powers, strict=True))
    apart = (X.real - Y.real) ** 2 + (X.imag - Y.imag) ** 2
    louder = (powers[0] ** (exponent / 2) - powers[1] ** (exponent / 2)) ** 2
    return (phase * apart + (1 - phase) * louder).mean((-2, -1))


@transform
def speech_loss(
    y: Float[Array, "... samples"],
    target: Float[Array, "... samples"],
    *,
    n_fft: int = 512,
    hop_length: int = 256,
    wave: float = 0.2,
    ratio: float = 0.002,
) -> Float[Array, "..."]:
    """`compressed_stft_loss`, plus `wave` times the mean absolute difference of the sounds over the target's deviation,
    plus `ratio` times the scale-invariant distortion in dB (Le Roux et al. 2019, eq. 5, its sign turned), where the
    error has 0.1 % of the target's energy added, so that equal sounds have -30 dB and not less.

    The last two do not change with the level of both sounds, and the distortion not with that of `y`. Where the
    target's root mean square is below 1e-4 they are left out.

    >>> y = jnp.sin(jnp.arange(4096.0))
    >>> float(speech_loss(0.9 * y, y)) < float(speech_loss(y + y[::-1], y))
    True
    """
    power = (target**2).mean(-1)
    silent = power < 1e-8
    scale = jax.lax.rsqrt(jnp.where(silent, 1.0, power))
    a, b = y * scale[..., None], target * scale[..., None]
    apart = jnp.abs(a - b).mean(-1)
    along = (a * b).mean(-1, keepdims=True) * b
    signal, error = (along**2).mean(-1), ((a - along) ** 2).mean(-1)
    distortion = 10 / math.log(10) * jnp.log((error + 1e-3 * signal + 1e-8) / (signal + 1e-8))
    spectral = compressed_stft_loss(y, target, n_fft=n_fft, hop_length=hop_length)
    return spectral + jnp.where(silent, 0.0, wave * apart + ratio * distortion)
