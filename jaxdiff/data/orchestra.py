"""The built-in corpus: a small seeded orchestra of physically modelled sounds, written as real FLAC files.

Eight classes of one-second notes, each sound with its own pitch, force, material and position of attack:
bars and membranes are sums of their modes of vibration (Fletcher & Rossing 1998, chapters 2-3), the string is a
Karplus-Strong waveguide (Jaffe & Smith 1983), the bow a Helmholtz sawtooth through a violin body's resonances, the
flute a breath-driven harmonic series, hats and snare wires bursts of shaped noise. Sound `index` of a class depends on
its name, the split and the index alone, so a corpus can grow without changing.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .files import write_audio

SAMPLE_RATE = 16_000
SPLITS = ("train", "test")
_T = np.arange(SAMPLE_RATE) / SAMPLE_RATE  # one second

_MEMBRANE = np.array([1.0, 1.593, 2.135, 2.295, 2.653, 2.917, 3.155])  # zeros of Bessel functions, over the first
_BAR = np.array([1.0, 2.756, 5.404, 8.933, 13.345])  # free-free beam: (3.011, 5, 7, 9, 11)^2 over the first
_VIOLIN_BODY = ((275, 60), (460, 50), (560, 60), (1100, 200), (2500, 600))  # centre and width in Hz

Generator = np.random.Generator


def _modes(rng: Generator, frequencies: np.ndarray, amplitudes: np.ndarray, decays: np.ndarray) -> np.ndarray:
    """Exponentially decaying sinusoids with random phase; those above 7.5 kHz are left out."""
    keep = frequencies < 7500
    phase = rng.uniform(0, 2 * np.pi, keep.sum())
    angle = 2 * np.pi * frequencies[keep, None] * _T + phase[:, None]
    return (amplitudes[keep, None] * np.exp(-_T / decays[keep, None]) * np.sin(angle)).sum(0)


def _noise(rng: Generator, low: float, high: float) -> np.ndarray:
    """Unit-power noise between two frequencies in Hz, with soft edges."""
    spectrum = np.fft.rfft(rng.standard_normal(len(_T)))
    f = np.fft.rfftfreq(len(_T), 1 / SAMPLE_RATE)
    shape = 1 / np.sqrt((1 + (low / np.maximum(f, 1)) ** 6) * (1 + (f / high) ** 6))
    y = np.fft.irfft(spectrum * shape, len(_T))
    return y / y.std()


def _swell(attack: float, release: float) -> np.ndarray:
    """Raised-cosine attack and release, lengths in seconds."""
    rise = np.clip(_T / attack, 0, 1)
    fall = np.clip((1.0 - _T) / release, 0, 1)
    return (0.5 - 0.5 * np.cos(np.pi * rise)) * (0.5 - 0.5 * np.cos(np.pi * fall))


def bar(rng: Generator) -> np.ndarray:
    """Struck bar (marimba to glockenspiel): beam modes, higher ones weaker and shorter-lived; a mallet knock."""
    f = 260 * 2 ** rng.uniform(0, 2)
    hardness = rng.uniform(0.6, 1.4)
    y = _modes(rng, f * _BAR, _BAR**-hardness, rng.uniform(0.15, 0.5) * _BAR**-0.8)
    return y + rng.uniform(0.02, 0.1) * _noise(rng, 400, 3000) * np.exp(-_T / 0.008)


def bow(rng: Generator) -> np.ndarray:
    """Bowed string: a sawtooth with vibrato, filtered by the body, over a little bow noise."""
    f = 196 * 2 ** rng.uniform(0, 1.3)
    vibrato = rng.uniform(0.002, 0.008) * np.clip((_T - 0.2) / 0.3, 0, 1) * np.sin(2 * np.pi * rng.uniform(5, 6.5) * _T)
    angle = 2 * np.pi * np.cumsum(f * (1 + vibrato)) / SAMPLE_RATE
    harmonics = np.arange(1, int(7500 / f) + 1)
    body = sum(1 / (1 + ((harmonics * f - c) / w) ** 2) for c, w in _VIOLIN_BODY)
    y = ((0.15 + body) / harmonics) @ np.sin(harmonics[:, None] * angle)
    return (y + rng.uniform(0.005, 0.02) * _noise(rng, 800, 5000)) * _swell(rng.uniform(0.06, 0.18), 0.15)


def flute(rng: Generator) -> np.ndarray:
    """Blown pipe: few harmonics, a tremolo of the breath, and the breath itself, strongest at the attack."""
    f = 440 * 2 ** rng.uniform(0, 1.2)
    tremolo = 1 + rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * rng.uniform(4, 6) * _T)
    harmonics = np.arange(1, int(min(7500 / f, 6)) + 1)
    angle = 2 * np.pi * f * _T + 0.02 * np.sin(2 * np.pi * 5 * _T)
    y = (rng.uniform(0.2, 0.5) ** (harmonics - 1.0)) @ np.sin(harmonics[:, None] * angle + harmonics[:, None])
    breath = _noise(rng, f, 4 * f) * rng.uniform(0.01, 0.04) * (1 + 4 * np.exp(-_T / 0.04))
    return (y * tremolo + breath) * _swell(rng.uniform(0.03, 0.1), 0.1)


def hat(rng: Generator) -> np.ndarray:
    """Closed to open hi-hat: many inharmonic plate modes and a hiss, all above 3 kHz."""
    decay = 0.025 * 12 ** rng.uniform(0, 1)
    f = rng.uniform(3000, 7500, 40)
    y = _modes(rng, f, rng.uniform(0.2, 1, 40), decay * rng.uniform(0.5, 1.5, 40)) / 4
    return y + rng.uniform(0.5, 1.5) * _noise(rng, rng.uniform(3500, 5000), 7600) * np.exp(-_T / decay)


def kick(rng: Generator) -> np.ndarray:
    """Bass drum: one low mode whose pitch falls with its tension, and the click of the beater."""
    f, drop = rng.uniform(42, 65), rng.uniform(1.5, 5)
    frequency = f * (1 + drop * np.exp(-_T / rng.uniform(0.015, 0.05)))
    y = np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE) * np.exp(-_T / rng.uniform(0.1, 0.25))
    return y + rng.uniform(0.02, 0.2) * _noise(rng, 800, 5000) * np.exp(-_T / 0.004)


def snare(rng: Generator) -> np.ndarray:
    """Snare drum: short membrane modes and the longer rattle of the wires."""
    f = rng.uniform(160, 260) * _MEMBRANE
    head = _modes(rng, f, rng.uniform(0.3, 1, len(f)), rng.uniform(0.03, 0.1) * _MEMBRANE**-0.5)
    wires = _noise(rng, rng.uniform(900, 2000), 7000) * np.exp(-_T / rng.uniform(0.05, 0.15))
    return head + rng.uniform(0.5, 1.5) * wires


def string(rng: Generator) -> np.ndarray:
    """Plucked string: Karplus-Strong, a burst of noise circulating through a lossy, slightly low-pass loop."""
    from scipy.signal import lfilter

    f = 110 * 2 ** rng.uniform(0, 2)
    delay = SAMPLE_RATE / f - 0.5  # the two-point average adds half a sample
    whole = int(delay)
    part = delay - whole
    loop = 0.001 ** (1 / (f * rng.uniform(0.8, 2.5)))  # 60 dB in that many seconds
    average = np.convolve([0.5, 0.5], [1 - part, part]) * loop
    burst = np.zeros(len(_T))
    burst[: whole + 1] = rng.uniform(-1, 1, whole + 1)
    burst = np.asarray(lfilter([rng.uniform(0.3, 0.9)], [1, -0.5], burst))
    pluck = max(1, int(whole * rng.uniform(0.1, 0.4)))  # its position mutes harmonics
    burst[pluck:] -= 0.9 * burst[:-pluck].copy()
    return np.asarray(lfilter([1.0], np.concatenate([[1.0], np.zeros(whole - 1), -average]), burst))


def tom(rng: Generator) -> np.ndarray:
    """Tom-tom: long membrane modes that glide down a little."""
    f = rng.uniform(90, 200)
    glide = np.cumsum(1 + 0.3 * rng.uniform(0.3, 1) * np.exp(-_T / 0.05)) / SAMPLE_RATE
    decay = rng.uniform(0.12, 0.3) * _MEMBRANE**-1.0
    amplitude = rng.uniform(0.2, 1, len(decay)) * _MEMBRANE**-1.2
    angle = 2 * np.pi * f * _MEMBRANE[:, None] * glide + rng.uniform(0, 2 * np.pi, (len(decay), 1))
    y = (amplitude[:, None] * np.exp(-_T / decay[:, None]) * np.sin(angle)).sum(0)
    return y + rng.uniform(0.05, 0.3) * _noise(rng, 300, 4000) * np.exp(-_T / 0.01)


INSTRUMENTS: dict[str, Callable[[Generator], np.ndarray]] = {
    f.__name__: f for f in (bar, bow, flute, hat, kick, snare, string, tom)
}


def synthesize(instrument: str, split: str, index: int) -> np.ndarray:
    """Sound `index` of an instrument: one second at 16 kHz, peak -1 to -7 dB, starting within 4 ms."""
    rng = np.random.default_rng([zlib.crc32(f"{instrument}/{split}".encode()), index])
    y = INSTRUMENTS[instrument](rng)
    y = y * np.clip((1.0 - _T) / 0.01, 0, 1)
    y = np.concatenate([np.zeros(rng.integers(0, 64)), y])[: len(_T)]
    return y * 10 ** (rng.uniform(-7, -1) / 20) / np.abs(y).max()


def write_orchestra(directory: Path, split: str = "train", count: int = 256) -> Path:
    """`count` FLAC files per instrument under `directory/split/instrument`; files that are there stay. That folder."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    for instrument in INSTRUMENTS:
        folder = Path(directory) / split / instrument
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / f"{index:04d}.flac"
            if not path.exists():
                write_audio(path, synthesize(instrument, split, index).astype(np.float32), SAMPLE_RATE)
    return Path(directory) / split
