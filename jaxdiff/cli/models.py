"""`jaxdiff models`: which models ship with the package, and the card of one. jax is not imported."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxdiff import shipped


@dataclass(frozen=True)
class Models:
    """List the models that ship with jaxdiff, or show the card of one: data, licences, figures, limits."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """the model whose card to show (all are listed)"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        names = shipped.names()
        if self.name is None:
            return _list(names)
        if self.name not in names:
            raise ValueError(f"{self.name}: is not the name of a shipped model; {shipped.unknown(self.name)}")
        shipped.describe(self.name)
        print((shipped.FOLDER / self.name / shipped.CARD).read_text(encoding="utf-8"), end="")
        return 0


def _list(names: tuple[str, ...]) -> int:
    """A table of what the models are and one of what they do; a model that cannot be read is reported: 1."""
    if not names:
        print("no models ship with this version of jaxdiff; jaxdiff train makes one")
        return 0
    found, bad = [], 0
    for name in names:
        try:
            found.append(shipped.describe(name))
        except shipped.CardError as error:
            bad += 1
            print(f"jaxdiff: error: {error}", file=sys.stderr)
    facts = Table("name", "task", "parameters", "size", "sample rate", "licence", box=None, pad_edge=False)
    about = Table("name", "what it does, what it reaches", box=None, pad_edge=False)
    for model in found:
        card, size, rate = model.card, f"{model.size / 2**20:.2f} MiB", f"{model.sample_rate} Hz"
        facts.add_row(model.name, card.task, f"{model.parameters:,}", size, rate, card.licence)
        about.add_row(model.name, f"{card.summary}\n{card.figures[0]}")
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(facts, "", about, sep="\n")
    return 1 if bad else 0
