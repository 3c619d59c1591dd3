"""Transfer: what a training takes of weights that were trained before, and which of them it then changes.

    match, fill    parameters of the same name and shape, those that are new and those that are left
    restricted     an optimiser that leaves some parameters as they are, and changes matrices by low-rank updates alone:
                   W = W_0 + a b with a [rows, rank], b [rank, columns], b = 0 at first (LoRA, Hu et al. 2022)

A low-rank update is a matter of the optimiser: it keeps W_0, a and b, turns the gradient of W into theirs and gives
back the change of W. So networks, methods, averages, exports and samplers see ordinary merged weights at all times.
Parameters are named by the keys on the way to them, "blocks/0/mlp/kernel", and chosen by patterns as file names are: *
stands for any text.
"""

import difflib
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from optax import contrib

from jaxdiff import ranges
from jaxdiff.networks import Network, Params

from .optimizers import is_matrix, name_of, named

Shape = tuple[int, ...]
_SHOWN = 4  # names of a list that is said


# What is taken ------------------------------------------------------------------------------------------------------


class Match(NamedTuple):
    """Parameters by name and shape: `taken` as they are, `other` of the same name and another shape (theirs, ours),
    `new` ones that only we have and those that are `left` with them."""

    taken: dict[str, Shape]
    other: dict[str, tuple[Shape, Shape]]
    new: dict[str, Shape]
    left: dict[str, Shape]

    def report(self) -> Iterator[str]:
        """A line for each kind that there is. A parameter of another shape is new, and theirs is left."""
        total = len(self.taken) + len(self.other) + len(self.new)
        yield f"{len(self.taken)} of {total} parameters are taken ({_numbers(self.taken):,} numbers)"
        new = self.new | {name: ours for name, (_, ours) in self.other.items()}
        left = self.left | {name: theirs for name, (theirs, _) in self.other.items()}
        if new:
            yield f"{len(new)} begin anew ({_numbers(new):,} numbers): {shortened(sorted(new))}"
        if left:
            yield f"{len(left)} are left ({_numbers(left):,} numbers): {shortened(sorted(left))}"


def _numbers(shapes: Mapping[str, Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def shortened(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def match(theirs: Any, ours: Any) -> Match:
    """How two trees of arrays, or of their shapes, fit."""
    there, here = ({name: leaf.shape for name, leaf in named(tree).items()} for tree in (theirs, ours))
    both = {name: (there[name], shape) for name, shape in here.items() if name in there}
    return Match(
        taken={name: new for name, (old, new) in both.items() if old == new},
        other={name: (old, new) for name, (old, new) in both.items() if old != new},
        new={name: shape for name, shape in here.items() if name not in there},
        left={name: shape for name, shape in there.items() if name not in here},
    )


def fill(ours: Params, theirs: Params) -> Params:
    """Our parameters with theirs in the place of all that have the same name and shape."""
    there = named(theirs)

    def take(path: Any, leaf: Any) -> Any:
        found = there.get(name_of(path))
        return leaf if found is None or found.shape != leaf.shape else jnp.asarray(found, leaf.dtype)

    return jax.tree_util.tree_map_with_path(take, ours)


# What is trained ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of the matrices that match; one that they would not make smaller is trained in full.

    So is every other parameter, unless it is frozen. At first a has the deviation rank^-1/2, so that a step of AdamW
    moves the weights as far as it would move them in full, and asks for the same learning rate.
    """

    rank: ranges.Count = 8
    patterns: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        ranges.check_fields(self)


class Frozen(NamedTuple):
    """The place of a parameter that stays bit for bit as it is."""


class Full(NamedTuple):
    """The place of a parameter that is trained in full."""


class LowRank(NamedTuple):
    """The place of a matrix, or of a stack of them, that is trained by a low-rank update."""

    base: Float[Array, "*stack rows columns"]
    a: Float[Array, "*stack rows rank"]
    b: Float[Array, "*stack rank columns"]

    @property
    def merged(self) -> Float[Array, "*stack rows columns"]:
        return self.base + self.a @ self.b


class RestrictedState(NamedTuple):
    """The state of the optimiser of what is trained, and a tree like the parameters' of places."""

    inner: Any
    places: Any


def restricted(
    optimizer: optax.GradientTransformation, freeze: Sequence[str] = (), lora: Lora | None = None, seed: int = 0
) -> optax.GradientTransformation:
    """An optimiser for parts of the parameters: those whose name matches one of `freeze` stay as they are.

    Matrices that match `lora.patterns` change by low-rank updates, begun by `seed`. `optimizer` sees what is trained
    alone: the norm of its gradient, its decay and its state are of these. Its `init` raises ValueError for a pattern
    that matches nothing.
    """

    def init(params: Params) -> RestrictedState:
        places = _placed(params, kinds(params, freeze, lora), lora, jax.random.key(seed))
        return RestrictedState(optimizer.init(_trained(places, params)), places)

    def update(gradient: Any, state: RestrictedState, params: Params | None = None) -> tuple[Any, RestrictedState]:
        trained = _trained(state.places, params)
        updates, inner = optimizer.update(_pulled(state.places, gradient), state.inner, trained)
        places = _put(state.places, optax.apply_updates(trained, updates))

        def change(place: Any, param: Array, own: Any) -> Array:
            if isinstance(place, LowRank):
                return place.merged - param
            return jnp.full_like(param, -0.0) if isinstance(place, Frozen) else own  # x + -0.0 is x, of either zero

        return _map(change, places, params, updates), RestrictedState(inner, places)

    return optax.GradientTransformation(init, update)  # type: ignore


def kinds(params: Params, freeze: Sequence[str], lora: Lora | None) -> dict[str, type]:
    """How each parameter is trained, by name: `Frozen`, `LowRank` or `Full`; `params` may be shapes.

    Raises ValueError for a pattern that matches nothing, and where nothing is left to train.
    """
    leaves, low = named(params), () if lora is None else lora.patterns
    smaller = [] if lora is None else [name for name, leaf in leaves.items() if _is_smaller(name, leaf, lora.rank)]
    for key, patterns, names in (("freeze", freeze, list(leaves)), ("lora.patterns", low, smaller)):
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                near = difflib.get_close_matches(pattern, names, 3, 0.0)
                what = "parameter" if key == "freeze" else "matrix that updates of this rank make smaller"
                hint = f"the nearest are {', '.join(near)}" if near else "there is none, use a lower rank"
                raise ValueError(f"{key} {pattern}: matches no {what}; {hint}")

    def of(name: str) -> type:
        if name in smaller and _matches(name, low):
            return LowRank
        return Frozen if _matches(name, freeze) else Full

    found = {name: of(name) for name in leaves}
    if set(found.values()) == {Frozen}:
        raise ValueError(f"freeze {', '.join(freeze)}: leaves nothing to train; freeze less, or train updates (lora)")
    return found


def trained_numbers(opt_state: Any, params: Params) -> int | None:
    """How many numbers a restricted optimiser trains; None where it trains all."""
    state = _find(opt_state, RestrictedState)
    return None if state is None else sum(leaf.size for leaf in jax.tree.leaves(_trained(state.places, params)))


def evaluated(opt_state: Any, params: Params) -> Params:
    """The weights that an optimiser means to be used: its own averages where it is schedule-free, else `params`."""
    restriction, state = _find(opt_state, RestrictedState), _find(opt_state, contrib.ScheduleFreeState)
    if state is None:
        return params
    if restriction is None:
        return contrib.schedule_free_eval_params(state, params)
    own = contrib.schedule_free_eval_params(state, _trained(restriction.places, params))

    def use(place: Any, param: Array, own: Array) -> Array:
        return place.merged if isinstance(place, LowRank) else param if isinstance(place, Frozen) else own

    return _map(use, _put(restriction.places, own), params, own)


def held(opt_state: Any, weights: Params, average: Params) -> Params:
    """The average with the frozen weights themselves in their places, which rounding would move."""
    state = _find(opt_state, RestrictedState)
    if state is None:
        return average
    return _map(lambda place, w, mean: w if isinstance(place, Frozen) else mean, state.places, weights, average)


def stopped(network: Network, opt_state: Any) -> Network:
    """The network in training: it has no gradient for frozen parameters, which then costs nothing."""
    state = _find(opt_state, RestrictedState)
    if state is None:
        return network
    frozen = _map(lambda place: isinstance(place, Frozen), state.places)

    def apply(params: Params, *inputs: Any, **options: Any) -> Any:
        stop = lambda is_frozen, param: jax.lax.stop_gradient(param) if is_frozen else param  # noqa: E731
        return network.apply(jax.tree.map(stop, frozen, params), *inputs, **options)

    return network._replace(apply=apply)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_smaller(name: str, leaf: Any, rank: int) -> bool:
    """Whether an update of the rank has fewer numbers than the matrix."""
    return is_matrix(name, leaf) and rank * sum(leaf.shape[-2:]) < math.prod(leaf.shape[-2:])


def _placed(params: Params, kinds: Mapping[str, type], lora: Lora | None, key: PRNGKeyArray) -> Any:
    """The tree of places at step 0."""
    number = {name: index for index, name in enumerate(kinds)}

    def place(path: Any, leaf: Array) -> Any:
        name = name_of(path)
        if kinds[name] is not LowRank or lora is None:
            return kinds[name]()
        *stack, rows, columns = leaf.shape
        a = jax.random.normal(jax.random.fold_in(key, number[name]), (*stack, rows, lora.rank), leaf.dtype)
        return LowRank(jnp.copy(leaf), a / lora.rank**0.5, jnp.zeros((*stack, lora.rank, columns), leaf.dtype))

    return jax.tree_util.tree_map_with_path(place, params)


def _map(function: Any, places: Any, *trees: Any) -> Any:
    """`jax.tree.map` over places, each with what the other trees have there."""
    return jax.tree.map(function, places, *trees, is_leaf=lambda x: isinstance(x, Frozen | Full | LowRank))


def _trained(places: Any, params: Params) -> Any:
    """What the inner optimiser sees: parameters trained in full, a and b of low-rank ones, nothing of frozen ones."""

    def own(place: Any, param: Array) -> Any:
        if isinstance(place, LowRank):
            return {"a": place.a, "b": place.b}
        return optax.MaskedNode() if isinstance(place, Frozen) else param

    return _map(own, places, params)


def _pulled(places: Any, gradient: Any) -> Any:
    """The gradient of what `_trained` gives: of W_0 + a b it is G b^T for a and a^T G for b."""

    def own(place: Any, g: Array) -> Any:
        if isinstance(place, LowRank):
            return {"a": g @ place.b.mT, "b": place.a.mT @ g}
        return optax.MaskedNode() if isinstance(place, Frozen) else g

    return _map(own, places, gradient)


def _put(places: Any, trained: Any) -> Any:
    """The places with another a and b."""
    return _map(lambda place, own: place._replace(**own) if isinstance(place, LowRank) else place, places, trained)


def _find(opt_state: Any, kind: type) -> Any:
    """The state of a kind inside an optimiser's, None where there is none."""
    is_kind = lambda state: isinstance(state, kind)  # noqa: E731
    return next((state for state in jax.tree.leaves(opt_state, is_leaf=is_kind) if is_kind(state)), None)
