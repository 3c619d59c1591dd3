"""`jaxdiff enhance`: recordings without their noise and reverberation."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval

from jaxdiff import ranges

from . import files, run

if TYPE_CHECKING:
    from jaxdiff.inference.files import Done


@dataclass(frozen=True, kw_only=True)
class Enhance(run.Processed):
    """Take noise and reverberation out of recordings of any length, rate and number of channels: WAV, spectrograms
    before and after as PNG, and JSON sidecar each."""

    model: Path | None = None
    """work directory of a run, an exported file, or the name of a shipped model (denoise-16k; with --streaming
    denoise-16k-streaming, with --steps above 0 denoise-16k-bridge)"""
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
    streaming: bool = False
    """with a model that sees no later sound, in chunks and at the level that the recording has: what a live stream
    makes of it; its latency is said"""
    steps: ranges.Index | None = None
    """steps of diffusion that refine the model's first estimate, 0 for that alone; above 0 the model must be a bridge
    (the configuration's)"""

    def run(self) -> int:
        if self.true_peak is not None and self.loudness is None:
            raise ValueError("--true-peak: is a limit to --loudness; give both")
        ends = (*run.ENDS, ".residual.wav") if self.residual else run.ENDS
        jobs = files.jobs(self.files, self.out, ends, self.overwrite)
        usual = "denoise-16k-streaming" if self.streaming else "denoise-16k-bridge" if self.steps else "denoise-16k"
        name = Path(usual) if self.model is None else self.model
        pipeline = run.load(name, None, self.device, "enhance")
        from jaxdiff.inference.files import Target  # jax is imported by now
        from jaxdiff.tasks import Enhance as Task

        aim = Target(self.loudness, -1.0 if self.true_peak is None else self.true_peak, self.residual)
        request = Task.Request(strength=self.strength, max_reduction=self.max_reduction)
        if self.streaming:
            print(f"{name}: {pipeline.stream(request).latency}")
        options: dict[str, Any] = dict(aim=aim, request=request, streaming=self.streaming)
        if "steps" in pipeline.method.knobs and self.steps is not None:
            options["steps"] = 1 + self.steps  # the first gives the first estimate
        elif self.steps:
            raise ValueError(f"--steps {self.steps}: {name} makes one estimate and has no steps; leave --steps away")
        return run.process(pipeline, jobs, replace(self, model=name), told, **options)


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
