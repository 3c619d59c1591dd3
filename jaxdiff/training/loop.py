"""The training loop, top to bottom: take a batch, step, and now and then log, sample and save.

The loop sees built objects only. Metrics stay on the device until they are logged, so the host runs ahead of it. SIGINT
and SIGTERM end the loop after the current step: the state is saved before `train` returns, and also when an error ends
it. What is saved is finite: a loss judges the weights before its update, so the weights are looked at themselves.
"""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdiff.data.files import atomic

from .state import TrainState


class Every(NamedTuple):
    """`call(state, metrics)` every so many steps (0: never), with the means of what was logged last."""

    steps: int
    call: Callable[[TrainState, dict[str, float]], Any]


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
    log_path: Path | None = None,
    log_every: int = 20,
    save_every: int = 1000,
    events: Sequence[Every] = (),
) -> tuple[TrainState, int | None]:
    """Train up to step `steps`; returns the last state, saved, and the signal that ended training early (or None).

    `batches` yields device batches from `state.step` on; `seconds_per_step` is the audio in one and `learning_rate` the
    rate after so many updates, both to be logged. Intervals are in steps, 0 means never. At the same step a state is
    saved before `events` see it. Raises TrainingError when the loss or the weights are not finite; the last saved state
    is then intact.
    """
    begin = step = saved = int(state.step)
    window, values = [], {}
    with _signals() as caught, _progress(step, steps) as show, _log(log_path, step) as write:
        since = time.perf_counter()
        try:
            while step < steps and not caught:
                state, metrics = train_step(state, next(batches))
                step += 1
                window.append(metrics)
                save_due = step == steps or bool(caught) or (save_every > 0 and step % save_every == 0)
                due = [event for event in events if event.steps and step % event.steps == 0]
                if (log_every and step % log_every == 0) or save_due or due:  # a loss is seen before its state is saved
                    window = jax.device_get(window)
                    values = {name: float(sum(m[name] for m in window) / len(window)) for name in metrics}
                    if learning_rate is not None:
                        values["learning_rate"] = float(learning_rate(step - 1))
                    rate = len(window) / (time.perf_counter() - since)
                    row = {"step": step, **values, "steps_per_s": rate, "audio_s_per_s": rate * seconds_per_step}
                    write(row)
                    show(step, row)
                    for at, logged in enumerate(window, step - len(window) + 1):
                        if not math.isfinite(logged["loss"]):
                            raise _diverged(f"the loss is {logged['loss']} at step {at}", at - 1, begin)
                    window, since = [], time.perf_counter()
                before = time.perf_counter()
                if save_due or due:
                    _check_weights(state, step, begin)
                if save_due:
                    saved = step  # or cannot be: then it is not tried again
                    save(state)
                for event in due:
                    event.call(state, values)
                since += time.perf_counter() - before  # saving and what else is due are not training time
        except BaseException as error:  # no finished step is lost, unless the state itself is what broke
            broken = isinstance(error, TrainingError | MemoryError | jax.errors.JaxRuntimeError)
            if not broken and not any(x.is_deleted() for x in jax.tree.leaves(state)):
                with contextlib.suppress(Exception):
                    if int(state.step) > saved and math.isfinite(_square(state)):
                        save(state)
            raise
        if saved != step:
            _check_weights(state, step, begin)
            save(state)
    return state, caught[0] if caught else None


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
    """Appends rows to a file of JSON lines, after those up to `step`: later ones are done again and are cut off."""
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
    with path.open("ab", buffering=0) as file:

        def write(row: dict) -> None:
            try:
                file.write(f"{json.dumps(row)}\n".encode())
            except OSError as error:
                error.filename = str(path)
                raise

        yield write


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying; a second SIGINT interrupts as usual. Off the main thread, where
    Python allows no handlers, signals do what they did before."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _frame) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress(step: int, steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A progress bar on a terminal; elsewhere a line for every tenth of the run."""
    console = Console(stderr=True)
    columns = (TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("compiling", total=steps, completed=step)
        shown, begin = step, None  # the rate behind "left" is counted from the first report, after compilation

        def show(step: int, row: dict[str, float]) -> None:
            nonlocal shown, begin
            begin = begin or (time.perf_counter(), step)
            text = f"loss {row['loss']:.4f}  {row['steps_per_s']:.2f} steps/s  {row['audio_s_per_s']:.1f} audio-s/s"
            text += f"  learning rate {row['learning_rate']:.1e}" if "learning_rate" in row else ""
            progress.update(bar, completed=step, description=text)
            if not console.is_terminal and (step - shown >= steps / 10 or step == steps):
                rate = (step - begin[1]) / max(time.perf_counter() - begin[0], 1e-9)
                left = f"{(steps - step) / rate:.0f} s left" if rate else ""
                console.print(f"step {step}/{steps}  {text}  {left}", highlight=False, soft_wrap=True)
                shown = step

        yield show
