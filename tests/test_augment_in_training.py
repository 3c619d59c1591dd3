"""Random changes of crops in the training step: of a sound and its partners alike, by the step's key, and resumed, also
where damaged recordings are replaced."""

import json
import shutil
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import run as runs
from jaxdiff.config import from_dict
from jaxdiff.data import write_audio
from jaxdiff.features import augment
from jaxdiff.training import TrainState

RATE = 8000


def test_a_sound_and_its_partners_are_changed_alike_and_nothing_else_is():
    seen = {}

    def update(state, batch, key):
        seen.update(batch, key=key)
        return state, {}

    changed = runs._augmented(update, augment.gain(-20.0, 20.0), ("wave", "target"))
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.uniform(-0.5, 0.5, (5, 64)), jnp.float32) for name in ("wave", "target", "noise")}
    key, nothing = jax.random.key(7), cast(TrainState, None)
    changed(nothing, batch, key)
    factors = seen["wave"] / batch["wave"]
    np.testing.assert_allclose(factors, factors[:, :1] * np.ones(64), rtol=1e-5)  # one draw for each item ...
    assert len(np.unique(np.round(factors[:, 0], 4))) == 5
    np.testing.assert_allclose(seen["target"] / batch["target"], factors, rtol=1e-5)  # ... its partner's too
    np.testing.assert_array_equal(seen["noise"], batch["noise"])
    assert not (jax.random.key_data(seen["key"]) == jax.random.key_data(key)).all()
    first = np.asarray(seen["wave"])
    changed(nothing, batch, key)
    np.testing.assert_array_equal(seen["wave"], first)
    changed(nothing, batch, jax.random.key(8))
    assert not np.allclose(seen["wave"], first)
    stereo = {name: jnp.stack([y, -y], 1) for name, y in batch.items()}
    changed(nothing, stereo, key)
    np.testing.assert_allclose(seen["wave"], np.stack([first, -first], 1), rtol=1e-6)  # channels share a draw


@pytest.mark.slow
def test_a_configured_change_is_heard_and_resumed_to_the_bit_and_damaged_files_are_listed(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(4):
        write_audio(tmp_path / "in" / f"{i}.wav", rng.uniform(-0.1, 0.1, 2000).astype(np.float32), RATE)
    (tmp_path / "in" / "text.wav").write_text("no audio")
    long = tmp_path / "in" / "long.flac"  # damaged where opening does not listen
    write_audio(long, rng.uniform(-0.1, 0.1, 60 * RATE).astype(np.float32), RATE)
    content = bytearray(long.read_bytes())
    content[len(content) // 8 : 3 * len(content) // 8] = bytes(len(content) // 4)
    long.write_bytes(content)
    tree = {
        "data": {"path": str(tmp_path / "in"), "seconds": 0.064, "sample_rate": RATE},
        "augment": [{"kind": "gain", "low_db": 30, "high_db": 50}],
        "representation": {"kind": "patches", "size": 64},
        "normalize": {"enabled": False},
        "network": {"kind": "lstm", "width": 8, "depth": 1},
        "method": {"kind": "diffusion", "weight": "constant"},
        "train": {"steps": 4, "batch": 4, "log_every": 1, "sample_every": 0, "save_every": 2, "warmup": 1},
    }
    rows = []
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"long\.flac: damaged"):
            runs.run(from_dict(tree), tmp_path / "run", report=lambda text: None)
        damaged, text = sorted((tmp_path / "run" / "rejected.txt").read_text().splitlines())
        assert "long.flac: damaged" in damaged and "text.wav: not a sound file" in text
        rows.append([json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()])
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # the next run goes on from the second step
    assert len(rows[0]) == 4 and rows[0] == rows[1]
    assert min(rows[0]) > 1  # of sounds within 0.1, whose error would be less than a hundredth
