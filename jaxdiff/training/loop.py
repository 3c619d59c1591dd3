"""The training loop, top to bottom: take a batch, step, and now and then log, sample and save.

The loop sees built objects only. Metrics stay on the device until they are logged, so the host runs ahead of it. SIGINT
and SIGTERM end the loop after the current step: the state is saved before `train` returns.
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
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
    log_path: Path | None = None,
    log_every: int = 20,
    save_every: int = 1000,
    events: Sequence[Every] = (),
) -> tuple[TrainState, int | None]:
    """Train up to step `steps`; returns the last state, saved, and the signal that ended training early (or None).

    `batches` yields device batches from `state.step` on; `seconds_per_step` is the audio in one. Intervals are in
    steps, 0 means never. Raises TrainingError when the loss is not finite; the last saved state is then intact.
    """
    step, saved, window, values = int(state.step), None, [], {}
    with _signals() as caught, _progress(step, steps) as show, _log(log_path) as write:
        begin = time.perf_counter()
        while step < steps and not caught:
            state, metrics = train_step(state, next(batches))
            step += 1
            window.append(metrics)
            save_due = step == steps or bool(caught) or (save_every > 0 and step % save_every == 0)
            due = [event for event in events if event.steps and step % event.steps == 0]
            if (log_every and step % log_every == 0) or save_due or due:  # a loss is seen before its state is saved
                values = _mean(window)
                rate = len(window) / (time.perf_counter() - begin)
                row = {"step": step, **values, "steps_per_s": rate, "audio_s_per_s": rate * seconds_per_step}
                write(row)
                show(step, row)
                if not math.isfinite(values["loss"]):
                    raise TrainingError(
                        f"the loss is {values['loss']} at step {step}; lower train.learning_rate and run again, "
                        f"training resumes from the last checkpoint"
                    )
                window, begin = [], time.perf_counter()
            before = time.perf_counter()
            if save_due:
                save(state)
                saved = step
            for event in due:
                event.call(state, values)
            begin += time.perf_counter() - before  # saving and what else is due are not training time
        if saved != step:
            save(state)
    return state, caught[0] if caught else None


@contextlib.contextmanager
def _log(path: Path | None) -> Iterator[Callable[[dict], None]]:
    """Appends rows to a file of JSON lines."""
    if path is None:
        yield lambda row: None
        return
    with path.open("a", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(row), file=file, flush=True)


def _mean(window: list[dict[str, Any]]) -> dict[str, float]:
    window = jax.device_get(window)
    return {name: float(sum(m[name] for m in window) / len(window)) for name in window[0]}


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
            progress.update(bar, completed=step, description=text)
            if not console.is_terminal and (step - shown >= steps / 10 or step == steps):
                rate = (step - begin[1]) / max(time.perf_counter() - begin[0], 1e-9)
                left = f"{(steps - step) / rate:.0f} s left" if rate else ""
                console.print(f"step {step}/{steps}  {text}  {left}", highlight=False, soft_wrap=True)
                shown = step

        yield show
