"""The documentation: its module map is complete, its links lead somewhere, the README and the glossary stay short."""

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((PROJECT / "docs").glob("*.md")), *sorted(PROJECT.glob("*.md"))]


def test_the_module_map_is_complete() -> None:
    """The failing message holds the rows to add and the modules to take out."""
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Module map")[2]
    named = Counter(re.findall(r"^- `([\w/]+\.py)`: \S", text, re.M))
    package = PROJECT / "vlm"
    files = {str(path.relative_to(package)): path for path in package.rglob("*.py") if path.name != "__init__.py"}
    rows = [f"- `{name}`: {_first_line(files[name])}" for name in sorted(files.keys() - named.keys())]
    assert not rows, "\n".join(["docs/architecture.md lacks", *rows])
    assert not named.keys() - files.keys(), "docs/architecture.md names modules that are gone"
    assert not [name for name, count in named.items() if count > 1], "named twice"


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "…").splitlines()[0].rstrip(".")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


def test_the_readme_has_at_most_900_words() -> None:
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_glossary_has_at_most_20_terms() -> None:
    terms = re.findall(r"^\| \*\*", (PROJECT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.M)
    assert 10 <= len(terms) <= 20


def test_the_citation_and_the_changelog_name_this_version() -> None:
    import yaml

    from vlm import __version__

    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["license"] == project["license"] and str(citation["version"]) == __version__
    released = re.findall(r"^## (\d\S*)", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert released[0] == __version__, "the newest version of the changelog; what is not released stands above it"
