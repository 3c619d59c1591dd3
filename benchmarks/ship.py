"""Put a trained model among those that ship with the package, jaxdiff/weights/NAME.

    python benchmarks/ship.py MODEL NAME [--half] [--ema WIDTH]

MODEL is the folder of a run, or an exported file. The weights (with --half as float16; with --ema averaged afterwards
over this relative width) and config.yaml are written anew, SHA256SUMS is brought up to date, and where the model has no
card yet it gets an empty one to fill in. More than 8 MiB are refused, and what shipped before stays.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import jaxdiff
from jaxdiff import shipped
from jaxdiff.config import to_yaml
from jaxdiff.data.files import atomic


def ship(model: str | Path, name: str, *, half: bool = False, ema: float | None = None) -> Path:
    """The folder of the shipped model; raises ValueError where its weights are too large, and as `load` does."""
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"{name!r}: is no name for a shipped model; use letters, digits and hyphens, as denoise-16k")
    pipeline, folder = jaxdiff.load(model, ema=ema), shipped.FOLDER / name
    with tempfile.TemporaryDirectory() as temporary:
        file = jaxdiff.export(pipeline, Path(temporary) / shipped.WEIGHTS, half=half)
        size = file.stat().st_size
        if size > shipped.LARGEST:
            limit, advice = f"{shipped.LARGEST / 2**20:g} MiB", "a smaller network" if half else "--half"
            raise ValueError(f"{name}: {size / 2**20:.2f} MiB of weights, at most {limit} ship; use {advice}")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / shipped.WEIGHTS) as target:
            shutil.copyfile(file, target)
    with atomic(folder / shipped.CONFIG) as target:
        target.write_text(to_yaml(pipeline.config), encoding="utf-8")
    if not (folder / shipped.CARD).exists():
        shutil.copyfile(shipped.TEMPLATE, folder / shipped.CARD)
    with atomic(shipped.FOLDER / shipped.SUMS) as target:
        lines = [f"{shipped.sha256(known)}  {known}/{shipped.WEIGHTS}\n" for known in shipped.names()]
        target.write_text("".join(lines), encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("name")
    parser.add_argument("--half", action="store_true", help="store float16")
    parser.add_argument("--ema", type=float, metavar="WIDTH", help="of runs with train.posthoc_ema, 0.04 to 0.2")
    arguments = parser.parse_args()
    try:
        folder = ship(arguments.model, arguments.name, half=arguments.half, ema=arguments.ema)
    except ValueError as error:  # which the package's errors are
        print(f"ship: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{folder}: {(folder / shipped.WEIGHTS).stat().st_size / 2**20:.2f} MiB")
    try:
        shipped.describe(arguments.name)
    except shipped.CardError as error:
        print(f"still to do: {error}")


if __name__ == "__main__":
    main()
