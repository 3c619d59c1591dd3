"""How far the feature transforms are from librosa (in double precision) and pyloudnorm on real recordings.

    pip install pyloudnorm -e '.[bench]'        python benchmarks/agreement.py FOLDER [--count 32]

FOLDER holds any sound files; speech is wanted for pitch. Each file is cut or padded to three seconds at 16 kHz. Prints
one JSON line per transform: the worst error over all files, relative to the maximum of the reference, or in its unit.
"""

import argparse
import inspect
import json
from pathlib import Path

import jax.numpy as jnp
import librosa
import numpy as np

from jaxdiff import features
from jaxdiff.data import read_audio

SR, SECONDS = 16000, 3
SIZES = dict(n_fft=1024, hop_length=256)
MEL = dict(sr=SR, n_mels=80, **SIZES)
PITCH = dict(fmin=65.0, fmax=1000.0, sr=SR, frame_length=1024, hop_length=256)


def recordings(folder: Path, count: int) -> list[np.ndarray]:
    """`count` files spread evenly over the sorted folder, as float32 of equal length."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".wav", ".flac", ".ogg"))
    paths = paths[:: max(1, len(paths) // count)][:count]
    if not paths:
        raise SystemExit(f"{folder}: holds no .wav, .flac or .ogg files")
    length = SR * SECONDS
    waves = [read_audio(p, SR)[:length] for p in paths]
    return [np.pad(y, (0, length - len(y))) for y in waves]


def relative(ours, reference) -> float:
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def report(name: str, **numbers) -> None:
    print(json.dumps({"transform": name, **{k: float(f"{v:.3g}") for k, v in numbers.items()}}), flush=True)


def spectral(waves: list[np.ndarray]) -> None:
    pairs = {
        "stft": (lambda y: features.stft(y, **SIZES), lambda y: librosa.stft(y, **SIZES)),
        "melspectrogram": (
            lambda y: features.melspectrogram(y, **MEL),
            lambda y: librosa.feature.melspectrogram(y=y, **MEL, dtype=np.float64),
        ),
        "mfcc": (
            lambda y: features.mfcc(y, **MEL),
            lambda y: librosa.feature.mfcc(y=y, **MEL, dtype=np.float64),
        ),
        "chroma_stft": (
            lambda y: features.chroma_stft(y, sr=SR, **SIZES),
            lambda y: librosa.feature.chroma_stft(y=y, sr=SR, tuning=0.0, **SIZES),
        ),
        "cqt": (
            lambda y: features.cqt(y, sr=SR, hop_length=256),
            lambda y: librosa.cqt(y, sr=SR, hop_length=256, tuning=0.0),
        ),
        "chroma_cqt": (  # without norm, which makes rounding noise of silent frames as large as sound
            lambda y: features.chroma_cqt(y, sr=SR, hop_length=256, norm=None),
            lambda y: librosa.feature.chroma_cqt(y=y, sr=SR, hop_length=256, tuning=0.0, norm=None),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        report(name, relative=max(relative(ours(jnp.asarray(y)), theirs(y.astype(np.float64))) for y in waves))
    errors = []
    for y in waves:
        X = librosa.stft(y.astype(np.float64), **SIZES)
        back = features.istft(jnp.asarray(X, jnp.complex64), hop_length=256)
        errors.append(relative(back, librosa.istft(X, hop_length=256)))
    report("istft", relative=max(errors))


def pitch(waves: list[np.ndarray]) -> None:
    knows = "transition_min_prob" in inspect.signature(librosa.pyin).parameters  # librosa 1.0 leaves out unlikely paths
    exact = dict(transition_min_prob=None) if knows else {}
    agree, cents, yin_cents = [], [], []
    for y in waves:
        f0, voiced, _ = (np.asarray(x) for x in features.pyin(jnp.asarray(y), **PITCH))
        reference = librosa.pyin(y.astype(np.float64), **PITCH, **exact)
        agree.append(voiced == reference[1])
        both = voiced & reference[1]
        cents.append(np.abs(1200 * np.log2(f0[both] / reference[0][both])))
        ours = np.asarray(features.yin(jnp.asarray(y), **PITCH))
        yin_cents.append(np.abs(1200 * np.log2(ours / librosa.yin(y.astype(np.float64), **PITCH))))
    cents, yin_cents = np.concatenate(cents), np.concatenate(yin_cents)
    report("pyin", voicing_agrees=np.mean(agree), both_voiced=len(cents), largest_cents=cents.max())
    report("yin", within_1_cent=np.mean(yin_cents <= 1), largest_cents=yin_cents.max())


def loudness(waves: list[np.ndarray]) -> None:
    import pyloudnorm

    meter = pyloudnorm.Meter(SR)
    heard = [(y, meter.integrated_loudness(y.astype(np.float64))) for y in waves]
    errors = [abs(float(features.integrated_loudness(jnp.asarray(y), sr=SR)) - lufs) for y, lufs in heard if lufs > -70]
    report("integrated_loudness", largest_lu=max(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=32)
    arguments = parser.parse_args()
    waves = recordings(arguments.folder, arguments.count)
    report("recordings", count=len(waves))
    spectral(waves)
    pitch(waves)
    try:
        loudness(waves)
    except ImportError as error:
        print(f"# {error}: left out")


if __name__ == "__main__":
    main()
