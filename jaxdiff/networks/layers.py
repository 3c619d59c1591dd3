"""The parts networks share: condition, embeddings of diffusion time and class, stacks of equal layers.

A network is called as `network(x_t, t, cond, rngs=None)` with `x_t` [batch, frames, features], `t` [batch] in [0, 1]
and a `Condition`; it returns an array shaped like `x_t`. `rngs` is given in training only: dropout draws from it. These
options mean the same in all of them:

    condition_features  above 0, of conditioner frames (as many as network frames), projected and summed to the input
    num_classes         above 0, a label embedding, dropped with `label_dropout` in training
    self_conditioning   the condition's estimate of x0 is part of the input
    second_time         the network can jump to a time `r` [batch] <= t, by default t: an embedding of t - r is added to
                        that of t, zero at first, so that an ordinary network's weights can be continued
    zero_output         the last layer begins at zero; if not, Xavier uniform, for a generator whose loss is spectral
                        and so has no gradient at silence
    remat               the backward pass recomputes the inside of every layer instead of keeping it
    compute_dtype       with "bfloat16" the factors of matrix products are rounded to it; parameters, sums, norms,
                        softmax, the embeddings of time and class and the last layer are float32
"""

import abc
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

ComputeDtype = Literal["float32", "bfloat16"]
Frames = Float[Array, "batch frames features"]
PerItem = Float[Array, " batch"]
_Layer = TypeVar("_Layer", bound=nnx.Module)


class Condition(NamedTuple):
    """What is known while x0 is made: a class per item, condition frames, an earlier estimate of x0 (for networks with
    self-conditioning; None is 0). `tokens` are attended to in no time order, those that `token_mask` marks. `lengths`
    are the first frames of x_t, which count; the rest is padding that no other frame sees and whose output is void."""

    label: Int[Array, " batch"] | None = None
    frames: Float[Array, "batch frames channels"] | None = None
    estimate: Float[Array, "batch network_frames features"] | None = None
    tokens: Float[Array, "batch tokens token_channels"] | None = None
    token_mask: Bool[Array, "batch tokens"] | None = None
    lengths: Int[Array, " batch"] | None = None

    def without_label(self) -> "Condition":
        """The same condition with the class unknown, for classifier-free guidance."""
        return self._replace(label=None)

    def with_estimate(self, x0_hat: Float[Array, "batch network_frames features"]) -> "Condition":
        """The same condition and an estimate of x0 (Chen et al. 2022)."""
        return self._replace(estimate=x0_hat)

    def beside(self, x_t: Float[Array, "batch network_frames features"]) -> Float[Array, "batch network_frames both"]:
        """`x_t` and the estimate side by side: the input of a network with self-conditioning."""
        estimate = jnp.zeros_like(x_t) if self.estimate is None else self.estimate
        return jnp.concatenate([x_t, estimate], axis=-1)

    def valid(self, frames: int) -> Bool[Array, "batch frames"] | None:
        """Which of `frames` network frames are within each item's length; None without lengths."""
        return None if self.lengths is None else jnp.arange(frames) < self.lengths[:, None]


class LabelEmbedding(nnx.Module):
    """One vector per class and one for "unknown", which replaces a class with `dropout_rate` while training (Ho &
    Salimans 2022, algorithm 1). Standard normal, so that the classes are far apart from the first step on: with DiT's
    0.02 a short training hardly uses them."""

    def __init__(self, num_classes: int, width: int, dropout_rate: float, *, rngs: nnx.Rngs):
        self.num_classes, self.dropout_rate = num_classes, dropout_rate
        self.table = nnx.Param(jax.random.normal(rngs.params(), (num_classes + 1, width)))

    def __call__(self, label: Array | None, batch: int, *, rngs: nnx.Rngs | None = None) -> Array:
        if label is None:
            label = jnp.full(batch, self.num_classes)
        elif rngs is not None and self.dropout_rate > 0:
            drop = jax.random.bernoulli(rngs.label(), self.dropout_rate, label.shape)
            label = jnp.where(drop, self.num_classes, label)
        return self.table[...][label]


def sinusoids(position: Float[Array, " batch"], frequencies: np.ndarray) -> Float[Array, "batch channels"]:
    """Sines, then cosines, of `position * frequencies` (angular)."""
    angle = position[:, None] * jnp.asarray(frequencies, jnp.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def conditioning(parts, t: Array, label: Array | None, r: Array | None, rngs: nnx.Rngs | None) -> Array:
    """SiLU of the sum of time's embedding, the label's, and that of t - r where `parts` have one (r = t by default);
    each time passes sinusoids and two linear layers (DiT, Peebles & Xie 2023, section 3.2)."""
    if r is not None and parts.jump_1 is None:
        raise ValueError("the network was given a second time r but built without; build it with second_time=True")
    frequencies = 1e4 ** (-np.arange(128) / 128)
    c = parts.time_2(jax.nn.silu(parts.time_1(sinusoids(1000 * t, frequencies))))
    if parts.jump_1 is not None:
        c = c + parts.jump_2(jax.nn.silu(parts.jump_1(sinusoids(1000 * (t - (t if r is None else r)), frequencies))))
    if parts.label is not None:
        c = c + parts.label(label, len(t), rngs=rngs)
    return jax.nn.silu(c)


class Conditioner(nnx.Module):
    """Diffusion time and class as one vector. Linear layers are LeCun normal (LeCun et al. 1998, section 4.6) with zero
    bias; `jump_2` is zero at first."""

    def __init__(self, width: int, num_classes: int, label_dropout: float, second_time: bool, *, rngs: nnx.Rngs):
        self.time_1, self.time_2 = nnx.Linear(256, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.label = LabelEmbedding(num_classes, width, label_dropout, rngs=rngs) if num_classes else None
        zeros = nnx.initializers.zeros_init()
        self.jump_1 = nnx.Linear(256, width, rngs=rngs) if second_time else None
        self.jump_2 = nnx.Linear(width, width, kernel_init=zeros, rngs=rngs) if second_time else None

    def __call__(self, t: Array, label: Array | None, r: Array | None, rngs: nnx.Rngs | None) -> Array:
        return conditioning(self, t, label, r, rngs)


class FrameNetwork(nnx.Module):
    """A network whose `hidden` layers stand between the layers `input` and `output`, with `conditioner` beside them."""

    conditioner: Callable
    input: nnx.Linear
    condition: nnx.Linear | None
    output: nnx.Linear
    self_conditioning: bool

    def __call__(
        self,
        x_t: Frames,
        t: PerItem,
        cond: Condition = Condition(),
        *,
        r: PerItem | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Frames:
        h = self.hidden(x_t, self.conditioner(t, cond.label, r, rngs), cond, rngs)
        return self.output(h)[:, : x_t.shape[1]]

    @abc.abstractmethod
    def hidden(self, x_t: Frames, c: Array, cond: Condition, rngs: nnx.Rngs | None) -> Array:
        """What the output layer sees, further frames at the end being left away; `c` is the conditioner's."""

    def projected(self, x_t: Frames, cond: Condition, added: Array | None = None) -> Array:
        """The sum of the projected input, what is `added` and the condition frames."""
        h = self.input(cond.beside(x_t) if self.self_conditioning else x_t)
        h = h if added is None else h + added
        return h if self.condition is None or cond.frames is None else h + self.condition(cond.frames)


def linear_options(compute_dtype: str) -> dict:
    """The options of an `nnx.Linear` that computes in `compute_dtype` and returns float32."""
    options = {"float32": {}, "bfloat16": dict(dtype=jnp.bfloat16, preferred_element_type=jnp.float32)}
    if compute_dtype not in options:
        raise ValueError(f"compute_dtype: expected one of {', '.join(options)}, got {compute_dtype!r}")
    return dict(dot_general=flat_product, **options[compute_dtype])


def output_init(zero_output: bool) -> nnx.Initializer:
    """How a network's last layer begins."""
    return nnx.initializers.zeros_init() if zero_output else nnx.initializers.xavier_uniform()


def flat_product(x: Array, kernel: Array, dimension_numbers=None, **options) -> Array:
    """`x @ kernel` with all axes of `x` but the last as one: on a CPU its gradient takes two thirds of the time."""
    options.pop("out_sharding", None)
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], -1)


def product(x: Array, kernel: Array, compute_dtype: ComputeDtype) -> Array:
    """`flat_product` of factors rounded to `compute_dtype`, summed in float32."""
    if compute_dtype == "float32":
        return flat_product(x, kernel)
    return flat_product(x.astype(compute_dtype), kernel.astype(compute_dtype), preferred_element_type=jnp.float32)


def layer_norm(h: Array) -> Array:
    """Zero mean and unit variance over channels, without trained scale or bias (modulation supplies both)."""
    h = h - h.mean(-1, keepdims=True)
    return h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-6)


def modulate(h: Array, shift: Array, scale: Array) -> Array:
    """LN(h) (1 + scale) + shift with one scale and shift per item and channel (adaptive layer norm)."""
    return layer_norm(h) * (1 + scale[:, None]) + shift[:, None]


def shifted(
    h: Float[Array, "batch frames channels"], count: int, dilation: int | Array = 1, reach: int | None = None
) -> list[Float[Array, "batch frames channels"]]:
    """`h` as an odd `count` of taps see it, `dilation` frames apart, zero beyond the ends; a traced dilation needs
    `reach`, the largest it can be."""
    half, frames = count // 2, h.shape[1]
    margin = half * (dilation if reach is None else reach)
    padded = jnp.pad(h, ((0, 0), (margin, margin), (0, 0)))
    starts = [margin + (k - half) * dilation for k in range(count)]
    return [jax.lax.dynamic_slice_in_dim(padded, start, frames, axis=1) for start in starts]


def taps(h: Array, dilation: int | Array = 1, reach: int | None = None) -> Float[Array, "batch frames three_channels"]:
    """Three taps side by side: a product with a [3 channels, out] kernel is then a convolution."""
    return jnp.concatenate(shifted(h, 3, dilation, reach), axis=-1)


class _Keys(nnx.RngStream):
    """A stream whose count is a number of Python's. NNX's own is an array, for which JAX, where it traces, writes out
    all that it has traced so far: building a network took several times as long."""

    def __init__(self, key: PRNGKeyArray, *, tag: str):
        super().__init__(key, tag=tag)
        self.drawn = 0

    def __call__(self) -> PRNGKeyArray:
        self.drawn += 1
        return jax.random.fold_in(self.key[...], np.uint32(self.drawn - 1))


def streams(key: PRNGKeyArray) -> nnx.Rngs:
    """`nnx.Rngs(key)`, the same keys in the same order, made faster where JAX traces."""
    rngs = nnx.Rngs()
    setattr(rngs, "default", _Keys(key, tag="default"))  # noqa: B010 its streams are no declared attributes
    return rngs


def stack(make_layer: Callable[[nnx.Rngs], _Layer], count: int, rngs: nnx.Rngs) -> _Layer:
    """`count` layers made alike, their parameters stacked on a new first axis, for `scan_layers`."""
    graphdefs = []

    def parameters(key):
        graphdef, params = nnx.split(make_layer(streams(key)))
        graphdefs.append(graphdef)
        return params

    params = jax.vmap(parameters)(jax.random.split(rngs.params(), count))
    return nnx.merge(graphdefs[0], params)


def scan_layers(layers: nnx.Module, apply: Callable, carry, xs=None, *, remat: bool = False):
    """`carry, ys` after `apply(layer, carry, x) -> (carry, y)` with each layer of a `stack`, as one `lax.scan`.

    Without `remat` too the backward pass recomputes what is cheap: all but the products with weights.
    """
    graphdef, params = nnx.split(layers)

    def body(carry, inputs):
        layer_params, x = inputs
        return apply(nnx.merge(graphdef, layer_params), carry, x)

    keep = None if remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False, policy=keep), carry, (params, xs))


def scan_blocks(blocks: nnx.Module, apply: Callable, h: Array, items: Callable, xs=None, *, remat: bool = False):
    """`h` after `h <- apply(block, h, items(block), x)` with each block of a `stack`, `items(block)` being a tree of
    what a block sees of each item beside `h`. Where no gradient is asked for, a CPU works through a few items at a
    time: their temporaries stay in the cache."""
    graphdef, _ = nnx.split(blocks)

    def step(block, h, x):
        whole = lambda shared, h, items: apply(nnx.merge(graphdef, shared[0]), h, items, shared[1])  # noqa: E731
        return _few_items_at_a_time(whole, (nnx.split(block)[1], x), h, items(block)), None

    return scan_layers(blocks, step, h, xs, remat=remat)[0]


_ROWS = 384  # frames that a device works on at a time, and at least one item


def _few_items_at_a_time(function: Callable, shared, h: Array, items) -> Array:
    """`function(shared, h, items)`; each device of a CPU works through its own items."""
    devices, (batch, frames, _) = jax.device_count(), h.shape
    own = batch // devices
    few = max((n for n in range(1, own + 1) if own % n == 0 and (n == 1 or n * frames <= _ROWS)), default=own)
    if jax.default_backend() != "cpu" or batch % devices or few == own:
        return function(shared, h, items)

    @jax.custom_jvp
    def call(shared, h, items):
        cut = lambda x: x.reshape(devices, -1, few, *x.shape[1:]).swapaxes(0, 1)  # noqa: E731
        join = lambda x: x.reshape(devices * few, *x.shape[2:])  # noqa: E731
        turn = lambda part: function(shared, *jax.tree.map(join, part)).reshape(devices, few, *h.shape[1:])  # noqa: E731
        return jax.lax.map(turn, jax.tree.map(cut, (h, items))).swapaxes(0, 1).reshape(h.shape)

    call.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return call(shared, h, items)


def apply_layer(layer: nnx.Module, *args, remat: bool = False):
    """`layer(*args)`; with `remat` the backward pass recomputes its inside instead of keeping it."""
    if not remat:
        return layer(*args)
    graphdef, params = nnx.split(layer)
    return jax.checkpoint(lambda params, *args: nnx.merge(graphdef, params)(*args))(params, *args)


def count_params(params) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def complex_product(
    mask: Float[Array, "batch frames features"], x: Float[Array, "batch frames features"]
) -> Float[Array, "batch frames features"]:
    """The product of complex numbers, whose real parts come before their imaginary ones.

    >>> complex_product(jnp.array([[[0.0, 1.0]]]), jnp.array([[[2.0, 3.0]]])).tolist()
    [[[-3.0, 2.0]]]
    """
    a, b = jnp.split(mask, 2, axis=-1)
    real, imag = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * real - b * imag, a * imag + b * real], -1)
