"""jaxdiff: audio diffusion for JAX. Features, networks, diffusion, training and sampling as compiled pure functions.

Importing this module is cheap: the parts below, and jax with them, are imported when they are first used.

    pipeline = jaxdiff.load("runs/quickstart")
    wave = pipeline.generate(count=4, label="kick", seed=1)        # [4, samples] at pipeline.sample_rate
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import data as data
    from . import diffusion as diffusion
    from . import evaluation as evaluation
    from . import features as features
    from . import networks as networks
    from . import tasks as tasks
    from . import training as training
    from .pipeline import Pipeline as Pipeline
    from .pipeline import load as load

_MODULES = ("data", "diffusion", "evaluation", "features", "networks", "tasks", "training")


def __getattr__(name: str):
    if name in ("Pipeline", "load"):
        return getattr(importlib.import_module(".pipeline", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_MODULES, "Pipeline", "load", "__version__"])
