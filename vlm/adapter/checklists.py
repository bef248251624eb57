"""Fill in reporting checklists of a run: from its config, adapter and metrics, and from one file of the authors' words.

The guidelines are data in `guidelines/*.yaml`: short items in our own words, each with a topic of `topics.yaml`. One
answer to a topic serves every guideline that asks for it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlm.adapter.checklist_facts import run_facts
from vlm.adapter.layout import AdapterConfig, digest, read_config
from vlm.atomic import replace_file
from vlm.errors import UserError, nearest
from vlm.plain import shortened
from vlm.resources import load_yaml, render
from vlm.untrusted import read_json, read_yaml

FORMAT = 1
"""Version of checklists.json."""
GUIDELINES = ("claim_2024", "tripod_llm", "stard_ai", "decide_ai", "future_ai", "chai")
LONGEST_LIST = 100_000
"""Most entries of an object in metrics.json, which is the user's own."""


class Item(NamedTuple):
    """An item of a guideline, and its answers."""

    number: str
    topics: tuple[str, ...]
    asks: str
    run: str
    """Answer from the run; empty if it has none."""
    authors: str
    """Answer of the authors; empty if there is none."""
    in_part: bool
    """True if a run can answer only a part of it."""

    @property
    def status(self) -> str:
        """`run`, `authors`, `run and authors`, `part` of it from the run, or `open`."""
        if self.run and not self.authors and self.in_part:
            return "part"
        given = [name for name, answer in (("run", self.run), ("authors", self.authors)) if answer]
        return " and ".join(given) or "open"


@dataclass(frozen=True)
class Checklist:
    """A guideline with its items filled in."""

    name: str
    citation: str
    checked: str
    """What the items were compared with."""
    items: tuple[Item, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of items answered, answered in part, and open."""
        kinds = [item.status if item.status in ("part", "open") else "answered" for item in self.items]
        return {kind: kinds.count(kind) for kind in ("answered", "part", "open")}

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        items = [{**item._asdict(), "topics": list(item.topics), "status": item.status} for item in self.items]
        return {**vars(self), "counts": self.counts, "items": items}


def topics() -> dict[str, str]:
    """Return each topic with what to write there."""
    return dict(load_yaml("vlm.adapter", "guidelines/topics.yaml"))


def fill(facts: Mapping[str, str], words: Mapping[str, str]) -> list[Checklist]:
    """Fill in every guideline from topic → answer of the run and of the authors."""
    found = []
    for name in GUIDELINES:
        values = load_yaml("vlm.adapter", f"guidelines/{name}.yaml")
        items = tuple(_item(facts, words, *item) for item in values["items"])
        found.append(Checklist(values["name"], values["citation"].strip(), values["checked"].strip(), items))
    return found


def _item(
    facts: Mapping[str, str], words: Mapping[str, str], number: str, topic: str | list[str], asks: str, part: str = ""
) -> Item:
    asked = (topic,) if isinstance(topic, str) else tuple(topic)
    run, authors = ("; ".join(answers[one] for one in asked if one in answers) for answers in (facts, words))
    return Item(number, asked, asks, run, authors, bool(part))


def read_words(file: Path | None) -> dict[str, str]:
    """Read the authors' file, topic → text; raises `UserError` that names an unknown topic or one that is no text."""
    values = read_yaml(file, "the authors' words") if file else None
    if values is None:
        return {}
    known = topics()
    if not isinstance(values, dict):
        raise UserError(f"{file}: maps topics to texts, such as funding: none")
    for topic, text in values.items():
        if topic not in known:
            near = nearest(str(topic), known)
            way_out = f"did you mean {near}?" if near else "clinical-vlm checklist --template lists the topics"
            raise UserError(f"{file}: unknown topic {shortened(str(topic))}; {way_out}")
        if not isinstance(text, str | None):
            raise UserError(f"{file}: {topic}: is no text; put it in quotes")
    return {topic: " ".join(text.split()) for topic, text in values.items() if text and text.strip()}


def template() -> str:
    """Return an empty file of the authors' words, with what to write under each topic."""
    lines = (f"# {asks}\n{topic}:\n" for topic, asks in topics().items())
    return "# Words of the authors for clinical-vlm checklist; empty topics stay open.\n\n" + "\n".join(lines)


def write_checklists(run: Path, about: Path | None = None) -> list[str]:
    """Write checklists.md and checklists.json into a run's folder; returns lines on what is answered and open.

    Raises `UserError` for a folder that is no run, and as `read_words` does.
    """
    words = read_words(about)
    config, metrics, options = _read_run(run)
    lists = fill(run_facts(config, metrics, options, digest(run / "adapter")), words)
    left_out = load_yaml("vlm.adapter", "guidelines/left_out.yaml")
    left_out = {name: " ".join(why.split()) for name, why in left_out.items()}
    values = {"format": FORMAT, "guidelines": [one.to_dict() for one in lists], "left_out": left_out}
    text = render("vlm.adapter", "checklists.md.j2", escape=False, lists=lists, left_out=left_out, cell=_cell)
    replace_file(run / "checklists.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    replace_file(run / "checklists.md", text)
    return list(_summary(run, lists))


def _read_run(run: Path) -> tuple[AdapterConfig, dict[str, Any], dict[str, Any]]:
    """Read the adapter's config, the metrics and the options of a run; the last two may be missing."""
    if not (run / "adapter").is_dir():
        raise UserError(f"{run}: has no adapter/, so it is no run that has ended; name a folder such as runs/demo")
    found = []
    for name, read in (("metrics.json", _read_metrics), ("config.yaml", read_yaml)):
        values = read(run / name, f"the run's {name}") if (run / name).is_file() else {}
        if not isinstance(values, dict):
            raise UserError(f"{run / name}: is no mapping")
        found.append(values)
    return read_config(run / "adapter"), found[0], found[1]


def _read_metrics(file: Path, what: str) -> Any:
    return read_json(file, what, LONGEST_LIST)


def _summary(run: Path, lists: list[Checklist]) -> Iterator[str]:
    for one in lists:
        yield f"{one.name}: {len(one.items)} items, {_counted(one)}"
    lacking = [item for one in lists for item in one.items if item.status in ("part", "open")]
    unanswered = {topic for item in lacking for topic in item.topics}
    open_topics = [topic for topic in topics() if topic in unanswered]
    if open_topics:
        yield f"open, or open in part: {', '.join(open_topics)}"
        yield "answer them in a file (clinical-vlm checklist --template prints one) and name it with --about"
    yield f"wrote {run / 'checklists.md'} and {run / 'checklists.json'}"


def _counted(one: Checklist) -> str:
    return ", ".join(f"{count} {'in part' if kind == 'part' else kind}" for kind, count in one.counts.items())


def _cell(text: str) -> str:
    """Put a text into a cell of a table of Markdown, without markup."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
