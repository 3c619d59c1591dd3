"""Cues become sound: each class in windows of its own, summed, in stereo, and beside the pictures of a video.

Sound is made where cues are near and is nothing elsewhere: cues that follow one another within what a sound rings make
a stretch. A stretch draws its noise by its class and its beginning, so that an edited sheet changes the stretch alone.
Memory does not grow with the length.
"""

import bisect
import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jaxdiff.config import ConfigError
from jaxdiff.data import soundtrack
from jaxdiff.data.cues import LONGEST_RING, Cue, cut_cues
from jaxdiff.data.files import AudioError, atomic, printable, sound_writer
from jaxdiff.tasks import Batch, Cued, Foley

from . import chunks
from .files import PICTURE_SECONDS
from .outputs import FULL_SCALE, Output
from .pictures import draw, mark, spectrograms
from .pipeline import Pipeline

_BLOCK = 1 << 16  # samples that are summed at once
_LEAD = 0.064  # seconds that are made before the first cue of a stretch
_FADE = 0.05  # seconds over which a stretch ends


class Stretch(NamedTuple):
    """Samples [start, stop) in which cues are heard, and those."""

    start: int
    stop: int
    cues: list[Cue]


class Done(NamedTuple):
    """The facts of what was written: its seconds and cues, the dB by which it was scaled down, and of a video what was
    copied."""

    seconds: float
    cues: int
    scaled_db: float
    muxed: soundtrack.Muxed | None


def foley(
    pipeline: Pipeline,
    cues: Sequence[Cue],
    seconds: float | None = None,
    *,
    label: str | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Output:
    """The sound of cues, [2, samples], of `seconds` (as long as they are heard); raises as `in_pieces` does."""
    facts, pieces = in_pieces(pipeline, cues, seconds, label=label, seed=seed, **knobs)
    made = np.concatenate(list(pieces), axis=-1)
    return Output([made], [pipeline.sample_rate], [{**facts, "item": 0, "label": label, "source": None}])


def in_pieces(
    pipeline: Pipeline,
    cues: Sequence[Cue],
    seconds: float | None = None,
    *,
    label: str | None = None,
    seed: int = 0,
    tell: Callable[[float], None] = lambda share: None,
    **knobs: Any,
) -> tuple[dict[str, Any], Iterator[np.ndarray]]:
    """What a sidecar says, and the sound of cues in pieces [2, samples] at the pipeline's rate.

    A cue has the class that it names, or `label` where the model has no such class. Raises ConfigError for a model of
    another task, and for a class that neither names.
    """
    if not isinstance(pipeline.model.task, Foley):
        kind = type(pipeline.model.task).__name__.lower()
        raise ConfigError(f"the model has the task {kind}; give one of task foley")
    sr, classes = pipeline.sample_rate, pipeline.classes
    length = max(1, round((lasting(pipeline, cues) if seconds is None else seconds) * sr))
    by_class: dict[int, list[Cue]] = {}
    for cue in sorted(cues, key=lambda cue: cue.seconds):
        name = cue.label if cue.label in classes else label
        if classes and name is None:
            raise ConfigError(
                f"class {cue.label!r} is none of the model's, which are {', '.join(classes)}; name one for such cues"
            )
        by_class.setdefault(pipeline.label(name, 0) if classes else -1, []).append(cue)
    jobs = {index: list(stretches(own, length, sr)) for index, own in sorted(by_class.items())}
    _, facts = pipeline._asked(False, seed, Cued(), knobs)
    counts = {classes[i] if i >= 0 else "all": len(own) for i, own in sorted(by_class.items())}
    total, done = max(1, sum(s.stop - s.start for several in jobs.values() for s in several)), 0

    def told(samples: int) -> None:
        nonlocal done
        done += samples
        tell(min(1.0, done / total))

    streams = [_regular(_stream(pipeline, i, own, length, seed, knobs, told), _BLOCK) for i, own in jobs.items()]

    def summed() -> Iterator[np.ndarray]:
        for start in range(0, length, _BLOCK):
            whole = np.zeros((2, min(_BLOCK, length - start)), np.float32)
            for stream in streams:
                whole += next(stream)
            yield whole

    return {**facts, "cues": counts}, summed()


def lasting(pipeline: Pipeline, cues: Sequence[Cue]) -> float:
    """How long cues are heard: to the last and as long as a sound that the model was trained on."""
    return max((cue.seconds for cue in cues), default=0.0) + pipeline.seconds


def stretches(cues: Sequence[Cue], length: int, sr: int) -> Iterator[Stretch]:
    """The stretches of cues, which are sorted, in a sound of so many samples.

    >>> [(s.start, s.stop, len(s.cues)) for s in stretches([Cue(1.0, ""), Cue(3.0, ""), Cue(9.0, "")], 1200, 100)]
    [(93, 700, 2), (893, 1200, 1)]
    """
    own: list[Cue] = []
    for cue in [*cues, Cue(math.inf, "")]:
        if own and cue.seconds > own[-1].seconds + LONGEST_RING + _LEAD:
            start = max(0, int((own[0].seconds - _LEAD) * sr))
            stop = min(length, round((own[-1].seconds + LONGEST_RING) * sr))
            if start < stop:
                yield Stretch(start, stop, own)
            own = []
        own.append(cue)


def _stream(
    pipeline: Pipeline,
    index: int,
    jobs: Sequence[Stretch],
    length: int,
    seed: int,
    knobs: dict[str, Any],
    told: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """The sound of one class in pieces."""
    asked, _ = pipeline._asked(False, seed, Cued(index), knobs)
    sr, at = pipeline.sample_rate, 0
    for job in jobs:
        yield from _silence(job.start - at)
        at = job.start
        times, first = [cue.seconds for cue in job.cues], job.start / sr
        channels = 2 if any(cue.pan for cue in job.cues) else 1  # a sound in the middle is made once

        def take(start: int, window: int, job=job, times=times, first=first, channels=channels) -> Batch:
            begin, seconds = first + start / sr, window / sr
            near = slice(bisect.bisect_left(times, begin - LONGEST_RING), bisect.bisect_left(times, begin + seconds))
            known = cut_cues(job.cues[near], begin, seconds, stereo=True)[:channels]
            return {"wave": np.zeros((channels, window), np.float32), "cues": known}

        item = max(index, 0) + max(1, len(pipeline.classes)) * round(100 * first)
        samples = job.stop - job.start
        for piece in pipeline._windows(take, samples, channels, seed, item, asked):
            left = job.stop - at - np.arange(piece.shape[-1])
            fade = np.float32(1) if job.stop == length else np.clip(left / (_FADE * sr), 0, 1).astype(np.float32)
            yield np.broadcast_to(piece * fade, (2, piece.shape[-1]))
            at += piece.shape[-1]
            told(piece.shape[-1])
    yield from _silence(length - at)


def _silence(samples: int) -> Iterator[np.ndarray]:
    for start in range(0, samples, _BLOCK):
        yield np.zeros((2, min(_BLOCK, samples - start)), np.float32)


def _regular(pieces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Pieces of one size, but for the last."""
    held = np.zeros((2, 0), np.float32)
    for piece in pieces:
        held = np.concatenate([held, piece], axis=-1)
        while held.shape[-1] >= size:
            yield held[:, :size]
            held = held[:, size:]
    if held.shape[-1]:
        yield held


# Files --------------------------------------------------------------------------------------------------------------


def write_foley(
    pipeline: Pipeline,
    cues: Sequence[Cue],
    out: Path,
    *,
    seconds: float | None = None,
    video: Path | None = None,
    keep_original: float | None = None,
    label: str | None = None,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    tell: Callable[[float], None] = lambda share: None,
    **knobs: Any,
) -> Done:
    """Write the sound of cues as WAV or FLAC, or with the pictures of `video` as a video, with picture and sidecar.

    `keep_original` is the gain in dB at which the video's own sound is heard beside it. What exceeds full scale is
    scaled down as a whole. Raises as `in_pieces` and `soundtrack.write_track` do.
    """
    sr, as_video = pipeline.sample_rate, out.suffix.lower() in soundtrack.KINDS
    if as_video and video is None:
        raise ConfigError(f"{out}: a video is made of a video; give one, or a file that ends with .wav")
    if as_video and video is not None:
        soundtrack.check_copy(video, out)
    if seconds is None:
        seconds = lasting(pipeline, cues) if video is None else soundtrack.video_seconds(video)
    own = None if keep_original is None or video is None else soundtrack.read_track(video)
    if keep_original is not None and own is None:
        raise AudioError(f"{video}: has no sound to keep; leave --keep-original away")
    rate = soundtrack.RATE if as_video else sr if own is None else max(sr, own.rate)
    share = lambda done: tell(done if not as_video else 0.95 * done)  # noqa: E731
    facts, made = in_pieces(pipeline, cues, seconds, label=label, seed=seed, tell=share, **knobs)
    samples = max(1, round(seconds * rate))
    sound = _fitted(chunks.resampled(made, sr, rate), samples)
    if own is not None and keep_original is not None:
        gain = np.float32(10 ** (keep_original / 20))
        theirs = _fitted(chunks.resampled(map(_two, own.blocks()), own.rate, rate), samples)
        sound = (a + gain * b for a, b in zip(sound, theirs, strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    peak, shown, muxed = 0.0, np.zeros((2, 0), np.float32), None
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
        for block in sound:
            peak = max(peak, float(np.abs(block).max(initial=0)))
            if shown.shape[-1] < PICTURE_SECONDS * rate:
                shown = np.concatenate([shown, block], axis=-1)[:, : round(PICTURE_SECONDS * rate)]
            held.write(np.ascontiguousarray(block.T, "<f4").tobytes())
        excess = max(1.0, peak / FULL_SCALE)
        if as_video and video is not None:
            scaled = (block.T for block in _spooled(held, 1 / excess))
            last = lambda done: tell(0.95 + 0.05 * done)  # noqa: E731
            muxed = soundtrack.write_track(video, out, scaled, tell=last)
        else:
            temporary = stack.enter_context(atomic(out))
            with sound_writer(temporary, out, rate, 2, "PCM_16", samples) as file:
                for block in _spooled(held, 1 / excess):
                    file.write(np.clip(block, -1, 1))
        done = Done(seconds, len(cues), -20 * math.log10(excess), muxed)
        sidecar = {
            **(about or {}),
            **facts,
            "class": label,
            "sample_rate": rate,
            "seconds": round(seconds, 6),
            **({"keep_original_db": keep_original} if keep_original is not None else {}),
            **({"scaled_db": round(done.scaled_db, 2)} if excess > 1 else {}),
            **({"video": {**muxed._asdict(), "identical": True}} if muxed is not None else {}),
        }
        temporary = stack.enter_context(atomic(out.with_suffix(".json")))
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    title = printable(out.name) + (f", first {PICTURE_SECONDS:g} s" if seconds > PICTURE_SECONDS else "")

    def picture() -> Any:
        figure = spectrograms([shown / np.float32(excess)], [title], [rate], columns=1)
        mark(figure, [(cue.seconds, cue.seconds) for cue in cues])
        return figure

    draw(out.with_suffix(".png"), picture)
    return done


def _two(block: np.ndarray) -> np.ndarray:
    return np.broadcast_to(block, (2, block.shape[-1]))


def _fitted(pieces: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """Pieces of one size of exactly so many samples, cut or filled up with silence."""
    regular = _regular(pieces, _BLOCK)
    for start in range(0, samples, _BLOCK):
        size = min(_BLOCK, samples - start)
        block = next(regular, np.zeros((2, 0), np.float32))[:, :size]
        yield np.pad(block, ((0, 0), (0, size - block.shape[-1])))


def _spooled(held: IO[bytes], gain: float) -> Iterator[np.ndarray]:
    held.seek(0)
    while data := held.read(8 * _BLOCK):
        yield np.float32(gain) * np.frombuffer(data, "<f4").reshape(-1, 2)
