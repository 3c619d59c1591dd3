"""Pictures with axes in Hz and seconds, drawn by librosa.display: spectrograms of sounds, and features over time."""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.data.files import atomic
from jaxdiff.features import melspectrogram, power_to_db

DEPTH_DB = 80  # from the loudest to black
_FONT = "DejaVu Sans"  # which matplotlib brings


def save(figure: Any, file: Any) -> None:
    """Write a figure as PNG and empty its parts: they hold each other and so 7 MB for 10 s of sound and more, which
    would wait for the collector."""
    try:
        figure.savefig(file, format="png")
    finally:
        parts = figure.findobj()
        figure.clear()
        for part in parts:
            vars(part).clear()


def draw(path: Path, make: Callable[[], Any]) -> None:
    """Save the figure that `make` gives as PNG; one that cannot be drawn costs a warning, and nothing else."""
    try:
        with atomic(Path(path)) as temporary:
            save(make(), temporary)
    except OSError:
        raise
    except Exception as error:
        warnings.warn(f"{path}: no picture was drawn ({type(error).__name__}: {error})", stacklevel=2)


def spectrograms(
    waves: Sequence[np.ndarray], titles: Sequence[str], sample_rates: Sequence[float], columns: int = 8
) -> Any:
    """A figure with a log-mel spectrogram per wave, at most `columns` in a row, all on one scale of decibels.

    In one column, as for one wave, axes are labelled in Hz and seconds.
    """
    import librosa.display
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    columns = min(columns, len(waves))
    rows = -(-len(waves) // columns)
    large = columns == 1
    size = (6.4, 0.4 + 2.8 * rows) if large else (2.4 * columns, 2.0 * rows)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    mono = [np.atleast_2d(y).mean(0) for y in waves]
    hops = [2 ** round(np.log2(sr * 0.064)) // 8 for sr in sample_rates]
    pictures = [_decibels(y, sr, hop) for y, sr, hop in zip(mono, sample_rates, hops, strict=True)]
    top = max(float(p.max()) for p in pictures)
    for axis, picture, title, sr, hop in zip(axes, pictures, titles, sample_rates, hops, strict=False):
        scale: dict[str, Any] = dict(sr=sr, hop_length=hop, x_axis="time", y_axis="mel", fmax=sr / 2)
        image = librosa.display.specshow(picture, ax=axis, vmin=top - DEPTH_DB, vmax=top, cmap="magma", **scale)
        _title(axis, title, 8)
        if large:
            axis.set(xlabel="time (s)", ylabel="frequency (Hz)")
            figure.colorbar(image, ax=axis, format="%+.0f dB")
        else:
            axis.tick_params(labelsize=6)
            axis.set(xlabel="", ylabel="")
    for axis in axes[len(waves) :]:
        axis.axis("off")
    return figure


def mark(figure: Any, places: Sequence[tuple[float, float]]) -> None:
    """Mark places, from and to seconds, in all spectrograms of a figure of one column: a bar at the upper edge."""
    for axis in figure.axes:
        if axis.get_xlabel() == "time (s)":
            low, high = axis.get_xlim()
            least = (high - low) / 400
            bars = [(max(low, a), max(b - a, least)) for a, b in places if b > low and a < high]
            axis.broken_barh(bars, (0.97, 0.03), facecolors="cyan", transform=axis.get_xaxis_transform())


def frames(
    arrays: Sequence[np.ndarray], names: Sequence[str], scales: Sequence[dict[str, Any]], seconds: float, title: str
) -> Any:
    """A figure with features over time under each other: `[rows, frames]` as an image (complex or positive values of a
    wide range in dB), `[frames]` as a line. `scales` are specshow's options for the rows of each, `y_axis` above all.
    """
    import librosa.display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 2.2 * len(arrays)), dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(arrays), 1, sharex=True)).ravel()
    for axis, array, name, scale in zip(axes, arrays, names, scales, strict=True):
        times = np.linspace(0, seconds, array.shape[-1])
        if array.ndim == 1:
            axis.plot(times, array, lw=1)
            axis.set_xlim(0, max(seconds, 1e-3))
        else:
            unit = "%g"
            if np.iscomplexobj(array) or (array.min() >= 0 and array.max() > 1e3 * np.median(array)):
                power = np.abs(array) ** (2 if np.iscomplexobj(array) else 1)
                floor = 10 ** (-DEPTH_DB / 10) * max(power.max(), 1e-20)
                array, unit = 10 * np.log10(np.maximum(power, floor)), "%+g dB"
            low, high = np.percentile(array, [1, 99])  # the first cepstral coefficient would hide all others
            colours: dict[str, Any] = dict(vmin=low, vmax=high, cmap="magma")
            image = librosa.display.specshow(array, ax=axis, x_coords=times, x_axis="time", **colours, **scale)
            figure.colorbar(image, ax=axis, format=unit)
        axis.set(xlabel="", ylabel=name)
    _title(axes[0], title, 9)
    axes[-1].set_xlabel("time (s)")
    return figure


def roll(notes: np.ndarray, title: str) -> Any:
    """A figure with notes [notes, 4] as bars over seconds, as high as their pitch and as dark as their velocity."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    axis = figure.subplots()
    corners = [[(a, p - 0.4), (b, p - 0.4), (b, p + 0.4), (a, p + 0.4)] for a, b, p, _ in notes]
    bars = PolyCollection(corners, cmap="magma_r", clim=(0, 127))
    bars.set_array(np.asarray([v for *_, v in notes], float))
    axis.add_collection(bars)
    low, high = (notes[:, 2].min(), notes[:, 2].max()) if len(notes) else (60, 72)
    axis.set(xlim=(0, max(1e-3, notes[:, 1].max(initial=1.0))), ylim=(low - 2, high + 2))
    octaves = np.arange(12 * (int(low - 2) // 12), high + 3, 12)
    axis.set_yticks(octaves[octaves >= low - 2], [f"C{int(o) // 12 - 1}" for o in octaves if o >= low - 2])
    axis.set(xlabel="time (s)", ylabel="pitch")
    axis.grid(alpha=0.3)
    figure.colorbar(bars, ax=axis, label="velocity")
    _title(axis, title, 9)
    return figure


def watched(found: Any, threshold: float, title: str) -> Any:
    """A figure with the curves of motion of a watched video over seconds, its cuts (dotted) and its cues: a line each,
    and a dot where it is across the picture, as large as it is strong."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8.5), dpi=100, layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    times, curves, cues = found.seconds, found.curves, found.cues
    motions = ("falling", "rising", "left_going", "right_going")
    rows = (
        ("difference (share)", ("difference",)),
        ("motion (widths/s)", motions),
        ("loss of speed (widths/s)", ("stop",)),
    )
    for axis, (label, names) in zip(axes, (*rows, ("impact (0 to 1)", ("impact",))), strict=True):
        for name in names:
            axis.plot(times, curves[name], lw=0.9, label=name.replace("_", " "))
        axis.set(ylabel=label, xlim=(times[0], max(times[-1], times[0] + 1e-3)))
        low, high = 0.0, axis.get_ylim()[1]
        axis.vlines([cue.seconds for cue in cues], low, high, colors="crimson", lw=0.8, alpha=0.6)
        axis.vlines(found.cuts, low, high, colors="black", lw=0.8, linestyles="dotted")
        axis.set_ylim(low, high)
    axes[1].legend(loc="upper right", fontsize=7, ncols=4)
    axes[3].axhline(threshold, color="grey", lw=0.7, linestyle="dashed")
    pan = axes[3].twinx()
    pan.scatter([c.seconds for c in cues], [c.pan for c in cues], [8 + 40 * c.strength for c in cues], color="crimson")
    pan.set(ylim=(-1.05, 1.05), ylabel="pan (-1 left, 1 right)")
    _title(axes[0], title, 9)
    axes[-1].set_xlabel("time (s)")
    return figure


def _decibels(y: np.ndarray, sample_rate: float, hop: int) -> np.ndarray:
    frames, length = 1 + len(y) // hop, 8 * hop << max(0, (len(y) // (8 * hop)).bit_length())  # few programs for all
    y = np.pad(y, (0, length - len(y)))
    S = melspectrogram(jnp.asarray(y), sr=sample_rate, n_fft=8 * hop, hop_length=hop, n_mels=96)
    return np.asarray(power_to_db(S, top_db=None))[:, :frames]


def _title(axis: Any, text: str, size: int) -> None:
    legible, families = _legible(text)
    axis.set_title(legible, fontsize=size, family=list(families), parse_math=False)


@functools.lru_cache(maxsize=1024)
def _legible(text: str) -> tuple[str, tuple[str, ...]]:
    """A text and the families of this machine's fonts that have its letters; those that none has become escapes."""
    from matplotlib.font_manager import fontManager

    missing, families = {c for c in text if c.isprintable()}, []
    for font in sorted(fontManager.ttflist, key=lambda font: font.name != _FONT):
        if missing and not font.name.startswith("Last Resort"):  # whose letters are all boxes
            found = {c for c in missing if ord(c) in _letters(font.fname)}
            families += [font.name] if found and font.name not in families else []
            missing -= found
    if missing:
        warnings.warn(
            f"no font of this machine has the letters of {ascii(text)}; pictures show their codes", stacklevel=4
        )
    escaped = (c.encode("unicode_escape").decode() if c in missing or not c.isprintable() else c for c in text)
    return "".join(escaped), tuple(families)


@functools.cache
def _letters(path: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(path).get_charmap())
