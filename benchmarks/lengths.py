"""Any length: what a trained model that works on sounds does with short, long and stereo ones.

    python benchmarks/lengths.py RUN --source FOLDER [--minutes 10]

The recordings of FOLDER are joined to one long sound. Printed are: the length of a 4 s sound's result, how many
programs 20 other lengths compile after that, the difference between 60 s in windows and 60 s at once away from the ends
(its RMS and largest sample, in dB of the RMS of the sound), the shape and rate of a stereo sound at 44.1 kHz, what 10
minutes add to the peak memory, and the real-time factor. The last line is JSON.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import jax
import numpy as np

import jaxdiff
from jaxdiff.data import read_audio, sound_files
from jaxdiff.data.files import resample


def decibels(made: np.ndarray, wanted: np.ndarray, edge: int) -> list[float]:
    difference = (made - wanted)[edge : len(wanted) - edge]
    sizes = np.array([np.sqrt((difference**2).mean()), np.abs(difference).max()])
    return [round(20 * float(np.log10(size)), 1) for size in sizes / np.sqrt((wanted**2).mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    pipeline = jaxdiff.load(args.run)
    sr = pipeline.sample_rate
    speech = np.concatenate([read_audio(path, sr) for path in sound_files([args.source])])
    speech = np.resize(speech, round(args.minutes * 60 * sr))
    result = {"run": args.run, "checkpoint": pipeline.fingerprint}

    result["seconds_of_4_s"] = len(pipeline(speech[: 4 * sr], sr=sr).waves[0]) / sr
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    for n in range(20):
        pipeline(speech[: 1000 + n * 9973], sr=sr)
    result["compilations_of_20_more_lengths"] = len(compiled)

    part = speech[: 60 * sr]
    windows = pipeline(part, sr=sr).waves[0]
    pipeline.window_seconds, usual = 64.0, pipeline.window_seconds
    result["windows_minus_whole_db"] = decibels(windows, pipeline(part, sr=sr).waves[0], 2 * sr)
    pipeline.window_seconds = usual

    stereo = resample(np.stack([part, part[::-1]]), sr, 44_100)
    made = pipeline(stereo, sr=44_100)
    result["stereo"] = {"in": list(stereo.shape), "out": list(made.waves[0].shape), "rate": made.sample_rate}

    begin, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipeline(speech, sr=sr)
    elapsed = time.perf_counter() - begin
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    result |= {"minutes": args.minutes, "peak_memory_grew_mib": grown, "real_time_factor": elapsed / len(speech) * sr}
    result["versions"] = {"jaxdiff": jaxdiff.__version__, "jax": jax.__version__}
    for name, value in result.items():
        print(f"{name:24s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
