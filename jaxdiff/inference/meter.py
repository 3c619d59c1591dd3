"""Loudness and true peak of a sound that comes in blocks, at constant memory: BS.1770-4 as in `features.loudness`."""

import numpy as np
import scipy.signal

from jaxdiff.features.filters import k_sections

LOWEST = -70.0  # LUFS: the absolute gate
_SURROUND = (1.0, 1.0, 1.0, 0.0, 1.41, 1.41)  # left, right, centre, LFE, surrounds, as files of six channels have them
_LAYOUTS = {5: (1.0, 1.0, 1.0, 1.41, 1.41), 6: _SURROUND}
_PARTS = 4  # of 100 ms in a block of 400 ms, which begins with each of them
_HALF, _OVERSAMPLING = 32, 4  # samples on either side that an interpolated one is made of; points per sample
_BLOCK = 1 << 16  # samples that are interpolated at once
_SURELY = 4.0  # times the largest sample: more than any interpolated one


class LoudnessMeter:
    """The integrated loudness of a sound at `rate` Hz of so many `channels`: `add` its blocks, then read `loudness`.

    Channels count alike, but in layouts of five and six (where the LFE counts nothing and the surrounds 1.5 dB more).
    """

    def __init__(self, rate: float, channels: int):
        self._hop = round(rate / 10)
        self._sections = np.array(k_sections(rate)) if rate >= 4000 else None  # K-weighting is defined from there
        self._state = np.zeros((2, channels, 2))
        self._weights = np.array(_LAYOUTS.get(channels, (1.0,) * channels))
        self._rest = np.zeros((channels, 0))
        self._powers: list[np.ndarray] = []  # of parts

    def add(self, block: np.ndarray) -> None:
        """A block [channels, samples]."""
        if self._sections is None or not block.size:
            return
        y, self._state = scipy.signal.sosfilt(self._sections, block.astype(np.float64), zi=self._state)
        y = np.concatenate([self._rest, y], axis=-1)
        parts = y.shape[-1] // self._hop
        whole, self._rest = np.split(y, [parts * self._hop], axis=-1)
        self._powers.append(self._weights @ (whole.reshape(len(y), parts, self._hop) ** 2).mean(-1))

    @property
    def loudness(self) -> float | None:
        """In LUFS, -70 where nothing passes the gate; None for less than 400 ms and for rates below 4 kHz."""
        parts = np.concatenate([np.zeros(0), *self._powers])
        if len(parts) < _PARTS:
            return None
        power = np.convolve(parts, np.full(_PARTS, 1 / _PARTS), "valid")
        power = power[power > _power(LOWEST)]
        if len(power):
            power = power[power > power.mean() / 10]
        return LOWEST if not len(power) else -0.691 + 10 * float(np.log10(power.mean()))


class PeakMeter:
    """The largest sample of a sound and the largest between its samples: `add` its blocks, then read the peaks."""

    def __init__(self, channels: int):
        self.peak = 0.0  # of its samples; full scale is 1
        self._largest, self._tail = 0.0, np.zeros((channels, 2 * _HALF + 1), np.float32)
        t = np.arange(-_HALF * _OVERSAMPLING, _HALF * _OVERSAMPLING) / _OVERSAMPLING
        kernel = np.sinc(t) * np.i0(5.65 * np.sqrt(1 - (t / _HALF) ** 2)) / np.i0(5.65)
        self._phases = kernel.reshape(-1, _OVERSAMPLING).T.astype(np.float32)  # [points, samples]

    def add(self, block: np.ndarray) -> None:
        """A block [channels, samples]."""
        self.peak = max(self.peak, float(np.abs(block).max(initial=0)))
        for start in range(0, block.shape[-1], _BLOCK):
            y = np.concatenate([self._tail, block[:, start : start + _BLOCK]], axis=-1)
            self._largest = max(self._largest, self._between(y))
            self._tail = y[:, -self._tail.shape[-1] :]

    @property
    def true_peak(self) -> float:
        """In dBTP, at least -120."""
        end = np.pad(self._tail, ((0, 0), (0, _HALF)))
        return 20 * float(np.log10(max(self.peak, self._largest, self._between(end), 1e-6)))

    def _between(self, y: np.ndarray) -> float:
        """The largest of the interpolated waveform between the samples of `y` that have enough neighbours."""
        if _SURELY * np.abs(y).max(initial=0) <= self._largest or y.shape[-1] < self._phases.shape[-1]:
            return 0.0
        fine = scipy.signal.fftconvolve(y[:, None], self._phases[None], mode="valid", axes=-1)
        fine = np.abs(np.moveaxis(fine, 1, 2).reshape(len(y), -1))
        left, top, right = fine[:, :-2], fine[:, 1:-1], fine[:, 2:]
        above = (left - right) ** 2 / (8 * np.maximum(2 * top - left - right, 1e-12))  # a parabola through the three
        return float(np.where((top >= left) & (top >= right), top + above, 0).max(initial=0))


def _power(loudness: float) -> float:
    return 10 ** ((loudness + 0.691) / 10)
