"""How good is a vocoder: PESQ and STOI of copy synthesis of held-out speech, beside Griffin-Lim from the same mel.

    pip install -e . pesq        python benchmarks/vocoder.py RUN --source data/speech/test [--count 32]

From each voice (sub-folder) of the source `count` recordings are taken at even distances, cut to `seconds`. The mel is
the run's: what its network is conditioned on, before scaling. Griffin-Lim: `jaxdiff.features.mel_to_audio`, 32
iterations, momentum 0.99. `pesq` (wide-band) and `stoi` of jaxdiff.evaluation, means per voice. The real-time factor is
that of a voice's recordings joined to one long sound. The last line is JSON.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import load
from jaxdiff.data import open_corpus, read_audio
from jaxdiff.evaluation import stoi
from jaxdiff.evaluation.external import EXTERNAL
from jaxdiff.features import mel_to_audio, melspectrogram


def held_out(source, count, seconds, rate):
    """Waves [n, samples] per voice, each `seconds` long, from recordings that are long enough."""
    corpus, found = open_corpus(str(source)), {}
    for label, voice in enumerate(corpus.classes):
        paths = [r.path for r in corpus.recordings if r.label == label and r.seconds >= seconds]
        paths = paths[:: max(1, len(paths) // count)][:count]
        waves = [read_audio(path, rate, seconds=seconds)[: round(seconds * rate)] for path in paths]
        found[voice] = np.stack([0.9 * y / np.abs(y).max() for y in waves])
    return found


def score(reference, made, rate):
    pesq = [EXTERNAL["pesq"].function(*pair, rate) for pair in zip(reference, made, strict=True)]
    means = {"pesq": np.nanmean(pesq), "stoi": np.mean(stoi(jnp.asarray(reference), jnp.asarray(made), sr=rate))}
    return {name: round(float(mean), 3) for name, mean in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.536)
    args = parser.parse_args()
    pipeline = load(args.run)
    task, rate = pipeline.config.task, pipeline.sample_rate
    mel = dict(sr=rate, n_fft=task.n_fft, hop_length=task.hop_length, fmax=task.fmax, power=1.0)
    griffin_lim = jax.jit(
        lambda y: mel_to_audio(melspectrogram(y, n_mels=task.n_mels, **mel), **mel, length=y.shape[-1])
    )
    rows, spent = {}, 0.0
    for voice, waves in held_out(args.source, args.count, args.seconds, rate).items():
        made = pipeline(list(waves), sr=rate).waves
        for _ in range(2):  # the first may compile
            begin = time.perf_counter()
            pipeline(waves.ravel(), sr=rate)
            elapsed = time.perf_counter() - begin
        spent += elapsed / waves.size * rate
        ours, theirs = score(waves, np.stack(made), rate), score(waves, np.asarray(griffin_lim(waves)), rate)
        rows[voice] = {"jaxdiff": ours, "griffin_lim": theirs}
        print(f"{voice:6s} {rows[voice]}", flush=True)
    print(
        json.dumps({"run": str(args.run), "step": pipeline.step, "rows": rows, "real_time_factor": spent / len(rows)})
    )


if __name__ == "__main__":
    main()
