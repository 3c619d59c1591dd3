"""Every sampler is `(denoiser, schedule, x_T, times, key) -> x0`, from noise to data, one `lax.scan` over `times`.

`times` falls from 1 to 0, or to any later stop. `key` is one key, or one per item [batch]: then an item does not depend
on its neighbours. The order is that of the error in the number of steps: of x0 for deterministic samplers, of its mean
and covariance for the others (0: exact with any number of steps). Order p needs a first and a last step of size
steps^(-p / 2): uniform times are good for order 2, the cosine times sin^2(pi u / 2), dense at both ends, for all.

>>> import jax, jax.numpy as jnp
>>> from jaxdiff.diffusion import RectifiedFlow, spaced_times
>>> key, certain = jax.random.key(0), lambda x_t, t: jnp.full_like(x_t, 2)
>>> SAMPLERS["dpmpp_2m"].sampler(certain, RectifiedFlow(), noise(key, (1, 3)), spaced_times(RectifiedFlow(), 4), key)
Array([[2., 2., 2.]], dtype=float32)
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from .multistep import adams_bashforth, dpmpp, unipc
from .onestep import dpm2, dpmpp_2s, edm, euler, heun, midpoint, rk4
from .stepping import Sampler as Sampler
from .stepping import noise as noise
from .stochastic import ancestral, ddim, euler_ancestral, predictor_corrector, stochastic_flow


class NamedSampler(NamedTuple):
    """A sampler with its order of convergence, evaluations of the denoiser per step, and whether it draws no noise.

    A bridge's is called with the bridge and y in place of the schedule and x_T.
    """

    sampler: Callable[..., Array]
    order: int
    evaluations: int
    deterministic: bool


SAMPLERS: dict[str, NamedSampler] = {
    "euler": NamedSampler(euler, 1, 1, True),
    "ddim": NamedSampler(ddim(), 1, 1, True),
    "heun": NamedSampler(heun, 2, 2, True),
    "midpoint": NamedSampler(midpoint, 2, 2, True),
    "rk4": NamedSampler(rk4, 4, 4, True),
    "dpm2": NamedSampler(dpm2, 2, 2, True),
    "dpmpp_1s": NamedSampler(dpmpp(1), 1, 1, True),
    "dpmpp_2s": NamedSampler(dpmpp_2s, 2, 2, True),
    "dpmpp_2m": NamedSampler(dpmpp(2), 2, 1, True),
    "dpmpp_3m": NamedSampler(dpmpp(3), 3, 1, True),
    "lms2": NamedSampler(adams_bashforth(2), 2, 1, True),
    "lms3": NamedSampler(adams_bashforth(3), 3, 1, True),
    "lms4": NamedSampler(adams_bashforth(4), 4, 1, True),
    "unipc2": NamedSampler(unipc(2), 3, 1, True),
    "unipc3": NamedSampler(unipc(3), 4, 1, True),
    "ancestral": NamedSampler(ancestral, 1, 1, False),
    "euler_ancestral": NamedSampler(euler_ancestral(), 1, 1, False),
    "edm": NamedSampler(edm(s_noise=1.0), 2, 2, False),
    "sde_dpmpp_1s": NamedSampler(dpmpp(1, eta=1.0), 1, 1, False),
    "sde_dpmpp_2m": NamedSampler(dpmpp(2, eta=1.0), 2, 1, False),
    "predictor_corrector": NamedSampler(predictor_corrector(), 1, 2, False),
    "stochastic_flow": NamedSampler(stochastic_flow, 0, 1, False),
}
