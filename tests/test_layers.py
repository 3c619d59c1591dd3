"""The import order of the README's tree, enforced: imports go downward only and the three pillars stand alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxdiff"

PILLARS = {"features", "networks", "diffusion"}
ALLOWED = {
    "features": set(),
    "diffusion": set(),
    "networks": set(),
    "data": {"features"},
    "evaluation": {"features"},
    "tasks": {*PILLARS, "data"},
    "training": {"diffusion", "tasks", "data"},
    "autoregression": set(),
    "adversarial": {*PILLARS, "data", "tasks", "training"},
    "config": set(),
    "build": {*PILLARS, "autoregression", "data", "tasks", "training", "config"},
    "methods": {*PILLARS, "adversarial", "autoregression", "data", "tasks", "training", "config", "build"},
    "grids": {"diffusion", "data", "config", "pipeline"},
    "pipeline": {*PILLARS, "grids", "data", "tasks", "training", "config", "build", "methods"},
    "extraction": {"features", "data"},
    "runs": {"features", "networks", "data", "training", "config", "build", "methods", "pipeline"},
    "cli": {"grids", "data", "networks", "training", "config", "extraction", "pipeline", "runs", "__init__"},
    "__main__": {"cli"},
    "__init__": {*PILLARS, "data", "evaluation", "tasks", "training", "pipeline"},
}


def imported_parts(source: str, package: list[str]) -> set[str]:
    """Parts of jaxdiff that a module in `package` (path below jaxdiff) imports, at any depth of its code."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            parts |= {n.name.split(".")[1] for n in node.names if n.name.startswith("jaxdiff.")}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else None
            if base is None and (node.module or "").split(".")[0] != "jaxdiff":
                continue
            path = (base or []) + (node.module or "").removeprefix("jaxdiff").strip(".").split(".")
            path = [p for p in path if p]
            parts |= {path[0]} if path else {"__init__" if n.name.startswith("__") else n.name for n in node.names}
    return parts


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward_only(path):
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0].removesuffix(".py")
    upward = imported_parts(path.read_text(), list(relative.parts[:-1])) - {part} - ALLOWED[part]
    assert not upward, f"{relative} imports {upward}"


def test_an_upward_import_is_noticed():
    assert imported_parts("from jaxdiff.training import train", ["features"]) == {"training"}
    assert imported_parts("from ..diffusion import heun", ["features"]) == {"diffusion"}
    assert imported_parts("from .spectral import stft", ["features"]) == {"features"}
    assert imported_parts("def f():\n    from .pipeline import load", []) == {"pipeline"}
    assert imported_parts("from jaxdiff import config as c", []) == {"config"}


def test_diffusion_knows_no_audio_flax_or_files():
    for path in (PACKAGE / "diffusion").glob("*.py"):
        assert not {"flax", "soundfile", "pathlib", "librosa"} & {
            (n.module or "").split(".")[0]
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.ImportFrom)
        }


def test_no_drawer_files():
    names = {p.stem for p in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "base", "misc"}
