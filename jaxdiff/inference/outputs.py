"""Outputs for people to see and hear: every WAV with its spectrogram picture and sidecar, and a sheet for many."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.data.files import atomic, write_audio
from jaxdiff.features import melspectrogram, power_to_db


class Output(NamedTuple):
    """Sounds [samples] or [channels, samples], float32, each with its rate in Hz and how it was made.

    A notebook shows it as pictures and players.
    """

    waves: list[np.ndarray]
    sample_rates: list[float]
    facts: list[dict[str, Any]]

    @property
    def sample_rate(self) -> float:
        """The rate in Hz that all sounds have; raises ValueError where they differ."""
        if len(set(self.sample_rates)) != 1:
            raise ValueError(f"the sounds have the rates {sorted(set(self.sample_rates))} Hz; use sample_rates")
        return self.sample_rates[0]

    @property
    def names(self) -> list[str]:
        """A file name for each: its number and class, or that of its source."""
        return [Path(f["source"]).stem if f.get("source") else _numbered(f) for f in self.facts]

    def save(self, folder: str | Path, names: Sequence[str] | None = None, *, sheet: bool = True, **about: Any) -> None:
        """Write NAME.wav, NAME.png and NAME.json for each in `folder`, made when absent, and with `sheet` sheet.png for
        all; `about` goes into the sidecars too."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        sidecars = [
            {**about, **fact, "sample_rate": sr} for fact, sr in zip(self.facts, self.sample_rates, strict=True)
        ]
        write_sounds(
            Path(folder), self.waves, self.names if names is None else names, self.sample_rates, sidecars, sheet
        )

    def _repr_html_(self) -> str:
        import base64
        import io

        import soundfile

        rows = []
        for name, wave, sr in zip(self.names, self.waves, self.sample_rates, strict=True):
            sound, picture = io.BytesIO(), io.BytesIO()
            soundfile.write(sound, np.clip(wave.T, -1, 1), round(sr), format="WAV", subtype="PCM_16")
            _figure([wave], [name], [sr]).savefig(picture, format="png")
            wav, png = (base64.b64encode(f.getvalue()).decode() for f in (sound, picture))
            rows.append(
                f'<div><img src="data:image/png;base64,{png}"><br>'
                f'<audio controls src="data:audio/wav;base64,{wav}"></audio></div>'
            )
        return "".join(rows)


def _numbered(fact: dict[str, Any]) -> str:
    return f"{fact.get('item', 0):04d}" + (f"-{fact['label']}" if fact.get("label") else "")


def _decibels(y: np.ndarray, sample_rate: float) -> np.ndarray:
    n_fft = 2 ** round(np.log2(sample_rate * 0.064))
    S = melspectrogram(jnp.asarray(y), sr=sample_rate, n_fft=n_fft, hop_length=n_fft // 8, n_mels=96)
    return np.asarray(power_to_db(S, top_db=None))


def _figure(waves: Sequence[np.ndarray], titles: Sequence[str], sample_rates: Sequence[float]):
    """A log-mel spectrogram per wave, at most eight in a row, all on one 80 dB scale."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    columns = min(8, len(waves))
    rows = -(-len(waves) // columns)
    size = (6.4, 3.2) if len(waves) == 1 else (2.4 * columns, 2.0 * rows)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    mono = [np.atleast_2d(y).mean(0) for y in waves]
    pictures = [_decibels(y, sr) for y, sr in zip(mono, sample_rates, strict=True)]
    top = max(float(p.max()) for p in pictures)
    for axis, picture, title, y, sr in zip(axes, pictures, titles, mono, sample_rates, strict=False):
        extent = (0, len(y) / sr, 0, picture.shape[0])
        axis.imshow(picture, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma")
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=6)
        if len(waves) == 1:
            axis.set(xlabel="time (s)", ylabel="mel band")
    for axis in axes[len(waves) :]:
        axis.axis("off")
    return figure


def write_spectrograms(
    path: Path, waves: Sequence[np.ndarray], titles: Sequence[str], sample_rates: Sequence[float]
) -> None:
    """One PNG with a spectrogram per wave."""
    with atomic(Path(path)) as temporary:
        _figure(waves, titles, sample_rates).savefig(temporary)


def write_sounds(
    folder: Path,
    waves: Sequence[np.ndarray],
    names: Sequence[str],
    sample_rates: Sequence[float],
    sidecars: Sequence[dict] | None = None,
    sheet: bool = True,
) -> None:
    """Write NAME.wav, NAME.png and (with sidecars) NAME.json for each wave, and with `sheet` sheet.png for all."""
    for i, (name, wave, sr) in enumerate(zip(names, waves, sample_rates, strict=True)):
        write_audio(folder / f"{name}.wav", wave.T, round(sr))
        write_spectrograms(folder / f"{name}.png", [wave], [name], [sr])
        if sidecars is not None:
            with atomic(folder / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(sidecars[i], indent=1) + "\n", encoding="utf-8")
    if sheet:
        write_spectrograms(folder / "sheet.png", waves, names, sample_rates)


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
