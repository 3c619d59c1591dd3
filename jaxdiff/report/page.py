"""The page of a run: what it is, its curves, its sounds with their spectrograms, bad files and the configuration.

The page needs no other file and no network. Sounds and pictures are in it, up to a size: of too many previews the
newest stays, then the first, then those between them, evenly.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import yaml

from jaxdiff import pages

from .curves import Marks, blocks, curve, finite, smooth
from .read import NORMS, Run, Series, Sound

REJECTED = 200  # bad files that are listed
BLOCKS = 200  # blocks that are drawn
OTHERS = 40  # curves of numbers that only some methods log
_KNOWN = ("loss", "validation", "learning_rate", "gradient_norm", "steps_per_s", "audio_s_per_s", "skipped")
_STYLE = """
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 1.5rem; }
.sounds { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
.sounds figure { margin: 0; }
.sounds img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
.sounds audio { display: block; width: 100%; height: 2.2rem; margin-top: 0.3rem; }
.about td { white-space: normal; text-align: left; }
pre { background: var(--band); padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.85rem; line-height: 1.4; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
"""


class Page(NamedTuple):
    """The page, the number of sounds in it, and what its reader is told first."""

    html: str
    sounds: int
    notes: list[str]


def report_page(run: Run, megabytes: float) -> Page:
    """The page of a run, with at most so many megabytes of sounds and pictures."""
    chosen, left_out = _chosen(run.previews, megabytes * 1e6)
    notes = _notes(run, left_out, megabytes)
    starts = run.starts
    marks = Marks([s["step"] for s in starts[1:] if _is_number(s.get("step"))], _skipped(run))
    sections = (
        _about_section(run),
        _curves_section(run, marks),
        _blocks_section(run, marks),
        _sounds_section(chosen),
        _starts_section(run),
        _rejected_section(run),
        _config_section(run),
    )
    title = f"Run {run.folder.resolve().name}"
    body = pages.heads(_heads(run)) + pages.notes(notes) + "\n".join(section for section in sections if section)
    shown = sum(len(sounds) for sounds in chosen.values())
    return Page(pages.page(title, body, style=_STYLE, sounds=True), shown, notes)


# What is said -------------------------------------------------------------------------------------------------------


def state(run: Run) -> str:
    """Whether training goes on, has finished, or how it stopped."""
    last = run.history[-1] if run.history else {}
    if run.running:
        return "running"
    if last.get("event") == "end":
        return str(last.get("how", "stopped"))
    if last.get("event") == "start":
        return "stopped without a word, as a process that is killed does"
    target = _target(run)
    return "finished" if target and run.step >= target else "stopped" if run.step else "not begun"


def _target(run: Run) -> int | None:
    """The number of steps that training is to take."""
    for steps in (*(start.get("steps") for start in run.starts[-1:]), _tree(run, "train").get("steps")):
        if isinstance(steps, int):
            return steps
    return None


def _heads(run: Run) -> list[tuple[str, str]]:
    target, heads = _target(run), []
    short = state(run).partition(":")[0].partition(",")[0]
    heads.append((short, "state"))
    heads.append((f"{run.step:,}" + (f" of {target:,}" if target else ""), "steps"))
    if "loss" in run.numbers and len(y := finite(run.numbers["loss"])[1]):
        heads.append((f"{smooth(y)[-1]:.4g}", "loss of late"))
    if "validation" in run.numbers and len(y := finite(run.numbers["validation"])[1]):
        heads.append((f"{y[-1]:.4g}", "validation loss"))
    if (seconds := _trained_seconds(run)) is not None:
        heads.append((_duration(seconds), "of training"))
    return heads


def _notes(run: Run, left_out: tuple[int, int], megabytes: float) -> list[str]:
    notes = []
    if not run.numbers:
        notes.append("Nothing is logged yet: the first numbers come after train.log_every steps.")
    if run.damaged:
        notes.append(f"{_count(run.damaged, 'line')} of the log could not be read and {_are(run.damaged)} left out.")
    for name, series in run.numbers.items():
        lost = len(series.values) - len(finite(series)[1])
        if lost and "/" not in name:
            notes.append(f"{_count(lost, 'value')} of {name} {_are(lost)} not finite and left out of the curves.")
    if skipped := sum(finite(run.numbers["skipped"])[1]) if "skipped" in run.numbers else 0:
        notes.append(f"{_count(int(skipped), 'step')} had a loss or gradient that is not finite and changed nothing.")
    if left_out[0]:
        notes.append(
            f"{left_out[0]} of {left_out[1]} sounds are left out: the page holds {megabytes:g} MB of sounds and "
            f"pictures at most (--megabytes)."
        )
    return notes


def _about_section(run: Run) -> str:
    last = run.starts[-1] if run.starts else {}
    kinds = {name: _tree(run, name).get("kind") for name in ("task", "representation", "network", "method")}
    kinds = {name: kind or last.get(name) for name, kind in kinds.items()}
    train, data = _tree(run, "train"), _tree(run, "data")
    batch, seconds = last.get("batch", train.get("batch")), last.get("seconds", data.get("seconds"))
    parameters = f"{last['parameters']:,}" if _is_number(last.get("parameters")) else None
    if parameters and _is_number(last.get("trained")):
        parameters += f", of which {last['trained']:,} numbers are trained"
    device = last.get("devices")
    if device:
        many = f" in {last.get('processes')} processes" if last.get("processes") != 1 else ""
        device = f"{device}{many} ({last.get('device')}), {last.get('cores')} CPU cores"
    versions = [f"{name} {last[name]}" for name in ("jaxdiff", "jax", "python") if name in last]
    best = run.best
    rows = {
        "state": state(run),
        "folder": str(run.folder),
        "data": data.get("path"),
        **kinds,
        "parameters": parameters,
        "batch": f"{batch} crops of {seconds:.3g} s" if _is_number(seconds) else batch,
        "seed": last.get("seed", train.get("seed")),
        "device": device,
        "versions": ", ".join(versions) or None,
        "started": _time(run.starts[0].get("time")) if run.starts else None,
        "best checkpoint": f"step {best['step']}, {best['metric']} {best.get('value')}" if _is_best(best) else None,
    }
    cells = "".join(
        f'<tr><td class="text">{pages.text(name)}</td><td>{pages.text(str(value))}</td></tr>'
        for name, value in rows.items()
        if value is not None
    )
    return pages.section("What it is", f'<div class="table about"><table><tbody>{cells}</tbody></table></div>')


def _starts_section(run: Run) -> str:
    """Every start and how it ended, where there is more than one."""
    if len(run.starts) < 2:
        return ""
    rows, marked = [], []
    for i, row in enumerate(run.history):
        if row.get("event") != "start":
            continue
        after = run.history[i + 1] if i + 1 < len(run.history) else {}
        if after.get("event") == "end":
            how = str(after.get("how", "stopped"))
        else:
            how = "running" if i + 1 == len(run.history) and run.running else "stopped without a word"
        rows.append(
            [
                _time(row.get("time")) or "–",
                how,
                str(row.get("step", "–")),
                str(row.get("devices", "–")),
                f"{row.get('jaxdiff', '–')}, {row.get('jax', '–')}",
            ]
        )
        marked.append(how not in ("running", "finished"))
    columns = ["Began", "Ended", "At step", "Devices", "jaxdiff, jax"]
    return pages.section("Starts", pages.table(columns, rows, texts=2, marked=marked))


# What is drawn ------------------------------------------------------------------------------------------------------


def _curves_section(run: Run, marks: Marks) -> str:
    numbers = run.numbers
    if not numbers:
        return ""
    loss = numbers.get("loss", Series(*(type(next(iter(numbers.values())).steps)("d") for _ in range(2))))
    others = {"validation": numbers["validation"]} if "validation" in numbers else {}
    drawn = [curve("loss", loss, marks, others=others), '<div class="halves">']
    if "learning_rate" in numbers:
        drawn.append(curve("learning rate", numbers["learning_rate"], marks, smoothing=False, zero=True))
    if "gradient_norm" in numbers:
        drawn.append(curve("gradient norm", numbers["gradient_norm"], marks))
    if "steps_per_s" in numbers:
        drawn.append(curve("steps per second", numbers["steps_per_s"], marks, zero=True))
    more = [name for name in numbers if name not in _KNOWN and "/" not in name][:OTHERS]
    drawn += [curve(name.replace("_", " "), numbers[name], marks) for name in more]
    return pages.section("Curves", "".join(drawn) + "</div>")


def _blocks_section(run: Run, marks: Marks) -> str:
    """Norms of the blocks of the network: a map over steps each, and a table."""
    found = {
        kind: {name.partition("/")[2]: of for name, of in run.numbers.items() if name.startswith(f"{kind}/")}
        for kind in NORMS
    }
    gradients, parameters = (dict([*found[kind].items()][:BLOCKS]) for kind in NORMS)
    if not parameters:
        return ""
    body = ""
    if gradients:
        body += blocks("Norm of the gradient", "Norm of the gradient of each block.", gradients, marks)
    body += blocks("Norm of the parameters", "Norm of the parameters of each block.", parameters, marks)
    rows = [
        [name, *(_end(parameters[name], at) for at in (0, -1)), *(_end(gradients.get(name), at) for at in (0, -1))]
        for name in parameters
    ]
    columns = ["Block", "Parameters at first", "Parameters now", "Gradient at first", "Gradient now"]
    body += f"<details><summary>Numbers</summary>{pages.table(columns, rows)}</details>"
    return pages.section("Blocks", body)


def _end(series: Series | None, at: int) -> str:
    values = [] if series is None else finite(series)[1]
    return f"{values[at]:.4g}" if len(values) else "–"


def _sounds_section(chosen: Mapping[int, Sequence[Sound]]) -> str:
    if not chosen:
        return ""
    body = ""
    for step, sounds in sorted(chosen.items()):
        figures = "".join(map(_player, sounds))
        body += f'<h3>Step {step:,}</h3><div class="sounds">{figures}</div>'
    return pages.section("Sounds on the way", body)


def _player(sound: Sound) -> str:
    """A sound to play below its spectrogram."""
    name, image = pages.text(sound.name), ""
    if sound.picture is not None:
        image = f'<img alt="spectrogram of {name}" src="{_data(sound.picture.read_bytes(), "image/png")}">'
    wave = _data(sound.wave.read_bytes(), "audio/wav")
    return f'<figure>{image}<audio controls src="{wave}"></audio><figcaption>{name}</figcaption></figure>'


def _data(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _chosen(previews: Mapping[int, Sequence[Sound]], most: float) -> tuple[dict[int, list[Sound]], tuple[int, int]]:
    """The sounds by step that fit into so many bytes of a page, and how many of how many do not."""
    chosen: dict[int, list[Sound]] = {}
    steps = sorted(previews)
    for index in _spread(len(steps)):
        for sound in previews[steps[index]]:
            size = 4 / 3 * sum(path.stat().st_size for path in (sound.wave, sound.picture) if path is not None)
            if size <= most:
                most -= size
                chosen.setdefault(steps[index], []).append(sound)
    whole = sum(map(len, previews.values()))
    return chosen, (whole - sum(map(len, chosen.values())), whole)


def _spread(count: int) -> Iterator[int]:
    """All of 0 to count - 1: the last, the first, the one in the middle, and then those in the middle of gaps."""
    yield from {count - 1: None, 0: None} if count else ()
    gaps = [(0, count - 1)]
    while gaps:
        gaps = [gap for gap in gaps if gap[1] - gap[0] > 1]
        halves = [(low, (low + high) // 2, high) for low, high in gaps]
        yield from (middle for _, middle, _ in halves)
        gaps = [gap for low, middle, high in halves for gap in ((low, middle), (middle, high))]


def _rejected_section(run: Run) -> str:
    if not run.rejected:
        return ""
    shown = "".join(f"<li>{pages.text(line)}</li>" for line in run.rejected[:REJECTED])
    more = "<p>The others are in rejected.txt.</p>" if len(run.rejected) > REJECTED else ""
    count = _count(len(run.rejected), "file")
    body = f"<details><summary>{count} cannot be used</summary><ul>{shown}</ul>{more}</details>"
    return pages.section("Bad files", body)


def _config_section(run: Run) -> str:
    if not run.config:
        return ""
    lines = "\n".join(map(pages.text, run.config.splitlines()))
    return pages.section("Configuration", f"<pre>{lines}</pre>")


# Words and numbers --------------------------------------------------------------------------------------------------


def _tree(run: Run, name: str) -> dict[str, Any]:
    """A part of the configuration; empty where there is none, or it is no YAML."""
    try:
        tree = yaml.safe_load(run.config)
    except (yaml.YAMLError, RecursionError):
        return {}
    part = tree.get(name) if isinstance(tree, dict) else None
    return part if isinstance(part, dict) else {}


def _skipped(run: Run) -> list[float]:
    """The steps of rows that tell of skipped steps."""
    series = run.numbers.get("skipped")
    return [] if series is None else [step for step, many in zip(*series, strict=True) if many > 0]


def _trained_seconds(run: Run) -> float | None:
    """The time between starts and ends, as far as both are known."""
    total, begun, known = 0.0, None, False
    for row in run.history:
        if not _is_number(row.get("time")):
            continue
        if row["event"] == "start":
            begun = row["time"]
        elif begun is not None:
            total, begun, known = total + row["time"] - begun, None, True
    if begun is not None and run.running:
        total, known = total + datetime.now(UTC).timestamp() - begun, True
    return total if known else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_best(best: Mapping[str, Any]) -> bool:
    return {"step", "metric"} <= best.keys()


def _time(seconds: Any) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
