"""How good is repair: faults made in held-out speech and music, jaxdiff models beside peers and the faulty sound.

    python benchmarks/quality_repair.py MODEL... [--split tune] [--faults gaps declip band clicks codec] [--quick]
        [--method trained zero-shot auto] [--clips 16] [--music 12] [--speed] [--cache FOLDER] [--out report.json]

MODEL is what `jaxdiff.load` takes: one trained on damaged sounds (task repair), a prior of whole ones (task generate),
or both; NAME@steps=8 sets the steps. Each runs with the method it is for; `auto` takes for each fault the one that
`jaxdiff repair` does and needs both. Speech are clips of 4 to 8 s of voices that were not trained on, music excerpts of
6 s, both at 16 kHz with a peak of -6 dBFS. The set depends on the files and --seed alone.

    gaps      50, 100 and 300 ms of zeros, one a second, where the clip has more than -35 dB of its RMS, 0.2 s apart
    declip    cut at the level that leaves an SDR of 7 or 3 dB
    band      low-passed at 2 and 4 kHz: a steep linear-phase filter (fir), or resampling to twice that and back (soxr)
    clicks    50 bursts of noise a second of 1 to 4 ms, with peaks 0 to 12 dB below the sound's
    codec     MP3 at 16, 24 and 32 kbit/s and Opus at 8 and 12 kbit/s, their delay taken out

The faults are told to the models, or with `blind` in the name of a row (band, clicks, codec) found by them. Measures:
PESQ (speech, wide band), LSD (`measures_repair`; gaps: inside them; band: of the lost band), SDR (gaps: inside them;
elsewhere its gain), DNSMOS overall, and `kept`, the share of the samples outside the faults that are the input's, bit
for bit; of a declipped sound also that none is below the level. AR are the autoregressive peers of `peers_repair`: of
order 200, with 250 ms (the usual choice) or 40 ms (`near`, which is better on speech) on both sides of a gap. Figures
and differences from peers have 95 % intervals by the bootstrap over clips. --speed: the seconds that one gap of 300 ms
takes on two cores after compilation. --cache keeps the scores of the peers, whose small systems of equations are solved
several times as fast with OPENBLAS_NUM_THREADS=1.
"""

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import measures
import measures_repair
import numpy as np
import peers_repair as peers
from measures import RATE, interval, shown
from measures_repair import Clip, Gap

DIGITS = {"pesq": 2, "lsd": 2, "lsd_80": 2, "lsd_120": 2, "sdr": 1, "sdr_gain": 1, "dnsmos_ovrl": 2, "kept": 5}
HEADER = {
    "pesq": "PESQ",
    "lsd": "LSD (dB)",
    "lsd_80": "LSD to -80 dB",
    "lsd_120": "LSD to -120 dB",
    "sdr": "SDR (dB)",
    "sdr_gain": "SDR gain (dB)",
    "dnsmos_ovrl": "DNSMOS",
    "kept": "kept",
}
GAP_MILLISECONDS = (50, 100, 300)
SDRS = (7.0, 3.0)
CUTOFFS = (2000.0, 4000.0)
CLICKS_PER_SECOND = 50
CODECS = (("mp3", 16), ("mp3", 24), ("mp3", 32), ("opus", 8), ("opus", 12))
METHODS = ("trained", "zero-shot", "auto")


@dataclass(frozen=True)
class Item:
    """A clip, what was done to it, and where: gaps or clicks, the level of clipping, or the cut-off of a lost band."""

    target: np.ndarray
    given: np.ndarray
    places: tuple[Gap, ...] = ()
    level: float = 0.0
    cutoff: float = 0.0


class Case(NamedTuple):
    """One kind of damage to all clips of speech or music."""

    fault: str
    name: str
    items: list[Item]


Method = Callable[[Item], np.ndarray]

PEERS: dict[str, dict[str, Method]] = {
    "gaps": {
        "zeros": lambda item: peers.zeros(item.given, item.places),
        "linear": lambda item: peers.linear(item.given, item.places),
        "AR": lambda item: peers.ar_extrapolation(item.given, item.places),
        "AR, near": lambda item: peers.ar_extrapolation_near(item.given, item.places),
        "AR, least squares": lambda item: peers.ar_interpolation(item.given, item.places),
    },
    "declip": {
        "input": lambda item: item.given,
        "AR, order 32": lambda item: peers.ar_declip(item.given, item.level, order=32, frame=512, rounds=3),
        "AR": lambda item: peers.ar_declip(item.given, item.level),
        "A-SPADE": lambda item: peers.a_spade(item.given, item.level),
    },
    "band": {"input": lambda item: item.given},
    "clicks": {
        "input": lambda item: item.given,
        "median": lambda item: peers.median(item.given),
        "AR": lambda item: peers.ar_declick(item.given, item.places),
        "AR, blind": lambda item: peers.ar_find_and_declick(item.given),
    },
    "codec": {"input": lambda item: item.given},
}
BLIND = ("band", "clicks", "codec")
AGAINST = {  # the peers that a repair is compared with, clip by clip
    "gaps": ("AR", "AR, near"),
    "declip": ("input", "AR", "A-SPADE"),
    "band": ("input",),
    "clicks": ("input", "median", "AR"),
    "codec": ("input",),
}


# The set ------------------------------------------------------------------------------------------------------------


def cases(clips: Sequence[Clip], fault: str, kind: str, seed: int, quick: bool) -> Iterator[Case]:
    """All clips with each variant of a fault; with `quick` the first alone."""
    waves = [clip.wave for clip in clips]
    if fault == "gaps":
        for milliseconds in GAP_MILLISECONDS[:1] if quick else GAP_MILLISECONDS:
            rng, samples = np.random.default_rng([seed, 3, milliseconds]), milliseconds * RATE // 1000
            places = [tuple(measures_repair.gap_places(y, samples, rng)) for y in waves]
            items = [Item(y, peers.zeros(y, gaps), gaps) for y, gaps in zip(waves, places, strict=True) if gaps]
            yield Case(fault, f"{kind}, gaps of {milliseconds} ms", items)
    elif fault == "declip":
        for wanted in SDRS[:1] if quick else SDRS:
            levels = [measures_repair.clip_level(y, wanted) for y in waves]
            items = [Item(y, np.clip(y, -h, h), level=h) for y, h in zip(waves, levels, strict=True)]
            yield Case(fault, f"{kind}, clipped to {wanted:g} dB", items)
    elif fault == "band":
        filters = {"fir": measures_repair.low_passed, "soxr": measures_repair.resampled}
        for cutoff in CUTOFFS[:1] if quick else CUTOFFS:
            for name, lowpass in list(filters.items())[: 1 if quick else None]:
                items = [Item(y, lowpass(y, cutoff), cutoff=cutoff) for y in waves]
                yield Case(fault, f"{kind}, up to {cutoff:g} Hz ({name})", items)
    elif fault == "clicks":
        rng = np.random.default_rng([seed, 4])
        made = [measures_repair.clicked(y, CLICKS_PER_SECOND, rng) for y in waves]
        items = [Item(y, given, tuple(places)) for y, (given, places) in zip(waves, made, strict=True)]
        yield Case(fault, f"{kind}, {CLICKS_PER_SECOND} clicks a second", items)
    else:
        for codec, rate in CODECS[:1] if quick else CODECS:
            items = [Item(y, measures_repair.coded(y, codec, rate)) for y in waves]
            yield Case(fault, f"{kind}, {codec} at {rate} kbit/s", items)


# Methods ------------------------------------------------------------------------------------------------------------


def told(item: Item, fault: str) -> list[Any]:
    """What is wrong with a sound, as `jaxdiff.inference.faults` says it."""
    from jaxdiff.inference.faults import Fault

    samples = len(item.given)
    if fault == "band":
        return [Fault("band", 0, 0, samples, item.cutoff)]
    if fault == "codec":
        return [Fault("codec", 0, 0, samples, 0.0)]
    if fault == "declip":
        marked = np.zeros(samples + 2, bool)
        marked[peers.clipped_places(item.given, item.level) + 1] = True
        edges = np.flatnonzero(np.diff(marked)).reshape(-1, 2)
        return [Fault("clip", 0, int(start), int(stop), item.level) for start, stop in edges]
    kind = "gap" if fault == "gaps" else "click"
    return [Fault(kind, 0, start, stop, 0.0) for start, stop in item.places]


class Model(NamedTuple):
    """What a row of the tables runs: a method and the models for it, each NAME or NAME@steps=COUNT."""

    method: Literal["trained", "zero-shot", "auto"]
    trained: str | None
    prior: str | None

    @property
    def name(self) -> str:
        return self.trained or self.prior or "" if self.method != "auto" else "auto"


def repairer(model: Model, seed: int) -> Any:
    """`Repairer` of jaxdiff; its models are loaded when they are first needed."""
    from jaxdiff.inference.repair import Repairer

    sources, steps = {}, None
    for role in ("trained", "prior"):
        if (text := getattr(model, role)) is not None:
            sources[role], _, count = text.partition("@steps=")
            steps = int(count) if count else steps
    return Repairer(None if model.method == "auto" else model.method, **sources, seed=seed, steps=steps)


def rows_of(names: Sequence[str], wanted: Sequence[str] | None) -> list[Model]:
    """The rows for the models of the command, by what each is for."""
    from jaxdiff import load
    from jaxdiff.tasks import Repair

    trained = [name for name in names if isinstance(load(name.partition("@")[0]).model.task, Repair)]
    priors = [name for name in names if name not in trained]
    found = [Model("trained", name, None) for name in trained] + [Model("zero-shot", None, name) for name in priors]
    if wanted is not None and "auto" in wanted:
        if len(trained) != 1 or len(priors) != 1:
            raise SystemExit(
                f"--method auto needs one model of task repair and one prior, not {len(trained)} and {len(priors)}"
            )
        found.append(Model("auto", trained[0], priors[0]))
    return [row for row in found if wanted is None or row.method in wanted]


def ours(rows: Sequence[Model], fault: str, seed: int) -> dict[str, Method]:
    """The rows as methods, which are told the faults, and blind ones."""

    def method(model: Model, blind: bool) -> Method:
        repair = repairer(model, seed)
        return lambda item: np.asarray(repair(item.given, RATE, None if blind else told(item, fault)), np.float32)

    made = {row.name: method(row, False) for row in rows}
    return made | ({f"{row.name}, blind": method(row, True) for row in rows} if fault in BLIND else {})


# Scores -------------------------------------------------------------------------------------------------------------


def kept_share(item: Item, made: np.ndarray) -> float:
    """The share of the samples outside the faults that are the input's; with a level, of all that are right."""
    outside = np.ones(len(made), bool)
    if item.level:
        clipped = peers.clipped_places(item.given, item.level)
        outside[clipped] = False
        sign = np.sign(item.given[clipped])
        right = np.append((made == item.given)[outside], sign * made[clipped] >= np.abs(item.given[clipped]))
        return float(right.mean())
    outside[peers.indices(item.places)] = False
    return float((made == item.given)[outside].mean())


def score(case: Case, made: Sequence[np.ndarray], speech: bool, pool: ProcessPoolExecutor) -> dict[str, np.ndarray]:
    """Each measure [clips]."""
    pairs = [(item.target, y) for item, y in zip(case.items, made, strict=True)]
    judged = ["pesq", "dnsmos_ovrl"] if case.fault in ("band", "codec") else ["pesq"]
    found = measures.scores_of_pairs(pool, judged if speech else [], pairs)
    items = list(zip(case.items, made, strict=True))
    if case.fault == "gaps":
        found["lsd"] = np.array([measures_repair.gap_lsd(item.target, y, item.places) for item, y in items])
        inside = [tuple(measures_repair.only(y, item.places) for y in (item.target, made)) for item, made in items]
        found["sdr"] = measures.in_jax("snr", inside)
    else:
        floors = {"lsd_80": -80.0, "lsd_120": -120.0} if case.fault == "band" else {"lsd": measures_repair.FLOOR_DB}
        for name, floor in floors.items():
            found[name] = np.array([measures_repair.lsd(item.target, y, item.cutoff, floor) for item, y in items])
        before = measures.in_jax("snr", [(item.target, item.given) for item in case.items])
        found["sdr_gain"] = measures.in_jax("snr", pairs) - before
    if case.fault not in ("band", "codec"):
        found["kept"] = np.array([kept_share(item, y) for item, y in items])
    return {name: found[name] for name in HEADER if name in found}


def fingerprint(case: Case) -> str:
    """Changes with any sample of a case and with the code that mends and scores it."""
    digest = hashlib.sha256(case.name.encode() + measures.fingerprint_of_measures())
    for script in ("measures_repair.py", "peers_repair.py", "quality_repair.py"):
        digest.update((Path(__file__).parent / script).read_bytes())
    for item in case.items:
        digest.update(item.target.tobytes() + item.given.tobytes())
    return digest.hexdigest()[:16]


def scores_of(
    case: Case, method: Method, speech: bool, pool: ProcessPoolExecutor, kept: Path | None
) -> dict[str, np.ndarray]:
    """Each measure [clips], from the file `kept` where it exists, which is written otherwise."""
    if kept is not None and kept.is_file():
        return {name: np.array(values) for name, values in json.loads(kept.read_text()).items()}
    made = [method(item) for item in case.items]
    found = score(case, made, speech, pool)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({name: values.tolist() for name, values in found.items()}))
    return found


def report(case: Case, scores: dict[str, dict[str, np.ndarray]], rows: Sequence[str]) -> dict[str, Any]:
    """Every figure as `interval` has it: by method and measure, and of the differences of `rows` from peers."""
    figures = {name: {m: interval(values) for m, values in found.items()} for name, found in scores.items()}
    names = [m for m in next(iter(scores.values())) if m != "kept"]
    differences = {
        name: {other: {m: interval(scores[name][m] - scores[other][m]) for m in names} for other in AGAINST[case.fault]}
        for name in rows
    }
    found = {"fault": case.fault, "clips": len(case.items), "methods": figures, "differences": differences}
    if case.fault == "band":
        lowered = lambda name, lsd: 100 * (1 - figures[name][lsd]["estimate"] / figures["input"][lsd]["estimate"])  # noqa: E731
        found["lowered_percent"] = {name: {lsd: lowered(name, lsd) for lsd in ("lsd_80", "lsd_120")} for name in rows}
    return found


def show(title: str, figures: dict[str, Any]) -> None:
    columns = list(next(iter(figures["methods"].values())))
    header = [HEADER[m] for m in columns]
    rows = [
        [name, *(shown(found[m], DIGITS[m]) if m != "kept" else f"{found[m]['estimate']:.5f}" for m in columns)]
        for name, found in figures["methods"].items()
    ]
    measures.print_table(f"{title}: {figures['clips']} clips", ["method", *header], rows)
    rows = [
        [name, other, *(shown(found[m], DIGITS[m]) for m in found)]
        for name, others in figures["differences"].items()
        for other, found in others.items()
    ]
    if rows:
        measures.print_table(
            "against the peer, clip by clip", ["model", "minus", *(HEADER[m] for m in columns if m != "kept")], rows
        )
    for name, lowered in figures.get("lowered_percent", {}).items():
        percent = " and ".join(f"{HEADER[lsd]} by {value:.0f} %" for lsd, value in lowered.items())
        print(f"{name}: mean of the lost band lowered, {percent}")


# Speed --------------------------------------------------------------------------------------------------------------


def one_gap(name: str, rows: dict[str, Model], gap: Gap) -> measures.Process:
    """The repair of one gap as a process of a sound alone."""
    from jaxdiff.inference.faults import Fault

    repair = repairer(rows[name], 0)
    return lambda y: repair(y, RATE, [Fault("gap", 0, *gap, 0.0)])


def seconds_for_a_gap(rows: Sequence[Model], clip: np.ndarray, seed: int) -> dict[str, float]:
    """The median of three calls after one that compiles, on two cores."""
    gap = measures_repair.gap_places(clip, 300 * RATE // 1000, np.random.default_rng(seed))[0]
    make = functools.partial(one_gap, rows={row.name: row for row in rows}, gap=gap)
    factors = measures.real_time_factors(make, [row.name for row in rows], peers.zeros(clip, [gap]), 2)
    return {name: factor * len(clip) / RATE for name, factor in factors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="NAME or FOLDER, with @steps=COUNT; none: peers alone"
    )
    parser.add_argument("--split", default="test", choices=["test", "tune"], help="of the default folders")
    parser.add_argument("--voices", type=Path, help="folder of a folder per voice (data/sounds/voices/SPLIT)")
    parser.add_argument("--pieces", type=Path, help="folder of a folder per source of music (data/sounds/music/SPLIT)")
    parser.add_argument("--faults", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--method", nargs="+", choices=METHODS, help="those of the models")
    parser.add_argument("--clips", type=int, default=16, help="of speech")
    parser.add_argument("--music", type=int, default=12, help="excerpts of music")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 clips and 2 excerpts, the first variant of every fault")
    parser.add_argument("--speed", action="store_true", help="time one gap of 300 ms on two cores as well")
    parser.add_argument("--cache", type=Path, help="folder for the scores of peers")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    args = parser.parse_args()
    speech_count, music_count = (4, 2) if args.quick else (args.clips, args.music)
    data = Path("data/sounds")
    clips = {
        "speech": measures_repair.speech(args.voices or data / "voices" / args.split, speech_count, args.seed),
        "music": measures_repair.music(args.pieces or data / "music" / args.split, music_count, args.seed),
    }
    rows = rows_of(args.models, args.method) if args.models else []
    figures: dict[str, Any] = {"split": args.split, "seed": args.seed, "cases": {}}
    with measures.processes() as pool:
        for fault in args.faults:
            mine = ours(rows, fault, args.seed)
            for kind, sounds in clips.items():
                for case in cases(sounds, fault, kind, args.seed, args.quick):
                    begin = time.perf_counter()
                    folder = None if args.cache is None else args.cache / fingerprint(case)
                    scores = {
                        name: scores_of(
                            case,
                            method,
                            kind == "speech",
                            pool,
                            None if folder is None or name in mine else folder / f"{name}.json",
                        )
                        for name, method in {**PEERS[fault], **mine}.items()
                    }
                    found = figures["cases"][case.name] = report(case, scores, list(mine))
                    show(f"{case.name} ({time.perf_counter() - begin:.0f} s)", found)
    if args.speed and rows:
        figures["seconds_for_a_gap"] = seconds_for_a_gap(rows, clips["speech"][0].wave, args.seed)
        lines = [[name, f"{seconds:.2f}"] for name, seconds in figures["seconds_for_a_gap"].items()]
        measures.print_table("One gap of 300 ms on two cores, after compilation", ["model", "seconds"], lines)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1))
    summary = {
        name: {method: {m: round(f["estimate"], 3) for m, f in v.items()} for method, v in found["methods"].items()}
        for name, found in figures["cases"].items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
