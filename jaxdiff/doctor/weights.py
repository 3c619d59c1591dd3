"""The weights: does every one of them learn, is what they have learned better than nothing, and what do they look at?

All of it is read off the training step of the run's own method, which is given an optimiser that keeps the gradient
and changes nothing. One program serves all checks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxdiff import diffusion
from jaxdiff.config import Train
from jaxdiff.methods import Adversarial, Autoregression, Bridge, Diffusion, Method, Model, Sampling, Shortcut
from jaxdiff.networks import Network, Params
from jaxdiff.tasks import Batch, Given
from jaxdiff.training import init_state, make_optimizer

from .corpus import Heard
from .files import Case
from .findings import Finding, judged, unseen

LOSSES, ATTENTION = 4, 2  # batches on which weights are compared, and inputs exchanged
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)  # sigma / alpha at which a denoiser is judged
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # and a bridge
UNTRAINED = "There are no trained weights yet."

Tell = Callable[[str], None]


class View(NamedTuple):
    """The inputs that the network is shown: of input, time and condition those of another item of the batch that are
    flagged, and the input with a number added."""

    input: Any = False
    time: Any = False
    condition: Any = False
    added: Any = 0.0


OWN = View()
ANOTHERS = {"input": View(input=True), "time": View(time=True), "condition": View(condition=True)}
Probe = Callable[[Params, Batch, Array, View], tuple[Array, Params]]


class Kept(NamedTuple):
    """The state of an optimiser that changes nothing and keeps the gradient."""

    gradient: Any


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


KEEP = optax.GradientTransformation(
    init=lambda params: Kept(_zeros(params)),
    update=lambda updates, state, params=None: (_zeros(updates), Kept(updates)),
)


def make_probe(model: Model, method: Method, steps: int) -> Probe:
    """`(params, batch, key, view) -> loss, gradient` of the first of `steps` training steps."""

    def probe(params: Params, batch: Batch, key: Array, view: View) -> tuple[Array, Params]:
        seen = model._replace(network=_with_view(model.network, view))
        everything, opt_state, extra = method.init(seen, params, KEEP, steps, key)
        state = init_state(everything, params, opt_state, key, extra=extra)
        after, metrics = method.make_step(seen, KEEP, steps)(state, batch, key)
        is_kept = lambda leaf: isinstance(leaf, Kept)  # noqa: E731
        kept = next(leaf for leaf in jax.tree.leaves(after.opt_state, is_leaf=is_kept) if is_kept(leaf))
        return metrics["loss"], kept.gradient

    return jax.jit(probe)


def _with_view(network: Network, view: View) -> Network:
    """The network that is shown what `view` says; the order of the batch is reversed for another item's."""

    def exchanged(flag: Array, tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.where(flag, x[::-1], x), tree)

    def apply(params: Params, x: Array, *rest: Any, **options: Any) -> Array:
        x, cond = exchanged(view.input, x), exchanged(view.condition, rest[-1])
        if len(rest) == 1:  # an autoregressive network, which has no time
            return network.apply(params, x, cond, **options)
        return network.apply(params, x + view.added, exchanged(view.time, rest[0]), cond, **options)

    return network._replace(apply=apply)


def _loss(probe: Probe, params: Params, crops: Sequence[Batch], view: View = OWN) -> float:
    """The mean over batches, with the same noise for all weights."""
    losses = [probe(params, batch, jax.random.key(i), view)[0] for i, batch in enumerate(crops)]
    return float(np.mean(jax.device_get(losses)))


def check_gradients(probe: Probe, fresh: Params, case: Case, model: Model, heard: Heard) -> Finding:
    """Whether every array gets a gradient: of the trained weights, or of fresh ones moved a little, since layers that
    begin at zero let nothing through at first. A network whose input is always zero is shown another number."""
    params = _moved(fresh) if case.trained is None else case.trained
    view = OWN if differs(model, case.config.method, heard)["input"] else View(added=1e-3)
    largest: dict[str, float] = {}
    for i, batch in enumerate(heard.crops[:LOSSES]):
        _, gradient = probe(params, batch, jax.random.key(i), view)
        for name, size in _sizes(gradient).items():
            largest[name] = float(np.maximum(largest.get(name, 0.0), size))
    broken = [name for name, size in largest.items() if not np.isfinite(size)]
    dead = [name for name, size in largest.items() if size == 0]
    if broken:
        sentence = f"It is not finite in {_named(broken)}; look for a division or a logarithm near 0 there."
        return Finding("gradients", "bad", f"{len(broken)} of {len(largest)} arrays not finite", sentence)
    sentence = f"None reaches {_named(dead)}; look at what comes before and after these weights."
    value = f"{len(dead)} of {len(largest)} arrays get none"
    return judged("gradients", len(dead), 1, 1, value, "A gradient reaches all weights.", sentence)


def _moved(params: Params) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    moved = [x + 0.02 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def _sizes(gradient: Params) -> dict[str, float]:
    """The largest number of every array, and for each index of the first axis of those with three or more, in which
    equal layers are stacked."""
    sizes = {}
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name, x = ".".join(str(getattr(part, "key", part)) for part in path), np.abs(np.asarray(leaf))
        parts = {f"{name}[{k}]": part for k, part in enumerate(x)} if x.ndim >= 3 else {name: x}
        sizes |= {name: float(part.max(initial=0.0)) for name, part in parts.items()}
    return sizes


def _named(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_losses(probe: Probe, fresh: Params, case: Case, heard: Heard) -> list[Finding]:
    """The loss of the trained weights against that of fresh ones, and of their average against the latest."""
    if case.pipeline is None:
        return unseen(["loss", "average"], UNTRAINED)
    crops = heard.crops[:LOSSES]
    before, averaged = _loss(probe, fresh, crops), _loss(probe, case.pipeline.params, crops)
    latest = averaged if case.latest is None else _loss(probe, case.latest, crops)
    best = min(averaged, latest)
    fine, value = "The weights have learned something.", f"{best:.4g}, of fresh weights {before:.4g}"
    sentence = "They are hardly better than fresh weights; train longer, or with another learning rate."
    share = 1 - (before - best) / max(abs(before), 1e-12)
    learned = judged("loss", share, 0.95, 1.0, value, fine, sentence)
    if case.latest is None or not latest < before:
        return [learned, *unseen(["average"], "There are no latest weights that have learned something.")]
    t, value = case.config.train, f"{averaged:.4g}, of the latest weights {latest:.4g}"
    behind = averaged - latest
    lag = max(behind / (before - latest) / 0.3, behind / max(abs(latest), 1e-12) / 0.5)
    sentence = (
        f"Sounds are made with the average, so that they are worse than the loss in the log; train longer, or lower "
        f"train.ema_decay from {t.ema_decay:g} to about {1 - 10 / max(20, t.steps):.4g}."
    )
    return [learned, judged("average", lag, 0.3, 1.0, value, "The average keeps up with the latest weights.", sentence)]


def check_attention(probe: Probe, case: Case, model: Model, heard: Heard) -> list[Finding]:
    """Whether the loss changes where the network is given another item's input, time or condition."""
    names = {place: f"{place} used" for place in ANOTHERS}
    if case.trained is None:
        return unseen(list(names.values()), UNTRAINED)
    different = differs(model, case.config.method, heard)
    crops, findings = heard.crops[:ATTENTION], []
    own = _loss(probe, case.trained, crops)
    for place, view in ANOTHERS.items():
        if not different[place]:
            findings += unseen([names[place]], f"For this task and method the network has no {place} that differs.")
            continue
        change = _loss(probe, case.trained, crops, view) / max(abs(own), 1e-12) - np.sign(own)
        value = f"loss {change:+.1%} with another item's"
        fine = f"The network makes use of its {place}."
        sentence = f"Whatever the {place} is, the answer is the same; look at that branch of the network."
        worst = 2.0 if place == "condition" else 1.0  # a class may tell little
        findings.append(judged(names[place], abs(change) < 1e-5, 1.0, worst, value, fine, sentence))
    return findings


def differs(model: Model, method: Method, heard: Heard) -> dict[str, bool]:
    """Whether input, time and condition of the network differ from item to item for this task and method."""
    example = lambda batch: model.task.example(model.representation, batch, jax.random.key(0))  # noqa: E731
    given = jax.eval_shape(example, heard.crops[0]).given
    timed = isinstance(method, Diffusion | Bridge | Shortcut)
    noisy = timed or isinstance(method, Adversarial | Autoregression)
    return {
        "input": noisy or given.start is not None,
        "time": timed,
        "condition": bool(jax.tree.leaves(given.cond)),
    }


def check_one_batch(probe: Probe, fresh: Params, t: Train, heard: Heard, steps: int, tell: Tell) -> Finding:
    """Whether fresh weights learn one batch by heart, with the same noise in every step."""
    name, batch, key = "one batch", heard.crops[0], jax.random.key(0)
    if steps == 0:
        return unseen([name], "No steps were wanted.")[0]
    optimizer = make_optimizer(t.learning_rate, steps, warmup=max(1, steps // 10), weight_decay=0.0, b1=t.b1)

    @jax.jit
    def update(params: Params, opt_state: Any, gradient: Params) -> tuple[Params, Any]:
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state, losses = fresh, optimizer.init(fresh), []
    for step in range(steps):
        loss, gradient = probe(params, batch, key, OWN)
        params, opt_state = update(params, opt_state, gradient)
        losses.append(float(loss))
        tell(f"one batch: step {step + 1} of {steps}, loss {losses[-1]:.4g}")
    losses.append(float(probe(params, batch, key, OWN)[0]))
    share = 1 - (losses[0] - min(losses)) / max(abs(losses[0]), 1e-12)
    value = f"{losses[0]:.4g} to {losses[-1]:.4g} in {steps} steps"
    sentence = (
        "The loss should fall to half; try another train.learning_rate, more --steps, or a larger network, and look at "
        "the loss."
    )
    return judged(name, share, 0.5, 0.85, value, "Fresh weights learn one batch by heart.", sentence)


# The network's answers ------------------------------------------------------------------------------------------------


def check_answers(model: Model, case: Case, heard: Heard) -> Finding:
    """The squared error of x0 against answers that need no network, at a few noise levels where the method has any."""
    name, method = "answers", case.config.method
    if case.trained is None:
        return unseen([name], UNTRAINED)[0]
    if isinstance(method, Autoregression):
        return unseen([name], "An autoregressive network gives probabilities and no features.")[0]
    times, labels = jnp.ones(1), ["x0"]
    if isinstance(method, Diffusion | Shortcut):
        assert method.schedule is not None
        times = diffusion.time_at_logsnr(method.schedule, -2 * jnp.log(jnp.array(LEVELS)))
        labels = [f"{level:g}" for level in LEVELS]
    elif isinstance(method, Bridge):
        times, labels = jnp.array(TIMES), [f"t {t:g}" for t in TIMES]
    errors, shares = make_errors(model, method), []
    for t in times:
        found = [errors(case.trained, batch, jax.random.key(i), t) for i, batch in enumerate(heard.crops[:ATTENTION])]
        made, trivial = np.mean(jax.device_get(found), axis=0)
        shares.append(made / max(trivial, 1e-12))
    worse = float(np.mean(~(np.array(shares) < 1)))
    value = ", ".join(f"{label}: {share:.2f}" for label, share in zip(labels, shares, strict=True))
    fine = "The error is mostly below that of answers that need no network, of which 1 is the best."
    sentence = "Answers that need no network are as good; train longer, or use a larger network."
    return judged(name, worse, 0.5, 1.0, value, fine, sentence)


def make_errors(model: Model, method: Method) -> Callable[[Params, Batch, Array, Array], tuple[Array, Array]]:
    """`(params, batch, key, t) -> made, trivial`: the mean squared error of the network's x0 at time t, and the least
    of those of the features' mean, of the best line through x_t, and of where sampling begins."""

    def errors(params: Params, batch: Batch, key: Array, t: Array) -> tuple[Array, Array]:
        example_key, noise_key, sample_key = jax.random.split(key, 3)
        x0, given = model.task.example(model.representation, batch, example_key)
        eps = jax.random.normal(noise_key, x0.shape)
        mean, variance = x0.mean((0, 1)), x0.var((0, 1))
        answers, x_t = [jnp.broadcast_to(mean, x0.shape)], eps
        if given.start is not None:
            answers.append(given.start)
        if isinstance(method, Diffusion | Shortcut):
            assert method.schedule is not None
            alpha, sigma = method.schedule.alpha(t), method.schedule.sigma(t)
            x_t = diffusion.noised(method.schedule, t, x0, eps)
            gain = alpha * variance / (alpha**2 * variance + sigma**2)
            answers.append(mean + gain * (x_t - alpha * mean))
        elif isinstance(method, Bridge):
            w_x, w_y, std = method.schedule.marginal(t)
            x_t = w_x * x0 + w_y * jnp.asarray(given.start) + std * eps
        made = estimate(model, method, params, given, x_t, t, jax.random.split(sample_key, len(x0)))
        trivial = jnp.stack([((answer - x0) ** 2).mean() for answer in answers]).min()
        return ((made - x0) ** 2).mean(), trivial

    return jax.jit(errors)


def estimate(model: Model, method: Method, params: Params, given: Given, x_t: Array, t: Array, keys: Array) -> Array:
    """The x0 that a method finds for x_t in one look, or makes at all where it has no noise levels."""
    if isinstance(method, Shortcut):
        return diffusion.flow_map(model.network.bound(params), given.cond)(x_t, t, t)
    one_look: Any = lambda denoiser, schedule, start, times, keys: denoiser(x_t, t)  # noqa: E731
    sampling = Sampling(sampler=one_look) if method.samplers else Sampling()
    return method.make_sample(model, sampling, jnp.zeros(0))(params, given, x_t, keys)
