"""Outputs for people to see and hear: every WAV with its spectrogram picture and sidecar, and a sheet for many."""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.data.files import atomic, safe_name, write_audio

from .pictures import draw, save, spectrograms

FULL_SCALE = 0.999  # of the largest sample that is written


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

    def __repr__(self) -> str:
        return "\n".join(
            f"{name}: {wave.shape[-1] / sr:g} s at {sr:g} Hz"
            for name, wave, sr in zip(self.names, self.waves, self.sample_rates, strict=True)
        )

    @property
    def names(self) -> list[str]:
        """A file name for each: its number and class, or that of its source."""
        return [
            safe_name(Path(f["source"]).stem) if f.get("source") else item_name(f["item"], f.get("label"))
            for f in self.facts
        ]

    def save(self, folder: str | Path, names: Sequence[str] | None = None, *, sheet: bool = True, **about: Any) -> None:
        """Write NAME.wav, NAME.png and NAME.json for each in `folder`, made when absent, and with `sheet` sheet.png for
        all; `about` goes into the sidecars too. Raises ValueError for two sounds of one name."""
        names = self.names if names is None else names
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ValueError(f"{twice}: is the name of several sounds; give a name for each (names=)")
        Path(folder).mkdir(parents=True, exist_ok=True)
        sidecars = [
            {**about, **fact, "sample_rate": sr} for fact, sr in zip(self.facts, self.sample_rates, strict=True)
        ]
        write_sounds(Path(folder), self.waves, names, self.sample_rates, sidecars, sheet)

    def _repr_html_(self) -> str:
        import base64
        import io

        import soundfile

        rows = []
        for name, wave, sr in zip(self.names, self.waves, self.sample_rates, strict=True):
            sound, picture = io.BytesIO(), io.BytesIO()
            soundfile.write(sound, np.clip(wave.T, -1, 1), round(sr), format="WAV", subtype="PCM_16")
            save(spectrograms([wave], [name], [sr]), picture)
            wav, png = (base64.b64encode(f.getvalue()).decode() for f in (sound, picture))
            rows.append(
                f'<div><img src="data:image/png;base64,{png}"><br>'
                f'<audio controls src="data:audio/wav;base64,{wav}"></audio></div>'
            )
        return "".join(rows)


def item_name(item: int, label: str | None) -> str:
    """The file name of a generated sound."""
    return safe_name(f"{item:04d}" + (f"-{label}" if label else ""))


def write_sounds(
    folder: Path,
    waves: Sequence[np.ndarray],
    names: Sequence[str],
    sample_rates: Sequence[float],
    sidecars: Sequence[dict] | None = None,
    sheet: bool = True,
) -> None:
    """Write NAME.wav, NAME.png and (with sidecars) NAME.json for each wave, and with `sheet` sheet.png for all.

    A sound above full scale is scaled down as a whole, which a warning and its sidecar (`scaled_db`) say.
    """
    scaled = [-20 * math.log10(max(1.0, float(np.abs(wave).max(initial=0)) / FULL_SCALE)) for wave in waves]
    for i, (name, wave, sr) in enumerate(zip(names, waves, sample_rates, strict=True)):
        write_audio(folder / f"{name}.wav", wave.T * np.float32(10 ** (scaled[i] / 20)), round(sr))
        draw(folder / f"{name}.png", lambda i=i: spectrograms([waves[i]], [names[i]], [sample_rates[i]]))
        if sidecars is not None:
            about = sidecars[i] | ({"scaled_db": round(scaled[i], 2)} if scaled[i] else {})
            with atomic(folder / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if sheet:
        draw(folder / "sheet.png", lambda: spectrograms(waves, names, sample_rates))
    if any(scaled):
        loud = sum(s < 0 for s in scaled)
        warnings.warn(
            f"{loud} of {len(waves)} sounds exceeded full scale and were scaled down as a whole, by up to "
            f"{-min(scaled):.1f} dB",
            stacklevel=3,
        )
