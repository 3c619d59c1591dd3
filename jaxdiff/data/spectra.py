"""What a long-term spectrum lacks: a band above a cut-off, and the islands of nothing that lossy codecs leave.

A band is lost where the mean spectrum of the loud frames falls by a cliff and stays down; a steep natural spectrum
has none. A codec that has few bits switches narrow bands off, down to the rounding of 16 bits, and on again, while
the bands just below sound on; nature and music switch whole spectra, or only what is above some frequency.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jaxdiff.data.breaks import STEP

_CLASSES, _CLASS_DB, _LOUD_DB = 64, 3.0, 25.0  # frames are gathered by their level; the loud ones are judged
_CLIFF_DB, _CLIFF_TO_NOTHING_DB = 26.0, 14.0  # the least fall, and that to what 16 bits leave
_NOTHING_DB = 10 * np.log10(STEP**2 / 12) + 4
_ISLANDS = 0.012  # of the bands that sound, within some part of the spectrum
_ON_DB, _OFF_DB = 20.0, 3.0  # of a band, above what 16 bits leave
_WITHIN = 4  # bands
_LOWEST, _HIGHEST, _PART = 1000.0, 12_000.0, 2000.0  # Hz: where islands are looked for, and the width of a part
_LEAST_BAND, _MOST_BAND = 800.0, 0.9  # Hz, and of half the rate: where a cut-off is looked for
_LEAST_WIDTH = 300.0  # Hz below a cut-off that must be filled


class Spectra:
    """The long-term spectrum of one channel and how often bands of it switch on and off amid others that stay on."""

    def __init__(self, sr: int):
        self.sr, self.size = sr, 2 ** round(np.log2(0.03 * sr))
        self.frames = np.zeros(_CLASSES)
        self.power = np.zeros((_CLASSES, self.size + 1))
        self.width = max(2, round(150 * self.size / sr))  # bins of a band
        self.low = round(_LOWEST * self.size / sr)
        self.bands = max(0, int(min(_MOST_BAND * self.size / 2, _HIGHEST * self.size / sr) - self.low) // self.width)
        self.moments = np.zeros(_CLASSES)
        self.on, self.switched = (np.zeros((_CLASSES, self.bands)) for _ in range(2))

    def add(self, wave: Float[np.ndarray, " samples"], count: int, *, pad: bool) -> None:
        """Take in the frames that begin in the first `count` samples; `pad` fills a sound without a whole one up."""
        long = _spectrogram(wave, count, 2 * self.size, 2 * self.size, pad)
        classes = _classes(long)
        np.add.at(self.frames, classes, 1)
        np.add.at(self.power, classes, long)
        power = _spectrogram(wave, count, self.size, self.size // 2, pad)
        if len(power) < 2 or self.bands < 2:
            return
        inside = power[:, self.low : self.low + self.bands * self.width]
        peaks = inside.reshape(len(power), self.bands, self.width).max(axis=2)
        level = 10 * np.log10(peaks / (10 * STEP**2 / 12) + 1e-12)
        on, off = level > _ON_DB, level < _OFF_DB
        stays = on[:-1] & on[1:]
        beside = np.zeros_like(stays)
        for k in range(1, _WITHIN + 1):
            beside[:, k:] |= stays[:, :-k]
        switched = ((on[:-1] & off[1:]) | (off[:-1] & on[1:])) & beside
        classes = _classes(power)
        np.add.at(self.moments, classes, 1)
        np.add.at(self.on, classes, on)
        np.add.at(self.switched, np.minimum(classes[:-1], classes[1:]), switched)

    def lost(self) -> Iterator[tuple[Literal["band", "codec"], float]]:
        """A lost band and a codec with their cut-offs in Hz."""
        loud = _loud(self.frames)
        if self.frames[loud].sum() < 4:
            return
        spectrum = self.power[loud].sum(axis=0) / self.frames[loud].sum()
        cutoff = self._cliff(spectrum)
        if cutoff:
            yield "band", cutoff
        if self._islands() > _ISLANDS:
            above = np.flatnonzero(10 * np.log10(spectrum / (STEP**2 / 12) + 1e-12) > 10)
            yield "codec", cutoff or float(above[-1] + 1 if len(above) else 0) * self.sr / (2 * self.size)

    def _islands(self) -> float:
        """How often a band switches on or off, of the times that it sounds, in the part where that is most frequent."""
        loud = _loud(self.moments)
        on, switched = self.on[loud].sum(axis=0), self.switched[loud].sum(axis=0)
        part = min(self.bands, round(_PART * self.size / (self.width * self.sr)))
        if part < 1 or switched.sum() < 8:
            return 0.0
        on, switched = (np.convolve(counts, np.ones(part), "valid") for counts in (on, switched))
        heard = on > 0.05 * part * self.on[loud].sum(axis=0).max()
        return float(np.max(switched / np.maximum(on, 1), where=heard, initial=0.0))

    def _cliff(self, spectrum: Float[np.ndarray, " bins"]) -> float | None:
        """Where the spectrum falls at once and stays down, in Hz."""
        bins, hz = len(spectrum) - 1, self.sr / (2 * self.size)
        reach = max(1, round(60 / hz))
        smooth = np.convolve(np.pad(spectrum, reach, "edge"), np.ones(2 * reach + 1) / (2 * reach + 1), "valid")
        level, smooth = (10 * np.log10(power + 1e-14) for power in (spectrum, smooth))
        best, place, drop, floor = 0.0, None, 0.0, 0.0
        for k in range(round(_LEAST_BAND / hz), int(_MOST_BAND * bins)):
            above = float(np.quantile(smooth[-(-103 * k // 100) :], 0.95))
            below = level[min(9 * k // 10, k - round(_LEAST_WIDTH / hz)) : 97 * k // 100 + 1]
            fall = float(np.median(below)) - above  # a few tones do not fill what is below
            excess = fall - (_CLIFF_TO_NOTHING_DB if above < _NOTHING_DB else _CLIFF_DB)
            if excess > best:
                best, place, drop, floor = excess, k, fall, above
        if place is None:
            return None
        low, high = 9 * place // 10, min(bins, 11 * place // 10 + bins // 20 + 1)  # a twentieth was not judged
        inside = np.flatnonzero(level[low:high] > floor + drop / 2)
        return float(low + inside[-1] - 0.5) * hz


def _spectrogram(
    wave: Float[np.ndarray, " samples"], count: int, size: int, hop: int, pad: bool
) -> Float[np.ndarray, "frames bins"]:
    """Power in squared Hann windows of unit energy, so that white noise of variance v is v in every bin."""
    wave = wave[: count + size]
    if len(wave) < size:
        wave = np.pad(wave, (0, size - len(wave))) if pad else np.zeros(0, np.float32)
    if not len(wave):
        return np.zeros((0, size // 2 + 1), np.float32)
    window = np.hanning(size + 1)[:-1] ** 2
    window = (window / np.sqrt(np.sum(window**2))).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop][: -(-count // hop)]
    return np.abs(np.fft.rfft(frames * window, axis=1)).astype(np.float32) ** 2


def _classes(power: Float[np.ndarray, "frames bins"]) -> Int[np.ndarray, " frames"]:
    """The level of each frame in steps of 3 dB, from that of rounding to 16 bits up."""
    level = 10 * np.log10(power.mean(axis=1) / STEP**2 + 1e-12)
    return np.clip(np.rint(level / _CLASS_DB), 0, _CLASSES - 1).astype(np.int64)


def _loud(frames: Float[np.ndarray, " classes"]) -> slice:
    """The classes up to 25 dB below the level that a twentieth of the frames exceed, without those of silence."""
    top = int(np.searchsorted(np.cumsum(frames), 0.95 * frames.sum()))
    return slice(max(1, top - round(_LOUD_DB / _CLASS_DB)), None)
