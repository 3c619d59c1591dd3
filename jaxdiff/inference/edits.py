"""Edit places of sounds with a model that generates: make one anew, go on at the end, close a loop.

Windows as long as the model's training crops are laid over a place with sound on both
sides, which the model sees and keeps (`tasks/edit.py`). Outside the places every sample stays as it is. What was made
differs from the sound just outside its place too; that difference, mirrored at the place's end, fades out inside over
`FADE_SECONDS`. So the sound goes on without a step, and what it has above the model's band, which alone is made, fades
away.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdiff.config import ConfigError
from jaxdiff.data.files import atomic, check_audio, printable, read_audio, resample
from jaxdiff.methods import Diffusion
from jaxdiff.methods.edit import Edit
from jaxdiff.tasks import Generate
from jaxdiff.tasks.edit import Fill, Filling

from .patches import Patch, Patched, write_patched
from .pictures import draw, spectrograms

if TYPE_CHECKING:
    from .pipeline import Pipeline

FADE_SECONDS = 0.005
SEAM_SECONDS = 0.25  # on both sides of a loop's seam
FIT = 2
_SHOWN_SECONDS = 3.0  # of a picture on both sides of a place
MOST_SHOWN = 30.0

Tell = Callable[[float], None]


class Heard(NamedTuple):
    """A sound to be edited: its rate in Hz, channels and samples per channel, and `part(start, stop)`, [channels,
    samples] of float32."""

    rate: int
    channels: int
    samples: int
    part: Callable[[int, int], np.ndarray]

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


class Plan(NamedTuple):
    """An edit that is yet to be computed: the `places` in samples of the sound's own rate that it makes anew, in order;
    how many samples `longer` the sound becomes; `patches`, which gives what is made; and `facts` for a sidecar, known
    when that is done."""

    sound: Heard
    places: tuple[tuple[int, int], ...]
    longer: int
    patches: Callable[[], Iterator[Patch]]
    facts: dict[str, Any]


def heard(sound: np.ndarray | str | Path, sr: int | None = None) -> Heard:
    """A file, or an array [samples] or [channels, samples] at `sr` Hz.

    Raises AudioError for a file that cannot be used, and ConfigError for an array that is no sound.
    """
    if isinstance(sound, str | Path):
        path, info = Path(sound), check_audio(Path(sound))
        rate = info.sample_rate
        part = lambda start, stop: read_audio(  # noqa: E731
            path, channels="all", offset=start / rate, seconds=(stop - start) / rate
        )
        return Heard(rate, info.channels, info.samples, part)
    wave = np.asarray(sound)
    if wave.ndim not in (1, 2) or not np.issubdtype(wave.dtype, np.floating) or 0 in wave.shape:
        raise ConfigError(f"sound: expected floats [samples] or [channels, samples], got {wave.dtype} {wave.shape}")
    if not np.isfinite(wave).all():
        raise ConfigError("sound: holds samples that are not finite numbers")
    if sr is None:
        raise ConfigError("sr: say the sample rate of the array in Hz, for example sr=16000")
    wave = np.atleast_2d(wave).astype(np.float32, copy=False)
    return Heard(sr, len(wave), wave.shape[-1], lambda start, stop: wave[:, start:stop])


# Places made anew ---------------------------------------------------------------------------------------------------


def replacing(
    pipeline: "Pipeline",
    sound: Heard,
    start: float,
    stop: float,
    *,
    label: str | None = None,
    like: Heard | None = None,
    strength: float = 0.7,
    fit: int = FIT,
    seed: int = 0,
    **knobs: Any,
) -> Plan:
    """The plan to make the sound from `start` to `stop` seconds anew, so that it fits what lies before and after.

    `label` is its class, where the model has classes. Where there is a clip to be `like` its beginning is laid into the
    place, repeated where it is shorter, and sampling begins with that, noised as far as `strength` says: 0 leaves the
    clip, 1 forgets it. `fit` counts the iterations that fit the place to the sound around it: 0 is quickest. `knobs`
    are those of the model: steps, sampler, guidance. Raises ConfigError for a place outside the sound, and for a model
    that does not generate by diffusion.
    """
    first, last = round(start * sound.rate), round(stop * sound.rate)
    if not 0 <= first < last <= sound.samples:
        raise ConfigError(
            f"place {start:g} to {stop:g} s: expected a beginning before an end inside the sound of {sound.seconds:g} s"
        )
    begun = None if like is None else _laid(like, sound, last - first)
    model = _filler(pipeline, 1.0 if begun is None else strength, fit)
    options = _Options(_request(pipeline, label, begun is not None), seed, knobs)
    facts: dict[str, Any] = {}
    return Plan(
        sound, ((first, last),), 0, lambda: _patches(_filled(model, sound, first, last, options, facts, begun)), facts
    )


def extending(
    pipeline: "Pipeline",
    sound: Heard,
    seconds: float,
    *,
    label: str | None = None,
    fit: int = FIT,
    seed: int = 0,
    **knobs: Any,
) -> Plan:
    """The plan to go on at the sound's end for so many `seconds`, window by window; else as `replacing`."""
    longer = round(seconds * sound.rate)
    if longer < 1:
        raise ConfigError(f"seconds {seconds:g}: expected a length of at least one sample")
    model, options = _filler(pipeline, 1.0, fit), _Options(_request(pipeline, label), seed, knobs)
    end, facts = sound.samples, {}
    place = (end, end + longer)
    return Plan(sound, (place,), longer, lambda: _patches(_filled(model, sound, *place, options, facts)), facts)


def looping(
    pipeline: "Pipeline",
    sound: Heard,
    *,
    seam: float = SEAM_SECONDS,
    label: str | None = None,
    fit: int = FIT,
    seed: int = 0,
    **knobs: Any,
) -> Plan:
    """The plan to make so much of the end and of the beginning anew, `seam` seconds each and at most a quarter of the
    sound, that the end flows into the beginning; else as `replacing`.

    The sound is rotated for it, so that its seam lies in the middle.
    """
    half, length, turn = round(seam * sound.rate), sound.samples, sound.samples // 2
    half = min(half, length // 4)
    if half < 1:
        raise ConfigError(f"seam {seam:g} s: is no sample of a sound of {length}; give a longer one")

    def part(start: int, stop: int) -> np.ndarray:
        start, stop = start + turn, stop + turn
        pieces = [sound.part(min(start, length), min(stop, length))] if start < length else []
        pieces += [sound.part(max(start, length) - length, stop - length)] if stop > length else []
        return np.concatenate(pieces, axis=-1)

    model, options = _filler(pipeline, 1.0, fit), _Options(_request(pipeline, label), seed, knobs)
    middle, facts = length - turn, {}
    rotated = sound._replace(part=part)

    def patches() -> Iterator[Patch]:
        pieces = _filled(model, rotated, middle - half, middle + half, options, facts)
        made = np.concatenate([piece for _, piece in pieces], axis=-1)
        return _patches(iter([(0, made[:, half:]), (length - half, made[:, :half])]))

    return Plan(sound, ((0, half), (length - half, length)), 0, patches, facts)


def replace(pipeline: "Pipeline", wave: np.ndarray, sr: int, start: float, stop: float, **options: Any) -> np.ndarray:
    """The sound with what lies between `start` and `stop` seconds made anew; `options` as in `replacing`."""
    return applied(replacing(pipeline, heard(wave, sr), start, stop, **options), wave)


def extend(pipeline: "Pipeline", wave: np.ndarray, sr: int, seconds: float, **options: Any) -> np.ndarray:
    """The sound and `seconds` more; `options` as in `extending`."""
    return applied(extending(pipeline, heard(wave, sr), seconds, **options), wave)


def loop(pipeline: "Pipeline", wave: np.ndarray, sr: int, **options: Any) -> np.ndarray:
    """The sound as a loop without a seam; `options` as in `looping`."""
    return applied(looping(pipeline, heard(wave, sr), **options), wave)


def applied(plan: Plan, wave: np.ndarray) -> np.ndarray:
    """The sound, an array [samples] or [channels, samples], with the patches of a plan; of its shape and type."""
    out = np.concatenate([wave, np.zeros((*wave.shape[:-1], plan.longer), wave.dtype)], axis=-1)
    for patch in plan.patches():
        out[..., patch.start : patch.stop] = patch.made if wave.ndim == 2 else patch.made[0]
    return out


def write_plan(
    plan: Plan, file: Path, target: Path, *, about: dict[str, Any] | None = None, tell: Tell = lambda share: None
) -> Patched:
    """Write the file with the patches of its plan as TARGET.wav (`write_patched`), with a picture of the first place
    before and after, its ends marked, as TARGET.png, and TARGET.json, which holds `about` too."""
    wav = target.with_name(target.name + ".wav")
    sound, most = plan.sound, max(1, sum(stop - start for start, stop in plan.places))
    made = 0

    def counted() -> Iterator[Patch]:
        nonlocal made
        for patch in plan.patches():
            made += patch.made.shape[-1]
            yield patch
            tell(min(1.0, made / most))

    done = write_patched(file, wav, counted(), longer=plan.longer)
    places = [[start / sound.rate, stop / sound.rate] for start, stop in plan.places]
    sidecar = {
        **(about or {}),
        **{k: v for k, v in plan.facts.items() if k != "item"},
        "source": str(file),
        "sample_rate": sound.rate,
        "seconds": done.seconds,
        "places": places,
        "subtype": done.subtype,
        "changed_samples": done.changed,
        "unchanged_samples": done.samples - done.changed,
        "unchanged_verified": done.verified,
    }
    with atomic(target.with_name(target.name + ".json")) as temporary:
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    draw(target.with_name(target.name + ".png"), lambda: _picture(plan, file, wav))
    return done


def _picture(plan: Plan, file: Path, wav: Path) -> Any:
    """A place and its surroundings before and after, or where there are several the whole beginning, with lines where
    places begin and end."""
    sound, end = plan.sound, plan.sound.samples + plan.longer
    around, most = round(_SHOWN_SECONDS * sound.rate), round(MOST_SHOWN * sound.rate)
    first = max(0, plan.places[0][0] - around) if len(plan.places) == 1 else 0
    last = min(plan.places[-1][1] + around, first + most, end)
    after = heard(wav).part(first, last)
    before = sound.part(min(first, sound.samples), min(last, sound.samples))
    before = np.pad(before, ((0, 0), (0, after.shape[-1] - before.shape[-1])))
    begun = f", from {first / sound.rate:.2f} s on" if first else ""
    titles = [printable(f"{file.name} {when}{begun}") for when in ("before", "after")]
    figure = spectrograms([before, after], titles, [sound.rate] * 2, columns=1)
    for axis in figure.axes[:2]:
        for edge in {edge for place in plan.places for edge in place if first < edge < last}:
            axis.axvline((edge - first) / sound.rate, color="white", lw=1, ls="--")
    return figure


class _Options(NamedTuple):
    """The options that all windows of a place share."""

    request: Filling
    seed: int
    knobs: dict[str, Any]


def _patches(pieces: Iterator[tuple[int, np.ndarray]]) -> Iterator[Patch]:
    for start, made in pieces:
        yield Patch(start, made, np.ones(made.shape, bool))


def _filled(
    model: "Pipeline",
    sound: Heard,
    first: int,
    last: int,
    options: _Options,
    facts: dict[str, Any],
    begun: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """The sound that is made from sample `first` to `last`, piece by piece: (start, [channels, samples]).

    Windows are as long as the model's. Where a place with a quarter of one on either side does not fit into a window,
    it begins with that much sound that is known or made before, and its last quarter, which does not know what comes
    after it, is made again by the next. `begun` [channels, last - first] is what sampling begins with.
    """
    rate, sr = sound.rate, model.sample_rate
    window = round(model.window_seconds * sr) * rate // sr
    quarter, end, fade = window // 4, max(sound.samples, last), max(1, round(FADE_SECONDS * rate))
    after = min(quarter, end - last)
    recent, at, number = np.zeros((sound.channels, 0), np.float32), first, 0  # what was made before `at`
    while at < last:
        before = min(quarter, at)
        final = before + last - at + after <= window
        low = at - before
        if final:  # as much sound on either side as there is
            middle = at - (window - (last - at)) // 2
            low = max(0, min(max(middle, last + after - window), low, end - window))
        high = min(low + window, end)
        stop = min(high, last)
        given = np.zeros((sound.channels, high - low), np.float32)
        known = sound.part(min(low, sound.samples), min(high, sound.samples))
        given[:, : known.shape[-1]] = known
        behind = min(recent.shape[-1], at - low)
        given[:, at - low - behind : at - low] = recent[:, recent.shape[-1] - behind :]
        if begun is not None:
            given[:, at - low : stop - low] = begun[:, at - first : stop - first]
        margin = min(fade, at - low), min(fade, high - stop)  # made too, to see how it differs there
        ends = [(place - low) * sr / rate for place in (at - margin[0], stop + margin[1], high)]
        also = _unknown(math.floor(ends[0]), math.ceil(ends[1]) if high > stop else math.inf, math.floor(ends[2]))
        made = model(
            given, sr=rate, seed=_seed(options.seed, number), request=options.request, also=also, **options.knobs
        )
        facts |= {**made.facts[0], "seed": options.seed, "model_rate": sr}
        kept = last if final else high - quarter
        piece, lacking = np.array(made.waves[0][:, at - low : kept - low]), given - made.waves[0]
        _fade_out(piece, lacking[:, at - margin[0] - low : at - low][:, ::-1])
        if final:
            _fade_out(piece[:, ::-1], lacking[:, stop - low : stop + margin[1] - low])
        yield at, piece
        recent = np.concatenate([recent, piece], axis=-1)[:, -window:]
        at, number = kept, number + 1


def _fade_out(piece: np.ndarray, beside: np.ndarray) -> None:
    """Add what lies beside a piece, nearest sample first, to its beginning, with weights that fall from 1 to 0."""
    samples = min(beside.shape[-1], piece.shape[-1] // 2)
    ramp = 0.5 + 0.5 * np.cos(np.pi * np.arange(samples) / max(samples, 1))
    piece[:, :samples] += (ramp * beside[:, :samples]).astype(np.float32)


def _unknown(start: int, stop: float, length: int) -> Callable[[int, int], dict[str, np.ndarray]]:
    """The entry of a batch that says what is unknown: samples `start` to `stop`, which may be infinity, at the model's
    rate, and what lies beyond the sound's `length`."""

    def also(begin: int, window: int) -> dict[str, np.ndarray]:
        index = np.arange(begin, begin + window)
        return {"unknown": (index >= start) & (index < stop) | (index >= length)}

    return also


def _seed(seed: int, number: int) -> int:
    """The seed of a window of a place: the first has the edit's own."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _laid(like: Heard, sound: Heard, samples: int) -> np.ndarray:
    """The beginning of a clip at the rate and with the channels of a sound, repeated up to so many samples."""
    clip = like.part(0, min(like.samples, math.ceil(samples * like.rate / sound.rate) + like.rate // 20))
    clip = resample(clip, like.rate, sound.rate)
    if len(clip) != sound.channels:
        clip = clip.mean(0, keepdims=True).repeat(sound.channels, axis=0)
    return np.tile(clip, -(-samples // clip.shape[-1]))[:, :samples]


# What all edits ask -------------------------------------------------------------------------------------------------


def check_generates(pipeline: "Pipeline") -> None:
    if not isinstance(pipeline.model.task, Generate) or not isinstance(pipeline.method, Diffusion):
        names = f"task {type(pipeline.model.task).__name__} and method {type(pipeline.method).__name__}"
        raise ConfigError(f"the model must generate by diffusion to edit sounds, this one has {names}")


def _filler(pipeline: "Pipeline", strength: float, fit: int) -> "Pipeline":
    """The pipeline that fills places, in windows as long as the training crops."""
    check_generates(pipeline)
    task = Fill(classes=pipeline.classes, peak_db=pipeline.model.task.peak_db, iterations=fit)
    model = pipeline.using(pipeline.model._replace(task=task), Edit(pipeline.method, strength))  # type: ignore[arg-type]
    r = model.model.representation
    unit = r.hop_length * (r.phase_period or 1)
    model.window_seconds = max(1, round(pipeline.seconds * r.sample_rate / unit)) * unit / r.sample_rate
    return model


def class_index(pipeline: "Pipeline", label: str | None) -> int:
    return -1 if label is None else pipeline.label(label, 0)


def _request(pipeline: "Pipeline", label: str | None, begun: bool = False) -> Filling:
    return Filling(class_index(pipeline, label), begun)
