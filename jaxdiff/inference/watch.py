"""When something in a picture is to be heard: the impacts of a video, from the picture alone, as cues.

Curves of motion (`features.motion`) stand at the pictures, whose times are theirs; they are brought to a grid of
`RATE` per second, so that a rate of pictures, or one that varies, is nothing that what follows must know. A curve
holds from one picture to the next, and a grid's cell takes the mean. Pictures that repeat the one before are left out,
for they say when a file was padded to its rate and not that all stood still.

Two detectors read the curves: the rules, an impact curve whose peaks stand out of what is around them, and a network
of 47,000 weights that was trained on drawn scenes (`benchmarks/train_watch.py`). A cut ends both: what moved before it
did not stop, and what moves after it did not begin.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import shipped
from jaxdiff.data.cues import MOST_CUES, STRENGTH_DB, Cue
from jaxdiff.data.files import AudioError
from jaxdiff.data.video import Frame, read_frames
from jaxdiff.features.motion import CHANGES, CURVES, JOINTS, VELOCITIES, motion_curves
from jaxdiff.networks import Network, from_nnx
from jaxdiff.networks.temporal import Temporal

RATE = 60.0  # of the grid, per second
LABEL = "impact"  # of a cue that nobody named
THRESHOLD = 0.5  # of the network's probability, and of the rules' share of a sure impact
WEIGHTS = shipped.FOLDER / "watch.safetensors"
_TOGETHER = 16  # pictures of a program
_SAME = 0.02  # mean |difference| in grey levels of a picture that repeats the one before,
_REPEATED = 0.2  # or the share of what changes before it and after it
_HELD = 2.5  # times the median distance of pictures: longer, and the picture before stood still
_CUT_UNLIKE, _CUT_LEFT = 0.6, 0.01  # of a cut: the likeness at most, the share of change that no motion explains
_CUT_TIMES, _CUT_ALIKE, _CUT_MORE = 1.7, 0.4, 20.0  # ... how many times the usual, above this likeness so much more
_APART = 0.08  # seconds between two onsets at least
_END = 0.06  # seconds from the end of a shot within which nothing counts
_NEAR = 0.06  # seconds around an onset in which its strength and its place are looked for
_AROUND = 1.0  # seconds around an onset out of which it must stand, by the rules
_SLIGHT = 0.005  # share of full scale by which a block ceases or turns that is nothing, by the rules
_MARGIN = 8.0  # seconds that the network sees on either side of a piece
_PIECE = 64.0  # seconds of the network at once


class Watched(NamedTuple):
    """What was seen: the grid's times in seconds, the curves on it (`CURVES`, `pan` and `impact`, of which cues are the
    peaks, 0 to 1), the times of cuts, and the cues."""

    seconds: np.ndarray
    curves: dict[str, np.ndarray]
    cuts: np.ndarray
    cues: list[Cue]


class Seen(NamedTuple):
    """Curves at the pictures [pictures], their times in seconds and which of them begin after a cut."""

    seconds: np.ndarray
    curves: dict[str, np.ndarray]
    cuts: np.ndarray


def watch_file(
    path: str | Path,
    *,
    label: str = LABEL,
    threshold: float = THRESHOLD,
    rules: bool = False,
    tell: Callable[[float], None] = lambda share: None,
) -> Watched:
    """`watch` for a video file; raises AudioError for what is none."""
    try:
        return watch(read_frames(path, tell=tell), label=label, threshold=threshold, rules=rules)
    except TooMany as error:
        raise AudioError(f"{path}: {error}") from None


class TooMany(ValueError):
    """More cues than a sheet holds."""


def watch(frames: Iterable[Frame], *, label: str = LABEL, threshold: float = THRESHOLD, rules: bool = False) -> Watched:
    """The impacts of pictures, two at least, which may come one by one.

    A cue is a peak of the network's probability, or with `rules` of the impact curve, of `threshold` at least. Its
    strength is what speed was lost, against the most of all cues in dB; its pan the place across the picture.
    """
    seen = see(frames)
    seconds, curves, pan = gridded(seen)
    impact = by_rules(curves) if rules else by_network(curves, pretrained())
    impact = vetoed(impact, seconds, seen)
    times, _ = onsets_of(impact, seconds, threshold)
    if len(times) > MOST_CUES:
        raise TooMany(f"more than {MOST_CUES} impacts; give a higher --threshold")
    at = np.searchsorted(seconds, times).clip(0, len(seconds) - 1)
    lost = _near(curves["stop"], at).max(1)
    weight = _near(curves["stop"], at) + 1e-9
    places = (weight * _near(pan, at)).sum(1) / weight.sum(1)
    loudest = lost.max(initial=0.0)
    strengths = 1 + 20 * np.log10(np.maximum(lost, 1e-9) / max(loudest, 1e-9)) / STRENGTH_DB
    cues = [
        Cue(float(max(0.0, t)), label, float(np.clip(s, 0, 1)), float(np.clip(p, -1, 1)))
        for t, s, p in zip(times, strengths, places, strict=True)
    ]
    return Watched(seconds, curves | {"pan": pan, "impact": impact}, seen.seconds[seen.cuts], cues)


# Curves -------------------------------------------------------------------------------------------------------------


def see(frames: Iterable[Frame]) -> Seen:
    """The curves of pictures that come one by one, of which some are kept at a time."""
    rows: list[dict[str, np.ndarray]] = []
    times: list[float] = []
    held: list[Frame] = []
    for frame in _new(frames):
        times.append(frame.seconds)
        held.append(frame)
        if len(held) == _TOGETHER + 2:
            rows.append(_curves(held))
            held = held[-2:]
    if not times:
        raise ValueError("no pictures; give two at least")
    if len(held) > 1:
        rows.append({name: curve[: len(held) - 1] for name, curve in _curves(held).items()})
        for name in (*JOINTS, "stop_centre"):
            rows[-1][name][-1] = 0.0  # what the last picture's motion becomes is not seen
    names = (*CURVES, "centre", "stop_centre")
    curves = {name: np.concatenate([[0.0], *(row[name] for row in rows)]).astype(np.float32) for name in names}
    seconds = np.array(times)
    cuts = _cuts(seconds, curves)
    for name in (*VELOCITIES, "moved", "area", "difference", "left"):  # of pictures that have nothing in common
        curves[name][cuts] = 0.0
    for name in JOINTS:
        curves[name][np.maximum(np.flatnonzero(cuts) - 1, 0)] = 0.0
    return Seen(seconds, curves, cuts)


def _new(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The pictures but those that repeat the one before, exactly or next to what changes before and after; and the
    last."""
    kept = waiting = None  # the picture that came last, and the one after it, of which the next has to tell
    before = changed = 0.0
    for frame in frames:
        if kept is None:
            kept = frame
            yield kept
            continue
        if waiting is not None:
            after = _change(waiting, frame)
            if changed >= max(_SAME, _REPEATED * min(before, after)):
                yield waiting
                kept, before = waiting, changed
        waiting, changed = frame, _change(kept, frame)
    if waiting is not None:
        yield waiting


def _change(before: Frame, after: Frame) -> float:
    """The mean |difference| in grey levels."""
    return float(np.abs(after.picture.astype(np.int16) - before.picture).mean())


def _curves(held: list[Frame]) -> dict[str, np.ndarray]:
    """The curves of pictures in one program: fewer are filled up with the last."""
    missing = _TOGETHER + 2 - len(held)
    pictures = np.stack([frame.picture for frame in held] + [held[-1].picture] * missing).astype(np.float32)
    seconds = np.array([frame.seconds for frame in held] + [held[-1].seconds + 1 + i for i in range(missing)])
    made = motion_curves(jnp.asarray(pictures), jnp.asarray(seconds - seconds[0], jnp.float32))
    return {name: np.array(curve) for name, curve in made.items()}


def _cuts(seconds: np.ndarray, curves: dict[str, np.ndarray]) -> np.ndarray:
    """Which pictures have nothing in common with the one before, though those around them have."""
    left = curves["left"]
    padded = np.pad(left, 4, mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 9)
    usual = np.median(np.delete(around, 4, axis=1), axis=1)
    likeness = curves["likeness"]
    times = _CUT_TIMES + _CUT_MORE * np.maximum(likeness - _CUT_ALIKE, 0)
    unlike = (likeness < _CUT_UNLIKE) & (left > _CUT_LEFT) & (left > times * usual)
    unlike[0] = False
    return unlike


def gridded(seen: Seen) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Times of a grid, the curves on it and where it moves across the picture, -1 to 1."""
    seconds, passed = seen.seconds, np.diff(seen.seconds, prepend=seen.seconds[0])
    first = math.floor(seconds[0] * RATE)
    edges = np.arange(first, max(math.ceil(seconds[-1] * RATE), first + 1) + 1) / RATE
    usual = np.median(passed[1:]) if len(passed) > 1 else 1 / RATE
    begin = seconds - np.minimum(passed, _HELD * usual)  # of what stands at a picture
    half = np.minimum(passed, _HELD * usual) / 2
    joint_end = seconds + np.append(half[1:], 0.0)
    means = {}
    for name in (*CURVES, "centre", "stop_centre"):
        low, high = (seconds - half, joint_end) if name in (*JOINTS, "stop_centre") else (begin, seconds)
        fill = 1.0 if name == "likeness" else 0.0
        weight = {"centre": "fastest", "stop_centre": "stop"}.get(name)
        curve = seen.curves[name] - fill if weight is None else seen.curves[name] * seen.curves[weight]
        means[name] = _means(low, high, curve, edges) + fill
    moved, stopped = means.pop("centre"), means.pop("stop_centre")
    pan = (moved + 4 * stopped) / np.maximum(means["fastest"] + 4 * means["stop"], 1e-6)
    return (edges[:-1] + edges[1:]) / 2, {k: v.astype(np.float32) for k, v in means.items()}, np.clip(pan, -1, 1)


def _means(low: np.ndarray, high: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The means between edges of a function that has `values` from `low` to `high`, ascending, and is 0 elsewhere."""
    low = np.maximum(low, np.concatenate([[-np.inf], high[:-1]]))
    area = np.cumsum(values * np.maximum(high - low, 0))
    before = np.concatenate([[0.0], area[:-1]])
    at, total = np.stack([low, high], axis=1).ravel(), np.stack([before, area], axis=1).ravel()
    return np.diff(np.interp(edges, at, total)) / np.diff(edges)


# Detectors ----------------------------------------------------------------------------------------------------------


def by_rules(curves: dict[str, np.ndarray]) -> np.ndarray:
    """How surely there is an impact, 0 to 1: how far the block that ceases or turns most stands out of what three
    quarters of the second before and after reach; a half where it is twice as high."""
    change = np.convolve(curves["most_ceased"] + curves["most_turned"], np.full(3, 1 / 3), "same")
    window = round(_AROUND * RATE)
    padded = np.pad(change, window, mode="reflect" if len(change) > window else "edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * window + 1)[:, ::3]
    pieces = np.array_split(around, -(-len(change) // 4096))
    usual = np.concatenate([np.quantile(piece, 0.75, axis=1) for piece in pieces])
    over = np.maximum(change - usual, 0) / (usual + _SLIGHT)
    return over / (over + 1)


class Detector(NamedTuple):
    """A trained network, its weights, and the mean and deviation of each of its inputs."""

    network: Network
    params: Any
    mean: np.ndarray
    deviation: np.ndarray


def inputs(curves: dict[str, np.ndarray]) -> np.ndarray:
    """Curves as the network sees them, [frames, features]: small values as they are, large ones by their logarithm."""
    scale = {name: 50.0 if name in VELOCITIES else 1000.0 if name in CHANGES else 10.0 for name in CURVES}
    return np.stack([np.arcsinh(scale[name] * curves[name]) for name in CURVES], axis=-1)


def make_network() -> Network:
    return from_nnx(lambda rngs: Temporal(len(CURVES), rngs=rngs))


@functools.cache
def pretrained() -> Detector:
    """The network that ships."""
    from safetensors.numpy import load_file

    arrays = {name: value.astype(np.float32) for name, value in load_file(WEIGHTS).items()}
    network = make_network()
    mean, deviation = arrays.pop("mean"), arrays.pop("deviation")
    paths, tree = jax.tree_util.tree_flatten_with_path(network.shapes())
    params = jax.tree.unflatten(tree, [jnp.asarray(arrays[_name(path)]) for path, _ in paths])
    return Detector(network, params, mean, deviation)


def save(path: Path, detector: Detector) -> None:
    """Write a detector as float16 safetensors."""
    from safetensors.numpy import save_file

    leaves = jax.tree_util.tree_flatten_with_path(detector.params)[0]
    arrays = {_name(path): np.asarray(leaf) for path, leaf in leaves}
    arrays |= {"mean": detector.mean, "deviation": detector.deviation}
    save_file({name: np.ascontiguousarray(value, np.float16) for name, value in arrays.items()}, path)


def _name(path: tuple) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)


@functools.cache
def _program(network: Network) -> Callable:
    return jax.jit(lambda params, x: jax.nn.sigmoid(network.apply(params, x)))


def by_network(curves: dict[str, np.ndarray], detector: Detector) -> np.ndarray:
    """The network's probability of an onset, piece by piece, so that memory is that of one."""
    x = (inputs(curves) - detector.mean) / detector.deviation
    piece, margin = round(_PIECE * RATE), round(_MARGIN * RATE)
    piece = piece if len(x) > piece // 8 else piece // 8
    program, made = _program(detector.network), []
    padded = np.pad(x, ((margin, margin + -len(x) % piece), (0, 0)))
    for begin in range(0, len(x), piece):
        part = padded[begin : begin + piece + 2 * margin][None].astype(np.float32)
        made.append(np.asarray(program(detector.params, part))[0, margin : margin + piece])
    return np.concatenate(made)[: len(x)]


def onsets_of(curve: np.ndarray, seconds: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Times and heights of the peaks of a curve that reach a threshold, the higher of two that are near each other.

    A time is the centre of what is around the peak and at least half as high: between the cells of the grid.
    """
    inside = np.pad(curve, 1, constant_values=-np.inf)
    found = np.flatnonzero((curve >= threshold) & (curve > 0) & (curve >= inside[2:]) & (curve > inside[:-2]))
    kept, reach = np.zeros(len(curve), bool), round(_APART * RATE)
    for at in found[np.argsort(-curve[found], kind="stable")]:
        if not kept[max(0, at - reach + 1) : at + reach].any():
            kept[at] = True
    times, places = [], np.flatnonzero(kept)
    for at in places:
        part = slice(max(0, at - reach // 2), at + reach // 2 + 1)
        weight = np.maximum(curve[part] - curve[at] / 2, 0)
        times.append((weight * seconds[part]).sum() / weight.sum())
    return np.array(times), curve[places]


def _near(curve: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A curve around places, [places, cells]."""
    reach = round(_NEAR * RATE)
    padded = np.pad(curve, reach, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)[at]


def vetoed(impact: np.ndarray, seconds: np.ndarray, seen: Seen) -> np.ndarray:
    """No impact near the ends of a shot, of which the network learned nothing, nor where either picture of a cut is."""
    impact, times = impact.copy(), seen.seconds
    ends = [(times[0], times[0]), (times[-1], times[-1])]
    ends += [(times[index - 1], times[min(index + 1, len(times) - 1)]) for index in np.flatnonzero(seen.cuts)]
    for low, high in ends:
        low, high = min(low, high - _END), max(high, low + _END)
        impact[np.searchsorted(seconds, low - 1 / RATE) : np.searchsorted(seconds, high + 1 / RATE)] = 0
    return impact
