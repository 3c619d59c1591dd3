"""Optimisers and learning rates by name, from optax: AdamW, Muon and schedule-free AdamW, gradients clipped to norm 1.

    cosine      warm-up, then down to zero along a half cosine      linear      warm-up, then down to zero along a line
    constant    warm-up, then no change                             wsd         warm-up, stable, then down along a line

Muon (Jordan et al. 2024) turns the momentum of a matrix into the nearest orthogonal one, at the size that AdamW's
updates have (Liu et al. 2025), so that both take the same learning rate; all that is no matrix is AdamW's.
Schedule-free AdamW (Defazio et al. 2024) takes gradients between its fast weights z and their average x, which replaces
a decay of the learning rate; x, not the weights that are trained, makes sound (`transfer.evaluated`).
"""

from typing import Any, Literal

import jax
import optax
from optax import contrib

OptimizerName = Literal["adamw", "muon", "schedule_free"]
RateName = Literal["cosine", "linear", "constant", "wsd"]

CLIP = 1.0  # the largest norm of a gradient
_MUON_RMS = 0.2  # of an entry of Muon's updates at a learning rate of 1, as AdamW's have it
# parameters that hold vectors, though those of stacked layers have two axes or more
_VECTORS = ("bias", "norm", "scale", "table", "place", "depthwise", "embedding")


def warmup_cosine(peak: float, steps: int, warmup: int) -> optax.Schedule:
    """The learning rate after so many updates: linear warm-up to `peak` and cosine decay to zero over `steps`."""
    return learning_rates(peak, steps, warmup=warmup)


def learning_rates(
    peak: float, steps: int, *, warmup: int = 500, schedule: RateName = "cosine", decay_share: float = 0.2
) -> optax.Schedule:
    """The learning rate after so many updates of `steps`: linear warm-up to `peak`, then as the schedule says.

    The warm-up takes half of the steps at most. `decay_share` is the share of the steps in which "wsd" falls.

    >>> rates = {name: learning_rates(1.0, 100, warmup=10, schedule=name) for name in ("linear", "constant", "wsd")}
    >>> {name: [round(float(rate(step)), 2) for step in (0, 10, 55, 90, 100)] for name, rate in rates.items()}
    {'linear': [0.1, 1.0, 0.5, 0.11, 0.0], 'constant': [0.1, 1.0, 1.0, 1.0, 1.0], 'wsd': [0.1, 1.0, 1.0, 0.5, 0.0]}
    """
    warmup = min(warmup, steps // 2)
    begin = peak / max(1, warmup)
    if schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(begin, peak, warmup, max(1, steps))
    after = steps - warmup
    falling = {"linear": after, "constant": 0, "wsd": min(round(decay_share * steps), after)}[schedule]
    last = optax.linear_schedule(peak, 0.0, falling) if falling else optax.constant_schedule(peak)
    stages = [optax.linear_schedule(begin, peak, warmup), optax.constant_schedule(peak), last]
    return optax.join_schedules(stages, [warmup, steps - falling])


def make_optimizer(
    learning_rate: float,
    steps: int,
    *,
    warmup: int = 500,
    weight_decay: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    kind: OptimizerName = "adamw",
    schedule: RateName = "cosine",
    decay_share: float = 0.2,
) -> optax.GradientTransformation:
    """The optimiser of that name with the learning rates of `learning_rates`, the norm of the gradient clipped to 1."""
    rate = learning_rates(learning_rate, steps, warmup=warmup, schedule=schedule, decay_share=decay_share)
    if kind == "adamw":
        made = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay)
    elif kind == "muon":
        adam: dict[str, Any] = dict(adam_b1=b1, adam_b2=b2, adam_weight_decay=weight_decay)
        axes: Any = _matrix_axes
        made = contrib.muon(
            rate, weight_decay=weight_decay, muon_weight_dimension_numbers=axes, consistent_rms=_MUON_RMS, **adam
        )
    else:
        options: Any = dict(learning_rate=rate, b1=b1, b2=b2, weight_decay=weight_decay)
        made = contrib.schedule_free_adamw(**options)
    return optax.chain(optax.clip_by_global_norm(CLIP), made)


def name_of(path: tuple[Any, ...]) -> str:
    """A parameter's name, the keys on the way to it: "blocks/0/mlp/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name, in the order of `jax.tree`."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def is_matrix(name: str, leaf: Any) -> bool:
    """Whether the last two axes of a parameter are a matrix; those before count the layers, or taps, that have one."""
    return leaf.ndim >= 2 and not name.endswith(_VECTORS)


def _matrix_axes(params: Any) -> Any:
    """What Muon asks for: the axes of each matrix, None for AdamW's parameters."""
    axes = contrib.MuonDimensionNumbers(-2, -1)
    return jax.tree_util.tree_map_with_path(lambda path, x: axes if is_matrix(name_of(path), x) else None, params)
