"""Autoregression: sound sample by sample, with exact likelihood and cached generation.

    log p(x) = sum over n of log p(x_n | x_0 ... x_{n-1})        (van den Oord et al. 2016, eq. 1)

All chance comes in as uniform numbers, drawn per item and sample before the loop, so that an item is the same sound in
any batch and whether the network remembers or looks again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jaxtyping import Array, Float, Key

from jaxdiff import ranges
from jaxdiff.features import Patches, Representation
from jaxdiff.networks import Params
from jaxdiff.tasks import Example, Given

from . import method
from .distributions import Output, gaussian, mixture_of_logistics, mu_law_categorical

_MARGIN = 1e-6


@dataclass(frozen=True)
class Autoregression(method.Method):
    """Sample by sample; needs network causal_wavenet, representation patches of size 1 and no normalisation."""

    knobs: ClassVar[frozenset[str]] = frozenset({"temperature"})
    windows: ClassVar[bool] = False

    output: Literal["mu_law", "logistics", "gaussian"] = "mu_law"
    levels: Annotated[int, Interval(ge=2, le=2**16)] = 256  # of mu_law
    mixtures: ranges.Count = 10  # of logistics

    def distribution(self) -> Output:
        """What the network's outputs mean."""
        kinds = {
            "mu_law": lambda: mu_law_categorical(self.levels),
            "logistics": lambda: mixture_of_logistics(self.mixtures),
            "gaussian": gaussian,
        }
        return kinds[self.output]()

    def network_options(self) -> dict[str, Any]:
        return {"input_classes": self.distribution().levels}

    def outputs(self, representation: Representation) -> int:
        return self.distribution().size

    def check(self, model: method.Model) -> None:
        super().check(model)
        r = model.representation
        if r.stereo:
            raise ValueError("method autoregression makes one channel; set data.channels to mix, left or right")
        if not isinstance(r, Patches) or r.size != 1:
            raise ValueError(
                f"method autoregression needs network causal_wavenet, representation patches of size 1 and "
                f"normalize.enabled no, got {type(r).__name__} of hop {r.hop_length}; set all four"
            )

    def make_step(self, model: method.Model, optimizer: method.Optimizer, steps: int) -> method.Update:
        output = self.distribution()

        def loss(network, example: Example, context: method.Context):
            wave = example.x0[..., 0]
            nats = -log_likelihood(network, output, wave, example.given.cond) / wave.shape[-1]
            bits = nats.mean() / np.log(2).astype(np.float32)
            return bits, ({"loss": bits}, context.extra)

        return method.gradient_step(model, loss, optimizer)

    def make_sample(self, model: method.Model, sampling: method.Sampling, times: Array) -> method.Sample:
        output = self.distribution()

        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            network, samples = model.network.module(params), noise.shape[1]
            return generate(network, output, keys, given.cond, samples, temperature=sampling.temperature)[..., None]

        return sample


def log_likelihood(
    network: Callable, output: Output, wave: Float[Array, "batch samples"], cond, **options
) -> Float[Array, " batch"]:
    """log p of each sound in nats, of its classes or steps where `output` is discrete.

    `network(x, cond)` gives the parameters of all samples at once; `options` go to it.
    """
    x = output.encode(wave)
    return output.log_prob(network(x, cond, **options), x).sum(-1)


def uniforms(keys: Key[Array, " batch"], samples: int) -> Float[Array, "samples batch 2"]:
    """What chance decides: two numbers in (0, 1) per sample and item, of the item's own key."""
    draw = lambda key: jax.random.uniform(key, (samples, 2), minval=_MARGIN, maxval=1 - _MARGIN)  # noqa: E731
    return jax.vmap(draw, out_axes=1)(keys)


def generate(
    network, output: Output, keys: Key[Array, " batch"], cond, samples: int, *, temperature: float | Array = 1.0
) -> Float[Array, "batch samples"]:
    """Sounds in [-1, 1] of a network with `incremental` and `silence`, one `lax.scan` over samples.

    `temperature` below 1 makes the likely more likely.
    """
    step, cache = network.incremental(cond, len(keys), samples)
    dtype = jnp.int32 if output.levels else jnp.float32
    silence = jnp.full(len(keys), network.silence, dtype)

    def next_sample(carry: tuple[Array, Array], inputs: tuple[Array, Array]):
        cache, before = carry
        n, u = inputs
        cache, params = step(cache, before, n)
        x = output.sample(params, u, temperature)
        return (cache, x), x

    inputs = (jnp.arange(samples), uniforms(keys, samples))
    _, x = jax.lax.scan(next_sample, (cache, silence), inputs)
    return output.decode(x.T)
