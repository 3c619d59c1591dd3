"""Operators of inverse problems against dense matrices of NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measurements import BANDS, LINEAR, MASK, D, filtered, rows
from oracles import max_relative

from jaxdiff.diffusion import (
    Operator,
    adjoint,
    clipping,
    decimation,
    filterbank,
    linear_operator,
    lowpass,
    magnitude,
    masking,
    mixture,
    represented,
)
from jaxdiff.features import istft, mel_filterbank, melspectrogram, stft

each_linear = pytest.mark.parametrize("name", LINEAR)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def prox(operator: Operator, x, y, ratio) -> jax.Array:
    assert operator.prox is not None
    return operator.prox(jnp.asarray(x), jnp.asarray(y), ratio)


def adjoint_gap(operator, x, v) -> float:
    """|<A x, v> - <x, A' v>| relative to |A x| |v|."""
    image = np.asarray(operator.apply(jnp.asarray(x)))
    pulled = np.asarray(adjoint(operator, jnp.asarray(x))(jnp.asarray(v)))
    gap = np.vdot(image, v).real - np.vdot(x, pulled).real
    return abs(gap) / (np.linalg.norm(image) * np.linalg.norm(v))


@each_linear
def test_linear_operator_is_its_matrix_and_the_adjoint_its_transpose(name):
    operator, matrix = LINEAR[name]
    x, v = rows(1, 4, D), rows(2, 4, len(matrix))
    assert max_relative(operator.apply(jnp.asarray(x)), x @ matrix.T) <= 1e-12
    assert max_relative(adjoint(operator, jnp.asarray(x))(jnp.asarray(v)), v @ matrix) <= 1e-12
    assert adjoint_gap(operator, x, v) <= 1e-12


@each_linear
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1e9])
def test_prox_is_the_regularised_least_squares_solution(name, ratio):
    operator, matrix = LINEAR[name]
    x, y = rows(1, 4, D), rows(2, 4, D) @ matrix.T
    gram = matrix @ matrix.T + ratio * np.eye(len(matrix))
    expected = x + (y - x @ matrix.T) @ np.linalg.pinv(gram, rcond=1e-12) @ matrix
    assert max_relative(prox(operator, x, y, ratio), expected) <= 1e-9


def test_mixture_is_the_weighted_sum():
    weights, x, v = np.array([0.7, -1.2, 0.4]), rows(1, 2, 3, 5), rows(2, 2, 5)
    operator = mixture(jnp.asarray(weights))
    assert max_relative(operator.apply(jnp.asarray(x)), np.einsum("bst,s->bt", x, weights)) <= 1e-12
    assert max_relative(adjoint(operator, jnp.asarray(x))(jnp.asarray(v)), np.einsum("bt,s->bst", v, weights)) <= 1e-12
    assert adjoint_gap(operator, x, v) <= 1e-12
    # Equal weights share the remainder evenly: the mixture consistency of Wisdom et al. 2019.
    even = prox(mixture(jnp.ones(3)), x, v, 0.0)
    assert max_relative(even, x + (v - x.sum(1))[:, None] / 3) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("operator", [lowpass(0.5, axis=1), decimation(3, axis=1), filterbank(BANDS, axis=1)])
def test_axis_is_the_one_that_is_worked_along(operator):
    x = rows(1, 2, D, 3)
    last = {2: lowpass(0.5), 4: decimation(3), 5: filterbank(BANDS)}
    along = operator.apply(jnp.asarray(x))
    twin = last[{12: 2, 4: 4, 5: 5}[along.shape[1]]]
    moved = jnp.asarray(np.moveaxis(x, 1, 2))
    assert max_relative(along, jnp.moveaxis(twin.apply(moved), 2, 1)) <= 1e-12
    expected = jnp.moveaxis(prox(twin, moved, twin.apply(2 * moved), 0.4), 2, 1)
    assert max_relative(prox(operator, x, operator.apply(2 * jnp.asarray(x)), 0.4), expected) <= 1e-12


def short_time(x):
    return stft(x, n_fft=32, hop_length=8)


def from_short_time(X):
    return istft(X, hop_length=8, length=128)


@pytest.mark.slow
def test_stft_and_mel_as_operators_have_exact_adjoints():
    x = rows(1, 2, 128)
    operator = linear_operator(short_time)
    X = np.asarray(short_time(jnp.asarray(x)))
    v = rows(2, *X.shape) + 1j * rows(3, *X.shape)
    assert adjoint_gap(operator, x, v) <= 1e-12
    z = rows(4, 2, 128)
    assert max_relative(prox(operator, x, short_time(jnp.asarray(z)), 0.0), z) <= 1e-8
    mel = filterbank(mel_filterbank(16000, 32, 6), axis=1)
    power, bands = np.abs(X) ** 2, rows(5, 2, 6, X.shape[2])
    assert adjoint_gap(mel, power, bands) <= 1e-12
    wave = melspectrogram(jnp.asarray(x), sr=16000, n_fft=32, hop_length=8, n_mels=6)
    assert max_relative(mel.apply(jnp.asarray(power)), wave) <= 1e-6


@pytest.mark.parametrize("operator", [clipping(0.6), magnitude(short_time, from_short_time)], ids=["clip", "magnitude"])
def test_non_linear_operators_have_the_adjoint_of_their_derivative(operator):
    """Against central differences; and the identity that linear operators are tested with fails for clipping."""
    x, dx = jnp.asarray(rows(1, 2, 128)), jnp.asarray(rows(2, 2, 128))
    v = jnp.asarray(rows(3, *operator.apply(x).shape))
    difference = (operator.apply(x + 1e-6 * dx) - operator.apply(x - 1e-6 * dx)) / 2e-6
    pulled = adjoint(operator, x)(v)
    assert abs(jnp.vdot(difference, v) - jnp.vdot(dx, pulled)) <= 1e-7 * np.linalg.norm(difference) * np.linalg.norm(v)
    if operator.apply(x).shape == x.shape:
        assert adjoint_gap(operator, x, v) > 1e-3


def test_clipping_prox_is_the_nearest_consistent_point():
    operator, x = clipping(1.0), jnp.asarray(3 * rows(1, 1, 500))
    y = operator.apply(jnp.asarray(2 * rows(2, 1, 500)))
    z = np.asarray(prox(operator, x, y, 0.0))
    assert (operator.apply(jnp.asarray(z)) == y).all()
    inside = np.abs(y) < 1
    assert (z[inside] == np.asarray(y)[inside]).all()
    # Beyond the limit, brute force: of a fine grid of consistent values none is nearer.
    grid = 1 + np.linspace(0, 12, 2001)
    for sign in (1, -1):
        at = np.asarray(y)[0] == sign
        best = np.abs(np.asarray(x)[0, at][:, None] - sign * grid).min(1)
        assert (np.abs(np.asarray(x)[0, at] - z[0, at]) <= best + 1e-12).all()
    assert (prox(operator, x, y, jnp.inf) == x).all()


def test_magnitude_prox_is_a_griffin_lim_step():
    operator = magnitude(short_time, from_short_time)
    truth, x = jnp.asarray(rows(1, 2, 128)), jnp.asarray(rows(2, 2, 128))
    y = operator.apply(truth)
    assert max_relative(prox(operator, truth, y, 0.0), truth) <= 1e-10
    errors = [np.linalg.norm(operator.apply(x) - y)]
    for _ in range(20):  # Griffin & Lim 1984: the inconsistency never grows
        x = prox(operator, x, y, 0.0)
        errors.append(np.linalg.norm(operator.apply(x) - y))
    assert (np.diff(errors) <= 1e-12).all()
    assert errors[-1] < 0.7 * errors[0]
    assert np.isfinite(prox(operator, 0 * x, y, 0.0)).all()


def test_represented_operator_is_that_of_the_decoded_sound():
    """Patches of samples with a gain of 2: at ratio 0 the nearest point does not depend on the gain."""
    encode, decode = lambda y: y.reshape(-1, 3, 4) / 2, lambda x: 2 * x.reshape(-1, 12)
    operator = represented(masking(MASK), encode, decode)
    x, truth = jnp.asarray(rows(1, 2, 3, 4)), jnp.asarray(rows(2, 2, D))
    y = masking(MASK).apply(truth)
    z = prox(operator, x, y, 0.0)
    assert max_relative(operator.apply(z), y) <= 1e-12
    assert max_relative(decode(z), np.where(MASK, truth, decode(x))) <= 1e-12
    assert represented(Operator(jnp.abs), encode, decode).prox is None


def test_conjugate_gradients_treat_items_alone():
    operator, x, y = LINEAR["convolution"][0], jnp.asarray(rows(1, 5, D)), jnp.asarray(rows(2, 5, D - 3))
    run = jax.jit(functools.partial(prox, operator))
    whole = run(x.at[0].multiply(1e6), y, 0.1)
    assert max_relative(run(x[3:], y[3:], 0.1), whole[3:]) <= 1e-10
    short = jax.jit(functools.partial(prox, linear_operator(filtered, iterations=2)))
    assert max_relative(short(x[3:], y[3:], 0.1), whole[3:]) > 1e-6


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="a length of 10 is no multiple of factor 4; crop it to 8"):
        decimation(4).apply(jnp.zeros((1, 10)))
    with pytest.raises(ValueError, match="factor must be at least 2, got 1"):
        decimation(1)
    with pytest.raises(ValueError, match="cutoff must be a fraction .* got 8000"):
        lowpass(8000)
    with pytest.raises(ValueError, match="limit must be above 0, got 0"):
        clipping(0)
