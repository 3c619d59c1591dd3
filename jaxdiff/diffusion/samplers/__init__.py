"""From noise to data: every sampler is `(denoiser, schedule, x_T, times, key) -> x0`, one `lax.scan` over `times`.

`times` falls from 1 to 0, or to any later stop. `key` is one key, or one per item [batch]: then an item does not depend
on its neighbours. `SAMPLERS` lists them all. The order is that of the error in the number of steps: of x0 for
deterministic samplers, of its mean and covariance for the others (0: exact with any number of steps). To reach order p
the first step and the last must be of size steps^(-p / 2): a uniform grid is good for order 2, the cosine
grid sin^2(pi t / 2), dense at both ends, for all.

>>> import jax, jax.numpy as jnp
>>> from jaxdiff.diffusion import RectifiedFlow, time_grid
>>> key, certain = jax.random.key(0), lambda x_t, t: jnp.full_like(x_t, 2)
>>> SAMPLERS["dpmpp_2m"].sampler(certain, RectifiedFlow(), noise(key, (1, 3)), time_grid(RectifiedFlow(), 4), key)
Array([[2., 2., 2.]], dtype=float32)
"""

from typing import NamedTuple

from .multistep import adams_bashforth as adams_bashforth
from .multistep import dpmpp as dpmpp
from .multistep import unipc as unipc
from .onestep import dpm2 as dpm2
from .onestep import dpmpp_2s as dpmpp_2s
from .onestep import edm as edm
from .onestep import euler as euler
from .onestep import heun as heun
from .onestep import midpoint as midpoint
from .onestep import rk4 as rk4
from .stepping import Sampler as Sampler
from .stepping import noise as noise
from .stochastic import ancestral as ancestral
from .stochastic import ddim as ddim
from .stochastic import euler_ancestral as euler_ancestral
from .stochastic import predictor_corrector as predictor_corrector
from .stochastic import stochastic_flow as stochastic_flow


class Method(NamedTuple):
    """A sampler with its order of convergence, evaluations of the denoiser per step, and whether it draws no noise."""

    sampler: Sampler
    order: int
    evaluations: int
    deterministic: bool


SAMPLERS: dict[str, Method] = {
    "euler": Method(euler, 1, 1, True),
    "ddim": Method(ddim(), 1, 1, True),
    "heun": Method(heun, 2, 2, True),
    "midpoint": Method(midpoint, 2, 2, True),
    "rk4": Method(rk4, 4, 4, True),
    "dpm2": Method(dpm2, 2, 2, True),
    "dpmpp_1s": Method(dpmpp(1), 1, 1, True),
    "dpmpp_2s": Method(dpmpp_2s, 2, 2, True),
    "dpmpp_2m": Method(dpmpp(2), 2, 1, True),
    "dpmpp_3m": Method(dpmpp(3), 3, 1, True),
    "lms2": Method(adams_bashforth(2), 2, 1, True),
    "lms3": Method(adams_bashforth(3), 3, 1, True),
    "lms4": Method(adams_bashforth(4), 4, 1, True),
    "unipc2": Method(unipc(2), 3, 1, True),
    "unipc3": Method(unipc(3), 4, 1, True),
    "ancestral": Method(ancestral, 1, 1, False),
    "euler_ancestral": Method(euler_ancestral(), 1, 1, False),
    "edm": Method(edm(s_noise=1.0), 2, 2, False),
    "sde_dpmpp_1s": Method(dpmpp(1, eta=1.0), 1, 1, False),
    "sde_dpmpp_2m": Method(dpmpp(2, eta=1.0), 2, 1, False),
    "predictor_corrector": Method(predictor_corrector(), 1, 2, False),
    "stochastic_flow": Method(stochastic_flow, 0, 1, False),
}
