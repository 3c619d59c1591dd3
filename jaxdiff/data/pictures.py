"""Sounds for people: every WAV with its spectrogram picture and sidecar, and one contact sheet for many."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxdiff.features import melspectrogram, power_to_db

from .files import atomic, write_audio


def _decibels(y: np.ndarray, sample_rate: int) -> np.ndarray:
    n_fft = 2 ** round(np.log2(sample_rate * 0.064))
    S = melspectrogram(jnp.asarray(y), sr=sample_rate, n_fft=n_fft, hop_length=n_fft // 8, n_mels=96)
    return np.asarray(power_to_db(S, top_db=None))


def write_spectrograms(path: Path, waves: Sequence[np.ndarray], titles: Sequence[str], sample_rate: int) -> None:
    """One PNG with a log-mel spectrogram per wave, at most eight in a row, all on one 80 dB scale."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    columns = min(8, len(waves))
    rows = -(-len(waves) // columns)
    size = (6.4, 3.2) if len(waves) == 1 else (2.4 * columns, 2.0 * rows)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    pictures = [_decibels(y, sample_rate) for y in waves]
    top = max(float(p.max()) for p in pictures)
    for axis, picture, title, y in zip(axes, pictures, titles, waves, strict=False):
        extent = (0, len(y) / sample_rate, 0, picture.shape[0])
        axis.imshow(picture, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma")
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=6)
        if len(waves) == 1:
            axis.set(xlabel="time (s)", ylabel="mel band")
    for axis in axes[len(waves) :]:
        axis.axis("off")
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary)


def write_sounds(
    folder: Path, waves: np.ndarray, names: Sequence[str], sample_rate: int, sidecars: Sequence[dict] | None = None
) -> None:
    """NAME.wav, NAME.png and (with sidecars) NAME.json for each wave, and sheet.png for all."""
    for i, (name, wave) in enumerate(zip(names, waves, strict=True)):
        write_audio(folder / f"{name}.wav", wave, sample_rate)
        write_spectrograms(folder / f"{name}.png", [wave], [name], sample_rate)
        if sidecars is not None:
            with atomic(folder / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(sidecars[i], indent=1) + "\n", encoding="utf-8")
    write_spectrograms(folder / "sheet.png", waves, names, sample_rate)


def write_frames(path: Path, arrays: Sequence[np.ndarray], names: Sequence[str], seconds: float, title: str) -> None:
    """One PNG with features over time under each other: `[rows, frames]` as an image (complex or positive values of a
    wide range in dB, 80 dB deep), `[frames]` as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 2.2 * len(arrays)), dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(arrays), 1, sharex=True)).ravel()
    for axis, array, name in zip(axes, arrays, names, strict=True):
        if array.ndim == 1:
            axis.plot(np.linspace(0, seconds, len(array)), array, lw=1)
            axis.set_xlim(0, seconds)
        else:
            if np.iscomplexobj(array) or (array.min() >= 0 and array.max() > 1e3 * np.median(array)):
                power = np.abs(array) ** (2 if np.iscomplexobj(array) else 1)
                array = 10 * np.log10(np.maximum(power, 1e-8 * max(power.max(), 1e-20)))
            extent = (0, seconds, 0, array.shape[0])
            low, high = np.percentile(array, [1, 99])  # the first cepstral coefficient would hide all others
            picture = axis.imshow(
                array, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, cmap="magma"
            )
            figure.colorbar(picture, ax=axis)
        axis.set_ylabel(name)
    axes[0].set_title(title, fontsize=9)
    axes[-1].set_xlabel("time (s)")
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary)
