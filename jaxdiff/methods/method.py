"""What a method is: how a model is learned and how it makes features. And the types that methods share.

A `Method` is a frozen dataclass whose fields are its configuration. `make_step` gives the update of a training step,
`make_sample` the function from noise to x0; both are pure, see only a `Model`, and are compiled by whoever calls them.
"""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import optax
from annotated_types import Interval
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from jaxdiff import diffusion, features, ranges
from jaxdiff.diffusion import Denoiser, NamedSampler, Schedule, Weight
from jaxdiff.diffusion.objectives import SampleTimes
from jaxdiff.features import Representation
from jaxdiff.networks import Network, Params
from jaxdiff.tasks import Example, Given, Task
from jaxdiff.training import Metrics, TrainState, Update, gradient_norms

SamplerName = Literal[
    "euler", "ddim", "heun", "midpoint", "rk4", "dpm2", "dpmpp_1s", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "lms2", "lms3",
    "lms4", "unipc2", "unipc3", "ancestral", "euler_ancestral", "edm", "sde_dpmpp_1s", "sde_dpmpp_2m",
    "predictor_corrector", "stochastic_flow", "bridge_sde", "bridge_ode", "dbim",
]  # fmt: skip
SpacingName = Literal["uniform", "quadratic", "cosine", "karras", "logsnr", "searched"]
WeightName = Literal["velocity", "constant", "snr", "min_snr", "edm", "sigmoid"]
AuxiliaryName = Literal["none", "stft", "spectrum", "mel", "speech"]


class Model(NamedTuple):
    """A network, the features it sees and the task it does; static, its parameters travel beside it."""

    network: Network
    representation: Representation
    task: Task


@dataclass(frozen=True)
class Sampling:
    """How sounds are made when nobody says otherwise; each method uses the fields that its `knobs` name."""

    sampler: SamplerName | None = None  # none: the method's first
    steps: ranges.Count = 16
    spacing: SpacingName = "uniform"  # of the times; searched: those that jaxdiff search-times found
    guidance: float = 1.0
    guidance_low: ranges.Weight = 0.0  # guide only where sigma / alpha is above this ...
    guidance_high: Annotated[float, Interval(gt=0, le=math.inf)] = math.inf  # ... and at most this
    guidance_rescale: ranges.Share = 0.0  # 1: the guided estimate keeps the deviation of the conditional one
    temperature: ranges.Positive = 1.0  # of autoregression; below 1 the likely becomes more likely

    def __post_init__(self) -> None:
        ranges.check_fields(self)
        if not self.guidance_low < self.guidance_high:
            low, high = self.guidance_low, self.guidance_high
            raise ValueError(f"guidance_low {low} must be below guidance_high {high}, or nothing is guided")


Optimizer = optax.GradientTransformation
GUIDANCE = frozenset({"guidance", "guidance_low", "guidance_high", "guidance_rescale"})

# (params, given, noise [batch, frames, channels] of unit deviation, keys [batch]) -> x0, shaped like the noise
Sample = Callable[[Params, Given, Float[Array, "batch frames channels"], Key[Array, " batch"]], Array]


class Method(abc.ABC):
    """How a model is learned and sampled; subclasses are frozen dataclasses."""

    knobs: ClassVar[frozenset[str]] = frozenset()  # the fields of `Sampling` that it has a use for
    takes_start: ClassVar[bool] = False  # whether sampling begins where the task says, if it says
    windows: ClassVar[bool] = True  # whether long sounds are made in windows; False: all at once
    samplers: ClassVar[Mapping[str, NamedSampler]] = {}  # that it can use, the first unless told otherwise
    schedule: Schedule | None = None  # of the noise levels, for methods that have any

    def network_options(self) -> dict[str, Any]:
        """Options that the network must be built with, beside the task's: "second_time", "self_conditioning" ..."""
        return {}

    def outputs(self, representation: Representation) -> int:
        """Channels of the network's output."""
        return representation.channels

    def check(self, model: Model) -> None:
        """Raise ValueError, one sentence, where the method does not fit the model."""
        if model.representation.stereo and not model.task.stereo:
            raise ValueError(
                f"task {type(model.task).__name__.lower()} works on each channel by itself; set data.channels to mix, "
                f"left or right"
            )
        if model.task.gives_start and not self.takes_start:
            raise ValueError(
                f"the task says where sampling begins, which {type(self).__name__.lower()} ignores; use method "
                f"regression, bridge or adversarial, or task.guess no where it has that"
            )

    def init(
        self, model: Model, params: Params, optimizer: Optimizer, steps: int, key: PRNGKeyArray
    ) -> tuple[Any, Any, Any]:
        """Parameters, optimiser state and extra state at step 0 of `steps`, for a network with `params`."""
        return params, optimizer.init(params), ()

    def weights(self, params: Any) -> Params:
        """The network's part of what `init` made."""
        return params

    @abc.abstractmethod
    def make_step(self, model: Model, optimizer: Optimizer, steps: int) -> Update:
        """`(state, batch, key) -> (state, metrics)` of a training of `steps`: see `gradient_step`."""

    def judge(self) -> "Method":
        """The method whose loss judges the model on other sounds: its times and noise depend on the key alone."""
        return self

    def sampler(self, sampling: Sampling) -> Callable:
        """The sampler of `sampling`, which may also be a function with the signature of one."""
        name = sampling.sampler
        if callable(name):
            return name
        if name is not None and name not in self.samplers:
            raise ValueError(f"sampler: expected one of {', '.join(self.samplers)}, got {name!r}")
        return self.samplers[name or next(iter(self.samplers))].sampler

    @abc.abstractmethod
    def make_sample(self, model: Model, sampling: Sampling, times: Array) -> Sample:
        """From noise to x0; `times` [steps + 1] fall from 1 to 0, and are empty for methods without steps."""


class Context(NamedTuple):
    """What a loss may know beside the network and the example."""

    key: PRNGKeyArray
    step: Int[Array, ""]
    teacher: Callable  # the network with averaged weights and without dropout
    extra: Any  # of the state


# (network, example, context) -> loss, (metrics, extra)
Loss = Callable[[Callable, Example, Context], tuple[Array, tuple[Metrics, Any]]]


def gradient_step(model: Model, loss: Loss, optimizer: Optimizer) -> Update:
    """The update of every method with one loss: crops, example, loss, gradient, optimiser."""

    def update(state: TrainState, batch: Any, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        example_key, loss_key, network_key = jax.random.split(key, 3)
        example = model.task.example(model.representation, batch, example_key)
        context = Context(loss_key, state.step, model.network.bound(state.average), state.extra)

        def of(params):  # the same dropout at every call of the network, in whatever loop or branch
            return loss(model.network.bound(params, network_key), example, context)

        (_, (metrics, extra)), gradient = jax.value_and_grad(of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, **gradient_norms(gradient)}
        return state._replace(params=params, opt_state=opt_state, extra=extra), metrics

    return update


def training_times(name: str, schedule: Schedule, mean: float, std: float) -> SampleTimes:
    """The distribution of training times of that name."""
    kinds = {
        "uniform": lambda: diffusion.uniform_times,
        "logit_normal": lambda: diffusion.logit_normal_times(mean, std),
        "lognormal": lambda: diffusion.lognormal_times(schedule, mean, std),
    }
    return kinds[name]()


def x0_weight(name: WeightName, sigma_data: float = 1.0) -> Weight | None:
    """The weight of x0's squared error of that name; "constant" is None: the network's own error, unweighted."""
    return {
        "constant": None,
        "velocity": diffusion.velocity_weight,
        "snr": diffusion.snr_weight,
        "min_snr": diffusion.min_snr_weight(),
        "edm": diffusion.edm_weight(sigma_data),
        "sigmoid": diffusion.sigmoid_weight(),
    }[name]


def sound_distance(model: Model, name: AuxiliaryName, weight: float, given: Given) -> Callable | None:
    """`(x0_hat, x0, cond) -> [batch]`: how far the decoded sounds are apart, times `weight`; None for "none"."""
    if name == "none":
        return None
    sr = model.representation.sample_rate
    distance = {
        "stft": features.multi_resolution_stft_loss,
        "spectrum": lambda a, b: features.multi_resolution_stft_loss(a, b, resolutions=((512, 128, 512),)),
        "mel": lambda a, b: features.mel_loss(a, b, sr=sr),
        "speech": features.speech_loss,
    }[name]
    finish = lambda x0: model.task.finish(model.representation, x0, given)  # noqa: E731
    each = lambda a, b: distance(a, b).reshape(len(a), -1).mean(-1)  # noqa: E731  # over both channels of stereo
    return lambda x0_hat, x0, cond: weight * each(finish(x0_hat), finish(x0))


def check_auxiliary(model: Model, name: AuxiliaryName) -> None:
    """Raise ValueError where a loss of the sound would need a gradient through phases that were guessed."""
    if name != "none" and not model.representation.exact:
        raise ValueError(
            f"method.auxiliary {name} needs a representation that decodes exactly, got "
            f"{type(model.representation).__name__}; use patches or compressed_stft, or auxiliary none"
        )


def guided(
    sampling: Sampling, schedule: Schedule, conditional: Denoiser, unconditional: Callable[[], Denoiser], given: Given
) -> Denoiser:
    """Classifier-free guidance as `sampling` says; the plain denoiser where the scale is 1 or there is no class."""
    if sampling.guidance == 1 or given.cond.label is None:
        return conditional
    guide = diffusion.classifier_free_guidance(
        conditional, unconditional(), sampling.guidance, rescale=sampling.guidance_rescale
    )
    if sampling.guidance_low == 0 and sampling.guidance_high == math.inf:
        return guide
    return diffusion.guidance_interval(guide, conditional, schedule, sampling.guidance_low, sampling.guidance_high)
