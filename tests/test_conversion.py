"""Conversion: what instruments and voices are told, restyling keeps what it says, inversion is a sampler's way back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.midi import cut_notes
from jaxdiff.diffusion import Cosine, RectifiedFlow, invert, spaced_times
from jaxdiff.diffusion.samplers import SAMPLERS
from jaxdiff.features import KEYS, LOWEST_KEY, LogMel, Magnitude, Normalization, Normalized
from jaxdiff.inference.contours import Contours, contours
from jaxdiff.inference.convert import kept_contours
from jaxdiff.methods import Diffusion, Model, Sampling
from jaxdiff.methods.edit import Edit
from jaxdiff.networks import Condition, ConvNeXt, from_nnx
from jaxdiff.tasks import Conversion, Given, Instrument, Keep, Restyle, Voice
from jaxdiff.tasks.restyle import kept
from jaxdiff.tasks.voice import active_frames, between, pitch_of

MEL = LogMel(16_000, n_fft=640, hop_length=160, n_mels=80)
SCORE = np.array([[0.1, 0.5, 60, 80], [0.2, 0.4, 64, 40]], np.float32)


def speech(seconds=1.0, f0=150.0, seed=0):
    """A pulse train through two formants, with pauses."""
    t = np.arange(round(seconds * 16000)) / 16000
    phase = 2 * np.pi * f0 * t
    y = sum(np.cos(k * phase) * np.exp(-((k * f0 - 700) ** 2) / 4e5) for k in range(1, 20))
    y = y + 0.01 * np.random.default_rng(seed).standard_normal(len(t))
    return jnp.asarray(0.2 * y * (np.sin(2 * np.pi * t / 0.5) > -0.8), jnp.float32)


# Instruments --------------------------------------------------------------------------------------------------------


def test_an_instrument_is_told_notes_class_source_and_loudness():
    task = Instrument(classes=("a", "b"), jitter=0.0, dropped=0.0, peak_db=None)
    wave = speech()[None]
    batch = {"wave": 0 * wave, "source": wave, "notes": cut_notes(SCORE, 0, 1)[None], "label": np.array([1])}
    example = jax.jit(lambda b: task.example(MEL, b, jax.random.key(0)))(batch)
    cond = example.given.cond
    frames = np.asarray(cond.frames[0])
    assert frames.shape == (101, task.needs(MEL).condition_features)
    assert np.flatnonzero(frames[:, 60 - LOWEST_KEY]).tolist() == list(range(10, 50))
    np.testing.assert_allclose(frames[:, 4 * KEYS : 4 * KEYS + 80], MEL.encode(wave)[0], atol=1e-6)
    assert np.asarray(cond.label).tolist() == [1]
    np.testing.assert_allclose(example.x0, MEL.encode(0 * wave), atol=1e-6)


def test_notes_are_moved_and_dropped_in_training_and_never_in_use():
    task = Instrument(classes=("a",), jitter=0.03, dropped=0.5)
    notes = np.tile(cut_notes(np.array([[0.5, 0.7, 60, 80]], np.float32), 0, 1), (64, 1, 1))
    batch = {"wave": jnp.ones((64, 16000)), "notes": notes, "label": np.zeros(64, int)}
    task_example = jax.jit(lambda b: task.example(MEL, {**b, "source": b["wave"]}, jax.random.key(0)))
    onset = np.asarray(task_example(batch).given.cond.frames)[..., KEYS + 60 - LOWEST_KEY]
    there = onset.any(-1)
    assert 0.3 < there.mean() < 0.7
    at = onset.argmax(-1)[there]
    assert at.min() >= 47 and at.max() <= 53 and len(set(at.tolist())) > 3
    cond = jax.jit(lambda b: task.given(MEL, b).cond)(batch)
    assert (np.asarray(cond.frames)[..., KEYS + 60 - LOWEST_KEY].argmax(-1) == 50).all()


@pytest.mark.parametrize("task", [Instrument(classes=("a",), peak_db=None), Voice(classes=("a",), peak_db=None)])
def test_strength_mixes_the_source_s_features_with_the_result_s(task):
    wave = speech(0.5)[None]
    r = Sound(MEL)
    batch = {"wave": wave, "notes": jnp.asarray(cut_notes(SCORE, 0, 1)[None]), "label": np.array([-1])}
    x0 = jnp.ones_like(MEL.encode(wave))
    for strength in (0.0, 0.25, 1.0):
        given = task.given(r, batch, Conversion(strength))
        expected = strength * x0 + (1 - strength) * MEL.encode(wave)
        np.testing.assert_allclose(task.finish(r, x0, given), expected, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Sound(LogMel):
    """Log-mel features that stay features."""

    def __init__(self, mel):
        for field in dataclasses.fields(mel):
            object.__setattr__(self, field.name, getattr(mel, field.name))

    def decode(self, x):
        return x


# Voices -------------------------------------------------------------------------------------------------------------


def test_a_voice_is_told_the_pitch_that_is_wanted_and_who_speaks():
    task = Voice(classes=("a", "b"), peak_db=None)
    wave = speech(1.0)[None]
    tokens = np.ones((1, 7, 80), np.float32)
    batch = {"wave": wave, "label": np.array([-1]), "pitch": np.array([[1.0, 0.5]], np.float32)}
    given = task.given(MEL, batch, Conversion(label=1))
    octaves, voiced = pitch_of(wave, 16000, 160)
    np.testing.assert_allclose(np.asarray(given.cond.frames)[..., -1], voiced)
    np.testing.assert_allclose(np.asarray(given.cond.frames)[..., -2], between(octaves + 0.5, voiced), atol=1e-6)
    assert np.asarray(given.cond.label).tolist() == [1]
    assert not np.asarray(given.cond.token_mask).any()
    given = task.given(MEL, {**batch, "reference_frames": tokens}, Conversion())
    assert np.asarray(given.cond.label).tolist() == [2]
    assert np.asarray(given.cond.token_mask).all()


def test_training_disguises_the_source_and_tells_half_of_the_items_by_name():
    task = Voice(classes=("a",), peak_db=None)
    wave = jnp.tile(speech(0.64), (64, 1))
    batch = {"wave": wave, "reference": wave, "label": np.zeros(64, int)}
    example = jax.jit(lambda b: task.example(MEL, b, jax.random.key(0)))(batch)
    told = np.asarray(example.given.cond.token_mask).any(-1)
    assert 0.3 < told.mean() < 0.7
    assert (np.asarray(example.given.cond.label) == told).all()  # the class is unknown where tokens tell
    means = np.asarray(example.given.cond.frames)[:, 0, 20:40]
    assert np.std(means, axis=0).mean() > 0.03
    np.testing.assert_allclose(example.x0, jnp.broadcast_to(example.x0[:1], example.x0.shape))


def test_the_mean_of_an_envelope_is_told_apart_over_speech_alone():
    task = Voice(classes=("a",), peak_db=None)
    wave = jnp.concatenate([speech(0.5), jnp.zeros(8000)])[None]
    frames = lambda y: np.asarray(task.given(MEL, {"wave": y, "label": np.array([0])}).cond.frames)[0]  # noqa: E731
    ours, louder = frames(wave), frames(2 * wave)
    speaks = np.asarray(active_frames(MEL.encode(wave), MEL))[0]
    np.testing.assert_allclose(ours[speaks, :20].mean(0), 0, atol=1e-4)
    assert np.ptp(ours[:, 20:40], axis=0).max() < 1e-6
    np.testing.assert_allclose(louder[speaks, :20], ours[speaks, :20], atol=2e-3)  # but for the floor
    assert louder[0, 20] > ours[0, 20] + 0.5


def test_a_share_of_training_hears_the_target_itself():
    task = Voice(classes=("a",), peak_db=None, alone=0.3, stretch=0.0, equalizer_db=0.0)
    wave, source = (jnp.tile(speech(0.64, f0), (64, 1)) for f0 in (150.0, 110.0))
    batch = {"wave": wave, "source": source, "reference": wave, "label": np.zeros(64, int)}
    example = jax.jit(lambda b: task.example(MEL, b, jax.random.key(0)))(batch)
    mean = np.asarray(example.given.cond.frames)[:, 0, 20:40]
    pitch = (jnp.zeros((1, 65)), jnp.zeros((1, 65), bool), jnp.zeros((1, 65), bool))
    xs = MEL.encode(wave[:1]), MEL.encode(source[:1])
    plain = [task._known(x, active_frames(x, MEL), pitch, None, x[:, :1], None) for x in xs]
    own, other = (np.abs(mean - np.asarray(k.cond.frames)[:, 0, 20:40]).max(-1) < 1e-4 for k in plain)
    assert 3 < own.sum() < 20 and own.sum() < other.sum() and not (own & other).any()  # the rest have noise


def test_values_between_known_ones_lie_on_lines():
    x = jnp.array([[9.0, 1.0, 9.0, 9.0, 4.0, 9.0], [9.0] * 6])
    known = jnp.array([[False, True, False, False, True, False], [False] * 6])
    np.testing.assert_allclose(between(x, known), [[1, 1, 2, 3, 4, 4], [0] * 6])


def test_a_disguise_of_nothing_changes_nothing_and_stretching_moves_a_formant():
    task = Voice(peak_db=None, stretch=0.0, equalizer_db=0.0)
    x = MEL.encode(speech(0.64)[None])
    keys = jax.random.split(jax.random.key(1), 2)
    plain = task._disguised(MEL, jnp.tile(x, (32, 1, 1)), *keys)
    assert (np.abs(np.asarray(plain) - np.asarray(x)).max((1, 2)) < 1e-5).mean() > 0.3  # the others have noise
    moved = dataclasses.replace(task, stretch=0.35)._disguised(MEL, jnp.tile(x, (32, 1, 1)), *keys)
    centre = lambda y: (np.exp(8 * np.asarray(y)) * np.arange(80)).sum(-1) / np.exp(8 * np.asarray(y)).sum(-1)  # noqa: E731
    shifts = centre(moved)[:, 20] - centre(x)[0, 20]
    assert shifts.min() < -2 and shifts.max() > 2


def test_pooled_tokens_are_a_set_and_masked_ones_are_not_seen():
    network = from_nnx(lambda rngs: ConvNeXt(6, width=16, depth=1, token_features=5, rngs=rngs))
    params = network.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1, params)
    x, t = jax.random.normal(jax.random.key(1), (2, 9, 6)), jnp.full(2, 0.5)
    tokens = jax.random.normal(jax.random.key(2), (2, 8, 5))
    mask = jnp.arange(8) < jnp.array([[5], [0]])
    apply = jax.jit(network.apply)
    out = lambda tokens, mask=mask: apply(params, x, t, Condition(tokens=tokens, token_mask=mask))  # noqa: E731
    np.testing.assert_allclose(out(tokens), out(tokens.at[:, 5:].set(9.0)), atol=1e-5)
    np.testing.assert_allclose(out(tokens), out(tokens[:, jnp.array([4, 3, 2, 1, 0, 5, 6, 7])]), atol=1e-5)
    np.testing.assert_allclose(out(tokens)[1], apply(params, x, t, Condition())[1], atol=1e-5)
    assert float(jnp.abs(out(tokens)[0] - out(tokens + 1)[0]).max()) > 1e-3


def test_active_frames_are_those_near_the_loudest():
    x = jnp.full((1, 4, 80), -1.0).at[0, :, 3].set(jnp.array([0.5, -0.29, -0.31, -1.0]))  # 50 dB to a unit
    assert np.asarray(active_frames(x, MEL)).tolist() == [[True, True, False, False]]


def test_contours_of_a_long_sound_are_those_of_its_parts():
    y = np.tile(np.asarray(speech(1.0, 130.0)), 53)[: 16000 * 52 + 77]
    whole = contours(y, sr=16000)
    assert len(whole.voiced) == 1 + len(y) // 160
    short = contours(y[: 16000 * 3], sr=16000)
    np.testing.assert_array_equal(whole.voiced[:200], short.voiced[:200])
    np.testing.assert_allclose(whole.loudness[2500:2600], whole.loudness[500:600], atol=0.5)
    mean, deviation = whole.pitch or (0, 0)
    assert abs(200 * 2**mean - 130) < 1 and deviation < 0.05


def test_what_is_kept_of_a_voice_is_measured():
    frames = 300
    octaves = np.sin(np.arange(frames) / 9)
    before = Contours(octaves, np.ones(frames, bool), 20 * np.cos(np.arange(frames) / 17) - 30)
    after = before._replace(octaves=0.7 * octaves + 1)
    assert kept_contours(before, after).measures["pitch_correlation"] == pytest.approx(1)
    assert not kept_contours(before, after).lost
    lost = kept_contours(before, after._replace(loudness=before.loudness[::-1]))
    assert lost.lost and "loudness" in lost.said


# Restyling ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["log_mel", "magnitude"])
def pair(request):
    """Normalised features of two sounds, and their representation."""
    plain = MEL if request.param == "log_mel" else Magnitude(n_fft=512, hop_length=160)
    bands = plain.channels
    r = Normalized(plain, Normalization(jnp.linspace(-0.2, 0.1, bands), jnp.linspace(0.3, 0.5, bands)))
    return r, *(r.encode(speech(0.8, f0)[None]) for f0 in (150.0, 230.0))


def levels(r, x):
    """Natural logarithms of power."""
    x = np.asarray(x, np.float64) * np.asarray(r.normalization.scale) + np.asarray(r.normalization.mean)
    if isinstance(r.representation, LogMel):
        return 5 * np.log(10) * x
    return np.log(np.maximum(x, (128 * 10**-4.5) ** 0.5)) * 4  # 90 dB below a sine at full scale


def loudness(r, x):
    return np.log10(np.exp(levels(r, x)).sum(-1))


def test_what_is_kept_is_the_source_s_and_the_rest_is_not(pair):
    r, source, other = pair
    everything = kept(r, Keep(), source, other)
    np.testing.assert_allclose(loudness(r, everything), loudness(r, source), atol=1e-3)
    np.testing.assert_array_equal(kept(r, Keep(False, False, False), source, other), other)
    np.testing.assert_allclose(levels(r, kept(r, Keep(), source, source)), levels(r, source), atol=1e-3)
    assert float(jnp.abs(everything - source).max()) > 0.1  # the colour is the other's


def test_loudness_and_onsets_are_the_slow_and_the_fast_part(pair):
    r, source, other = pair
    slow, fast, both = (
        levels(r, kept(r, Keep(False, *which), source, other)) for which in ((True, False), (False, True), (True, True))
    )
    at = levels(r, other)
    seen = (both > both.max() - 10) & (at > at.max() - 10)  # what is silent stays at the floor
    np.testing.assert_allclose(((slow - at) + (fast - at))[seen], (both - at)[seen], atol=1e-3)
    np.testing.assert_allclose(loudness(r, kept(r, Keep(False), source, other)), loudness(r, source), atol=1e-3)


def test_the_melody_kept_is_the_pattern_of_partials(pair):
    r, source, other = pair
    bands = r.channels
    basis = np.cos(np.pi / bands * (np.arange(bands)[:, None] + 0.5) * np.arange(14))
    basis /= np.linalg.norm(basis, axis=0)
    fine = lambda x: (levels(r, x) - levels(r, x) @ basis @ basis.T)[..., : bands // 4]  # noqa: E731
    made = kept(r, Keep(True, False, False), source, other)
    off = lambda a, b: np.quantile(np.abs(a - b), 0.99)  # noqa: E731  # some fall below what counts as silent
    assert off(fine(made), fine(source)) < 0.2
    high = slice(bands * 7 // 8, None)  # above 4 kHz on either scale
    assert off(levels(r, made)[..., high], levels(r, other)[..., high]) < 0.1
    half = kept(r, Keep(True, False, False), source, other, 0.5)
    assert off(fine(half), (fine(source) + fine(other)) / 2) < 0.2


def test_the_melody_is_held_while_there_is_much_noise_and_let_go_then(pair):
    r, source, other = pair
    guided = Restyle().guide(r, lambda x_t, t: other, Cosine(), Given(kept=(Keep(), source)))  # type: ignore[arg-type]
    at = lambda t: guided(other, jnp.full(1, t))  # noqa: E731
    np.testing.assert_allclose(at(0.95), kept(r, Keep(), source, other), atol=1e-5)
    np.testing.assert_allclose(at(0.5), kept(r, Keep(melody=False), source, other), atol=1e-5)
    assert float(jnp.abs(at(0.95) - at(0.75)).max()) > 0.05 < float(jnp.abs(at(0.75) - at(0.5)).max())


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()])
def test_inversion_is_exact_for_gaussians_to_second_order(schedule):
    mean, deviation = 0.7, 0.5

    def denoiser(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return mean + alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * (x_t - alpha * mean)

    x0 = jnp.array([[-0.4], [0.7], [1.9]])
    errors = []
    for steps in (16, 32):
        times = 0.9 * spaced_times(schedule, steps)
        alpha, sigma = schedule.alpha(times[0]), schedule.sigma(times[0])
        exact = alpha * mean + jnp.sqrt(alpha**2 * deviation**2 + sigma**2) / deviation * (x0 - mean)
        errors.append(float(jnp.abs(invert(denoiser, schedule, x0, times) - exact).max()))
    assert errors[0] < 0.02 and errors[1] < errors[0] / 3
    times = 0.9 * spaced_times(schedule, 64)
    there = invert(denoiser, schedule, x0, times)
    back = SAMPLERS["heun"].sampler(denoiser, schedule, there, times, jax.random.key(0))
    np.testing.assert_allclose(back, x0, atol=0.01)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_an_edit_begins_with_the_clip_and_strength_0_leaves_it(strength):
    network = from_nnx(lambda rngs: ConvNeXt(80, width=8, depth=1, rngs=rngs))
    model = Model(network, MEL, Restyle())
    params = jax.tree.map(lambda x: x + 0.3, network.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (1, 9, 80))
    given = Given(start=x, kept=(Keep(False, False, False), x))
    edit = Edit(Diffusion(prediction="x0"), strength)
    sample = edit.make_sample(model, Sampling(sampler="euler"), jnp.linspace(1, 0, 5))
    noise, keys = jax.random.normal(jax.random.key(2), x.shape), jax.random.split(jax.random.key(3), 1)
    away = float(jnp.abs(jax.jit(lambda p: sample(p, given, noise, keys))(params) - x).max())
    assert away == 0 if strength == 0 else 0.3 < away < 1e3
    assert edit.takes_start and not Diffusion().takes_start
