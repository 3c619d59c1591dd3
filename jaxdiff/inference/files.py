"""A sound file becomes a sound file, of any length at constant memory, with picture and sidecar beside it.

The result comes from the pipeline in pieces and waits in an unnamed file beside the target until the whole of it is
known: its loudness and its largest sample make one gain. Then it is written and named, so that what was there before
stays until the new file is complete.
"""

import contextlib
import itertools
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdiff.data.files import atomic, audio_info, printable, sound_writer, wav_subtype

from .mels import MelScale
from .meter import LOWEST, LoudnessMeter, PeakMeter
from .outputs import FULL_SCALE
from .pictures import draw, spectrograms

if TYPE_CHECKING:
    from .pipeline import Pipeline

PICTURE_SECONDS = 30.0  # of the beginning of a sound that a picture shows
_BLOCK = 1 << 16  # samples per channel


class Target(NamedTuple):
    """The wishes for a result: `loudness` in LUFS to which it is brought, as far as its true peak stays below
    `true_peak` in dBTP; with `residual` what was removed is written to STEM.residual.wav."""

    loudness: float | None = None
    true_peak: float = -1.0
    residual: bool = False


class Done(NamedTuple):
    """The facts of a file that is done: its `seconds`; the ratio in dB of the result to what was removed, None where
    one is nothing; LUFS, None where a sound is too short; the gain of the result in dB; what held the gain back."""

    seconds: float
    snr_db: float | None
    loudness_before: float | None
    loudness_after: float | None
    gain_db: float
    limited: bool


def process_file(
    pipeline: "Pipeline",
    file: Path,
    target: Path,
    *,
    aim: Target = Target(),
    seed: int = 0,
    request: Any = None,
    about: dict[str, Any] | None = None,
    tell: Callable[[float], None] = lambda share: None,
    **knobs: Any,
) -> Done:
    """Write what `pipeline` makes of `file` as TARGET.wav with .png and .json, of its length, rate and channels.

    The WAV has 16 bits, or 24 where the file has more than 16 or floats. A result above full scale is scaled down as a
    whole, which a warning and the sidecar say; the residual, input minus result, has the same gain as the result.
    `about` goes into the sidecar, and `tell` hears which share is done. Raises AudioError for a file that cannot be
    used and OSError where nothing can be written.
    """
    facts, pieces = pipeline.in_pieces(file, seed=seed, request=request, **knobs)
    info = audio_info(file)
    rate, channels = info.sample_rate, info.channels
    first = next(pieces)  # which is there only after the whole file could be read
    target.parent.mkdir(parents=True, exist_ok=True)
    before, after, peaks = LoudnessMeter(rate, channels), LoudnessMeter(rate, channels), PeakMeter(channels)
    left, removed, samples = _Energy(), _Energy(), 0
    shown = _Beginning(round(PICTURE_SECONDS * rate))
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(tempfile.TemporaryFile(dir=target.parent))
        rest = stack.enter_context(tempfile.TemporaryFile(dir=target.parent)) if aim.residual else None
        for sound, made in itertools.chain([first], pieces):
            difference = sound - made
            before.add(sound)
            after.add(made)
            peaks.add(made)
            removed.add(difference)
            left.add(made)
            shown.add(sound, made)
            samples += sound.shape[-1]
            tell(samples / max(info.samples, 1))
            held.write(made.T.astype("<f4").tobytes())
            if rest is not None:
                rest.write(difference.T.astype("<f4").tobytes())
        gain_db, limited = _gain_db(after.loudness, peaks, aim)
        wav = _beside(target, ".wav")
        excess_db = _excess_db(wav, peaks.peak * 10 ** (gain_db / 20))
        gain = 10 ** ((gain_db - excess_db) / 20)
        subtype = wav_subtype(info)
        outputs = [(wav, held, gain)]
        if rest is not None:
            most = FULL_SCALE / max(removed.peak, 1e-9)
            if gain > most:
                warnings.warn(f"{target}.residual.wav: exceeded full scale and has less gain than {wav}", stacklevel=2)
            outputs.append((_beside(target, ".residual.wav"), rest, min(gain, most)))
        for path, kept, factor in outputs:
            temporary = stack.enter_context(atomic(path))
            _write(temporary, path, kept, factor, rate, channels, subtype, samples)
        loudness = after.loudness
        if loudness is not None and loudness > LOWEST:
            loudness += gain_db - excess_db
        done = Done(samples / rate, _ratio_db(left.sum, removed.sum), before.loudness, loudness, gain_db, limited)
        sidecar = {
            **(about or {}),
            **facts,
            **_asked(request),
            **({"loudness_wanted": aim.loudness, "true_peak_limit": aim.true_peak} if aim.loudness is not None else {}),
            "sample_rate": rate,
            "seconds": samples / rate,
            **{k: round(v, 2) for k, v in done._asdict().items() if isinstance(v, float) and k != "seconds"},
            **({"scaled_db": -round(excess_db, 2)} if excess_db else {}),
        }
        temporary = stack.enter_context(atomic(_beside(target, ".json")))
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    begun = _begun(samples, shown.samples)
    titles = [printable(f"{file.name} {when}{begun}") for when in ("before", "after")]
    waves = [shown.sound, np.float32(gain) * shown.made]
    draw(_beside(target, ".png"), lambda: spectrograms(waves, titles, [rate, rate], columns=1))
    return done


def process_mel(
    pipeline: "Pipeline",
    file: Path,
    target: Path,
    *,
    scale: MelScale = "auto",
    seed: int = 0,
    request: Any = None,
    about: dict[str, Any] | None = None,
    tell: Callable[[float], None] = lambda share: None,
    **knobs: Any,
) -> tuple[float, str]:
    """This is `process_file` for the mel spectrogram in a NPY or NPZ file; the WAV has 16 bits. Returned are the
    seconds that were made, and a sentence on what was read and assumed."""
    mel, facts, pieces = pipeline.mel_in_pieces(file, scale=scale, seed=seed, request=request, **knobs)
    rate, samples = pipeline.sample_rate, mel.samples
    target.parent.mkdir(parents=True, exist_ok=True)
    energy, shown, done = _Energy(), _Beginning(round(PICTURE_SECONDS * rate)), 0
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(tempfile.TemporaryFile(dir=target.parent))
        for made in pieces:
            energy.add(made)
            shown.add(made, made)
            held.write(made.T.astype("<f4").tobytes())
            done += made.shape[-1]
            tell(done / samples)
        wav = _beside(target, ".wav")
        excess_db = _excess_db(wav, energy.peak)
        gain = 10 ** (-excess_db / 20)
        temporary = stack.enter_context(atomic(wav))
        _write(temporary, wav, held, gain, rate, 1, "PCM_16", samples)
        sidecar = {
            **(about or {}),
            **facts,
            **_asked(request),
            "sample_rate": rate,
            "seconds": samples / rate,
            **({"scaled_db": -round(excess_db, 2)} if excess_db else {}),
        }
        temporary = stack.enter_context(atomic(_beside(target, ".json")))
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    titles = [printable(f"{file.name}{_begun(samples, shown.samples)}")]
    draw(_beside(target, ".png"), lambda: spectrograms([np.float32(gain) * shown.made], titles, [rate], columns=1))
    return samples / rate, mel.said


def _asked(request: Any) -> dict[str, Any]:
    """The entry of a sidecar that says a user's options."""
    return {"request": dict(vars(request))} if request is not None and vars(request) else {}


def _excess_db(wav: Path, peak: float) -> float:
    """The decibels by which a result of this peak exceeds full scale, which a warning says."""
    excess_db = 20 * math.log10(max(1.0, peak / FULL_SCALE))
    if excess_db:
        warnings.warn(
            printable(f"{wav}: exceeded full scale and was scaled down as a whole by {excess_db:.1f} dB"), stacklevel=3
        )
    return excess_db


def _begun(samples: int, shown: int) -> str:
    """The end of a picture's title, for a sound of which only the beginning is shown."""
    return "" if samples <= shown else f", first {PICTURE_SECONDS:g} s"


def _gain_db(loudness: float | None, peaks: PeakMeter, aim: Target) -> tuple[float, bool]:
    """The gain in dB for the loudness that is aimed at, none for silence, and whether the true peak held it back."""
    if aim.loudness is None or loudness is None or loudness <= LOWEST:
        return 0.0, False
    wanted, most = aim.loudness - loudness, aim.true_peak - peaks.true_peak
    return min(wanted, most), most < wanted


class _Energy:
    """Sum of squares and largest sample of what is added."""

    def __init__(self):
        self.sum, self.peak = 0.0, 0.0

    def add(self, block: np.ndarray) -> None:
        self.sum += float(np.vdot(block, block))
        self.peak = max(self.peak, float(np.abs(block).max(initial=0)))


class _Beginning:
    """The first `samples` of a sound and of its result, channels mixed."""

    def __init__(self, samples: int):
        self.samples, self.sound, self.made = samples, np.zeros(0, np.float32), np.zeros(0, np.float32)

    def add(self, sound: np.ndarray, made: np.ndarray) -> None:
        if len(self.sound) < self.samples:
            self.sound = np.concatenate([self.sound, sound.mean(0)])[: self.samples]
            self.made = np.concatenate([self.made, made.mean(0)])[: self.samples]


def _ratio_db(left: float, removed: float) -> float | None:
    return 10 * math.log10(left / removed) if left > 0 and removed > 0 else None


def _write(
    temporary: Path, path: Path, kept: IO[bytes], gain: float, rate: int, channels: int, subtype: str, samples: int
) -> None:
    """The float32 samples of an unnamed file, times `gain`, as WAV."""
    with sound_writer(temporary, path, rate, channels, subtype, samples) as out:
        for block in _blocks(kept, channels):
            out.write(np.clip(np.float32(gain) * block, -1, 1))


def _blocks(kept: IO[bytes], channels: int) -> Iterator[np.ndarray]:
    kept.seek(0)
    while data := kept.read(4 * channels * _BLOCK):
        yield np.frombuffer(data, "<f4").reshape(-1, channels)


def _beside(target: Path, end: str) -> Path:
    return target.with_name(target.name + end)
