"""The anchors of a MUSHRA test: the reference through low-pass filters of 3.5 and 7 kHz (ITU-R BS.1534-3, section 5.1).

    h[n] = 2 f_c / f_s sinc(2 f_c n / f_s) w[n],      w a Kaiser window      (Oppenheim & Schafer, section 7.5)

The recommendation asks of the 3.5 kHz filter for a ripple of at most 0.1 dB up to 3.5 kHz, and for attenuations of at
least 25 dB at 4 kHz and 50 dB at 4.5 kHz. One filter serves for every cut-off, its frequencies in proportion: it passes
up to the cut-off within 0.01 dB and stops from 8/7 of it by 60 dB. It is symmetric and its delay is taken off, so that
an anchor is aligned with its reference to the sample.
"""

import math

import numpy as np
import scipy.signal
from jaxtyping import Float

_STOP = 8 / 7  # where the stop band begins, in units of the cut-off: 4 kHz for 3.5 kHz
_ATTENUATION = 60.0  # dB; the ripple of a windowed filter is as small as its stop band, here 0.009 dB


def lowest_rate(cutoff: float) -> int:
    """The lowest sample rate in Hz at which an anchor can be made: its stop band begins at half of it."""
    return math.ceil(2 * _STOP * cutoff)


def anchor_filter(cutoff: float, sr: int) -> Float[np.ndarray, " taps"]:
    """The symmetric impulse response of the anchor's low-pass filter; `cutoff` and `sr` in Hz.

    Raises ValueError where the rate is too low for the cut-off.

    >>> h = anchor_filter(3500, 48000)
    >>> len(h) % 2, f"{h.sum():.3f}"
    (1, '1.000')
    """
    if sr < lowest_rate(cutoff):
        raise ValueError(
            f"an anchor of {cutoff:g} Hz needs sounds of at least {lowest_rate(cutoff)} Hz, got {sr} Hz; leave it out"
        )
    width = 2 * math.pi * (_STOP - 1) * cutoff / sr  # of the transition, in radians per sample
    half = math.ceil(((_ATTENUATION - 7.95) / (2.285 * width) + 1) / 2)
    beta = 0.1102 * (_ATTENUATION - 8.7)
    middle = (1 + _STOP) / 2 * cutoff / sr  # in cycles per sample
    h = 2 * middle * np.sinc(2 * middle * np.arange(-half, half + 1)) * np.kaiser(2 * half + 1, beta)
    return h / h.sum()


def anchor(y: Float[np.ndarray, "*channels samples"], cutoff: float, sr: int) -> Float[np.ndarray, "*channels samples"]:
    """`y` below the cut-off in Hz, of the same length and at the same time; beyond its ends it counts as silent."""
    h = anchor_filter(cutoff, sr)
    y = np.asarray(y, np.float64)
    return scipy.signal.oaconvolve(y, h.reshape((1,) * (y.ndim - 1) + (-1,)), mode="full", axes=-1)[
        ..., len(h) // 2 : len(h) // 2 + y.shape[-1]
    ]
