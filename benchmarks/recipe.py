"""Make a model again: run the commands in the header of its configuration, in order.

    python benchmarks/recipe.py NAME [--only fetch train export score] [--workdir DIR] [--set FOLDER=PATH] [--dry-run]

NAME stands for configs/NAME.yaml. Of the comment at its beginning, a line of `#`, three spaces and `python ` or
`jaxdiff ` is a command, which a backslash at its end continues on the next line; what begins otherwise, such as a
variant with a variable before it, is for people. No shell reads them. A word in capitals (FOLDER, FILES) is to be given
with --set. Every command is a step of one of four kinds:

    fetch   python benchmarks/fetch_*.py               export   jaxdiff export, python benchmarks/ship.py
    train   jaxdiff train                              score    all others

They run in DIR (this repository), so that data/, runs/ and out/ are there; scripts and configurations are always this
repository's. DIR/runs/NAME.recipe.json keeps which commands are done: the same call again goes on with the first that
is not, and trainings resume where they stopped. What follows a command that ran counts as not done. --only runs steps
of these kinds, done before or not. A command that fails, or Ctrl-C, ends the recipe with that command's exit code.
"""

import argparse
import difflib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("fetch", "train", "export", "score")


class RecipeError(ValueError):
    """A recipe that cannot be run; one sentence: what, expected, got, what to do."""


class Step(NamedTuple):
    """A command of a header, as words."""

    kind: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    def blanks(self) -> list[str]:
        """The words that are to be given."""
        return [word for word in self.words if re.fullmatch("[A-Z]+", word)]

    def command(self) -> list[str]:
        """What to start: this Python, and the files of this repository by their whole path."""
        program = [sys.executable, *(["-m", "jaxdiff"] if self.words[0] == "jaxdiff" else [])]
        own = re.compile(r"(?:benchmarks|configs)/.+")
        return program + [str(ROOT / word) if own.fullmatch(word) else word for word in self.words[1:]]


def steps(text: str) -> list[Step]:
    """The commands in the comment with which a configuration begins; raises RecipeError where one has no end."""
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    lines = re.sub(r"\\\n#\s*", "", header).splitlines()  # continued lines are one
    found = []
    for line in lines:
        match = re.match(r"#   ((?:python|jaxdiff) +\S.*)", line)
        if match is None:
            continue
        try:
            words = tuple(shlex.split(match[1]))
        except ValueError as error:
            raise RecipeError(f"{match[1]}: cannot be read as a command ({error})") from None
        found.append(Step(_kind(words), words))
    return found


def _kind(words: tuple[str, ...]) -> str:
    if words[0] == "jaxdiff":
        return words[1] if words[1] in ("train", "export") else "score"
    script = Path(words[1]).name
    return "fetch" if script.startswith("fetch_") else "export" if script == "ship.py" else "score"


def recipe(name: str, given: dict[str, str]) -> list[Step]:
    """The steps of a configuration with what is given in place of words in capitals; raises RecipeError."""
    path = ROOT / "configs" / f"{name}.yaml"
    names = sorted(p.stem for p in path.parent.glob("*.yaml"))
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise RecipeError(f"{name}: is no configuration in configs; {hint}")
    found = steps(path.read_text(encoding="utf-8"))
    if not found:
        raise RecipeError(f"configs/{name}.yaml: its header has no line of '#   python ...' or '#   jaxdiff ...'")
    unused = set(given) - {word for step in found for word in step.blanks()}
    if unused:
        raise RecipeError(f"--set {min(unused)}: no command of configs/{name}.yaml has this word")
    filled = [step._replace(words=tuple(given.get(word, word) for word in step.words)) for step in found]
    for step in filled:
        script = ROOT / step.words[1]
        if step.words[0] == "python" and not script.is_file():
            raise RecipeError(f"configs/{name}.yaml: {step.words[1]} is not in this repository; correct the header")
    return filled


def run(step: Step, workdir: Path) -> int:
    """Run a command and return its exit code, 128 and more for one that a signal ended.

    Ctrl-C reaches the command as well, and SIGTERM is passed on: it saves what it has and says so with its code.
    """
    process = subprocess.Popen(step.command(), cwd=workdir)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def follow(name: str, todo: list[Step], workdir: Path, only: list[str] | None) -> int:
    """Run what is not done yet, or the kinds in `only`; print the time of each step; the exit code."""
    path = workdir / "runs" / f"{name}.recipe.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        done: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise RecipeError(f"{path}: cannot be read as JSON; delete it, and all steps are run again") from None
    for number, step in enumerate(todo, 1):
        title = f"step {number} of {len(todo)}, {step.kind}"
        if only is not None and step.kind not in only:
            continue
        if only is None and step.text in done:
            print(f"{title}: done before in {done[step.text]:.0f} s: {step.text}", flush=True)
            continue
        print(f"{title}: {step.text}", flush=True)
        undone = {later.text for later in todo[number - 1 :]}
        _keep(path, done := {text: seconds for text, seconds in done.items() if text not in undone})
        start = time.perf_counter()
        code = run(step, workdir)
        seconds = time.perf_counter() - start
        if code:
            print(f"recipe: {title}, ended with exit code {code} after {seconds:.0f} s; the same call goes on there: "
                  f"{step.text}", file=sys.stderr)  # fmt: skip
            return code
        _keep(path, done := {**done, step.text: seconds})
        print(f"{title}: {seconds:.0f} s", flush=True)
    return 0


def _keep(path: Path, done: dict[str, float]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(done, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="of a file in configs, without .yaml")
    parser.add_argument("--only", nargs="+", choices=KINDS, help="run these steps alone, done before or not")
    parser.add_argument("--workdir", type=Path, default=ROOT, help="where data, runs and results are")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="WORD=VALUE", help="words in capitals")
    parser.add_argument("--dry-run", action="store_true", help="print the steps")
    arguments = parser.parse_args(argv)
    try:
        given = dict(pair.split("=", 1) for pair in arguments.set if "=" in pair)
        if len(given) < len(arguments.set):
            raise RecipeError("--set takes WORD=VALUE, each word once, as --set FOLDER=data/speech")
        todo = recipe(arguments.name, given)
        chosen = [step for step in todo if arguments.only is None or step.kind in arguments.only]
        if arguments.only and not chosen:
            raise RecipeError(f"--only {' '.join(arguments.only)}: {arguments.name} has no such step")
        if arguments.dry_run:
            for step in chosen:
                print(f"{step.kind:7s} {step.text}")
            return 0
        blank = next((word for step in chosen for word in step.blanks()), None)
        if blank is not None:
            raise RecipeError(f"{arguments.name}: a command needs {blank}; give it as --set {blank}=...")
        return follow(arguments.name, todo, arguments.workdir.resolve(), arguments.only)
    except RecipeError as error:
        print(f"recipe: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
