"""Linear operators of the inverse problems on rows of D values, each with its matrix built by NumPy alone."""

import jax.numpy as jnp
import numpy as np
from scipy.linalg import toeplitz

from jaxdiff.diffusion import decimation, filterbank, linear_operator, lowpass, masking

D = 12
FREQUENCIES = np.abs(np.fft.fftfreq(D, 1 / D))
BANDS, TAPS, MASK = np.random.default_rng(0).random((5, D)), np.array([0.9, -0.4, 0.2, 0.1]), np.arange(D) % 5 < 2


def fourier_gain(gain):
    return np.fft.ifft(gain[:, None] * np.fft.fft(np.eye(D), axis=0), axis=0).real


def filtered(x):
    """The part of a convolution where the filter overlaps wholly."""
    return jnp.asarray(sum(tap * x[:, 3 - k : D - k] for k, tap in enumerate(TAPS)))


LINEAR = {  # the operator and its matrix by NumPy
    "masking": (masking(MASK), np.diag(MASK.astype(float))),
    "lowpass": (lowpass(0.5), fourier_gain(FREQUENCIES <= 3)),
    "decimation": (decimation(3), fourier_gain((FREQUENCIES < 2) + np.sqrt(0.5) * (FREQUENCIES == 2))[::3]),
    "decimation by 4": (decimation(4), fourier_gain(FREQUENCIES < 1.5)[::4]),
    "filterbank": (filterbank(BANDS), BANDS),
    "convolution": (linear_operator(filtered), toeplitz([TAPS[3], *[0] * 8], [*TAPS[::-1], *[0] * 8])),
}


def rows(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)
