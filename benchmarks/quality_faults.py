"""How many faults `find_faults` finds, and how often it alarms in clean sounds: faults of every kind, speech and music.

    python benchmarks/quality_faults.py [--split test] [--clips 100] [--seed 0]

Speech are the voices of data/sounds/voices (`fetch_sounds.py`) in clips of at least two seconds, music the pieces of
data/sounds/music and the renders of data/music (`fetch_music.py`) in clips of ten. The voices were published as Ogg
Vorbis. Two voices are left out for faults that they have: clips of tuxpaint-ca lack the upper half of their band, and
in those of ktuberling-gl sound is cut hard to digital silence and back, which are drop-outs.
A fault counts as found when half of it is covered and what was found lies within twice its length (bands: the cut-off
within 3 %). False alarms are counted per minute of the clips as they are. Gaps (zeros, a held value, dither, a fade of
1 ms, repeated packets) lie where the sound is less than 25 dB below its mean, clicks come 50 and 1 per second, clipping
has 3, 7 and 15 dB SDR, bands end between 1.5 and 6.5 kHz, MP3 has 16 kbit/s, which is one bit per sample.
"""

import argparse
import bisect
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from measures import RATE, recordings
from measures_repair import clip_level

from jaxdiff.data import read_audio
from jaxdiff.inference.faults import ALL_KINDS, Fault, Kind, find_in

Places = list[tuple[int, int]]  # start and stop in samples
FAULTY = ("tuxpaint-ca", "ktuberling-gl")  # voices
GAPS = ("zeros", "hold", "dither", "fade", "repeat")


def rounded(y: np.ndarray) -> np.ndarray:
    """What 16 bits keep of a sound."""
    return (np.rint(np.clip(y, -1, 32767 / 32768) * 32768) / 32768).astype(np.float32)


def add_gaps(
    y: np.ndarray, sr: int, rng: np.random.Generator, count: int, how: str = "zeros"
) -> tuple[np.ndarray, Places]:
    """Drop-outs of 2 to 300 ms with 25 ms of sound between them; fewer where the sound has no room for `count`."""
    y, places, beside = y.copy(), [], sr // 40
    least = 10 ** (-25 / 20) * np.sqrt(np.mean(y**2))
    for _ in range(30 * count):
        packet = round(rng.choice([0.005, 0.01, 0.02, 0.04]) * sr)
        length = round(0.002 * 150 ** rng.uniform() * sr) if how != "repeat" else packet * int(rng.integers(1, 4))
        margin = max(packet, 2 * beside)
        if len(places) == count or len(y) < length + 2 * margin:
            continue
        a = int(rng.integers(margin, len(y) - length - margin + 1))
        b = a + length
        near = any(a < stop + margin and b > start - margin for start, stop in places)
        if near or any(np.sqrt(np.mean(side**2)) < least for side in (y[a - beside : a], y[b : b + beside])):
            continue
        if how == "repeat":
            y[a:b] = np.tile(y[a - packet : a], length // packet)
        else:
            y[a:b] = {"hold": y[a - 1], "dither": rng.integers(-1, 2, length) / 32768}.get(how, 0.0)
        if how == "fade":
            ramp = np.linspace(1, 0, sr // 1000 + 2, dtype=np.float32)[1:-1]
            y[a - len(ramp) : a] *= ramp
            y[b : b + len(ramp)] *= ramp[::-1]
        places.append((a, b))
    return y, sorted(places)


def add_clicks(
    y: np.ndarray, sr: int, rng: np.random.Generator, rate: float, longest: float = 0.004
) -> tuple[np.ndarray, Places]:
    """Bursts of noise of 1 ms to `longest` seconds, as loud as the sound's peak, about `rate` per second."""
    y, places, peak = y.copy(), [], np.abs(y).max()
    edges = np.linspace(0.01 * sr, len(y) - 0.01 * sr, max(2, round(rate * len(y) / sr) + 1))
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        length = round(rng.uniform(0.001, longest) * sr)
        a = round(rng.uniform(low, max(low, high - length - 0.001 * sr)))
        y[a : a + length] += rng.uniform(-peak, peak, length).astype(np.float32)
        places.append((a, a + length))
    return np.clip(y, -1, 1), places


def band_limit(y: np.ndarray, sr: int, cutoff: float) -> np.ndarray:
    """The sound without what lies above `cutoff` Hz, by a windowed sinc of 2,001 taps."""
    at = np.arange(-1000, 1001)
    taps = np.sinc(2 * cutoff / sr * at) * np.blackman(len(at))
    size = 2 ** int(np.ceil(np.log2(len(y) + len(taps))))
    whole = np.fft.irfft(np.fft.rfft(y, size) * np.fft.rfft(taps / taps.sum(), size), size)
    return whole[1000 : 1000 + len(y)].astype(np.float32)


def coded(y: np.ndarray, sr: int, kbits: float = 16, form: str = "MP3") -> np.ndarray:
    """The sound [samples] through a lossy codec at about `kbits` per second (MP3), or at the least that libsndfile
    makes (OPUS, VORBIS), in its place and of its length."""
    file = io.BytesIO()
    if form == "MP3":
        least, most = (32, 320) if sr >= 32_000 else (8, 160)
        level = float(np.clip((most - kbits) / (most - least), 0, 0.999))
        soundfile.write(file, y, sr, "MPEG_LAYER_III", format="MP3", compression_level=level, bitrate_mode="CONSTANT")
    else:
        soundfile.write(file, y, sr, form, format="OGG", compression_level=0.99)
    file.seek(0)
    back = soundfile.read(file, dtype="float32")[0]
    return np.pad(back, (0, max(0, len(y) - len(back))))[: len(y)]


# What was found -----------------------------------------------------------------------------------------------------


def clips(kind: str, split: str, most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Clips [samples] of speech or music."""
    if kind == "speech":
        voices = recordings(Path("data/sounds/voices") / split)
        found = [read_audio(path, RATE) for name, paths in voices.items() if name not in FAULTY for path in paths]
        found = [y for y in found if len(y) >= 2 * RATE]
    else:
        folders = [Path("data/sounds/music") / split, Path("data/music") / split]
        paths = [path for folder in folders for paths in recordings(folder).values() for path in paths]
        found = [
            y[a : a + 10 * RATE]
            for y in (read_audio(p, RATE) for p in paths)
            for a in range(0, len(y) - 5 * RATE, 10 * RATE)
        ]
    return [found[i] for i in rng.permutation(len(found))[:most]]


def cases(
    kind: Kind, y: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray, list[tuple[int, int, float]]]]:
    """A clip with faults: how they were made, the sound, their places and values."""
    if kind == "gap":
        for how in GAPS:
            wave, places = add_gaps(y, RATE, rng, 2, how)
            yield how, wave, [(a, b, 0.0) for a, b in places]
    elif kind == "clip":
        for sdr in (3.0, 7.0, 15.0):
            level = clip_level(y, sdr)
            wave = np.clip(y, -level, level)
            edges = np.flatnonzero(np.diff(np.abs(wave) >= level, prepend=False, append=False))
            yield f"{sdr:g} dB SDR", wave, [(a, b, level) for a, b in edges.reshape(-1, 2).tolist() if b - a >= 2]
    elif kind == "click":
        for rate, longest in ((50.0, 0.004), (1.0, 0.004), (1.0, 0.0)):
            wave, places = add_clicks(y, RATE, rng, rate, max(longest, 0.001))
            yield f"{rate:g} per second" + ("" if longest else ", 1 ms"), wave, [(a, b, 0.0) for a, b in places]
    elif kind == "band":
        cutoff = float(rng.uniform(1500, 6500))
        yield "", band_limit(y, RATE, cutoff), [(0, len(y), cutoff)]
    else:
        yield "MP3, 16 kbit/s", coded(y, RATE, 16), [(0, len(y), 0.0)]


def hit(fault: Fault, place: tuple[int, int, float]) -> bool:
    a, b, value = place
    covered = min(fault.stop, b) - max(fault.start, a)
    right = not value or fault.kind not in ("band", "clip") or abs(fault.value / value - 1) < 0.03
    return right and 2 * covered >= b - a and (fault.stop - fault.start) <= 2 * (b - a) + 8


def beside(found: tuple[Fault, ...], place: tuple[int, int, float]) -> tuple[Fault, ...]:
    """Those of the faults, which are sorted, that begin not long before a place and not after it."""
    a, b, _ = place
    low, high = (bisect.bisect_left(found, at, key=lambda fault: fault.start) for at in (a - 2 * (b - a) - 8, b))
    return found[low:high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument(
        "--clips", type=int, default=100, help="of speech and of music; a fifth of them get gaps, clipping and clicks"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(f"{'':8s}{'kind':7s}{'':22s}{'faults':>8s}{'found %':>9s}{'false per clean minute':>24s}")
    for sounds in ("speech", "music"):
        clean = clips(sounds, asked.split, asked.clips, np.random.default_rng(asked.seed))
        minutes = sum(map(len, clean)) / RATE / 60
        alarms = [fault for y in clean for fault in find_in(y[None], RATE).faults]
        for kind in ALL_KINDS:
            rng, counts = np.random.default_rng(asked.seed), {}
            for y in clean if kind in ("band", "codec") else clean[: asked.clips // 5]:  # clips with many faults each
                for how, wave, places in cases(kind, y, rng):
                    found = find_in(rounded(wave)[None], RATE, [kind]).faults
                    got = sum(any(hit(fault, place) for fault in beside(found, place)) for place in places)
                    have = counts.get(how, (0, 0))
                    counts[how] = have[0] + len(places), have[1] + got
            false = sum(fault.kind == kind for fault in alarms) / minutes
            for how, (faults, got) in counts.items():
                print(
                    f"{sounds:8s}{kind:7s}{how:22s}{faults:8d}{100 * got / max(1, faults):9.1f}{false:24.2f}",
                    flush=True,
                )
        print(f"{sounds}: {minutes:.1f} clean minutes in {len(clean)} clips", flush=True)


if __name__ == "__main__":
    main()
