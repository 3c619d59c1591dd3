"""Random configurations and command lines: each is used, or refused in a sentence; no traceback, no hang."""

import contextlib
import io
import random
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import yaml

from jaxdiff import config as configuration
from jaxdiff.cli.main import main
from jaxdiff.config import TABLES, Config, ConfigError, Data, Normalize, Options, Sampling, Train, load_config, schema
from jaxdiff.data.orchestra import write_orchestra
from jaxdiff.methods import Method
from jaxdiff.tasks import Task
from jaxdiff.training import init_state, make_optimizer, make_train_step

pytestmark = pytest.mark.slow

CASES = 180
LIMIT = 60  # seconds for one
JUNK = [
    "0", "-1", "1", "2", "3", "1e-3", "0.5", "1e30", "-0.0", "nan", ".inf", "1e400", "9" * 30, "true", "no", "none", "",
    "''", "text", "[1, 2]", "{a: 1}", "../x", "$HOME", "~", "é", "1:30", "010", "0x10", "- 1", "!!python/object:os.x",
]  # fmt: skip
USUAL = ["0", "1", "2", "3", "4", "6", "8", "64", "128", "0.1", "0.5", "1.5", "-3", "yes", "no", "none"]
TINY = {
    "data": {"seconds": "0.128", "sample_rate": "8000"},
    "representation": {"n_fft": "256", "hop_length": "64"},
    "network": {"width": "16", "depth": "1"},
    "normalize": {"crops": "4"},
    "train": {"steps": "1", "batch": "2", "warmup": "0", "sample_every": "0"},
    "sampling": {"steps": "2"},
}
GROUPS = {"data": Data, "normalize": Normalize, "train": Train, "sampling": Sampling}
KINDS = {"task": Task, "representation": configuration.Representation, "network": Options, "method": Method}


def random_tree(draw):
    """The tiny configuration with other kinds of parts, and up to two keys set to anything."""
    tree = {group: dict(values) for group, values in TINY.items()}
    for group, family in KINDS.items():
        if draw.random() < 0.4:
            tree[group] = {"kind": draw.choice(list(TABLES[family][0]))}
    for _ in range(draw.randint(0, 2)):
        group = draw.choice([*GROUPS, *KINDS] * 3 + ["other"])
        keys = ["other"] if draw.random() < 0.05 or group == "other" else []
        if group in GROUPS:
            keys += list(schema(GROUPS[group]))
        elif group in KINDS:
            table, default = TABLES[KINDS[group]]
            part = table[tree.get(group, {}).get("kind", default)]
            keys += list(schema(part, KINDS[group]))
        tree.setdefault(group, {})[draw.choice(keys)] = draw.choice(USUAL if draw.random() < 0.7 else JUNK)
    if draw.random() < 0.05:
        tree[draw.choice(list(GROUPS))] = draw.choice(JUNK)
    return tree


def as_text(tree):
    """YAML whose values stand as they were drawn, unquoted."""
    lines = []
    for group, values in tree.items():
        lines.append(f"{group}: {values}" if isinstance(values, str) else f"{group}:")
        lines += [] if isinstance(values, str) else [f"  {key}: {value}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def time_limit(case):
    def stop(*_):
        raise AssertionError(f"no end after {LIMIT} s: {case}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trace(config: Config) -> None:
    """A whole training step and the making of a sound, in shapes."""
    crop = configuration.crop(config)
    if crop.samples > 2**20 or config.train.batch > 64:  # right, and too large to look at here
        return
    model, key = configuration.model(config, ("a", "b"), None), jax.random.key(0)
    optimizer = make_optimizer(config.train.learning_rate, config.train.steps)
    batch = {"wave": jnp.zeros((config.train.batch, crop.samples)), "label": jnp.zeros(config.train.batch, int)}
    notes = jnp.zeros((config.train.batch, 8, 4))
    batch |= {name: notes if name == "notes" else batch["wave"] for name in model.task.inputs}

    def step(batch):
        everything, *rest = config.method.init(model, model.network.init(key), optimizer, config.train.steps, key)
        state = init_state(everything, config.method.weights(everything), rest[0], key, extra=rest[1])
        update = config.method.make_step(model, optimizer, config.train.steps)
        return make_train_step(update, config.method.weights, ema_decay=config.train.ema_decay)(state, batch)

    jax.eval_shape(step, batch)


@pytest.mark.parametrize("seed", range(3))
def test_random_configurations(seed, tmp_path):
    draw, used = random.Random(seed), 0
    for _ in range(CASES // 12):
        text = as_text(random_tree(draw))
        (tmp_path / "c.yaml").write_text(text)
        with time_limit(text):
            try:
                trace(load_config(tmp_path / "c.yaml"))
                used += 1
            except ConfigError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, text
            except ValueError as error:
                raise AssertionError(f"{type(error).__name__}: {error}\n{text}") from error
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}\n{text}") from error
    assert used > 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of sounds, one run of generation and one vocoder."""
    root = tmp_path_factory.mktemp("fuzz")
    sounds = write_orchestra(root / "corpus", count=2)
    for task, more in (("generate", {}), ("vocode", {"n_fft": "256", "hop_length": "64", "n_mels": "16"})):
        tree = {**TINY, "task": {"kind": task, **more}, "data": {**TINY["data"], "path": str(sounds)}}
        (root / f"{task}.yaml").write_text(yaml.safe_dump(tree))
        assert command(["train", root / f"{task}.yaml", "--workdir", root / task])[0] == 0
    (root / "few").mkdir()
    for name, samples in (("take.1.wav", 4000), ("take.2.wav", 1), ("ca$h_$1.wav", 999), ("太鼓.flac", 2000)):
        soundfile.write(root / "few" / name, 0.1 * np.sin(np.arange(samples) / 9), 8000)
    (root / "few" / "bad.wav").write_bytes(b"RIFF")
    return root


def command(arguments):
    """Exit code and standard error of a command in this process."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            return stop.code, said.getvalue()
    raise AssertionError("main returned")


OPTIONS = {
    "generate": ["--count", "--seconds", "--label", "--seed", "--steps", "--guidance", "--temperature", "--sampler",
                 "--spacing", "--times", "--ema", "--colour"],
    "vocode": ["--seed", "--steps", "--sampler", "--spacing", "--times", "--ema", "--model"],
    "features": ["--kind", "--n-fft", "--hop-length", "--n-mels", "--n-mfcc", "--fmin", "--fmax", "--sample-rate",
                 "--invert"],
    "info": ["--out"],
    "export": ["--half", "--out"],
    "search-times": ["--steps", "--sampler", "--count", "--iterations", "--seed"],
}  # fmt: skip
GOOD = ["euler", "heun", "dpmpp_2m", "uniform", "karras", "searched", "kick", "mel", "mfcc", "stft", "cqt", "pitch",
        "256", "64", "4", "4000", "0.2"]  # fmt: skip


def random_command(draw, place, out):
    kind = draw.choice(list(OPTIONS))
    source = {"generate": place / "generate", "vocode": place / "few", "features": place / "few"}
    sources = [source.get(kind, place / "generate")] * 4 + [place / "absent", place / "few/bad.wav"]
    arguments = [kind, draw.choice(sources)]
    if kind == "vocode":
        arguments += ["--model", draw.choice([place / "vocode"] * 3 + [place / "generate"])]
    if kind not in ("info", "search-times"):
        arguments += ["--out", draw.choice([out] * 6 + [place / "few/bad.wav", out / "a/b.safetensors"])]
    if kind == "search-times":
        arguments += ["--steps", "2", "--count", "1", "--iterations", "1"]
    if kind == "features":
        arguments += ["--n-fft", "256", "--hop-length", "64", "--n-mels", "16"]
    for _ in range(draw.randint(0, 2)):
        arguments += [draw.choice(OPTIONS[kind]), draw.choice(GOOD + JUNK)]
    return arguments


@pytest.mark.parametrize("seed", range(3))
def test_random_command_lines(seed, place, tmp_path):
    draw, codes = random.Random(1000 + seed), []
    for number in range(CASES // 12):
        arguments = random_command(draw, place, tmp_path / str(number))
        with time_limit(arguments):
            code, said = command(arguments)
        codes.append(code)
        case = f"{' '.join(map(str, arguments))}\n{said}"
        assert code in (0, 1, 2), case
        assert "Traceback" not in said and "run again with --debug" not in said, case
        errors = [line for line in said.splitlines() if line.startswith("jaxdiff: error:")]
        if code == 0:
            assert not errors, case
        else:  # a wrong option is said by the parser, in a box
            assert errors or (code == 2 and "full helptext" in said), case
    assert {0, 2} <= set(codes)
    sys.stderr.flush()
