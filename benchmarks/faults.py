"""Does a run survive what happens to runs? Faults are made for real, in processes of their own.

    python benchmarks/faults.py [--rounds 5] [--seed 0] [--only "kill -9 in a save"]

A tiny run is trained undisturbed. Then, for each kind of fault and round, the same run in a new folder meets the fault
at a random moment or place, is told to resume, and must end with the very weights and log of the undisturbed one, bit
for bit. Where a run can know the fault, it must also have ended with one sentence and the right exit code. As root a
full disk and one that becomes read-only are small tmpfs mounts; otherwise they are a limit on the size of files and
missing rights. Prints survived / tried for every kind and exits with 1 when any did not survive. The last line is JSON.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jaxdiff import load
from jaxdiff.data import write_audio

ROOT = os.geteuid() == 0
STEPS, SAVE = 24, 6
CONFIG = f"""
data: {{path: sounds, seconds: 0.512, sample_rate: 8000, memory_mb: 0}}
representation: {{kind: log_mel, n_fft: 256, hop_length: 64, n_mels: 20}}
normalize: {{crops: 16}}
network: {{kind: wavenet, channels: 8, layers: 2, embedding: 16}}
train: {{steps: {STEPS}, batch: 2, warmup: 2, log_every: 1, sample_every: 0, save_every: {SAVE}}}
sampling: {{sampler: euler, steps: 2}}
"""
POSTHOC = ("--train.posthoc_ema", "true")


class Fault(Exception):
    """What did not go as it should."""


def start(workdir: Path, *options: str, file_size: int | None = None) -> subprocess.Popen:
    """Training in `workdir`, whose current directory is the one above."""
    command = [sys.executable, "-m", "jaxdiff", "train", "tiny.yaml", "--workdir", workdir.name, *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=workdir.parent, stdout=pipe, stderr=pipe, text=True)
    if file_size is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))
    return process


def expect(process: subprocess.Popen, code: int, sentence: str = "") -> None:
    """Its end with that exit code, and with one sentence where it is an error."""
    _, error = process.communicate(timeout=300)
    said = [line for line in error.splitlines() if line.startswith("jaxdiff: error: ")]
    if process.returncode != code or len(said) != (code != 0) or sentence not in error or "Traceback" in error:
        raise Fault(f"exit code {process.returncode} instead of {code}: {error[-400:]}")


def wait(process: subprocess.Popen, done) -> None:
    """Until `done()` is true, seen within a millisecond, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not done():
        if time.monotonic() > deadline:
            process.kill()
            raise Fault("nothing happened for two minutes")
        time.sleep(0.001)


def logged(workdir: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows]


def result(workdir: Path, posthoc: bool = False) -> list:
    """What must be equal: averaged weights, those of another width where there are snapshots, and the log."""
    trees = [load(workdir).params] + ([load(workdir, ema=0.07).params] if posthoc else [])
    return [*map(np.asarray, jax.tree.leaves(trees)), *logged(workdir)]


def saving(workdir: Path):
    """Whether a checkpoint or snapshot is being written at this moment."""
    return lambda: any(any((workdir / name).glob(".*.saving*")) for name in ("checkpoints", "snapshots"))


def written(workdir: Path, step: int):
    return lambda: (workdir / "checkpoints" / str(step)).is_dir()


# The kinds: each makes its fault in a new folder and leaves a run that only has to be resumed -------------------------


def killed(workdir: Path, rng: random.Random, *options: str) -> None:
    """kill -9 at any moment after the first step, and once more after a resume."""
    log = workdir / "log.jsonl"
    size = lambda: log.stat().st_size if log.exists() else 0  # noqa: E731
    for _ in range(2):
        process, before = start(workdir, *options), size()
        wait(process, lambda: size() != before)  # noqa: B023
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.communicate()


def killed_in_a_save(workdir: Path, rng: random.Random, *options: str) -> None:
    """kill -9 while a checkpoint is being written in the background, after each resume again."""
    for _ in range(3):
        process, there = start(workdir, *options), len(list(workdir.glob("checkpoints/*/manifest.json")))
        wait(process, lambda: len(list(workdir.glob("checkpoints/*/manifest.json"))) > min(there, 1))  # noqa: B023
        wait(process, saving(workdir))
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()


def terminated(workdir: Path, rng: random.Random, *options: str) -> None:
    """SIGTERM at any moment after the first step."""
    process = start(workdir, *options)
    wait(process, lambda: (workdir / "log.jsonl").exists())
    time.sleep(rng.uniform(0, 0.2))
    process.terminate()
    begun = time.monotonic()
    said, _ = process.communicate(timeout=300)
    if process.returncode == 0:  # it had ended before
        return
    if process.returncode != 143 or f"jaxdiff train --workdir {workdir.name}" not in said:
        raise Fault(f"exit code {process.returncode}: {said[-200:]}")
    if time.monotonic() - begun > 30 or int(load(workdir).step) != logged(workdir)[-1][0]:
        raise Fault(f"{time.monotonic() - begun:.0f} s, step {load(workdir).step} of {logged(workdir)[-1][0]}")


def supervised(workdir: Path, rng: random.Random, *options: str) -> None:
    """kill -9 of the training that --restarts watches over."""
    process = start(workdir, *options, "--restarts", "1")
    wait(process, lambda: (workdir / "log.jsonl").exists())
    time.sleep(rng.uniform(0, 0.2))
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    expect(process, 0)


def killed_in_the_first_save(workdir: Path, rng: random.Random, *options: str) -> None:
    process = start(workdir, *options)
    wait(process, saving(workdir))
    time.sleep(rng.uniform(0, 0.05))
    process.kill()
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise Fault("ended before it was killed")


def killed_with_averages(workdir: Path, rng: random.Random, *options: str) -> None:
    rng.choice([killed, killed_in_the_first_save])(workdir, rng, *options)


def damaged(workdir: Path, rng: random.Random, harm) -> None:
    expect(start(workdir), 0)
    files = sorted(p for p in (workdir / "checkpoints" / str(STEPS)).rglob("*") if p.is_file() and p.stat().st_size)
    harm(rng.choice(files))


def flipped_bit(workdir: Path, rng: random.Random) -> None:
    def harm(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)

    damaged(workdir, rng, harm)


def cut_file(workdir: Path, rng: random.Random) -> None:
    damaged(workdir, rng, lambda file: os.truncate(file, rng.randrange(file.stat().st_size)))


def lost_file(workdir: Path, rng: random.Random) -> None:
    damaged(workdir, rng, Path.unlink)


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def full_disk(workdir: Path, rng: random.Random) -> None:
    """The run begins with room for a few checkpoints or none, or with files cut off while they are written."""
    workdir.mkdir()
    if not ROOT or rng.random() < 0.5:
        expect(start(workdir, file_size=rng.randrange(4_000, 12_000)), 1, "cannot be saved (File too large)")
        return
    mount(workdir, f"size={rng.randrange(1_000, 1_500)}k")
    expect(start(workdir), 1, "(No space left on device)")  # refused, or so ended
    subprocess.run(["mount", "-o", "remount,size=64m", workdir], check=True)


def read_only(workdir: Path, rng: random.Random) -> None:
    """The folder of the checkpoints cannot be written to, from some moment after the first one on."""
    process, folder = start(workdir), workdir / "checkpoints"
    wait(process, written(workdir, SAVE))
    process.send_signal(signal.SIGSTOP)  # so that it does not end before
    mount(folder, "ro") if ROOT else folder.chmod(0o555)
    process.send_signal(signal.SIGCONT)
    try:
        expect(process, 1, "cannot be saved (")
    finally:
        subprocess.run(["umount", folder], check=True) if ROOT else folder.chmod(0o755)
    load(workdir)


def vanished(workdir: Path, rng: random.Random) -> None:
    """Recordings that are gone for some time, from some moment after the start on."""
    sounds, away = workdir.parent / "sounds", workdir.parent / "away"
    process = start(workdir)
    wait(process, lambda: (workdir / "log.jsonl").exists())
    time.sleep(rng.uniform(0, 0.2))
    sounds.rename(away)
    try:
        process.communicate(timeout=300)
    finally:
        away.rename(sounds)
    if process.returncode not in (0, 1) or not np.isfinite(logged(workdir)).all():
        raise Fault(f"exit code {process.returncode}")
    if process.returncode == 1 and logged(workdir)[-1][0] != int(load(workdir).step):
        raise Fault(f"the last step was {logged(workdir)[-1][0]}, saved is {load(workdir).step}")


def two_trainers(workdir: Path, rng: random.Random) -> None:
    first = start(workdir)
    wait(first, lambda: (workdir / "config.yaml").exists())
    first.send_signal(signal.SIGSTOP)
    try:
        expect(start(workdir), 2, "another process trains there")
    finally:
        first.send_signal(signal.SIGCONT)
    expect(first, 0)


KINDS = {
    "kill -9, twice": killed,
    "kill -9 in a save": killed_in_a_save,
    "kill -9 in the first save": killed_in_the_first_save,
    "kill -9 under --restarts": supervised,
    "SIGTERM": terminated,
    "kill -9 with post-hoc averages": killed_with_averages,
    "flipped bit in a checkpoint": flipped_bit,
    "cut file in a checkpoint": cut_file,
    "lost file of a checkpoint": lost_file,
    "full disk": full_disk,
    "read-only folder": read_only,
    "vanished recordings": vanished,
    "two trainers": two_trainers,
}


def survives(name: str, workdir: Path, rng: random.Random, expected: list, options: tuple[str, ...]) -> str | None:
    """None, or what went wrong."""
    try:
        KINDS[name](workdir, rng, *options)
        expect(start(workdir, *options), 0)
        found = result(workdir, bool(options))
        if len(found) != len(expected) or not all(map(np.array_equal, found, expected)):
            raise Fault("ended with other weights or another log than the undisturbed run")
    except (Fault, OSError, ValueError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if os.path.ismount(workdir):
            subprocess.run(["umount", workdir], check=True)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Does a run survive what happens to runs?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    args = parser.parse_args()
    table, failures = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), random.Random(args.seed)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        (folder / "tiny.yaml").write_text(CONFIG)
        for i in range(6):
            file = folder / "sounds" / "ab"[i % 2] / f"{i}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_audio(file, 0.3 * np.sin((0.1 + 0.1 * i) * np.arange(8000)), 8000)
        undisturbed = {}
        for options in ((), POSTHOC):
            expect(start(folder / f"undisturbed{len(options)}", *options), 0)
            undisturbed[options] = result(folder / f"undisturbed{len(options)}", bool(options))
        for kind in KINDS if args.only is None else [args.only]:
            options = POSTHOC if "averages" in kind else ()
            problems = []
            for i in range(args.rounds):
                workdir = folder / f"{kind} {i}".replace(" ", "-")
                problems.append(survives(kind, workdir, rng, undisturbed[options], options))
                shutil.rmtree(workdir, ignore_errors=True)
            table[kind] = (problems.count(None), args.rounds)
            failures += [f"{kind}: {problem}" for problem in problems if problem is not None]
            print(f"{kind:32s} {table[kind][0]:3d} / {args.rounds}", flush=True)
    survived, tried = (sum(row[i] for row in table.values()) for i in range(2))
    print(f"{'total':32s} {survived:3d} / {tried}", *failures, sep="\n")
    print(json.dumps({"survived": survived, "tried": tried, "kinds": table, "seed": args.seed, "root": ROOT}))
    raise SystemExit(survived < tried)


if __name__ == "__main__":
    main()
