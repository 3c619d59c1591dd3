"""How good systems are: their folders are matched with the references, scored file by file and as sets.

scores = evaluate("clean", {"noisy": "noisy", "ours": "enhanced"}, metrics=["si_sdr", "estoi", "frechet_log_mel"])
print(scores)
scores.save("scores")
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jaxdiff.data.files import expand

from .batches import score
from .folders import REFERENCE, Matched, Problem, find, match, system_names
from .metrics import choose, distance_and_embedding
from .scores import LEVEL, Distance, Row, Scores

Folder = str | Path


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while files were scored: `scores` has what was done, without distances of sets."""

    def __init__(self, scores: Scores):
        super().__init__()
        self.scores = scores


def evaluate(
    reference: Folder | None,
    systems: Mapping[str, Folder] | Sequence[Folder] | Folder,
    metrics: Iterable[str] | None = None,
    *,
    rate: int | None = None,
    transcripts: Folder | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    workers: int = 1,
    tell: Callable[[int, int], None] = lambda done, steps: None,
) -> Scores:
    """The scores of systems, folders by name, against a folder of references with files of the same names.

    `reference` None scores by the measures that need none. `metrics` are names (`catalogue()` has all; by default those
    in `metrics.DEFAULT`). Single files are compared like folders of one. `rate` (Hz) is that at which sounds are
    compared, by default that of each reference. `transcripts` is a folder with a text NAME.txt for each file, for the
    word error rate. `resamples` and `seed` belong to the intervals. With several `workers`
    measures of other packages run in processes, which needs the guard `if __name__ == "__main__"` in a script.
    `tell(done, steps)` is called as work goes on. Files that cannot be compared are in `problems`.

    Raises ValueError for what is asked wrongly, ModuleNotFoundError where a measure's package is missing, AudioError
    where nothing can be compared, and Interrupted, which is a KeyboardInterrupt.
    """
    if isinstance(systems, str | Path):
        systems = [systems]
    if not isinstance(systems, Mapping):
        folders = [expand(folder) for folder in systems]
        systems = dict(zip(system_names(folders), folders, strict=True))
    if not systems:
        raise ValueError("no system was given; give the folder of at least one")
    if reference is not None and REFERENCE in systems:
        raise ValueError(f"a system cannot be called {REFERENCE}; give it another name")
    chosen = choose(metrics, reference is not None, transcripts is not None)
    of_files = [metric for metric in chosen if metric.kind != "set"]
    of_sets = [metric for metric in chosen if metric.kind == "set"]
    files = find(None if reference is None else expand(reference), {n: expand(f) for n, f in systems.items()})
    texts = None if transcripts is None else expand(transcripts)
    matched = match(files, rate, texts) if of_files else Matched([], files.problems)
    counts = {name: len(found) for name, found in files.of.items()}
    embeddings = {distance_and_embedding(metric.name)[1] for metric in of_sets}
    steps = len(matched.pairs) + len(embeddings) * sum(counts.values())
    steps_done = itertools.count(1)
    rows: dict[tuple[str, str], Row] = {}
    problems = list(matched.problems)

    def told() -> None:
        tell(next(steps_done), steps)

    def scores(distances: Sequence[Distance], complete: bool) -> Scores:
        ordered = (rows.get((pair.name, pair.system)) for pair in matched.pairs)
        settings = {"rate": rate, "level": LEVEL, "resamples": resamples, "seed": seed, "complete": complete}
        done, each = tuple(row for row in ordered if row is not None), tuple(dict.fromkeys(problems))
        return Scores(chosen, tuple(systems), done, tuple(distances), each, counts, settings)

    try:
        for pair, found in score(matched.pairs, of_files, workers):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                rows[pair.name, pair.system] = found
                problems += [Problem(pair.name, pair.system, f"{name}: {why}") for name, why in found.failed.items()]
            told()
        distances: list[Distance] = []
        if of_sets:
            from .sets import distances as distances_of

            distances, bad = distances_of(of_sets, files.of, seed, told)
            problems += bad
    except KeyboardInterrupt:
        raise Interrupted(scores([], complete=False)) from None
    return scores(distances, complete=True)
