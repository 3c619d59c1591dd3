"""Faults of a sound: drop-outs, clipped peaks, clicks, a lost upper band, and what a lossy codec left out.

Every channel is looked at on its own, in pieces of a few seconds with some more on both sides, so that hours need no
more memory than a minute and the blocks in which a sound comes make no difference. Times are samples of the sound's
own rate. How each kind is found stands in `data/breaks.py`, `data/clicks.py` and `data/spectra.py`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from jaxdiff.data.breaks import Run, clipped, gaps, quantisation
from jaxdiff.data.clicks import clicks
from jaxdiff.data.files import audio_blocks, audio_info
from jaxdiff.data.spectra import Spectra
from jaxdiff.inference.chunks import Passing, blocks

Kind = Literal["gap", "clip", "click", "band", "codec"]
ALL_KINDS: tuple[Kind, ...] = get_args(Kind)

_CORE_SECONDS, _BESIDE_SECONDS = 8.0, 2.0  # a piece, and what is seen on each side of it
_BESIDE_CLICKS_SECONDS = 0.5  # clicks need less


class Fault(NamedTuple):
    """One fault in one channel: samples `start` to `stop` of the file's own rate.

    `value` is the level (of full scale 1, always positive) at which a peak was cut, or the frequency in Hz above which
    a band or codec left nothing; 0 for the other kinds.
    """

    kind: Kind
    channel: int
    start: int
    stop: int
    value: float = 0.0


class Piece(NamedTuple):
    """Samples `start` to `stop` of `wave` with what lies beside them; `wave[0]` is sample `begin` of the sound."""

    wave: Float[np.ndarray, " samples"]
    begin: int
    start: int
    stop: int


@dataclass(frozen=True)
class Found:
    """All that is wrong with a sound; `faults` are sorted by their start."""

    sample_rate: int
    channels: int
    samples: int
    faults: tuple[Fault, ...]

    def of(self, kind: Kind) -> tuple[Fault, ...]:
        """The faults of one kind."""
        return tuple(fault for fault in self.faults if fault.kind == kind)

    def to_json(self) -> dict:
        """Counts and places of each kind that was found; seconds, dB of full scale and Hz."""
        kinds = {}
        for kind in ALL_KINDS:
            if not (found := self.of(kind)):
                continue
            places = []
            for fault in found:
                place: dict = {"channel": fault.channel}
                place["start"], place["stop"] = (round(at / self.sample_rate, 6) for at in (fault.start, fault.stop))
                if kind == "clip":
                    place["level_db"] = round(_db(fault.value), 2)
                elif kind in ("band", "codec"):
                    place["cutoff_hz"] = round(fault.value)
                places.append(place)
            kinds[kind] = {"count": len(found), "places": places}
        size = {"sample_rate": self.sample_rate, "channels": self.channels}
        return {**size, "seconds": round(self.samples / self.sample_rate, 6), "faults": kinds}

    def said(self) -> str:
        """The findings in one sentence for people."""
        said = []
        if gaps := self.of("gap"):
            lengths = [1000 * (fault.stop - fault.start) / self.sample_rate for fault in gaps]
            said.append(f"{_count(len(gaps), 'drop-out')} ({_span(min(lengths), max(lengths), '.0f', 'ms')})")
        if clips := self.of("clip"):
            levels = [_db(fault.value) for fault in clips]
            said.append(f"{_count(len(clips), 'clipped run')} at {_span(min(levels), max(levels), '.1f', 'dBFS')}")
        if bands := self.of("band"):
            edges = [fault.value / 1000 for fault in bands]
            said.append(f"nothing above {_span(min(edges), max(edges), '.1f', 'kHz')}")
        if clicks := self.of("click"):
            said.append(_count(len(clicks), "click"))
        if self.of("codec"):
            said.append("holes of a lossy codec")
        return ", ".join(said) or "no faults"


def find_faults(
    file: Path, kinds: Collection[Kind] = ALL_KINDS, *, tell: Callable[[float], None] = lambda _: None
) -> Found:
    """The faults of a sound file, which passes in blocks; `tell` hears which part of it has passed, 0 to 1.

    Raises AudioError for a file that `data.read_audio` refuses, and ValueError for an unknown kind.
    """
    info = audio_info(file)

    def passing() -> Iterator[np.ndarray]:
        seen = 0
        for block in audio_blocks(file):
            yield block.T
            seen += len(block)
            tell(min(1.0, seen / info.samples))

    return _find(passing(), info.channels, info.sample_rate, kinds)


def find_in(wave: Float[np.ndarray, "channels samples"], sr: int, kinds: Collection[Kind] = ALL_KINDS) -> Found:
    """The faults of a sound of `sr` Hz, full scale 1."""
    if wave.ndim != 2:
        raise ValueError(f"a sound must be [channels, samples], got shape {wave.shape}; add an axis for one channel")
    return _find(blocks(np.asarray(wave, np.float32)), len(wave), sr, kinds)


def _find(passing: Iterable[np.ndarray], channels: int, sr: int, kinds: Collection[Kind]) -> Found:
    if unknown := set(kinds) - set(ALL_KINDS):
        raise ValueError(f"unknown kinds of faults {sorted(unknown)}; known are {', '.join(ALL_KINDS)}")
    faults: list[Fault] = []
    spectra = [Spectra(sr) for _ in range(channels)]
    samples = 0
    for channel, piece in _pieces(passing, channels, sr):
        samples = max(samples, piece.begin + piece.stop)
        found = _in_piece(piece, sr, kinds)
        if "band" in kinds or "codec" in kinds:
            first = piece.begin + piece.start == 0
            spectra[channel].add(piece.wave[piece.start :], piece.stop - piece.start, pad=first)
        for kind, runs in found.items():
            faults += [
                Fault(kind, channel, piece.begin + run.start, piece.begin + run.stop, run.value)
                for run in runs
                if piece.start <= run.start < piece.stop
            ]
    for channel, spectrum in enumerate(spectra):
        for kind, value in spectrum.lost():
            if kind in kinds:
                faults.append(Fault(kind, channel, 0, samples, value))
    return Found(
        sr, channels, samples, tuple(sorted(faults, key=lambda fault: (fault.start, fault.channel, fault.kind)))
    )


def _in_piece(piece: Piece, sr: int, kinds: Collection[Kind]) -> dict[Kind, list[Run]]:
    """The faults that have a place in time. A sound that breaks off clicks too, and a loud click is cut: neither is
    said twice.

    Drop-outs are looked for without the clicks, because beside a click every pause seems to break off.
    """
    if not {"clip", "gap", "click"} & set(kinds):
        return {}
    wave, step = piece.wave, quantisation(piece.wave)
    beside = round(_BESIDE_CLICKS_SECONDS * sr)
    first = max(0, piece.start - beside)
    clicked = [Run(first + a, first + b) for a, b, _ in clicks(wave[first : piece.stop + beside], sr)]
    mended, ends = wave.copy(), round(0.0005 * sr)  # the weakest of a click's ends may not count as part of it
    for a, b in ((max(1, run.start - ends), min(len(wave) - 1, run.stop + ends)) for run in clicked):
        mended[a:b] = np.linspace(mended[a - 1], mended[b], b - a + 2)[1:-1]
    cut = clipped(wave, sr, step)
    broken = gaps(mended, sr, step, {sign * run.value for run in cut for sign in (-1, 1)})
    edge, at = round(0.002 * sr), np.array([run.start for run in clicked])
    broken = [run for run in broken if not np.any((at > run.start + edge) & (at < run.stop - edge))]  # else a pause
    clicked = _apart(clicked, broken, edge)
    found: dict[Kind, list[Run]] = {"gap": broken, "click": clicked, "clip": _apart(cut, clicked, 0)}
    return {kind: runs for kind, runs in found.items() if kind in kinds}


# Pieces -------------------------------------------------------------------------------------------------------------


def _pieces(passing: Iterable[np.ndarray], channels: int, sr: int) -> Iterator[tuple[int, Piece]]:
    """Each channel's pieces, which begin at the same samples however the blocks are cut."""
    core, beside = (max(1, round(seconds * sr)) for seconds in (_CORE_SECONDS, _BESIDE_SECONDS))
    held, at = Passing(channels), 0

    def cut(stop: int) -> Iterator[tuple[int, Piece]]:
        wave = held.part(held.begin, min(held.end, stop + beside))
        for channel, row in enumerate(wave):
            yield channel, Piece(np.ascontiguousarray(row, np.float32), held.begin, at - held.begin, stop - held.begin)

    for block in passing:
        held.add(block)
        while held.end >= at + core + beside:
            yield from cut(at + core)
            at += core
            held.forget(at - beside)
    while at < held.end:
        yield from cut(min(at + core, held.end))
        at += core
        held.forget(at - beside)


def _apart(runs: list[Run], others: list[Run], least: int) -> list[Run]:
    """Those of the runs that are `least` samples from all others."""
    starts = np.array([run.start for run in others])
    stops = np.maximum.accumulate([run.stop for run in others]) if others else starts
    before = np.searchsorted(starts, [run.stop + least for run in runs])
    return [run for run, k in zip(runs, before, strict=True) if not k or stops[k - 1] <= run.start - least]


def _db(level: float) -> float:
    return 20 * float(np.log10(max(level, 1e-10)))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _span(least: float, most: float, form: str, unit: str) -> str:
    low, high = f"{least:{form}}", f"{most:{form}}"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
