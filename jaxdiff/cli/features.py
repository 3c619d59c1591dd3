"""`jaxdiff features`: an NPZ and a picture of each, and the sound that the features alone bring back.

Sounds are padded with zeros to a few lengths and their frames cut off again, so that files of many lengths share a few
compiled programs; a centred transform that pads with zeros sees the same either way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import tyro
from rich.console import Console

_out = Console(highlight=False, soft_wrap=True)

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
    sample_rate: int | None = None
    """resample to this rate in Hz first (the file's own)"""
    n_fft: int = 2048
    """frame length in samples"""
    hop_length: int = 512
    """samples from frame to frame"""
    n_mels: int = 128
    """mel bands, of mel and mfcc"""
    n_mfcc: int = 20
    """coefficients of mfcc"""
    fmin: float = 65.0
    """lowest pitch in Hz"""
    fmax: float = 2093.0
    """highest pitch in Hz"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out}: is a file; give a folder")
        if self.invert and self.kind not in INVERTIBLE:
            kinds = ", ".join(INVERTIBLE)
            raise ValueError(f"--invert: {self.kind} cannot be turned back into sound; use --kind {kinds}")
        if not self.files:
            raise ValueError("no FILES: give sound files or folders of them")
        from jaxdiff.data import sound_files

        files = sound_files(self.files)
        targets = [self.out / f.stem for f in files]
        twice = {t for t in targets if targets.count(t) > 1}
        if twice:
            raise ValueError(f"{min(twice).name}: the name of several files; extract them to different folders")
        there = [p for t in targets for end in (".npz", ".png", ".wav") if (p := _beside(t, end)).exists()]
        if there and not self.overwrite:
            raise ValueError(f"{there[0]}: exists; give another --out, or --overwrite to replace it")
        self.out.mkdir(parents=True, exist_ok=True)
        for path, target in zip(files, targets, strict=True):
            shape = extract(path, target, self)
            _out.print(f"{_beside(target, '.npz')}  {self.kind} {shape}", markup=False)
        return 0


def _beside(target: Path, end: str) -> Path:
    """The result of a target whose name may hold dots."""
    return target.with_name(target.name + end)


def extract(path: Path, target: Path, settings: Features) -> tuple[int, ...]:
    """Write `target`.npz and .png (with `invert` also .wav) for the sound file `path`; the shape of its features."""
    from jaxdiff.data.files import atomic, audio_info, read_audio, write_audio
    from jaxdiff.inference.outputs import write_frames

    rate = settings.sample_rate or audio_info(path).sample_rate
    y = read_audio(path, rate)
    arrays, labels, back = _transforms(settings, rate, len(y))
    values = {name: np.asarray(value) for name, value in arrays(y).items()}
    about = dict(kind=settings.kind, sample_rate=rate, samples=len(y), hop_length=settings.hop_length)
    with atomic(_beside(target, ".npz")) as temporary, temporary.open("wb") as file:
        contents: dict[str, Any] = {**values, **{k: np.asarray(v) for k, v in about.items()}}
        np.savez_compressed(file, **contents)
    write_frames(_beside(target, ".png"), list(values.values()), labels, len(y) / rate, path.name)
    if settings.invert:
        write_audio(_beside(target, ".wav"), np.asarray(back(values)), rate)
    return next(iter(values.values())).shape


def _padded(samples: int, hop: int) -> int:
    """A length of at least `samples`, one of eight per octave."""
    step = max(hop, 2 ** max(0, samples.bit_length() - 4))
    return -(-samples // step) * step


def _transforms(s: Features, rate: int, samples: int) -> tuple[Callable, list[str], Callable]:
    """Waveform to named arrays, what their rows are called in a picture, and the way back where there is one."""
    import jax.numpy as jnp

    from jaxdiff import features
    from jaxdiff.features.spectral import frame_sizes

    frame_sizes(s.n_fft, s.hop_length, None)
    length, frames = _padded(samples, s.hop_length), 1 + samples // s.hop_length
    sizes: dict[str, Any] = dict(n_fft=s.n_fft, hop_length=s.hop_length)

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
            mel: dict[str, Any] = dict(sr=rate, **sizes)
            back = lambda v: features.mel_to_audio(v["mel"], **mel, length=samples)  # noqa: E731
            return framed(lambda y: {"mel": features.melspectrogram(y, **mel, n_mels=s.n_mels)}), ["mel band"], back
        case "mfcc":
            bands: dict[str, Any] = dict(sr=rate, n_mels=s.n_mels, **sizes)
            back = lambda v: features.mfcc_to_audio(v["mfcc"], **bands, length=samples)  # noqa: E731
            return framed(lambda y: {"mfcc": features.mfcc(y, **bands, n_mfcc=s.n_mfcc)}), ["coefficient"], back
        case "cqt":
            back = lambda v: features.icqt(v["cqt"], sr=rate, length=samples)  # noqa: E731
            return lambda y: {"cqt": features.invertible_cqt(jnp.asarray(y), sr=rate)}, ["band"], back
        case "chroma":
            return framed(lambda y: {"chroma": features.chroma_stft(y, sr=rate, **sizes)}), ["pitch class"], none
        case "pitch":
            options: dict[str, Any] = dict(fmin=s.fmin, fmax=min(s.fmax, rate / 2), sr=rate, frame_length=s.n_fft)

            def pitch(y: np.ndarray) -> dict:
                f0, voiced, probability = features.pyin(jnp.asarray(y), **options, hop_length=s.hop_length)
                return {"f0": f0, "voiced_probability": probability, "voiced": voiced}

            return framed(pitch), ["F0 (Hz)", "voiced probability", "voiced"], none
        case "loudness":
            level = lambda y: {"loudness": features.frame_loudness(y, sr=rate, **sizes)}  # noqa: E731
            return framed(level), ["A-weighted level (dB)"], none
    raise ValueError(f"kind {s.kind!r} is unknown; use one of {', '.join(get_args(Kind))}")
