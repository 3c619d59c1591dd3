"""Feature transforms beside librosa, torch, librosax and korvax, interleaved in one process.

    pip install torch librosax korvax -e '.[bench]'        python benchmarks/features.py [--rounds 15]

16 sounds of 4 s at 22.05 kHz, n_fft 1024, hop 256, 80 mels. Every round calls each implementation once, in a new random
order and after a pause, so that nobody always follows the same neighbour, whose threads may still spin and whose memory
has just gone back; the table gives medians in ms and minor page faults per call, and one JSON line per row goes to
standard output. Peers that are not installed are left out. On a GPU, torch runs on it as well.
"""

import argparse
import json
import random
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from jaxdiff import features

SR, ITEMS, SECONDS = 22050, 16, 4
PAUSE = 0.01  # seconds before each call
SIZES = dict(n_fft=1024, hop_length=256)
MEL = dict(sr=SR, n_mels=80, **SIZES)
PITCH = dict(fmin=65.0, fmax=2093.0, sr=SR)


def sounds() -> np.ndarray:
    """Gliding harmonic tones with pauses over noise, one pitch each."""
    t = np.arange(SECONDS * SR) / SR
    out = []
    for k in range(ITEMS):
        pitch = (110 + 20 * k) * 2 ** (0.3 * np.sin(2 * np.pi * 0.7 * t + k))
        phase = 2 * np.pi * np.cumsum(pitch) / SR
        y = sum(np.sin(n * phase) / n for n in range(1, 9)) * (np.sin(np.pi * t + k) > -0.5)
        out.append(0.2 * y + 0.003 * np.random.default_rng(k).standard_normal(len(t)))
    return np.asarray(out, np.float32)


def jax_rows(y: np.ndarray) -> dict[str, Callable]:
    y = jnp.asarray(y)
    X = jax.block_until_ready(features.stft(y, **SIZES))
    S = jnp.abs(X)
    log_mel = lambda y: features.power_to_db(features.melspectrogram(y, **MEL)).mean()  # noqa: E731
    gradient = jax.jit(jax.value_and_grad(log_mel))
    rows = {
        "stft": lambda: features.stft(y, **SIZES),
        "istft": lambda: features.istft(X, hop_length=256),
        "mel": lambda: features.melspectrogram(y, **MEL),
        "mfcc": lambda: features.mfcc(y, n_mfcc=20, **MEL),
        "log-mel value and gradient": lambda: gradient(y),
        "griffin-lim, 32 iterations": lambda: features.griffinlim(S, hop_length=256),
        "pyin": lambda: features.pyin(y, **PITCH),
    }
    return {name: lambda f=f: jax.block_until_ready(f()) for name, f in rows.items()}


def librosa_rows(y: np.ndarray) -> dict[str, Callable]:
    X = librosa.stft(y, **SIZES)
    S = np.abs(X)
    return {
        "stft": lambda: librosa.stft(y, **SIZES),
        "istft": lambda: librosa.istft(X, hop_length=256),
        "mel": lambda: librosa.feature.melspectrogram(y=y, **MEL),
        "mfcc": lambda: librosa.feature.mfcc(y=y, n_mfcc=20, **MEL),
        "griffin-lim, 32 iterations": lambda: librosa.griffinlim(S, hop_length=256),
        "pyin": lambda: [librosa.pyin(item, **PITCH) for item in y],
    }


def torch_rows(y: np.ndarray) -> dict[str, Callable]:
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    y = torch.from_numpy(y).to(device)
    window = torch.hann_window(1024, device=device)
    filters = torch.from_numpy(features.mel_filterbank(SR, 1024, 80).astype(np.float32)).to(device)
    basis = np.cos(np.pi / 80 * np.outer(np.arange(20), np.arange(80) + 0.5)) * np.sqrt(2 / 80)
    basis[0] /= np.sqrt(2)
    cosines = torch.from_numpy(basis.astype(np.float32)).to(device)

    def stft(y):
        return torch.stft(y, 1024, 256, window=window, pad_mode="constant", return_complex=True)

    def istft(X):
        return torch.istft(X, 1024, 256, window=window)

    def mel(y):
        X = stft(y)
        return filters @ (X.real**2 + X.imag**2)

    def log_mel(y):
        db = 10 * torch.log10(torch.clamp(mel(y), min=1e-10))
        return torch.maximum(db, db.amax((-2, -1), keepdim=True) - 80)

    def gradient():
        x = y.clone().requires_grad_(True)
        value = log_mel(x).mean()
        value.backward()
        return value, x.grad

    def griffinlim(S):
        angles = torch.exp(2j * torch.pi * torch.rand(S.shape, device=device))
        before = torch.zeros_like(angles)
        for _ in range(32):
            rebuilt = stft(istft(S * angles))
            angles = rebuilt - 0.99 / 1.99 * before
            angles, before = angles / (angles.abs() + 1e-16), rebuilt
        return istft(S * angles)

    X = stft(y)
    S = X.abs()

    def done(f):
        def call():
            with torch.set_grad_enabled(f is gradient):
                out = f()
            if device == "cuda":
                torch.cuda.synchronize()
            return out

        return call

    return {
        "stft": done(lambda: stft(y)),
        "istft": done(lambda: istft(X)),
        "mel": done(lambda: mel(y)),
        "mfcc": done(lambda: cosines @ log_mel(y)),
        "log-mel value and gradient": done(gradient),
        "griffin-lim, 32 iterations": done(lambda: griffinlim(S)),
    }


def librosax_rows(y: np.ndarray) -> dict[str, Callable]:
    import librosax

    y = jnp.asarray(y)
    X = features.stft(y, **SIZES)
    rows = {
        "stft": jax.jit(lambda y: librosax.stft(y, **SIZES)),
        "istft": jax.jit(lambda X: librosax.istft(X, hop_length=256)),
        "mel": jax.jit(lambda y: librosax.feature.melspectrogram(y=y, **MEL)),
        "mfcc": jax.jit(lambda y: librosax.feature.mfcc(y=y, n_mfcc=20, **MEL)),
    }
    return {n: lambda f=f, n=n: jax.block_until_ready(f(X if n == "istft" else y)) for n, f in rows.items()}


def korvax_rows(y: np.ndarray) -> dict[str, Callable]:
    import korvax

    y = jnp.asarray(y)
    X = features.stft(y, **SIZES)
    inputs = {"istft": X, "griffin-lim, 32 iterations": jnp.abs(X)}
    log_mel = lambda y: korvax.power_to_db(korvax.mel_spectrogram(y, **MEL)).mean()  # noqa: E731
    rows = {
        "stft": jax.jit(lambda y: korvax.stft(y, **SIZES)),
        "istft": jax.jit(lambda X: korvax.istft(X, hop_length=256)),
        "mel": jax.jit(lambda y: korvax.mel_spectrogram(y, **MEL)),
        "mfcc": jax.jit(lambda y: korvax.mfcc(y, n_mfcc=20, **MEL)),
        "log-mel value and gradient": jax.jit(jax.value_and_grad(log_mel)),
        "griffin-lim, 32 iterations": jax.jit(lambda S: korvax.griffin_lim(S, jax.random.key(0), hop_length=256)),
    }
    return {n: lambda f=f, n=n: jax.block_until_ready(f(inputs.get(n, y))) for n, f in rows.items()}


def measure(calls: dict[str, Callable], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds and mean minor page faults per call of each, after two calls that warm up."""
    times, faults = {n: [] for n in calls}, dict.fromkeys(calls, 0)
    for call in calls.values():
        call(), call()
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            time.sleep(PAUSE)
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            calls[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
            faults[name] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {n: (statistics.median(t), faults[n] / rounds) for n, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="rows to run, by the start of their name")
    arguments = parser.parse_args()
    y, tables = sounds(), {}
    for rows in (jax_rows, librosa_rows, torch_rows, librosax_rows, korvax_rows):
        try:
            tables[rows.__name__.removesuffix("_rows")] = rows(y)
        except ImportError as error:
            print(f"# {error}: left out")
    for row in tables["jax"]:
        if arguments.only and not row.startswith(tuple(arguments.only)):
            continue
        calls = {peer: table[row] for peer, table in tables.items() if row in table}
        slow = row in ("pyin", "griffin-lim, 32 iterations")
        result = measure(calls, max(3, arguments.rounds // 5) if slow else arguments.rounds)
        line = {peer: {"ms": round(ms, 2), "faults": round(f)} for peer, (ms, f) in result.items()}
        fastest = min((ms for peer, (ms, _) in result.items() if peer != "jax"), default=float("nan"))
        ratio = {"fastest peer / ours": round(fastest / result["jax"][0], 2)}
        print(json.dumps({"row": row, "device": jax.devices()[0].device_kind, **line, **ratio}), flush=True)


if __name__ == "__main__":
    main()
