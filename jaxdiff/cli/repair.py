"""`jaxdiff repair`: drop-outs, clipping, clicks, lost bands and coding are found and mended; all else is untouched."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxdiff import __version__, ranges

from . import files, run

if TYPE_CHECKING:
    from jaxdiff.inference.faults import Found
    from jaxdiff.inference.repair import Repairer

_ASKED: dict[str, str] = {"declip": "clip", "declick": "click", "decodec": "codec"}  # options and kinds of faults


@dataclass(frozen=True, kw_only=True)
class Repair(run.Processed):
    """Mend recordings of any length, rate and number of channels: WAV, spectrograms before and after as PNG, and JSON
    sidecar each. Without further options all faults are found and mended but for coding, which is everywhere and of
    which little can be mended; with some, only what they name."""

    gap: tuple[str, ...] = ()
    """START:END of drop-outs in seconds, in all channels"""
    declip: bool = False
    """mend clipped peaks"""
    extend: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="[HZ]")] = None
    """make the band above a cut-off, which is found where no number follows; give it after FILES"""
    declick: bool = False
    """mend clicks"""
    decodec: bool = False
    """mend what a lossy codec left out"""
    method: Literal["trained", "zero-shot"] | None = None
    """by a model that was trained on faults, or by a prior of sound that never saw any (for each kind of fault what
    measures best: clicks and clipping by signal processing, the rest by the trained model)"""
    report: bool = False
    """only look: print what is wrong, and write it as STEM.json with the places marked in STEM.png"""
    model: Path = Path("repair-16k")
    """work directory of a run, an exported file, or the name of a shipped model of task repair"""
    prior: Path = Path("prior-16k")
    """the same of task generate, for --method zero-shot"""
    steps: ranges.Count | None = None
    """sampling steps (the configuration's; of --method zero-shot 8)"""

    def run(self) -> int:
        gaps, extend = [_span(text) for text in self.gap], self.extend or ()
        if len(extend) > 1 or any(not hz > 0 for hz in extend):
            raise ValueError(f"--extend {' '.join(map(str, extend))}: expected one cut-off in Hz, or none to find it")
        jobs = files.jobs(self.files, self.out, run.ENDS[1:] if self.report else run.ENDS, self.overwrite)
        if self.device is not None:
            run.compute_on(self.device)
        from jaxdiff.inference.repair import Repairer  # jax is imported from here on

        method: Any = self.method
        repairer = Repairer(method, trained=self.model, prior=self.prior, seed=self.seed, steps=self.steps)

        def do(file: Path, target: Path, tell: Callable[[float], None]) -> str:
            found = self._found(file, gaps, extend, lambda share: tell(share / 5))
            if self.report:
                _report(file, target, found)
                return f"{file}: {found.said()}"
            return self._repair(repairer, file, target, found, lambda share: tell(0.2 + 0.8 * share))

        return files.long_work(jobs, do)

    def _found(
        self, file: Path, gaps: list[tuple[float, float]], extend: tuple[float, ...], tell: Callable[[float], None]
    ) -> "Found":
        """The faults that are asked for."""
        from jaxdiff.inference.faults import ALL_KINDS, Fault, find_faults

        kinds: list[Any] = [kind for option, kind in _ASKED.items() if getattr(self, option)]
        kinds += ["band"] if self.extend is not None and not extend else []
        found = find_faults(file, kinds if kinds or gaps or extend else ALL_KINDS, tell=tell)
        given: list[Fault] = []
        for start, end in gaps:
            low, high = (round(seconds * found.sample_rate) for seconds in (start, end))
            if high > found.samples:
                length = found.samples / found.sample_rate
                raise ValueError(f"--gap {start:g}:{end:g}: {file} ends at {length:.3f} s; give an earlier END")
            given += [Fault("gap", channel, low, high) for channel in range(found.channels)]
        given += [Fault("band", c, 0, found.samples, extend[0]) for c in range(found.channels) if extend]
        faults = sorted([*given, *found.faults], key=lambda fault: fault.start)
        return type(found)(found.sample_rate, found.channels, found.samples, tuple(faults))

    def _repair(
        self, repairer: "Repairer", file: Path, target: Path, found: "Found", tell: Callable[[float], None]
    ) -> str:
        from jaxdiff.data.files import atomic
        from jaxdiff.inference.outputs import FULL_SCALE

        wav = files.beside(target, ".wav")
        coding = () if self.decodec else found.of("codec")
        done = repairer.file(file, wav, [f for f in found.faults if f not in coding], tell=tell)
        patched, left_alone = done.patched, (*done.left, *coding)
        repaired = type(found)(found.sample_rate, found.channels, found.samples, done.repaired)
        sidecar = {
            "jaxdiff": __version__,
            "source": str(file),
            "seed": self.seed,
            "models": done.models,
            "repaired": repaired.to_json(),
            "left": [f"{f.kind} of {(f.stop - f.start) / found.sample_rate:.2f} s" for f in left_alone],
            "sample_rate": found.sample_rate,
            "seconds": patched.seconds,
            "subtype": patched.subtype,
            "samples": patched.samples,
            "changed": patched.changed,
            "others_identical": patched.verified,
        }
        with atomic(files.beside(target, ".json")) as temporary:
            temporary.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
        _picture(file, wav, target, repaired)
        over = f", above full scale ({patched.peak:.2f}), so as floats" if patched.peak > FULL_SCALE else ""
        why = {"gap": "gaps of more than a second (see jaxdiff edit)", "band": "a band above what the model makes"}
        why["codec"] = "coding (see --decodec)"
        kinds = dict.fromkeys(fault.kind for fault in left_alone)
        left = f"; left alone: {', '.join(why[kind] for kind in kinds)}" if kinds else ""
        same = f"{patched.changed} of {patched.samples} samples changed, the others are bit for bit the input's"
        return f"{wav}: {found.said()}; {same}{over}{left}"


def _span(text: str) -> tuple[float, float]:
    """START:END in seconds."""
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"--gap {text}: expected START:END in seconds, for example 1.25:1.4") from None
    if not 0 <= start < end < float("inf"):
        raise ValueError(f"--gap {text}: START must not be below 0 and END must be later; give it as 1.25:1.4")
    return start, end


def _report(file: Path, target: Path, found: "Found") -> None:
    from jaxdiff.data.files import atomic

    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(files.beside(target, ".json")) as temporary:
        about = {"jaxdiff": __version__, "source": str(file), **found.to_json()}
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    _picture(file, None, target, found)


def _picture(file: Path, wav: Path | None, target: Path, found: "Found") -> None:
    """The spectrogram of a file, and of what it became, around the first fault, with the places marked."""
    from jaxdiff.data import read_audio
    from jaxdiff.data.files import printable
    from jaxdiff.inference.files import PICTURE_SECONDS
    from jaxdiff.inference.pictures import draw, mark, spectrograms

    places = [(f.start, f.stop) for f in found.faults if f.kind not in ("band", "codec")]
    begin = max(0.0, places[0][0] / found.sample_rate - 1.0) if places else 0.0
    begin = 0.0 if found.samples / found.sample_rate <= PICTURE_SECONDS else begin
    sounds = [file, *([] if wav is None else [wav])]
    waves = [read_audio(path, offset=begin, seconds=PICTURE_SECONDS) for path in sounds]
    when = f", from {begin:.1f} s" if begin else ""
    names = [file.name] if wav is None else [f"{file.name} before", f"{file.name} after"]
    low = round(begin * found.sample_rate)
    shown = [(a - low, b - low) for a, b in places if b > low and a < low + len(waves[0])]

    def make() -> Any:
        titles = [printable(f"{name}{when}") for name in names]
        figure = spectrograms(waves, titles, [found.sample_rate] * len(waves), columns=1)
        mark(figure, [(a / found.sample_rate, b / found.sample_rate) for a, b in shown])
        return figure

    draw(files.beside(target, ".png"), make)
