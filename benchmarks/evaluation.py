"""Measures of `jaxdiff.evaluation` on many clips beside the Python packages that measure one file after the other.

    pip install pystoi mir_eval -e '.[bench]'        python benchmarks/evaluation.py [FOLDER] [--clips 200]

FOLDER holds any sound files, from whose middle 4 s are taken; without it voices that glide and melodies are
synthesised. The estimates are the clips in noise, louder and through a filter. All is at 16 kHz and in memory. A peer
computes the same number as its users do, clip by clip: pystoi, pyloudnorm, mir_eval with librosa's onsets, librosa's
pYIN and its dynamic time warping (compiled by numba), librosa's spectra and NumPy for the rest.

The clips are measured in batches of 20, each by ours, one compiled program, and then by the peer, measure by measure,
after a first batch that is not counted, so that nothing compiles. The table has the medians of the batches in ms per
clip, and the largest difference of any score. Ours may use all cores, as the peers' libraries may; NumPy's products
have one thread, with which they are faster. The last line is JSON.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import librosa
import mir_eval
import numpy as np
import pyloudnorm
import scipy.fft
import scipy.signal
from measures import RATE, print_table
from pystoi import stoi

from jaxdiff.data import read_audio
from jaxdiff.data.files import EXTENSIONS, audio_info
from jaxdiff.evaluation import MEASURES

SAMPLES = 4 * RATE
BATCH = 20
FLOOR = 1e-10  # of powers, where a sine of full scale has 1

Peer = Callable[[np.ndarray, np.ndarray], float]


# Sounds -------------------------------------------------------------------------------------------------------------


def synthesised(count: int) -> np.ndarray:
    """Voices that glide, in syllables, and melodies of four notes a second in turn, with little noise."""
    t, rng, made = np.arange(SAMPLES) / RATE, np.random.default_rng(0), []
    for k in range(count):
        if k % 2:
            f0 = 220 * 2 ** (rng.integers(0, 13, 16)[np.minimum((4 * t).astype(int), 15)] / 12)
            level = np.exp(-3 * (t % 0.25) / 0.25)
        else:
            f0 = rng.uniform(90, 250) * 2 ** (0.3 * np.sin(2 * np.pi * rng.uniform(0.4, 1.2) * t + k))
            level = np.abs(np.sin(2 * np.pi * rng.uniform(1.5, 3) * t)) ** 0.7 * (np.sin(1.7 * t + k) > -0.6)
        phase = 2 * np.pi * np.cumsum(f0) / RATE
        harmonics = sum(np.sin(n * phase + n * n) / (1 + (n * f0 / 700 - 1) ** 2) for n in range(1, 16))
        made.append(0.1 * level * harmonics + 1e-3 * rng.standard_normal(SAMPLES))
    return np.asarray(made, np.float32)


def recorded(folder: Path, count: int) -> np.ndarray:
    """The middle of files at even distances in the sorted folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXTENSIONS]
    infos = [(path, audio_info(path).seconds) for path in paths]
    long = [(path, seconds) for path, seconds in infos if seconds >= 4.05]
    if len(long) < count:
        raise SystemExit(f"{folder} has {len(long)} files of 4 s, {count} are needed; ask for fewer with --clips")
    chosen = [long[i] for i in np.linspace(0, len(long) - 1, count).round().astype(int)]
    waves = [read_audio(path, RATE, offset=(seconds - 4.05) / 2, seconds=4.05) for path, seconds in chosen]
    return np.stack([y[:SAMPLES] for y in waves])


def estimates(references: np.ndarray) -> np.ndarray:
    """What a system might make of the clips: a filter, a gain and noise 20 dB below each."""
    rng = np.random.default_rng(1)
    made = 1.2 * scipy.signal.lfilter([1, 0.3], [1], references, axis=-1)
    level = np.sqrt((references**2).mean(-1, keepdims=True))
    return (made + 0.1 * level * rng.standard_normal(references.shape)).astype(np.float32)


# Peers --------------------------------------------------------------------------------------------------------------


def spectrum(y: np.ndarray, **sizes: int) -> np.ndarray:
    return np.abs(librosa.stft(y, **sizes))


def power_db(power: np.ndarray, n_fft: int) -> np.ndarray:
    """In dB relative to a sine of full scale, at least the floor."""
    return 10 * np.log10(np.maximum((2 / scipy.signal.get_window("hann", n_fft).sum()) ** 2 * power, FLOOR))


def log_mel(y: np.ndarray, n_mels: int) -> np.ndarray:
    sizes: dict[str, Any] = dict(sr=RATE, n_fft=1024, hop_length=256, n_mels=n_mels, norm=None)
    return power_db(librosa.feature.melspectrogram(y=y, **sizes), 1024)


def snr(r: np.ndarray, e: np.ndarray) -> float:
    r, e = r.astype(np.float64), e.astype(np.float64)
    return 10 * np.log10((r @ r) / ((r - e) @ (r - e)))


def si_sdr(r: np.ndarray, e: np.ndarray) -> float:
    r, e = r.astype(np.float64), e.astype(np.float64)
    target = (r @ e) / (r @ r) * r
    return 10 * np.log10((target @ target) / ((e - target) @ (e - target)))


def segmental_snr(r: np.ndarray, e: np.ndarray) -> float:
    window = scipy.signal.get_window("hann", 480)
    frames = [window * librosa.util.frame(y, frame_length=480, hop_length=120, axis=0) for y in (r, r - e)]
    signal, error = ((part.astype(np.float64) ** 2).sum(1) for part in frames)
    heard = signal > signal.max() * 1e-4
    return float(np.clip(10 * np.log10(signal[heard] / error[heard]), -10, 35).mean())


def log_spectral_distance(r: np.ndarray, e: np.ndarray) -> float:
    ours, theirs = (power_db(spectrum(y, n_fft=2048, hop_length=512) ** 2, 2048) for y in (r, e))
    return float(np.sqrt(((ours - theirs) ** 2).mean(0)).mean())


def mel_distance(r: np.ndarray, e: np.ndarray) -> float:
    return float(np.abs(log_mel(r, 80) - log_mel(e, 80)).mean())


def multi_resolution_stft(r: np.ndarray, e: np.ndarray) -> float:
    losses = []
    for n_fft, hop, win in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        sizes = dict(n_fft=n_fft, hop_length=hop, win_length=win)
        ours, theirs = (np.sqrt(np.maximum(spectrum(y, **sizes) ** 2, 1e-7)) for y in (r, e))
        convergence = np.linalg.norm(ours - theirs) / np.linalg.norm(ours)
        losses.append(convergence + np.abs(np.log(ours) - np.log(theirs)).mean())
    return float(np.mean(losses))


def loudness_error(r: np.ndarray, e: np.ndarray) -> float:
    meter = pyloudnorm.Meter(RATE, filter_class="DeMan")  # the standard's filters; the default's differ by .1 LU
    return abs(meter.integrated_loudness(r.astype(np.float64)) - meter.integrated_loudness(e.astype(np.float64)))


def cepstra(y: np.ndarray) -> np.ndarray:
    """Coefficients 1 to 13 in nepers, [13, frames]."""
    series = scipy.fft.dct(log_mel(y, 40), axis=0, norm="ortho")[1:14]
    return series * (np.log(10) / 10 / np.sqrt(80))


def mel_cepstral_distortion(r: np.ndarray, e: np.ndarray) -> float:
    squares = ((cepstra(r) - cepstra(e)) ** 2).sum(0)
    return float((10 / np.log(10) * np.sqrt(2 * squares)).mean())


def mel_cepstral_distortion_dtw(r: np.ndarray, e: np.ndarray) -> float:
    total, path = librosa.sequence.dtw(cepstra(r), cepstra(e), metric="euclidean")
    return float(10 / np.log(10) * np.sqrt(2) * total[-1, -1] / len(path))


def pitches(r: np.ndarray, e: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    sizes: dict[str, Any] = dict(sr=RATE, fmin=60, fmax=1000, frame_length=1024, hop_length=160, fill_na=None)
    return [librosa.pyin(y, **sizes)[:2] for y in (r, e)]


def f0_rmse(r: np.ndarray, e: np.ndarray) -> float:
    (ours, voiced), (theirs, also) = pitches(r, e)
    both = voiced & also
    return float(np.sqrt(((1200 * np.log2(theirs[both] / ours[both])) ** 2).mean()))


def chroma_similarity(r: np.ndarray, e: np.ndarray) -> float:
    sizes: dict[str, Any] = dict(sr=RATE, n_fft=2048, hop_length=512, norm=None, tuning=0.0)
    ours, theirs = (librosa.feature.chroma_stft(y=y, **sizes) for y in (r, e))
    heard, also = (C.sum(0) > C.sum(0).max() * 1e-6 for C in (ours, theirs))
    cosine = (ours * theirs).sum(0) / np.maximum(np.linalg.norm(ours, axis=0) * np.linalg.norm(theirs, axis=0), 1e-30)
    return float((cosine * (heard & also)).sum() / (heard | also).sum())


def onset_f1(r: np.ndarray, e: np.ndarray) -> float:
    sizes: dict[str, Any] = dict(sr=RATE, hop_length=160, n_fft=1024)
    times = []
    for y in (r, e):
        S = librosa.power_to_db(librosa.feature.melspectrogram(y=y, n_mels=80, norm=None, **sizes))
        flux = librosa.onset.onset_strength(S=S, **sizes)
        flux = (flux - flux.min()) / np.ptp(flux)
        peaks = librosa.util.peak_pick(flux, pre_max=3, post_max=1, pre_avg=10, post_avg=11, delta=0.07, wait=3)
        times.append(peaks / 100)
    return mir_eval.onset.f_measure(*times, window=0.0501)[0]  # 5 frames, which rounding must not take away


PEERS: dict[str, Peer] = {
    "snr": snr,
    "si_sdr": si_sdr,
    "segmental_snr": segmental_snr,
    "log_spectral_distance": log_spectral_distance,
    "mel_distance": mel_distance,
    "multi_resolution_stft": multi_resolution_stft,
    "loudness_error": loudness_error,
    "mel_cepstral_distortion": mel_cepstral_distortion,
    "mel_cepstral_distortion_dtw": mel_cepstral_distortion_dtw,
    "stoi": lambda r, e: float(stoi(r, e, RATE)),
    "estoi": lambda r, e: float(stoi(r, e, RATE, extended=True)),
    "f0_rmse": f0_rmse,
    "chroma_similarity": chroma_similarity,
    "onset_f1": onset_f1,
}


# Timing -------------------------------------------------------------------------------------------------------------


def ours(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A measure of a batch [clips, samples]."""
    program = jax.jit(MEASURES[name].function, static_argnums=2)
    return lambda references, made: np.asarray(program(jnp.asarray(references), jnp.asarray(made), RATE))


def theirs(name: str) -> Callable[[np.ndarray, np.ndarray], list[float]]:
    return lambda references, made: [PEERS[name](r, e) for r, e in zip(references, made, strict=True)]


def timed(function: Callable, *arrays: np.ndarray) -> tuple[float, Any]:
    """The seconds that a call takes until its numbers are there, and these."""
    begin = time.perf_counter()
    found = function(*arrays)
    return time.perf_counter() - begin, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of sound files; none: synthesised ones")
    parser.add_argument("--clips", type=int, default=200, help="a multiple of 20")
    parser.add_argument("--measures", nargs="+", choices=list(PEERS), default=list(PEERS))
    args = parser.parse_args()
    if args.clips < BATCH or args.clips % BATCH:
        raise SystemExit(f"--clips: expected a multiple of {BATCH}, got {args.clips}")
    references = synthesised(args.clips) if args.folder is None else recorded(args.folder, args.clips)
    made = estimates(references)
    batches = [(references[i : i + BATCH], made[i : i + BATCH]) for i in range(0, args.clips, BATCH)]
    programs, compiling = {}, 0.0
    for name in args.measures:
        programs[name] = ours(name), theirs(name)
        seconds, _ = timed(programs[name][0], *batches[0])
        compiling += seconds
        theirs(name)(*(y[:2] for y in batches[0]))
        print(f"{name}: compiled in {seconds:.1f} s", file=sys.stderr)
    spent: dict[str, list[list[float]]] = {name: [] for name in programs}
    differences = dict.fromkeys(programs, 0.0)
    for turn, batch in enumerate(batches, 1):
        for name, sides in programs.items():
            seconds, scores = zip(*(timed(side, *batch) for side in sides), strict=True)
            spent[name].append([1000 * one / BATCH for one in seconds])
            differences[name] = max(differences[name], float(np.abs(scores[0] - np.array(scores[1])).max()))
        print(f"{turn * BATCH} of {args.clips} clips", file=sys.stderr)
    medians = {name: np.median(times, axis=0) for name, times in spent.items()}
    rows = [
        [name, f"{a:.2f}", f"{b:.2f}", f"{b / a:.1f}", f"{differences[name]:.1e} {MEASURES[name].unit}".strip()]
        for name, (a, b) in medians.items()
    ]
    kinds = {"all but f0_rmse": [name for name in medians if name != "f0_rmse"], "all": list(medians)}
    sums = {kind: np.sum([medians[name] for name in names], axis=0) for kind, names in kinds.items() if names}
    rows += [[kind, f"{a:.2f}", f"{b:.2f}", f"{b / a:.1f}", ""] for kind, (a, b) in sums.items()]
    header = ["measure", "ours, ms a clip", "peer, ms a clip", "peer / ours", "largest difference"]
    print_table(f"{args.clips} clips of 4 s, {jax.devices()[0].device_kind}", header, rows)
    print(f"compiling, once for any number of clips of one length: {compiling:.0f} s for all measures")
    ratios = {kind: float(b / a) for kind, (a, b) in sums.items()}
    found = {name: {"ours_ms": a, "peer_ms": b, "difference": differences[name]} for name, (a, b) in medians.items()}
    print(json.dumps({"clips": args.clips, "ratios": ratios, "compiling_seconds": compiling, "measures": found}))


if __name__ == "__main__":
    with warnings.catch_warnings(action="ignore"):
        main()
