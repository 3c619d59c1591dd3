"""Importing is cheap: no jax at `import jaxdiff` and none for `--help`."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_jax_and_public_names_resolve():
    assert run("import sys, jaxdiff; print('jax' in sys.modules)").strip() == "False"
    code = "import jax, jaxdiff; [getattr(jaxdiff, n) for n in dir(jaxdiff)]; "
    assert run(code + "print(len(jax._src.xla_bridge._backends))").strip() == "0"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["generate", "run", "--out", __file__], 2),
        (["train", "gone.yaml", "--workdir", "w"], 2),
        (["vocode", "gone.wav", "--model", "run", "--out", "o"], 1),
    ],
)
def test_help_and_early_mistakes_load_no_jax(arguments, code):
    text = (
        "import sys\nfrom jaxdiff.cli.main import main\n"
        f"try: main({arguments})\nexcept SystemExit as e: print(e.code, 'jax' in sys.modules)"
    )
    assert run(text).strip().endswith(f"{code} False")


def test_the_command_is_where_the_package_says():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["jaxdiff"].partition(":")
    assert run(f"import {module} as m; print(callable(m.{name}))").strip() == "True"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_for_a_shell_can_be_printed(shell):
    command = [sys.executable, "-m", "jaxdiff", "--tyro-print-completion", shell]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "search-times" in made.stdout and not made.stderr


@pytest.mark.slow
def test_an_import_leaves_the_messages_of_other_packages_alone():
    levels = "[logging.getLogger(n).level for n in ('', 'absl', 'jax', 'orbax', 'matplotlib')]"
    before = run(f"import logging, orbax.checkpoint, matplotlib; print({levels})")
    assert run(f"import logging, jaxdiff.run, jaxdiff.inference.pictures; print({levels})") == before
