"""How good is a vocoder: copy synthesis of held-out voices and of music by jaxdiff models, WORLD and Griffin-Lim.

    python benchmarks/quality_vocode.py MODEL... [--steps 1 2 4] [--split tune] [--clips 40] [--speed] [--out FILE]

MODEL is what `jaxdiff.load` takes, with the options of `measures.model`; a method with steps runs with each of --steps.
The clips of 4 to 8 s are `measures.speech_clips`. WORLD analyses with Harvest, CheapTrick and D4C and resynthesises, so
it sees more than a mel spectrogram. Griffin-Lim (`jaxdiff.features.mel_to_audio`, 32 iterations) has the mel of the
first model's task, else 80 bands to 8 kHz, n_fft 1024, hop 256.

MCD, the mel-cepstral distance, is 10 / ln 10 sqrt(2 sum (c_d - c'_d)^2) dB over d = 1 to 13, the mean over the frames
of 5 ms that are less than 40 dB below the loudest. Here sum c_d cos(pi d m), m the mel frequency from 0 to 1, is the
log amplitude of CheapTrick's spectral envelope (F0 by DIO and StoneMask) at 80 points evenly spaced in mel up to 8 kHz,
so that it is the RMS difference of two smoothed envelopes in dB; frames are compared at equal times. It is kept beside
`mel_cepstral_distortion` of `jaxdiff.evaluation`, whose spectra hold the partials of the voice too, because it sees the
envelope alone. Music, the middle 8 s of each recording, is judged by `multi_resolution_stft`. --speed measures the
seconds of work per second of sound on two cores.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import measures
import numpy as np
from measures import RATE, Process, interval, pyworld, shown
from scipy.fft import dct

from jaxdiff import load
from jaxdiff.data import audio_info, read_audio
from jaxdiff.features import hz_to_mel, mel_to_audio, mel_to_hz, melspectrogram

MEASURES = {  # digits shown
    "pesq": 2,
    "estoi": 3,
    "mcd": 2,
    "dnsmos_ovrl": 2,
    "dnsmos_sig": 2,
    "dnsmos_bak": 2,
}
HEADER = {
    "pesq": "PESQ",
    "estoi": "ESTOI",
    "mcd": "MCD",
    "dnsmos_ovrl": "DNSMOS overall",
    "dnsmos_sig": "speech",
    "dnsmos_bak": "background",
}
MEL = {"n_fft": 1024, "hop_length": 256, "n_mels": 80, "fmax": 8000.0}
MEL_POINTS, CEPSTRA = 80, 13
MUSIC_SECONDS = 8.0


# Methods ------------------------------------------------------------------------------------------------------------


def world(y: np.ndarray) -> np.ndarray:
    package, wave = pyworld(), y.astype(np.float64)
    f0, times = package.harvest(wave, RATE)
    envelope, aperiodicity = package.cheaptrick(wave, f0, times, RATE), package.d4c(wave, f0, times, RATE)
    made = package.synthesize(f0, envelope, aperiodicity, RATE)
    return np.pad(made, (0, max(0, len(y) - len(made))))[: len(y)].astype(np.float32)


def griffin_lim(model: str | None) -> Process:
    """From the mel spectrogram of the model's task as far as it says so."""
    task = None if model is None else load(model.partition("@")[0]).model.task
    sizes = {name: getattr(task, name, value) for name, value in MEL.items()}
    n_mels, common = sizes.pop("n_mels"), {"sr": RATE, "power": 1.0, **sizes}

    @jax.jit
    def make(y):
        return mel_to_audio(melspectrogram(y, n_mels=n_mels, **common), **common, length=y.shape[-1])

    return lambda y: np.asarray(make(jnp.asarray(y)))


def method(name: str, first: str | None) -> Process:
    """WORLD, Griffin-Lim from the mel spectrogram of the model `first`, or a jaxdiff model."""
    if name == "WORLD":
        return world
    return griffin_lim(first) if name == "Griffin-Lim" else measures.model(name)


def with_steps(models: Sequence[str], steps: Sequence[int]) -> list[str]:
    """Each model with each number of steps, where its method has steps and the name does not choose them."""
    names = []
    for name in models:
        path, _, options = name.partition("@")
        if "steps" in load(path).method.knobs and "steps=" not in options:
            names += [f"{path}@{','.join(filter(None, [options, f'steps={count}']))}" for count in steps]
        else:
            names.append(name)
    return names


# Measures -----------------------------------------------------------------------------------------------------------


def envelopes(y: np.ndarray) -> np.ndarray:
    """CheapTrick's spectral envelopes [frames, bins], a power every 5 ms."""
    package, wave = pyworld(), y.astype(np.float64)
    f0, times = package.dio(wave, RATE)
    return package.cheaptrick(wave, package.stonemask(wave, f0, times, RATE), times, RATE)


def cepstra(power: np.ndarray) -> np.ndarray:
    """c_1 to c_13 [frames, 13] of the log amplitude sum c_d cos(pi d m), m the mel frequency from 0 to 1."""
    mel = np.asarray(mel_to_hz(np.linspace(0, hz_to_mel(RATE / 2, htk=True), MEL_POINTS), htk=True))
    bins = np.linspace(0, RATE / 2, power.shape[1])
    amplitude = 0.5 * np.log(np.maximum(power, 1e-12))
    warped = np.stack([np.interp(mel, bins, frame) for frame in amplitude])
    return np.asarray(dct(warped, axis=1))[:, 1 : CEPSTRA + 1] / MEL_POINTS


def mel_cepstral_distance(reference: np.ndarray, made: np.ndarray) -> float:
    ours, theirs = envelopes(reference), envelopes(made)
    power = ours.mean(1)
    active = power > power.max() * 1e-4
    squares = ((cepstra(ours) - cepstra(theirs)) ** 2).sum(1)
    return float((10 / np.log(10) * np.sqrt(2 * squares))[active].mean())


def scores_of(pool: ProcessPoolExecutor, pairs: list[measures.Pair]) -> dict[str, np.ndarray]:
    """Each measure [pairs]."""
    distances = pool.map(mel_cepstral_distance, *zip(*pairs, strict=True), chunksize=4)
    found = measures.scores_of_pairs(pool, [name for name in MEASURES if name != "mcd"], pairs)
    return {**found, "mcd": np.array(list(distances))}


def excerpts(folder: Path, count: int) -> list[np.ndarray]:
    """The middle 8 s of `count` recordings that are long enough, at even distances, at -26 dB."""
    paths = [path for path in sorted(folder.rglob("*.flac")) if audio_info(path).seconds > MUSIC_SECONDS]
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, count).round().astype(int))] if paths else []
    starts = [(audio_info(path).seconds - MUSIC_SECONDS) / 2 for path in chosen]
    waves = [read_audio(p, RATE, offset=s, seconds=MUSIC_SECONDS) for p, s in zip(chosen, starts, strict=True)]
    return [measures.leveled(wave) for wave in waves]


# Report -------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="NAME, FOLDER or FILE, with @option=value,...")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--split", default="test", choices=["test", "tune"], help="of the default folders")
    parser.add_argument("--voices", type=Path, help="folder of a folder per voice (data/sounds/voices/SPLIT)")
    parser.add_argument("--music", type=Path, help="folder of music (data/sounds/music/SPLIT)")
    parser.add_argument("--clips", type=int, default=40, help="of speech; at most half as many of music")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true", help="measure real-time factors on two cores as well")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    args = parser.parse_args()
    voices = args.voices or Path("data/sounds/voices") / args.split
    music = excerpts(args.music or Path("data/sounds/music") / args.split, max(1, args.clips // 2))
    found = measures.recordings(voices)
    if not found:
        raise SystemExit(f"{voices} has no folders of voices with FLAC files; fetch them or name others with --voices")
    clips = measures.speech_clips(found, args.clips, args.seed)
    first = args.models[0] if args.models else None
    names = ["WORLD", "Griffin-Lim", *with_steps(args.models, args.steps)]
    print(f"{len(clips)} clips of {len(found)} voices, {len(music)} of music", flush=True)

    figures: dict = {"methods": {}}
    scores = {}
    with measures.processes() as pool:
        for name in names:
            process = method(name, first)
            scores[name] = scores_of(pool, [(clip.wave, process(clip.wave)) for clip in clips])
            figures["methods"][name] = {measure: interval(scores[name][measure]) for measure in MEASURES}
            by_voice = {voice: [i for i, clip in enumerate(clips) if clip.voice == voice] for voice in found}
            figures["methods"][name]["pesq by voice"] = {
                voice: interval(scores[name]["pesq"][rows]) for voice, rows in by_voice.items() if rows
            }
            if music:
                scores[name]["music"] = measures.in_jax("multi_resolution_stft", [(y, process(y)) for y in music])
                figures["methods"][name]["music"] = interval(scores[name]["music"])
    shown_measures = {**MEASURES, **({"music": 2} if music else {})}
    header = ["method", *HEADER.values(), *(["music, STFT distance"] if music else [])]
    rows = [
        [name, *(shown(f[m], digits) for m, digits in shown_measures.items())] for name, f in figures["methods"].items()
    ]
    measures.print_table("Copy synthesis, mean and 95 % interval", header, rows)
    spoken = {voice: None for f in figures["methods"].values() for voice in f["pesq by voice"]}
    rows = [
        [name, *(f"{f['pesq by voice'][voice]['estimate']:.2f}" for voice in spoken)]
        for name, f in figures["methods"].items()
    ]
    measures.print_table("PESQ by voice", ["method", *spoken], rows)
    if args.speed:
        wave = np.resize(np.concatenate([clip.wave for clip in clips]), 30 * RATE)
        figures["real_time_factors"] = measures.real_time_factors(
            functools.partial(method, first=first), names, wave, 2
        )
        rows = [[name, f"{rtf:.4f}", f"{1 / rtf:.0f}"] for name, rtf in figures["real_time_factors"].items()]
        measures.print_table("30 s of sound on two cores", ["method", "real-time factor", "times real time"], rows)
    figures |= {"clips": [clip.voice for clip in clips], "music": len(music), "seed": args.seed}
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1))
    overall = {name: {m: round(f[m]["estimate"], 3) for m in shown_measures} for name, f in figures["methods"].items()}
    print(json.dumps({"overall": overall}))


if __name__ == "__main__":
    main()
