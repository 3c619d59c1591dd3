"""The training loop, top to bottom: take a batch, step, and now and then log, sample and save.

The loop sees built objects only. Metrics stay on the device until they are logged, so the host runs ahead of it. SIGINT
and SIGTERM end the loop after the current step: the state is saved before `train` returns, and also when an error ends
it. Of several processes each gets the same metrics and so does the same; a signal to one ends them all at one step. A
step whose loss or gradient is not finite changes nothing; too many of them in a row end the loop. What is saved is
finite: a loss judges the weights before its update, so the weights are looked at themselves.
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdiff.data.files import atomic

from .blocks import block_names, block_norms
from .state import TrainState

NORMS = 500  # rows of the log, at most, that hold the norms of blocks


class Every(NamedTuple):
    """`call(state, metrics)` every so many steps (0: never), with the means of what was logged last.

    What it returns by name, if anything, is logged and joins the metrics; `measures` are these names.
    """

    steps: int
    call: Callable[[TrainState, dict[str, float]], Any]
    measures: tuple[str, ...] = ()


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


def loop(
    train_step: Callable,
    state: TrainState,
    batches: Iterator[Any],
    save: Callable[[TrainState], Any],
    *,
    steps: int,
    seconds_per_step: float = 0.0,
    learning_rate: Callable[[int], Any] | None = None,
    weights: Callable[[Any], Any] = lambda params: params,
    log_path: Path | None = None,
    also: Callable[[dict[str, Any]], None] = lambda row: None,
    log_every: int = 20,
    save_every: int = 1000,
    events: Sequence[Every] = (),
    skips: int = 0,
    heard: Callable[[Sequence[int]], str] = lambda steps: "",
    enough: Callable[[int, dict[str, float]], bool] = lambda step, metrics: False,
) -> tuple[TrainState, int | None]:
    """Train up to step `steps`; returns the last state, saved, and the signal that ended training early (or None).

    `batches` yields device batches from `state.step` on; `seconds_per_step` is the audio in one and `learning_rate` the
    rate after so many updates, both to be logged; so are the norms of the blocks of `weights(params)` and of their
    gradient, in `NORMS` rows at most. `also` is told each row of the log. Intervals are in steps, 0 means never. At the
    same step a state is saved before `events` see it; then `enough` is asked with the metrics whether to end here.
    Raises TrainingError when more than `skips` steps in a row, or all, have metrics that are not finite, with what was
    `heard` in them, or when the weights are not finite; the last saved state is then intact.
    """
    begin = step = saved = int(state.step)
    alone = jax.process_count() == 1
    window, values, run, what, over = [], {}, 0, "", None
    pace = log_every * -(-steps // (log_every * NORMS)) if log_every else 0
    with _signals() as caught, _progress(step, steps) as show, _log(log_path, step) as append:
        write = lambda row: (append(row), also(row))  # noqa: E731
        since = time.perf_counter()
        try:
            while step < steps and over is None:
                state, metrics = train_step(state, next(batches))
                step += 1
                over = caught(step)
                window.append(metrics)
                save_due = step == steps or over is not None or (save_every > 0 and step % save_every == 0)
                due = [event for event in events if event.steps and step % event.steps == 0]
                if (log_every and step % log_every == 0) or save_due or due:  # a loss is seen before its state is saved
                    window = jax.device_get(window)
                    bad = [_not_finite(m) for m in window]
                    means = _means([m for m, name in zip(window, bad, strict=True) if name is None])
                    gradients = means.pop("gradient_norms", None)
                    if learning_rate is not None:
                        means["learning_rate"] = float(learning_rate(step - 1))
                    values |= means
                    rate, skipped = len(window) / (time.perf_counter() - since), sum(name is not None for name in bad)
                    speed = {"steps_per_s": rate, "audio_s_per_s": rate * seconds_per_step}
                    norms = _norms(weights(state.params), gradients) if pace and step % pace == 0 else {}
                    write({"step": step, **means, "skipped": skipped, **speed, **norms})
                    show(step, {**values, **speed})
                    for at, (name, logged) in enumerate(zip(bad, window, strict=True), step - len(window) + 1):
                        run = 0 if name is None else run + 1
                        what = f"the {name} is {logged[name]} at step {at}" if run == 1 else what
                        if run > skips or run == steps - begin:
                            many = f" and in all steps up to {at} something is not finite" if run > 1 else ""
                            files = heard(range(at - run + 1, at + 1))
                            raise _diverged(f"{what}{many}{f' (heard: {files})' if files else ''}", at - run, begin)
                    if skipped and jax.process_index() == 0:
                        warnings.warn(
                            f"{skipped} of the {len(window)} steps up to {step} had a loss or gradient that is not "
                            f"finite and changed nothing",
                            stacklevel=2,
                        )
                    window, since = [], time.perf_counter()
                before = time.perf_counter()
                if save_due or due:
                    _check_weights(state, step, begin)
                if save_due:
                    saved = step  # or cannot be: then it is not tried again
                    save(state)
                for event in due:
                    found = event.call(state, values)
                    if isinstance(found, Mapping):
                        values |= found
                        write({"step": step, **found})
                if save_due and over is None and enough(step, values):
                    steps = step
                since += time.perf_counter() - before  # saving and what else is due are not training time
                over = caught(step) if alone else over  # a signal may have come meanwhile
        except BaseException as error:  # no finished step is lost, unless the state is what broke, or others save too
            broken = isinstance(error, TrainingError | MemoryError | jax.errors.JaxRuntimeError)
            if alone and not broken and not any(x.is_deleted() for x in jax.tree.leaves(state)):
                with contextlib.suppress(Exception):
                    if int(state.step) > saved and math.isfinite(_square(state)):
                        save(state)
            raise
        if saved != step:
            _check_weights(state, step, begin)
            save(state)
    return state, over


def _not_finite(metrics: Mapping[str, Any]) -> str | None:
    """The first metric that is not finite, the loss before others, None where the step counts."""
    return next((name for name in ("loss", *metrics) if not np.isfinite(metrics[name]).all()), None)


def _means(window: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every metric but the number of skipped steps: a float, or as many as it has."""
    names = [name for name in (window[0] if window else ()) if name != "skipped"]
    return {name: np.asarray(sum(m[name] for m in window) / len(window), np.float64).tolist() for name in names}


_scalars = jax.jit(lambda params: tuple(block_norms(params)))  # which every process has, wherever the parameters are


def _norms(params: Any, gradients: Sequence[float] | None) -> dict[str, dict[str, float]]:
    """The norms of blocks by name, of parameters and, where the method says them, of gradients, to four digits."""
    names = block_names(params)
    found = {"parameter_norms": jax.device_get(_scalars(params))}
    if gradients is not None and len(gradients) == len(names):
        found["gradient_norms"] = gradients
    return {kind: {n: float(f"{x:.4g}") for n, x in zip(names, of, strict=True)} for kind, of in found.items()}


@jax.jit
def _square(state: TrainState) -> jax.Array:
    """The sum of all squared weights in float32: not finite either where weights are too large to be of any use."""
    weights = jax.tree.leaves((state.params, state.average, state.profiles))
    numbers = [jnp.abs(x).astype(jnp.float32) for x in weights if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.asarray(sum(jnp.sum(x**2) for x in numbers))


def _check_weights(state: TrainState, step: int, begin: int) -> None:
    square = float(_square(state))
    if not math.isfinite(square):
        raise _diverged(f"the sum of the squared weights is {square} after step {step}", step, begin)


def _diverged(what: str, updates: int, begin: int) -> TrainingError:
    """What can be done depends on whether one of the updates, begun after `begin`, made the weights that failed."""
    if updates > begin:
        advice = "run again with a lower learning rate, training goes on from the last checkpoint (if there is one)"
    elif begin:
        advice = f"the checkpoint of step {begin} cannot be trained on, remove it to go on from the one before, or anew"
    else:
        advice = "before any update, so look for its reason in the sounds, the normalisation or the network"
    return TrainingError(f"{what}; {advice}")


@contextlib.contextmanager
def _log(path: Path | None, step: int) -> Iterator[Callable[[dict], None]]:
    """Appends rows to a file of JSON lines, after those up to `step`: later ones are done again and are cut off.

    Rows that cannot be written, as on a full disk, are warned of once and written with a later one.
    """
    if path is None:
        yield lambda row: None
        return

    def stays(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):  # a line that was not written to its end
            return False

    there = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept = "".join(f"{line}\n" for line in there.splitlines() if stays(line))
    if kept != there:
        with atomic(path) as temporary:
            temporary.write_text(kept, encoding="utf-8")
    waiting, told = b"", False
    with path.open("ab", buffering=0) as file:

        def write(row: dict) -> None:
            nonlocal waiting, told
            waiting += f"{json.dumps(row)}\n".encode()
            try:
                while waiting:
                    waiting = waiting[file.write(waiting) :]
            except OSError as error:
                if not told:
                    warnings.warn(f"{path}: cannot be written ({error.strerror}); training goes on", stacklevel=2)
                told = True

        yield write


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], int | None]]:
    """What says after each step whether SIGINT or SIGTERM came, collected instead of dying of them; a second SIGINT
    interrupts as usual. Off the main thread, where Python allows no handlers, signals do what they did before.

    Of several processes jax itself catches SIGTERM, and they agree on a step that none of them has begun; a SIGINT is
    passed on as one.
    """
    caught: list[int] = []
    several = jax.process_count() > 1

    def note(number: int, _frame) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            caught.append(number)

    def agreed(step: int) -> int | None:
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None

    main = threading.current_thread() is threading.main_thread()
    mine = [signal.SIGINT] if several else [signal.SIGINT, signal.SIGTERM]
    before = {s: signal.signal(s, note) for s in mine} if main else {}
    try:
        yield agreed if several else lambda step: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress(step: int, steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A progress bar on a terminal; elsewhere a line for every tenth of the run. One of several processes shows it."""
    console = Console(stderr=True, quiet=jax.process_index() > 0)
    columns = (TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("compiling", total=steps, completed=step)
        shown, begin = step, None  # the rate behind "left" is counted from the first report, after compilation

        def show(step: int, row: dict[str, float]) -> None:
            nonlocal shown, begin
            begin = begin or (time.perf_counter(), step)
            text = f"loss {row.get('loss', math.nan):.4f}  {row['steps_per_s']:.2f} steps/s  "
            text += f"{row['audio_s_per_s']:.1f} audio-s/s"
            text += f"  learning rate {row['learning_rate']:.1e}" if "learning_rate" in row else ""
            progress.update(bar, completed=step, description=text)
            if not console.is_terminal and (step - shown >= steps / 10 or step == steps):
                rate = (step - begin[1]) / max(time.perf_counter() - begin[0], 1e-9)
                left = f"{(steps - step) / rate:.0f} s left" if rate else ""
                console.print(f"step {step}/{steps}  {text}  {left}", highlight=False, soft_wrap=True)
                shown = step

        yield show
