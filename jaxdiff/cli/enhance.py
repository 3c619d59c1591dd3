"""`jaxdiff enhance`: recordings without their noise and reverberation."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from jaxdiff import ranges

from . import files, run

if TYPE_CHECKING:
    from jaxdiff.inference.files import Done


@dataclass(frozen=True, kw_only=True)
class Enhance(run.Processed):
    """Take noise and reverberation out of recordings of any length, rate and number of channels: WAV, spectrograms
    before and after as PNG, and JSON sidecar each."""

    model: Path = Path("denoise-16k")
    """work directory of a run, an exported file, or the name of a shipped model"""
    strength: ranges.Share = 1.0
    """0 gives the recording back, 1 all that the model makes"""
    max_reduction: ranges.Positive | None = None
    """limit in dB to what any part of the spectrum loses (none)"""
    residual: bool = False
    """also write STEM.residual.wav, what was removed"""
    loudness: Annotated[float, Interval(ge=-70, le=0)] | None = None
    """bring the result to this loudness in LUFS, as far as --true-peak allows (its own)"""
    true_peak: Annotated[float, Interval(ge=-40, le=0)] | None = None
    """highest true peak in dBTP, with --loudness (-1)"""
    steps: ranges.Index | None = None
    """sampling steps, 0 is the predictor alone (the configuration's)"""

    def run(self) -> int:
        if self.true_peak is not None and self.loudness is None:
            raise ValueError("--true-peak: is a limit to --loudness; give both")
        ends = (*run.ENDS, ".residual.wav") if self.residual else run.ENDS
        jobs = files.jobs(self.files, self.out, ends, self.overwrite)
        pipeline = run.load(self.model, None, self.device, "enhance")
        from jaxdiff.inference.files import Target  # jax is imported by now
        from jaxdiff.tasks import Enhance as Task

        aim = Target(self.loudness, -1.0 if self.true_peak is None else self.true_peak, self.residual)
        request = Task.Request(strength=self.strength, max_reduction=self.max_reduction)
        return run.process(pipeline, jobs, self, told, aim=aim, request=request, steps=self.steps)


def told(wav: Path, done: "Done") -> str:
    """One sentence on what became of a file."""
    parts = [f"{done.seconds:.1f} s"]
    if done.snr_db is None:
        parts.append("nothing removed")
    else:
        parts.append(f"noise removed (SNR about {done.snr_db:.0f} dB)")
    if done.loudness_before is not None and done.loudness_after is not None:
        parts.append(f"{done.loudness_before:.1f} -> {done.loudness_after:.1f} LUFS")
    if done.limited:
        parts.append("held back by its true peak")
    return f"{wav}: {', '.join(parts)}"
