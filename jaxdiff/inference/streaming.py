"""Enhancement of sound that arrives in chunks: what the same weights make of the whole sound, a window's length later.

    stream = pipeline.stream()          state = stream.init()
    state, out = stream.step(state, chunk)      ...      out = stream.finish(state)

A chunk is a multiple of `hop_length` samples, and so is what comes out of it. The state holds the samples that later
frames of the STFT still see, the network's state, and the sums of the inverse STFT that later frames still add to.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.config import ConfigError
from jaxdiff.features import CompressedStft, istft_stream, stft_stream
from jaxdiff.methods import Method, Model, Regression
from jaxdiff.networks import Params, Subband
from jaxdiff.tasks import Enhance

from . import chunks

if TYPE_CHECKING:
    from .pipeline import Pipeline

_HOPS = 64  # of a chunk where a whole file is at hand


class SoundStream(NamedTuple):
    """`init(lead) -> state`, `step(state, chunk) -> (state, out)` and `finish(state) -> out` on sound [*lead, samples]
    at `sample_rate` Hz.

    `step` is pure, compiled once per shape of a chunk, and fits `lax.scan`. The outputs of all steps and of `finish`
    are the result for the whole sound once the first `delay` samples are dropped. A sample that is not a finite number
    spoils the state for good.
    """

    init: Callable[..., Any]
    step: Callable[[Any, Any], tuple[Any, Array]]
    finish: Callable[[Any], Array]
    delay: int
    hop_length: int
    sample_rate: int

    @property
    def latency_seconds(self) -> float:
        """From a sample's arrival to its result, with chunks of one hop and without the time of computing."""
        return (self.delay + self.hop_length) / self.sample_rate

    @property
    def latency(self) -> str:
        """The latency in words."""
        hop = self.hop_length / self.sample_rate
        return f"latency {1000 * self.latency_seconds:g} ms, in chunks of {1000 * hop:g} ms"


def sound_stream(pipeline: "Pipeline", request: Any = None) -> SoundStream:
    """The stream of `Pipeline.stream`; its weights are constants of the program, which saves a fifth of a short chunk's
    time."""
    network, representation, task = _checked(pipeline.model, pipeline.method, pipeline.params)
    request = task.Request() if request is None else request
    sizes: dict[str, Any] = dict(n_fft=representation.n_fft, hop_length=representation.hop_length)
    analysis, synthesis = stft_stream(**sizes), istft_stream(**sizes)
    zeros = jnp.zeros((1, 1, representation.channels))
    shape = jax.eval_shape(lambda: network.carry(zeros, jnp.ones(1))[1]).shape

    def init(lead: tuple[int, ...] = ()) -> Any:
        memory = jnp.zeros((shape[0], int(np.prod(lead)), *shape[2:]))
        return analysis.init(lead), (jnp.zeros((), jnp.int32), memory, synthesis.init(lead))

    def enhanced(state: Any, X: Array) -> tuple[Any, Array]:
        """The sound of frames [*lead, bins, frames], one frame after the other."""

        def one(state: Any, X: Array) -> tuple[Any, Array]:
            count, *before = state
            y = representation.compress(X[..., None])
            flat = y.reshape(-1, *y.shape[-2:])
            x0, memory = network.carry(flat, jnp.ones(len(flat)), state=before[0])
            x0 = request.limited(x0.reshape(y.shape), y, representation.exponent)
            Y = request.strength * representation.decompress(x0) + (1 - request.strength) * X[..., None]
            sums, out = synthesis.step(before[1], Y)
            after = jax.tree.map(lambda new, old: jnp.where(count < analysis.delay, old, new), [memory, sums], before)
            return (jnp.minimum(count + 1, analysis.delay), *after), out

        state, out = jax.lax.scan(one, state, jnp.moveaxis(X, -1, 0))
        return state, jnp.moveaxis(out, 0, -2).reshape(*out.shape[1:-1], -1)

    @jax.jit
    def step(state: Any, chunk: Array) -> tuple[Any, Array]:
        samples, X = analysis.step(state[0], chunk)
        after, out = enhanced(state[1], X)
        return (samples, after), out

    @jax.jit
    def finish(state: Any) -> Array:
        after, out = enhanced(state[1], analysis.finish(state[0]))
        return jnp.concatenate([out, synthesis.finish(after[2])], axis=-1)

    return SoundStream(
        init,
        step,
        finish,
        synthesis.delay + analysis.delay * representation.hop_length,
        representation.hop_length,
        representation.sample_rate,
    )


def _checked(model: Model, method: Method, params: Params) -> tuple[Subband, CompressedStft, Enhance]:
    """Network, representation and task of a model; raises ConfigError where they cannot stream."""
    network, representation, task = model
    if not isinstance(task, Enhance) or not isinstance(representation, CompressedStft):
        raise ConfigError(
            f"stream: is for models of task enhance on compressed_stft, got {type(task).__name__.lower()} on "
            f"{type(representation).__name__}; use a model such as denoise-16k-streaming"
        )
    if not isinstance(method, Regression):
        name = type(method).__name__.lower()
        raise ConfigError(f"stream: is for method regression, got {name}; use a model such as denoise-16k-streaming")
    module = None if network.bind is None else network.bind(params)
    if not isinstance(module, Subband) or module.bidirectional:
        got = type(module).__name__.lower() if not isinstance(module, Subband) else "one that sees later frames"
        raise ConfigError(
            f"stream: needs a subband network with network.bidirectional no, got {got}; use a model such as "
            f"denoise-16k-streaming, or train one"
        )
    return module, representation, task


def enhanced_blocks(stream: SoundStream, blocks: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """What the stream makes of blocks [channels, samples], `length` in all, aligned with them: in chunks of many hops,
    and of one hop at the end, so that two programs do for all lengths."""
    hop, late, made, start = stream.hop_length, stream.delay, 0, 0
    heard, state = None, None
    while start < length:
        size = _HOPS * hop if start + _HOPS * hop <= length else hop
        while (heard is None or heard.end < start + size) and (block := next(blocks, None)) is not None:
            heard = chunks.Passing(len(block)) if heard is None else heard
            heard.add(block)
        assert heard is not None  # a sound has at least one block
        chunk = heard.part(start, start + size)
        start += size
        heard.forget(start)
        state, out = stream.step(stream.init(chunk.shape[:1]) if state is None else state, chunk)
        out, late = np.asarray(out)[:, late:], max(0, late - size)
        yield out
        made += out.shape[-1]
    yield np.asarray(stream.finish(state))[:, late : late + length - made]
