"""All checks, one after the other."""

from collections.abc import Iterator
from pathlib import Path

import jax

from . import corpus, files, sounds, weights
from .findings import Finding, unseen
from .weights import Tell


def examine(
    source: str | Path, *, steps: int = 100, exported: Path | None = None, tell: Tell = lambda text: None
) -> Iterator[Finding]:
    """The findings on a run's folder or on a configuration's file, each as soon as it is known.

    `steps` are taken on one batch with fresh weights, 0 for none. `exported` is a file that `export` wrote of this run;
    None writes one in a temporary folder. `tell` hears what is looked at. Raises ConfigError where `source` is neither
    a run nor a configuration.
    """
    tell("files")
    case, findings = files.open_case(Path(source))
    yield from findings
    if case is None:
        return
    if case.folder is not None:
        yield from files.check_log(case.folder / "log.jsonl", case.config.train.steps)
    tell("corpus")
    heard, findings = corpus.hear(case.config)
    yield from findings
    if heard is None:
        return
    tell("features")
    model = corpus.model_of(case, heard)
    yield corpus.check_features(model, case.config, heard)
    yield corpus.check_representation(model, heard)
    tell("gradients: compiling the training step")
    t = case.config.train
    probe = weights.make_probe(model, case.config.method, t.steps)
    fresh = jax.jit(model.network.init)(jax.random.key(t.seed))
    yield weights.check_gradients(probe, fresh, case, model, heard)
    tell("losses")
    yield from weights.check_losses(probe, fresh, case, heard)
    yield from weights.check_attention(probe, case, model, heard)
    yield weights.check_answers(model, case, heard)
    yield weights.check_one_batch(probe, fresh, t, heard, steps, tell)
    if case.pipeline is None:
        yield from unseen(["export", "samples", "sampling steps"], weights.UNTRAINED)
        return
    tell("export: compiling the sampler")
    maker = sounds.Maker(case.pipeline)
    yield sounds.check_export(maker, case.pipeline, heard, exported)
    tell("samples")
    yield from sounds.check_samples(maker, case.pipeline, fresh, heard, tell)
