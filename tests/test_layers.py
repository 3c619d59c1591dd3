"""The import order of the README's tree, enforced: imports go downward only and the three pillars stand alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxdiff"

FLOORS = (  # from the top; a part imports what stands below it, never beside or above it
    {"__main__"},
    {"cli"},
    {"doctor", "report"},
    {"run"},
    {"workdir"},
    {"inference"},
    {"config"},
    {"methods"},
    {"tasks"},
    {"training"},
    {"evaluation"},
    {"data"},
    {"features", "diffusion", "networks"},
    {"pages", "ranges", "shipped"},
)
LAZY = {"__init__"}  # the front door: it names what stands anywhere and imports it when it is used


def below(part: str) -> set[str]:
    """What a part may import beside itself."""
    floor = next(i for i, parts in enumerate(FLOORS) if part in parts)
    return set().union(*FLOORS[floor + 1 :], LAZY)


def imported_parts(source: str, package: list[str]) -> set[str]:
    """Parts of jaxdiff that a module in `package` (path below jaxdiff) imports, at any depth of its code."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [n.name.split(".") for n in node.names]
            parts |= {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "jaxdiff"}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else None
            if base is None and (node.module or "").split(".")[0] != "jaxdiff":
                continue
            path = (base or []) + (node.module or "").removeprefix("jaxdiff").strip(".").split(".")
            path = [p for p in path if p]
            parts |= {path[0]} if path else {"__init__" if n.name.startswith("__") else n.name for n in node.names}
    return parts


def upward(relative: Path, source: str) -> set[str]:
    """What a file imports that does not stand below it."""
    part = relative.parts[0].removesuffix(".py")
    return set() if part in LAZY else imported_parts(source, list(relative.parts[:-1])) - {part} - below(part)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward_only(path):
    relative = path.relative_to(PACKAGE)
    assert not upward(relative, path.read_text()), f"{relative} imports {upward(relative, path.read_text())}"


def test_every_part_stands_on_one_floor():
    parts = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - LAZY == set().union(*FLOORS)
    assert sum(len(floor) for floor in FLOORS) == len(set().union(*FLOORS))


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("features/mel.py", "from jaxdiff.training import loop", {"training"}),
        ("features/mel.py", "from ..diffusion import heun", {"diffusion"}),
        ("features/mel.py", "from .spectral import stft", set()),
        ("features/mel.py", "import jaxdiff.diffusion.samplers as s", {"diffusion"}),
        ("diffusion/samplers/onestep.py", "from ...networks import unet", {"networks"}),
        ("diffusion/samplers/onestep.py", "from ..schedules import VP", set()),
        ("config.py", "def f():\n    from .inference import load", {"inference"}),
        ("training/loop.py", "from jaxdiff import config as c", {"config"}),
        ("data/files.py", "from jaxdiff.evaluation import distances", {"evaluation"}),  # half of a cycle ...
        ("evaluation/distances.py", "from jaxdiff.data import files", set()),  # ... whose other half is allowed
    ],
)
def test_an_upward_import_is_noticed(file, source, found):
    assert upward(Path(file), source) == found


def test_diffusion_knows_no_audio_flax_or_files():
    for path in (PACKAGE / "diffusion").rglob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        names = {(n.module or "") if isinstance(n, ast.ImportFrom) else n.names[0].name for n in tree
                 if isinstance(n, ast.ImportFrom | ast.Import)}  # fmt: skip
        assert not {"flax", "soundfile", "pathlib", "librosa"} & {name.split(".")[0] for name in names}


def test_configurations_are_asked_for_their_kind_in_config_alone():
    """Below `config.py` objects travel; above it they do too."""
    asks = ("isinstance(config", "match config", "hasattr(config", "getattr(config")
    for path in PACKAGE.rglob("*.py"):
        if path.name != "config.py":
            assert not any(ask in path.read_text() for ask in asks), path


def test_no_drawer_files():
    names = {p.stem for p in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "base", "misc"}
