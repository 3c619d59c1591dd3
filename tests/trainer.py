"""A tiny training for tests that run it in processes of their own, so that they can be killed.

`start` gives a process that was forked from one which has imported everything: a second of computing instead of four.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

RATE, SIZE, CROP = 8000, 16, 256
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["jaxdiff.run", "jaxdiff.cli.main", "grain"])


def start(function: Any, *args: Any, log: Path, devices: int = 1) -> Any:
    """A process that calls a function of this file; what it prints goes to `log`."""
    process = _forks.Process(target=_enter, args=(function, args, str(log), devices), daemon=True)
    process.start()
    return process


def _enter(function: Any, args: tuple, log: str, devices: int) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    function(*args)


def wait(process: Any, done: Any, seconds: float = 120) -> None:
    """Until `done()` is true or the process has ended."""
    deadline = time.monotonic() + seconds
    while process.is_alive() and not done():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def ended(process: Any, seconds: float = 120) -> int:
    """Its exit code, once it has ended by itself."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the process goes on")
    return process.exitcode


# What these processes do --------------------------------------------------------------------------------------------


def batches(start: int):
    """Noise that is a function of the step."""
    import numpy as np

    for step in range(start, 10**6):
        yield {"wave": np.random.default_rng(step).standard_normal((16, CROP)).astype(np.float32)}


def model(width: int = 64, dtype: Any = "float32"):
    """A network of two layers."""
    import jax
    import jax.numpy as jnp

    from jaxdiff import Model
    from jaxdiff.features import Patches
    from jaxdiff.networks import Network
    from jaxdiff.tasks import Generate

    def init(key):
        keys, sizes = jax.random.split(key), ((SIZE, width), (width, SIZE))
        return {n: (0.1 * jax.random.normal(k, s)).astype(dtype) for n, k, s in zip("ab", keys, sizes, strict=True)}

    def apply(params, x_t, t, cond, **_):
        return jax.nn.tanh(x_t @ params["a"]) @ params["b"] * jnp.cos(t)[:, None, None]

    return Model(Network(init, apply), Patches(RATE, SIZE), Generate())


def counting():
    """An optimiser that adds 1 to every parameter: they are the number of updates after those of `params`."""
    import jax
    import jax.numpy as jnp
    import optax

    def ones(updates, state, params=None):
        return jax.tree.map(jnp.ones_like, updates), state

    return optax.GradientTransformation(lambda params: (), ones)


def train(workdir: Any, **options: Any):
    """Adam on noise, and the last state."""
    import optax

    import jaxdiff
    from jaxdiff.methods import Diffusion

    options = {"model": model(), "optimizer": optax.adam(1e-2), "batches": batches, "log_every": 1, **options}
    return jaxdiff.train(method=Diffusion(), workdir=workdir, **options)


def count(workdir: str, steps: int, numbers: int) -> None:
    """A training whose weights are the number of the step, saved at each."""
    import jax.numpy as jnp

    params = {"a": jnp.zeros((SIZE, numbers)), "b": jnp.zeros((numbers, SIZE))}
    options: dict[str, Any] = dict(model=model(numbers), params=params, optimizer=counting(), save_every=1)
    train(workdir, steps=steps, **options)


def several(trainings: list[tuple[str, dict[str, Any]]]) -> None:
    """Trainings one after the other, in which small arrays too are split over devices that share a state."""
    import numpy as np

    from jaxdiff.training import sharding

    sharding.SMALLEST = 256
    for workdir, options in trainings:
        state = train(workdir, **options)
        print("part", options.get("fsdp", 1), state.params["a"].sharding.shard_shape(state.params["a"].shape))
    np.save(f"{workdir}/made.npy", sounds(workdir))


def sounds(workdir: Any):
    """Eleven sounds of a run, in several windows each."""
    import numpy as np

    from jaxdiff import load
    from jaxdiff.methods import Diffusion

    pipeline = load(workdir, model=model(), method=Diffusion())
    return np.stack(pipeline(count=11, steps=3, seconds=3 * CROP / RATE).waves)


def one_of(process: int, processes: int, port: int, workdir: str, options: dict[str, Any]) -> None:
    """A training in several processes."""
    import jax

    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(address, processes, process, heartbeat_timeout_seconds=5, shutdown_timeout_seconds=20)
    state = train(workdir, **options)
    print("ended at", int(state.step))


def bucket(folder: Path) -> None:
    """Make gs:// lead into a folder, with which it shares what object stores have: whole files by their names."""
    import fsspec
    from fsspec.spec import AbstractFileSystem

    class Bucket(AbstractFileSystem):
        protocol, cachable = "gs", False

        @classmethod
        def _strip_protocol(cls, path: Any) -> str:
            return str(path).removeprefix("gs://").strip("/")

        def find(self, path: str, detail: bool = False, **_: Any) -> Any:
            files = [p for p in (folder / path).rglob("*") if p.is_file()]
            return {
                p.relative_to(folder).as_posix(): {"size": (s := p.stat()).st_size, "mtime": s.st_mtime_ns}
                for p in sorted(files)
            }

        def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
            Path(lpath).write_bytes(self.cat_file(rpath))

        def cat_file(self, path: str, **_: Any) -> bytes:
            return (folder / path).read_bytes()

        def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
            self.pipe_file(rpath, Path(lpath).read_bytes())

        def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            part = folder / f".{time.monotonic_ns()}"
            part.write_bytes(value)
            part.replace(folder / path)

        def rm_file(self, path: str) -> None:
            (folder / path).unlink()
            for up in (folder / path).parents:  # which are no things of their own
                if up == folder or any(up.iterdir()):
                    break
                up.rmdir()

    fsspec.register_implementation("gs", Bucket, clobber=True)


def one_of_cloud(process: int, processes: int, port: int, folder: str, workdir: str, options: dict[str, Any]) -> None:
    """A training in several processes, each of a machine of its own, in a cloud that is a folder."""
    from jaxdiff.training import sharding

    os.environ["JAXDIFF_CACHE"] = f"{folder}/machine{process}"
    sharding.SMALLEST = 256
    bucket(Path(folder) / "cloud")
    one_of(process, processes, port, workdir, options)


def command(*argv: str) -> None:
    """The command line."""
    from jaxdiff.cli.main import main

    sys.argv = ["jaxdiff", *argv]
    main(list(argv))
