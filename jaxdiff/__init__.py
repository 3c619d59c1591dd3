"""jaxdiff: audio diffusion for JAX. Features, networks, diffusion, training and sampling as compiled pure functions.

Importing this module is cheap: the parts below, and jax with them, are imported when they are first used.

    pipeline = jaxdiff.load("runs/quickstart")
    waves = pipeline(count=4, labels="kick", seed=1).waves        # 4 arrays [samples] at pipeline.sample_rate
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import data as data
    from . import diffusion as diffusion
    from . import evaluation as evaluation
    from . import features as features
    from . import inference as inference
    from . import methods as methods
    from . import networks as networks
    from . import tasks as tasks
    from . import training as training
    from .inference import Pipeline as Pipeline
    from .inference import export as export
    from .inference import load as load
    from .methods import Model as Model
    from .run import train as train

_MODULES = (
    "data", "diffusion", "evaluation", "features", "inference", "methods", "networks", "tasks", "training"
)  # fmt: skip
_NAMES = {"Pipeline": "inference", "export": "inference", "load": "inference", "Model": "methods", "train": "run"}


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_MODULES, *_NAMES, "__version__"])
