"""What the documents say is true: their Python runs, verbatim and in order."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def snippets(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_python_of_a_document_runs(path, tmp_path, monkeypatch):
    """`runs/quickstart` is a small run that was stored; all else the snippets make themselves."""
    shutil.copytree(ROOT / "tests" / "old_runs" / "generation", tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": path.stem}
    for number, code in enumerate(snippets(path)):
        exec(compile(code, f"{path.name}, snippet {number + 1}", "exec"), names)
    if path.stem == "train_in_python":
        assert len(list((tmp_path / "out").glob("*.wav"))) == 4
        assert len([line for line in snippets(path)[0].splitlines() if line.strip()]) <= 25


def test_every_file_that_a_document_names_is_there():
    for path in DOCUMENTS:
        named = r"\b(?:benchmarks|configs|docs|tests)/[A-Za-z0-9_./]+\.(?:py|md|yaml|png)"
        for name in re.findall(named, path.read_text()):
            assert (ROOT / name).exists(), (path.name, name)
