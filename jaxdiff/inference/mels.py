"""Mel spectrograms of other programs, checked and brought to what a vocoder was trained on: magnitudes [bands, frames].

A text-to-speech front end hands over [80, frames] or [frames, 80] and one of these scales of a band's value v:

    ln, log10      logarithms of magnitudes, often clipped at 1e-5 (Tacotron 2, HiFi-GAN) or 1e-10
    db             20 log10 of magnitudes
    magnitude      as they are
    power          energies, as `jaxdiff features` and librosa make them by default

A mel spectrogram of energies is another one than that of magnitudes: the mean magnitude of a band is taken as the root
of its mean energy, which is right for a flat band and 1 dB too much for noise. Files are opened without pickle, and
their headers are checked before memory is taken.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from jaxdiff.config import ConfigError
from jaxdiff.data import AudioError
from jaxdiff.features import mel_filterbank
from jaxdiff.tasks import Vocode

from .chunks import cut

MelScale = Literal["auto", "ln", "log10", "db", "magnitude", "power"]

ENDS = (".npy", ".npz")
MAX_HOURS = 4
_LOUDEST_DB = 60.0  # of a band; a sine of full scale is at 20 dB
_BLOCK = 1 << 14  # frames looked at together
_SAY = "say which with --mel-scale (scale= in Python)"
_WORDS = {
    "ln": "natural logarithms of magnitudes",
    "log10": "decimal logarithms of magnitudes",
    "db": "decibels, 20 log10 of magnitudes",
    "magnitude": "magnitudes",
    "power": "energies, whose roots stand for magnitudes",
}
_DB = {"ln": 20 / np.log(10), "log10": 20.0, "db": 1.0}  # of a logarithm's unit


class Mel(NamedTuple):
    """A checked mel spectrogram: `values` [bands, frames] of `scale`, which may lie on disk; `samples` of its sound;
    `area` of each band's filter; `about` for a sidecar and `said` for people, what was read and what was assumed."""

    values: np.ndarray
    scale: str
    samples: int
    area: np.ndarray
    about: dict[str, Any]
    said: str

    def part(self, first: int, frames: int) -> np.ndarray:
        """Magnitudes [bands, frames] from frame `first` on, float32. After the end comes the last frame once more,
        where the sound may still go on, and then silence."""
        stop = self.values.shape[-1]
        part = np.asarray(self.values[:, first : first + frames], np.float64)
        if first <= stop < first + frames:
            part = np.concatenate([part, np.asarray(self.values[:, stop - 1 : stop], np.float64)], axis=-1)
        return cut(_magnitude(part, self.scale, self.area).astype(np.float32), 0, frames)


class _Refused(ValueError):
    """What is wrong with a mel spectrogram, without its name."""


def wanted(task: Vocode, sr: int) -> str:
    """The mel spectrogram that a vocoder was trained on, in words."""
    fmax = sr / 2 if task.fmax is None else task.fmax
    return (
        f"{task.n_mels} Slaney mel bands from 0 to {fmax:g} Hz of STFT magnitudes, n_fft {task.n_fft} and hop_length "
        f"{task.hop_length} at {sr} Hz"
    )


def read_mel(mel: np.ndarray | str | Path, task: Vocode, sr: int, scale: MelScale = "auto") -> Mel:
    """An array, or what a NPY or NPZ file holds, for a vocoder of sound at `sr` Hz.

    Raises ConfigError for an array and AudioError for a file, one sentence each, where it cannot be used.
    """
    if scale not in get_args(MelScale):
        raise ConfigError(f"mel scale {scale!r} is unknown; use one of {', '.join(get_args(MelScale))}")
    if not isinstance(mel, str | Path):
        try:
            return _mel(np.asarray(mel), {}, task, sr, scale)
        except _Refused as error:
            raise ConfigError(f"mel: {error}") from None
    try:
        values, beside = _opened(Path(mel), task, sr)
        return _mel(values, beside, task, sr, scale)
    except _Refused as error:
        raise AudioError(f"{mel}: {error}") from None


# Reading ------------------------------------------------------------------------------------------------------------


def _opened(path: Path, task: Vocode, sr: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The array of a file, on disk where that can be, and the numbers and words that stand beside it."""
    if not path.is_file():
        raise _Refused("no such file")
    try:
        return _of_zip(path, task, sr) if zipfile.is_zipfile(path) else (_of_npy(path), {})
    except _Refused:
        raise
    except Exception as error:  # of numpy, zipfile, zlib or Python's tokenizer, as the damage goes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _Refused(f"not a NPY or NPZ file of numbers ({reason})") from None


def _of_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)  # what has none numpy would take for a pickle
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _of_zip(path: Path, task: Vocode, sr: int) -> tuple[np.ndarray, dict[str, Any]]:
    headers = dict(_headers(path))
    with np.load(path, allow_pickle=False) as file:
        small = {n: dtype for n, (shape, dtype) in headers.items() if shape == () and dtype.itemsize <= 256}
        beside = {name: file[name].item() for name, dtype in small.items() if dtype.kind in "iufU"}
        fitting = [n for n, (shape, dtype) in headers.items() if dtype.kind == "f" and task.n_mels in shape[-2:]]
        names = ["mel"] if "mel" in headers else fitting
        if len(names) != 1:
            there = ", ".join(f"{name} {list(shape)}" for name, (shape, _) in headers.items() if shape) or "no arrays"
            many = "several arrays that fit" if names else f"no mel spectrogram of {task.n_mels} bands"
            raise _Refused(f"holds {many}, got {there[:200]}; save the one to use as mel")
        shape, dtype = headers[names[0]]
        _check_form(shape, dtype, task, sr)
        return file[names[0]], beside


def _headers(path: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype]]]:
    """Name, shape and type of each array in a NPZ file, of which nothing but the headers is read."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read:
                    raise _Refused(f"holds {info.filename} of NPY version {version}, expected 1.0 or 2.0")
                shape, _, dtype = read[version](file)
                yield info.filename.removesuffix(".npy"), (shape, dtype)


# Checking -----------------------------------------------------------------------------------------------------------


def _mel(values: np.ndarray, beside: Mapping[str, Any], task: Vocode, sr: int, scale: str) -> Mel:
    _check_form(values.shape, values.dtype, task, sr)
    _check_beside(beside, task, sr)
    values = values.reshape(values.shape[-2:])
    first = values.shape[0] == task.n_mels
    values = values if first else values.T
    frames = values.shape[-1]
    low, high = _range(values)
    found = _scale(low, high, beside) if scale == "auto" else scale
    area = mel_filterbank(sr, task.n_fft, task.n_mels, fmax=task.fmax).sum(1, keepdims=True)
    _check_range(low, high, found, float(area.max()))
    samples = beside.get("samples")
    if not isinstance(samples, int) or samples < 1 or 1 + samples // task.hop_length != frames:
        samples = frames * task.hop_length
    order = "[bands, frames]" if first else "[frames, bands]"
    both = ", though it may be the other way round" if values.shape[0] == values.shape[1] else ""
    assumed = [name for name in ("sample_rate", "hop_length", "n_fft") if name not in beside]
    says = f"assumed to be {wanted(task, sr)}" if assumed else wanted(task, sr)
    return Mel(
        values,
        found,
        samples,
        area,
        {
            "bands": task.n_mels,
            "frames": frames,
            "orientation": order,
            "scale": found,
            "scale_found": scale == "auto",
            "sample_rate": sr,
            "n_fft": task.n_fft,
            "hop_length": task.hop_length,
            "fmin": 0.0,
            "fmax": sr / 2 if task.fmax is None else task.fmax,
            "norm": "slaney",
            "assumed": assumed,
        },
        f"mel {order} of {frames} frames{both}, taken as {_WORDS[found]}; {says}",
    )


def _check_form(shape: tuple[int, ...], dtype: np.dtype, task: Vocode, sr: int) -> None:
    """Raise `_Refused` where an array of this shape is not one mel spectrogram of floating point numbers."""
    bands = task.n_mels
    if 0 in shape:
        raise _Refused(f"is empty, its shape is {list(shape)}")
    if dtype.kind != "f":
        raise _Refused(f"expected floating point numbers, got {dtype}")
    if len(shape) < 2 or bands not in shape[-2:] or any(size != 1 for size in shape[:-2]):
        raise _Refused(f"expected one mel spectrogram [{bands}, frames] or [frames, {bands}], got {list(shape)}")
    hours = max(shape[-2:]) * task.hop_length / sr / 3600
    if hours > MAX_HOURS:
        raise _Refused(f"{max(shape)} frames are {hours:.1f} hours of sound, at most {MAX_HOURS} are made; cut it")


def _check_beside(beside: Mapping[str, Any], task: Vocode, sr: int) -> None:
    """Raise `_Refused` where a file says that it was made otherwise than the model wants."""
    own = {"sample_rate": sr, "hop_length": task.hop_length, "n_fft": task.n_fft, "n_mels": task.n_mels}
    if beside.get("kind", "mel") != "mel":
        raise _Refused(f"holds {beside['kind']} features, expected those of kind mel")
    for name, value in own.items():
        if beside.get(name, value) != value:
            raise _Refused(f"has {name} {beside[name]}, and this model wants {wanted(task, sr)}; make it so")


def _range(values: np.ndarray) -> tuple[float, float]:
    """The least and the largest number; raises `_Refused` where one is not finite."""
    lows, highs = [], []
    for start in range(0, values.shape[-1], _BLOCK):
        part = np.asarray(values[:, start : start + _BLOCK])
        if not np.isfinite(part).all():
            raise _Refused("holds numbers that are not finite")
        lows.append(float(part.min()))
        highs.append(float(part.max()))
    return min(lows), max(highs)


def _scale(low: float, high: float, beside: Mapping[str, Any]) -> str:
    """The scale that a file says or that its range tells; raises `_Refused` where it could be several."""
    if "kind" in beside:  # `jaxdiff features` wrote it
        return "magnitude" if beside.get("power") == 1 else "power"
    if low >= 0:
        raise _Refused(f"numbers from {low:g} to {high:g} may be magnitudes or powers; {_SAY}")
    if min(abs(low + 5), abs(low + 10)) < 1e-3:  # clipped at 1e-5 or 1e-10
        return "log10"
    if low > -5.05:
        raise _Refused(f"numbers from {low:g} to {high:g} may be natural or decimal logarithms; {_SAY}")
    return "ln" if low > -30 else "db"


def _check_range(low: float, high: float, scale: str, area: float) -> None:
    """Raise `_Refused` where numbers of this range cannot be of that scale."""
    if scale in _DB:
        loudest = high * _DB[scale]
    elif low < 0:
        raise _Refused(f"holds the number {low:g}, and {_WORDS[scale].split(',')[0]} are never negative")
    else:
        loudest = 20 * np.log10(max(float(_magnitude(np.array(high), scale, np.array(area))), 1e-30))
    if loudest > _LOUDEST_DB:
        raise _Refused(
            f"its largest number {high:g} is {loudest:.3g} dB as {_WORDS[scale].split(',')[0]}, and no sound within "
            f"full scale is above {_LOUDEST_DB:g} dB; give another --mel-scale (scale= in Python)"
        )


def _magnitude(values: np.ndarray, scale: str, area: np.ndarray) -> np.ndarray:
    """Mean magnitudes of bands, each times the `area` of its filter."""
    if scale in _DB:
        return 10 ** (values * (_DB[scale] / 20))
    return np.sqrt(values * area) if scale == "power" else values
