"""The house: rooms whose imports run downwards alone, files that are read in one sitting."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "vlm"
MODULES = [path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]
SAME_IN_EACH_ROOM = {"commands", "data", "model", "packed", "run", "training", "vitals"}
"""Names that stand for the same thing in each room: the options, the code and the files of one part."""


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_imports_run_downwards_and_in_no_circle() -> None:
    """The contracts of pyproject.toml, imports within functions and for types alone among them."""
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout


def test_no_file_is_too_long_and_no_folder_too_large() -> None:
    assert [path.name for path in PACKAGE.rglob("*.py") if lines(path) > 300] == []
    folders = Counter[Path]()
    for path in PACKAGE.rglob("*.py"):
        folders[path.parent] += lines(path)
    total = sum(folders.values())
    assert [str(folder) for folder, count in folders.items() if count > 0.12 * total] == []


def test_no_name_stands_for_two_things() -> None:
    names = Counter([path.stem for path in MODULES] + [path.parent.name for path in PACKAGE.rglob("__init__.py")])
    assert {name for name, count in names.items() if count > 1} <= SAME_IN_EACH_ROOM


def test_the_main_job_is_read_in_one_sitting() -> None:
    files = [path for path in (PACKAGE / "model").glob("*.py") if path.name != "__init__.py"]
    files += [
        PACKAGE / name for name in ("training/loop.py", "data/dataset.py", "data/collate.py", "inference/engine.py")
    ]
    assert len(files) <= 18 and sum(map(lines, files)) <= 2300
