"""Findings, which are the results of checks, and the diagnosis that follows from all of them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Verdict = Literal["good", "doubtful", "bad", "not looked at"]
ORDER: tuple[Verdict, ...] = ("not looked at", "good", "doubtful", "bad")


class Finding(NamedTuple):
    """One check: its name, verdict and measured value, and a sentence that says what it means and what to do."""

    name: str
    verdict: Verdict
    value: str
    sentence: str


CAUSES = {  # by the name of a finding, in the order in which one explains those behind it
    "configuration": "The configuration of the run cannot be used.",
    "checkpoint": "The newest checkpoint cannot be used.",
    "loss finite": "Training diverged.",
    "corpus": "The corpus cannot be used as it is.",
    "silent crops": "Much of the corpus is silent.",
    "clipped crops": "Much of the corpus is clipped.",
    "normalisation": "The features are not those that the network was trained on.",
    "representation": "The features lose the sound.",
    "gradients": "A part of the network does not learn.",
    "one batch": "The network does not learn at this learning rate.",
    "loss falls": "Training does not learn.",
    "input used": "The network does not see its input.",
    "time used": "The network does not see the noise level.",
    "average": "The samples are made with an average of the weights that has not caught up.",
    "loss": "The weights have learned next to nothing.",
    "export": "The exported file is not the run.",
    "sampling steps": "The sampler takes too few steps; the network is not at fault.",
    "answers": "The network has learned too little.",
    "samples": "The loss may fall and no other part is at fault, and yet the samples are not like the corpus.",
}


def judged(name: str, size: float, doubtful: float, bad: float, value: str, fine: str, todo: str) -> Finding:
    """A finding on a size of which `doubtful` and `bad` are the least that are so called; what is no number is bad."""
    if size < doubtful:
        return Finding(name, "good", value, fine)
    return Finding(name, "doubtful" if size < bad else "bad", value, todo)


def unseen(names: Sequence[str], why: str) -> list[Finding]:
    """Findings on what was not looked at."""
    return [Finding(name, "not looked at", "", why) for name in names]


def diagnosis(findings: Sequence[Finding]) -> str:
    """The first cause among what is bad, what to do, and what else is bad, which it may explain."""
    causes = list(CAUSES)
    bad = sorted((f for f in findings if f.verdict == "bad"), key=lambda finding: causes.index(finding.name))
    if bad:
        others = ", ".join(finding.name for finding in bad[1:])
        more = f" This may explain what else is bad: {others}." if others else ""
        return f"{CAUSES[bad[0].name]} {bad[0].sentence}{more}"
    doubtful = ", ".join(finding.name for finding in findings if finding.verdict == "doubtful")
    return f"Nothing is bad. Doubtful: {doubtful}." if doubtful else "Nothing is wrong in what was looked at."
