"""`jaxdiff features`: an NPZ and a picture of each, and the sound that the features alone bring back.

Sounds are padded with zeros to a few lengths and their frames cut off again, so that files of many lengths share a few
compiled programs; a centred transform that pads with zeros sees the same either way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxdiff import ranges

from . import files

Kind = Literal["mel", "mfcc", "stft", "cqt", "chroma", "pitch", "loudness"]
INVERTIBLE = ("mel", "mfcc", "stft", "cqt")


@dataclass(frozen=True)
class Features:
    """Compute features of sound files: an NPZ with the arrays and a picture of each."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILES")]
    """sound files, or folders of them"""
    out: Path
    """folder for the results; made when absent"""
    kind: Kind = "mel"
    """which features"""
    invert: bool = False
    """also write the sound that mel, mfcc, stft or cqt features bring back, as WAV"""
    sample_rate: ranges.Rate | None = None
    """resample to this rate in Hz first (the file's own)"""
    n_fft: ranges.Count = 2048
    """frame length in samples"""
    hop_length: ranges.Count = 512
    """samples from frame to frame"""
    n_mels: ranges.Count = 128
    """mel bands, of mel and mfcc"""
    power: Literal[1, 2] = 2
    """of mel: 2 for energies, 1 for magnitudes, which vocoders are trained on"""
    n_mfcc: ranges.Count = 20
    """coefficients of mfcc"""
    fmin: ranges.Positive = 65.0
    """lowest pitch in Hz"""
    fmax: ranges.Positive = 2093.0
    """highest pitch in Hz"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        if self.invert and self.kind not in INVERTIBLE:
            kinds = ", ".join(INVERTIBLE)
            raise ValueError(f"--invert: {self.kind} cannot be turned back into sound; use --kind {kinds}")
        ends = (".npz", ".png", ".wav") if self.invert else (".npz", ".png")

        def do(file: Path, target: Path) -> str:
            return f"{files.beside(target, '.npz')}  {self.kind} {extract(file, target, self)}"

        return files.work(files.jobs(self.files, self.out, ends, self.overwrite), do)


def extract(path: Path, target: Path, settings: Features) -> tuple[int, ...]:
    """Write `target`.npz and .png (with `invert` also .wav) for the sound file `path`; the shape of its features."""
    from jaxdiff.data.files import atomic, audio_info, read_audio, write_audio
    from jaxdiff.inference import pictures

    rate = settings.sample_rate or audio_info(path).sample_rate
    y = read_audio(path, rate)
    arrays, labels, scales, back = _transforms(settings, rate, len(y))
    values = {name: np.asarray(value) for name, value in arrays(y).items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = dict(kind=settings.kind, sample_rate=rate, samples=len(y))
    about |= dict(hop_length=settings.hop_length, n_fft=settings.n_fft)
    about |= dict(power=settings.power) if settings.kind == "mel" else {}
    with atomic(files.beside(target, ".npz")) as temporary, temporary.open("wb") as file:
        contents: dict[str, Any] = {**values, **{k: np.asarray(v) for k, v in about.items()}}
        np.savez_compressed(file, **contents)
    shown = list(values.values()), labels, scales, len(y) / rate, path.name
    pictures.draw(files.beside(target, ".png"), lambda: pictures.frames(*shown))
    if settings.invert:
        write_audio(files.beside(target, ".wav"), np.asarray(back(values)), rate)
    return next(iter(values.values())).shape


def _padded(samples: int, hop: int) -> int:
    """A length of at least `samples`, one of eight per octave."""
    step = max(hop, 2 ** max(0, samples.bit_length() - 4))
    return -(-samples // step) * step


def _transforms(s: Features, rate: int, samples: int) -> tuple[Callable, list[str], list[dict], Callable]:
    """Waveform to named arrays, what their rows are called and measure in a picture, and the way back."""
    import jax.numpy as jnp

    from jaxdiff import features
    from jaxdiff.features.spectral import frame_sizes

    frame_sizes(s.n_fft, s.hop_length, None)
    length, frames = _padded(samples, s.hop_length), 1 + samples // s.hop_length
    sizes: dict[str, Any] = dict(n_fft=s.n_fft, hop_length=s.hop_length)
    mel: dict[str, Any] = dict(sr=rate, power=s.power, **sizes)
    mfcc: dict[str, Any] = dict(sr=rate, n_mels=s.n_mels, **sizes)
    pitch: dict[str, Any] = dict(
        fmin=s.fmin, fmax=min(s.fmax, rate / 2), sr=rate, frame_length=s.n_fft, hop_length=s.hop_length
    )

    def pyin(y: np.ndarray) -> dict:
        f0, voiced, probability = features.pyin(jnp.asarray(y), **pitch)
        return {"f0": f0, "voiced_probability": probability, "voiced": voiced}

    def none(_: dict) -> np.ndarray:
        raise ValueError(f"--kind {s.kind} cannot be turned back into sound; use one of {', '.join(INVERTIBLE)}")

    hz, rows = "frequency (Hz)", dict(sr=rate)
    arrays, labels, scales, back = {
        "stft": (
            lambda y: {"stft": features.stft(y, **sizes)},
            [hz],
            [dict(y_axis="linear", **rows)],
            lambda v: features.istft(v["stft"], **sizes, length=samples),
        ),
        "mel": (
            lambda y: {"mel": features.melspectrogram(y, **mel, n_mels=s.n_mels)},
            [hz],
            [dict(y_axis="mel", fmax=rate / 2, **rows)],
            lambda v: features.mel_to_audio(v["mel"], **mel, length=samples),
        ),
        "mfcc": (
            lambda y: {"mfcc": features.mfcc(y, **mfcc, n_mfcc=s.n_mfcc)},
            ["coefficient"],
            [{}],
            lambda v: features.mfcc_to_audio(v["mfcc"], **mfcc, length=samples),
        ),
        "cqt": (
            lambda y: {"cqt": features.invertible_cqt(jnp.asarray(y), sr=rate)},
            ["note"],
            [dict(y_axis="cqt_note", fmin=30.87, **rows)],
            lambda v: features.icqt(v["cqt"], sr=rate, length=samples),
        ),
        "chroma": (
            lambda y: {"chroma": features.chroma_stft(y, sr=rate, **sizes)},
            ["pitch class"],
            [dict(y_axis="chroma")],
            none,
        ),
        "pitch": (pyin, ["F0 (Hz)", "voiced probability", "voiced"], [{}, {}, {}], none),
        "loudness": (
            lambda y: {"loudness": features.frame_loudness(y, sr=rate, **sizes)},
            ["A-weighted level (dB)"],
            [{}],
            none,
        ),
    }[s.kind]
    if s.kind == "cqt":  # whose bands have a rate of their own
        return arrays, labels, scales, back

    def framed(y: np.ndarray) -> dict:
        padded = np.pad(y, (0, length - samples))
        return {name: value[..., :frames] for name, value in arrays(padded).items()}

    return framed, labels, scales, back
