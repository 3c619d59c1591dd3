"""How good is enhancement: mixtures of held-out voices and noises, jaxdiff models beside peers and the noisy sound.

    python benchmarks/quality_enhance.py MODEL... [--split tune] [--clips 40] [--rooms] [--speed] [--out report.json]

MODEL is what `jaxdiff.load` takes; NAME@steps=1,strength=.9 adds options of sampling or of the task. Clips of 4 to 8 s
(`measures.speech_clips`) each get one kind of noise and are mixed with it at every SNR. The kinds, spread evenly over
the clips: the recordings of each SOURCE in the noise folder, `babble` (four stretches of other voices), `coloured` (a
spectrum between white and brown) and `music`. The SNR is that of the frames of 100 ms that are less than 40 dB below
the loudest, in the speech and in the noise; a mixture has -26 dB. With --rooms every second clip gets an artificial
room, of which the target keeps the direct sound and the first 50 ms. The set depends on the files and --seed alone.

Peers are aligned with their input: their delay is measured, printed and taken out. Models are taken as they are; their
delay, which should be 0, is printed too. Voices are printed with the level of their pauses relative to their speech: a
target that is noisy itself (above -40 dB, say) counts against whatever removes that noise. `worse` is the share of
mixtures whose PESQ is below that of the noisy sound, `clean` the PESQ where the input is the target itself. --speed
measures the seconds of work per second of sound on one core. The scores of peers are kept in the cache, by the content
of the set and of the scripts that score it.
"""

import argparse
import functools
import hashlib
import json
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import measures
import numpy as np
from measures import RATE, Process, active_rms, interval, leveled, shown
from peers import PEERS, Aligned, delay
from scipy.signal import fftconvolve

MEASURES = {  # digits shown
    "pesq": 2,
    "estoi": 3,
    "si_sdr": 1,
    "dnsmos_ovrl": 2,
    "dnsmos_sig": 2,
    "dnsmos_bak": 2,
}
MAIN = ("pesq", "estoi", "si_sdr", "dnsmos_ovrl")
CLEAN = math.inf
EARLY_SECONDS = 0.05


class Mixture(NamedTuple):
    """A clip at each SNR; where it is infinite the input is the target."""

    voice: str
    kind: str
    room: bool
    noisy: dict[float, np.ndarray]
    target: dict[float, np.ndarray]


# The set ------------------------------------------------------------------------------------------------------------


def coloured(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with f^0 (white) to f^2 (brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    return np.fft.irfft(spectrum * np.maximum(np.arange(len(spectrum)), 1) ** -rng.uniform(0, 1), samples)


def room(rng: np.random.Generator) -> np.ndarray:
    """An artificial response: the direct sound, then noise that decays by 60 dB in 0.2 to 0.8 s."""
    decay = rng.uniform(0.2, 0.8)
    seconds = np.arange(round(decay * RATE)) / RATE
    tail = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / decay)
    tail[: round(0.002 * RATE)] = 0
    direct_to_tail = 10 ** (rng.uniform(-3, 9) / 20)
    response = tail / np.sqrt((tail**2).sum())
    response[0] = direct_to_tail
    return response


def mix(clip: np.ndarray, noise: np.ndarray, response: np.ndarray, snr: float) -> tuple[np.ndarray, np.ndarray]:
    """The mixture and its target, with one gain."""
    early = response[: round(EARLY_SECONDS * RATE)]
    target = fftconvolve(clip, early)[: len(clip)]
    if snr == CLEAN:
        return leveled(target), leveled(target)
    speech = fftconvolve(clip, response)[: len(clip)]
    noisy = speech + noise * active_rms(speech) / active_rms(noise) * 10 ** (-snr / 20)
    made = leveled(noisy)
    return made, (target * active_rms(made) / active_rms(noisy)).astype(np.float32)


def mixtures(args: argparse.Namespace) -> list[Mixture]:
    voices, noises = measures.recordings(args.voices), measures.recordings(args.noise)
    if len(voices) < 2:
        raise SystemExit(f"{args.voices} has {len(voices)} folders of voices with FLAC files, 2 are needed for babble")
    music = sorted(args.music.rglob("*.flac")) if args.music.is_dir() else []
    kinds = [*noises, "babble", "coloured", *(["music"] if music else [])]
    rng = np.random.default_rng([args.seed, 1])
    supplies = {
        kind: measures.Supply(paths, rng) for kind, paths in {**noises, **({"music": music} if music else {})}.items()
    }
    others = {voice: measures.Supply([p for v in voices if v != voice for p in voices[v]], rng) for voice in voices}
    clips = measures.speech_clips(voices, args.clips, args.seed)
    order, made = rng.permutation(np.arange(len(clips)) % len(kinds)), []
    for i, (voice, clip) in enumerate(clips):
        kind, samples = kinds[order[i]], len(clip)
        if kind == "babble":
            noise = np.sum([others[voice].take(samples, samples) for _ in range(4)], axis=0)
        elif kind == "coloured":
            noise = coloured(samples, rng)
        else:
            noise = supplies[kind].take(samples, samples)
        response = room(rng) if args.rooms and i % 2 else np.ones(1)
        pairs = {snr: mix(clip, noise, response, snr) for snr in [*args.snrs, CLEAN]}
        noisy, target = ({snr: pair[part] for snr, pair in pairs.items()} for part in (0, 1))
        made.append(Mixture(voice, kind, len(response) > 1, noisy, target))
    return made


def fingerprint(items: list[Mixture]) -> str:
    """Changes with any sample of the set and with the code that processes and scores it."""
    digest = hashlib.sha256(measures.fingerprint_of_measures())
    digest.update((Path(__file__).parent / "peers.py").read_bytes())
    for item in items:
        for snr in item.noisy:
            digest.update(item.noisy[snr].tobytes() + item.target[snr].tobytes())
    return digest.hexdigest()[:16]


# Scores -------------------------------------------------------------------------------------------------------------


def scores_of(process: Process, items: list[Mixture], pool: ProcessPoolExecutor) -> dict[str, np.ndarray]:
    """Each measure [clips, SNRs], the last column that of clean input."""
    pairs = [(item.target[snr], process(item.noisy[snr])) for item in items for snr in item.noisy]
    found = measures.scores_of_pairs(pool, list(MEASURES), pairs)
    return {name: values.reshape(len(items), -1) for name, values in found.items()}


def method(name: str, probe: np.ndarray) -> Process:
    """The noisy sound itself, a peer, or a jaxdiff model."""
    if name == "noisy":
        return lambda y: y
    return Aligned(PEERS[name](), probe) if name in PEERS else measures.model(name)


def report(
    scores: dict[str, dict[str, np.ndarray]], items: list[Mixture], snrs: list[float], models: list[str]
) -> dict:
    """Every figure as `interval` has it, by method, part of the set and measure; differences of the models."""
    parts: dict[str, tuple] = {"all": (slice(None), slice(0, len(snrs)))}
    parts |= {f"{snr:g} dB": (slice(None), slice(column, column + 1)) for column, snr in enumerate(snrs)}
    for kind in sorted({item.kind for item in items}):
        parts[kind] = ([i for i, item in enumerate(items) if item.kind == kind], slice(0, len(snrs)))
    for name, wanted in (("room", True), ("no room", False)):
        rows = [i for i, item in enumerate(items) if item.room is wanted]
        if 0 < len(rows) < len(items):
            parts[name] = (rows, slice(0, len(snrs)))
    figures: dict = {"methods": {}, "differences": {}}
    for name, values in scores.items():
        figures["methods"][name] = {
            part: {measure: interval(values[measure][where]) for measure in MEASURES} for part, where in parts.items()
        }
        figures["methods"][name]["clean input"] = {m: interval(values[m][:, -1]) for m in MEASURES}
        worse = values["pesq"] < scores["noisy"]["pesq"]
        figures["methods"][name]["worse"] = interval(worse[parts["all"]].astype(float))
    for name in models:
        figures["differences"][name] = {
            other: {m: interval((scores[name][m] - scores[other][m])[parts["all"]]) for m in MAIN}
            for other in scores
            if other != name
        }
    return figures


def show(figures: dict) -> None:
    methods = figures["methods"]
    rows = []
    for name, found in methods.items():
        cells = [shown(found["all"][measure], digits) for measure, digits in MEASURES.items()]
        rows.append([name, *cells, f"{100 * found['worse']['estimate']:.0f} %", shown(found["clean input"]["pesq"])])
    header = ["method", "PESQ", "ESTOI", "SI-SDR", "DNSMOS overall", "speech", "background", "worse", "clean"]
    measures.print_table("All mixtures, mean and 95 % interval", header, rows)
    parts = [part for part in methods["noisy"] if part not in ("all", "worse", "clean input")]
    for measure in MAIN:
        rows = [
            [name, *(f"{found[p][measure]['estimate']:.{MEASURES[measure]}f}" for p in parts)]
            for name, found in methods.items()
        ]
        measures.print_table(measure, ["method", *parts], rows)
    rows = [
        [name, other, *(shown(found[measure], MEASURES[measure]) for measure in MAIN)]
        for name, others in figures["differences"].items()
        for other, found in others.items()
    ]
    if rows:
        measures.print_table("Differences, clip by clip", ["model", "minus", *MAIN], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="NAME, FOLDER or FILE, with @option=value,...")
    parser.add_argument("--split", default="test", choices=["test", "tune"], help="of the default folders")
    parser.add_argument("--voices", type=Path, help="folder of a folder per voice (data/sounds/voices/SPLIT)")
    parser.add_argument("--noise", type=Path, help="folder of a folder per source (data/sounds/noise/SPLIT)")
    parser.add_argument("--music", type=Path, help="folder of music (data/sounds/music/SPLIT)")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--snrs", type=float, nargs="+", default=[0.0, 5.0, 10.0, 15.0], help="dB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", action="store_true", help="every second clip in an artificial room")
    parser.add_argument(
        "--peers", nargs="*", choices=list(PEERS), default=["DeepFilterNet3", "DTLN", "NSNet2", "RNNoise"]
    )
    parser.add_argument("--speed", action="store_true", help="measure real-time factors on one core as well")
    parser.add_argument("--cache", type=Path, help="folder for the scores of peers")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    args = parser.parse_args()
    for name in ("voices", "noise", "music"):
        if getattr(args, name) is None:
            setattr(args, name, Path("data/sounds") / name / args.split)
    items = mixtures(args)
    key, probe = fingerprint(items), np.concatenate([item.target[CLEAN] for item in items[:4]])
    kinds = sorted({item.kind for item in items})
    seconds = sum(len(item.noisy[CLEAN]) for item in items) / RATE
    voices = sorted({item.voice for item in items})
    floors = {v: np.median([measures.floor_db(i.target[CLEAN]) for i in items if i.voice == v]) for v in voices}
    print(f"{len(items)} clips, {seconds:.0f} s, set {key}; noise: {', '.join(kinds)}")
    print(
        "voices and how loud their own pauses are: " + ", ".join(f"{v} {db:.0f} dB" for v, db in floors.items()),
        flush=True,
    )

    scores, delays = {}, {}
    with measures.processes() as pool:
        for name in ["noisy", *args.models, *args.peers]:
            kept = None if args.cache is None or name in args.models else args.cache / key / f"{name}.json"
            if kept is not None and kept.is_file():
                found = json.loads(kept.read_text())
                scores[name], delays[name] = {m: np.array(v) for m, v in found["scores"].items()}, found["delay"]
            else:
                process = method(name, probe)
                late = process.delay if isinstance(process, Aligned) else delay(probe, process(probe), RATE) / RATE
                scores[name], delays[name] = scores_of(process, items, pool), late
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    found = {"delay": late, "scores": {m: v.tolist() for m, v in scores[name].items()}}
                    kept.write_text(json.dumps(found))
            taken_out = " (taken out)" if name in args.peers else ""
            print(f"{name}: delay {1000 * delays[name]:.2f} ms{taken_out}", file=sys.stderr)
    figures = report(scores, items, args.snrs, args.models)
    show(figures)
    if args.speed:
        wave = np.resize(np.concatenate([item.noisy[args.snrs[0]] for item in items]), 30 * RATE)
        names = [*args.models, *args.peers]
        figures["real_time_factors"] = measures.real_time_factors(
            functools.partial(method, probe=probe), names, wave, 1
        )
        rows = [[name, f"{rtf:.4f}", f"{1 / rtf:.0f}"] for name, rtf in figures["real_time_factors"].items()]
        measures.print_table("30 s of sound on one core", ["method", "real-time factor", "times real time"], rows)
    figures |= {
        "set": key,
        "clips": len(items),
        "seconds": seconds,
        "snrs": args.snrs,
        "rooms": args.rooms,
        "delays": delays,
    }
    figures["floors"] = floors
    figures["items"] = [[item.voice, item.kind, item.room] for item in items]
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1))
    overall = {
        name: {m: round(found["all"][m]["estimate"], 3) for m in MEASURES} for name, found in figures["methods"].items()
    }
    print(json.dumps({"set": key, "overall": overall}))


if __name__ == "__main__":
    main()
