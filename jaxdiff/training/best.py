"""Which saved step is the best so far by a metric of the log, and whether training has gone on in vain for too long."""

import contextlib
import json
import math
from pathlib import Path

from jaxdiff.data.files import atomic


class Best:
    """The saved step at which `metric` was least, kept in a file so that a resumed training knows it.

    `step` is None before any. It is forgotten where it is after `begin`, at which training goes on, or of another
    metric.
    """

    def __init__(self, path: Path, metric: str, patience: int, begin: int):
        self.path, self.metric, self.patience = path, metric, patience
        self.step, self.value, self.since = None, math.inf, 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or of another's making
            there = json.loads(path.read_text(encoding="utf-8"))
            if there["metric"] == metric and there["step"] <= begin:
                self.step, self.value, self.since = int(there["step"]), float(there["value"]), int(there["since"])

    def judge(self, step: int, value: float) -> None:
        """Take the metric at a saved step into account."""
        if value < self.value:
            self.step, self.value, self.since = step, value, 0
        else:
            self.since += 1

    def write(self) -> None:
        """Keep it; raises OSError."""
        facts = {"metric": self.metric, "step": self.step, "value": self.value, "since": self.since}
        with atomic(self.path) as temporary:
            temporary.write_text(json.dumps(facts), encoding="utf-8")

    @property
    def in_vain(self) -> bool:
        """Whether `patience` saves in a row, where there is one, were no better."""
        return 0 < self.patience <= self.since
