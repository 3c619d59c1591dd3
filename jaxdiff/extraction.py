"""Features of sound files on disk: an NPZ and a picture of each, and the sound that the features alone bring back.

Sounds are padded with zeros to a few lengths and their frames cut off again, so that files of many lengths share a few
compiled programs; a centred transform that pads with zeros sees the same either way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from jaxdiff import features

from .data.files import EXTENSIONS, AudioError, atomic, audio_info, read_audio, write_audio
from .data.pictures import write_frames
from .features.spectral import frame_sizes

Kind = Literal["mel", "mfcc", "stft", "cqt", "chroma", "pitch", "loudness"]
INVERTIBLE = ("mel", "mfcc", "stft", "cqt")


@dataclass(frozen=True)
class Settings:
    """Lengths in samples, frequencies in Hz; `sample_rate` None keeps each file's own."""

    kind: Kind = "mel"
    sample_rate: int | None = None
    n_fft: int = 2048
    hop_length: int = 512
    n_mels: int = 128
    n_mfcc: int = 20
    fmin: float = 65.0
    fmax: float = 2093.0


def sound_files(paths: Sequence[Path]) -> list[Path]:
    """The files, and the sound files in the folders, of `paths`; checked by their headers before any work."""
    found = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS) if path.is_dir() else [path]
        if not inside:
            raise AudioError(f"{path}: holds no sound files")
        found += inside
    for path in found:
        audio_info(path)
    return found


def extract(path: Path, target: Path, settings: Settings, *, invert: bool = False) -> tuple[int, ...]:
    """Write `target`.npz and .png (with `invert` also .wav) for the sound file `path`; the shape of its features."""
    rate = settings.sample_rate or audio_info(path).sample_rate
    y = read_audio(path, rate)
    arrays, labels, back = _transforms(settings, rate, len(y))
    values = {name: np.asarray(value) for name, value in arrays(y).items()}
    about = dict(kind=settings.kind, sample_rate=rate, samples=len(y), hop_length=settings.hop_length)
    with atomic(target.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **values, **{k: np.asarray(v) for k, v in about.items()})
    write_frames(target.with_suffix(".png"), list(values.values()), labels, len(y) / rate, path.name)
    if invert:
        write_audio(target.with_suffix(".wav"), np.asarray(back(values)), rate)
    return next(iter(values.values())).shape


def _padded(samples: int, hop: int) -> int:
    """A length of at least `samples`, one of eight per octave."""
    step = max(hop, 2 ** max(0, samples.bit_length() - 4))
    return -(-samples // step) * step


def _transforms(s: Settings, rate: int, samples: int) -> tuple[Callable, list[str], Callable]:
    """Waveform to named arrays, what their rows are called in a picture, and the way back where there is one."""
    frame_sizes(s.n_fft, s.hop_length, None)
    length, frames = _padded(samples, s.hop_length), 1 + samples // s.hop_length
    sizes = dict(n_fft=s.n_fft, hop_length=s.hop_length)

    def framed(f: Callable) -> Callable:
        def arrays(y: np.ndarray) -> dict:
            return {name: value[..., :frames] for name, value in f(np.pad(y, (0, length - samples))).items()}

        return arrays

    def none(_: dict) -> np.ndarray:
        raise ValueError(f"--kind {s.kind} cannot be turned back into sound; use one of {', '.join(INVERTIBLE)}")

    match s.kind:
        case "stft":
            back = lambda v: features.istft(v["stft"], **sizes, length=samples)  # noqa: E731
            return framed(lambda y: {"stft": features.stft(y, **sizes)}), ["bin"], back
        case "mel":
            mel = dict(sr=rate, **sizes)
            back = lambda v: features.mel_to_audio(v["mel"], **mel, length=samples)  # noqa: E731
            return framed(lambda y: {"mel": features.melspectrogram(y, **mel, n_mels=s.n_mels)}), ["mel band"], back
        case "mfcc":
            mel = dict(sr=rate, n_mels=s.n_mels, **sizes)
            back = lambda v: features.mfcc_to_audio(v["mfcc"], **mel, length=samples)  # noqa: E731
            return framed(lambda y: {"mfcc": features.mfcc(y, **mel, n_mfcc=s.n_mfcc)}), ["coefficient"], back
        case "cqt":
            back = lambda v: features.icqt(v["cqt"], sr=rate, length=samples)  # noqa: E731
            return lambda y: {"cqt": features.invertible_cqt(jnp.asarray(y), sr=rate)}, ["band"], back
        case "chroma":
            return framed(lambda y: {"chroma": features.chroma_stft(y, sr=rate, **sizes)}), ["pitch class"], none
        case "pitch":
            options = dict(fmin=s.fmin, fmax=min(s.fmax, rate / 2), sr=rate, frame_length=s.n_fft)

            def pitch(y: np.ndarray) -> dict:
                f0, voiced, probability = features.pyin(y, **options, hop_length=s.hop_length)
                return {"f0": f0, "voiced_probability": probability, "voiced": voiced}

            return framed(pitch), ["F0 (Hz)", "voiced probability", "voiced"], none
        case "loudness":
            level = lambda y: {"loudness": features.frame_loudness(y, sr=rate, **sizes)}  # noqa: E731
            return framed(level), ["A-weighted level (dB)"], none
    raise ValueError(f"kind {s.kind!r} is unknown; use one of {', '.join(get_args(Kind))}")
