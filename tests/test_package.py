"""Importing is cheap: no jax at `import jaxdiff` and none for `--help`."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_jax_and_public_names_resolve():
    assert run("import sys, jaxdiff; print('jax' in sys.modules)").strip() == "False"
    code = "import jax, jaxdiff; [getattr(jaxdiff, n) for n in dir(jaxdiff)]; "
    assert run(code + "print(len(jax._src.xla_bridge._backends))").strip() == "0"


def test_help_loads_no_jax():
    code = (
        "import sys\nfrom jaxdiff.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: print(e.code, 'jax' in sys.modules)"
    )
    assert run(code).strip().endswith("0 False")
