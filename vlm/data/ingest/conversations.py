"""Read conversations as rows of a table: chat `messages` of OpenAI and Transformers, `conversations` of LLaVA.

A row whose key holds a list of turns gets the columns `image`, `system`, `user` and `assistant`; its other keys stay.
"""

from collections.abc import Iterator
from typing import Any

from vlm.data.vitals.values import quoted
from vlm.errors import UserError

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
         "gpt": "assistant"}  # fmt: skip
"""Who speaks → column of what is said."""
FORMS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""Key of the conversation → keys of a turn: who speaks, what is said. Each key is also seen with the other's turns."""
MARK, MOST_MARKS = "<image>", 1000
"""Where an image stands in the text of LLaVA, and the most of them that are looked for."""


def flat_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row with its conversation as columns, any other row as it is.

    `image` is a name, a list of several, or None. Raises `UserError`, which begins with `where`, for several questions
    and answers, a turn or part that is no text or image, and images that are not named once each.
    """
    key = next((key for key in FORMS if _is_conversation(row.get(key))), None)
    if key is None:
        return row
    turns = [_turn(turn, f"{where}: {key}") for turn in row[key]]
    roles = [role for role, _ in turns]
    if "assistant" in roles[:-1]:
        way_out = "a case is a question and its report; write a row for each answer"
        raise UserError(f"{where}: {key}: several turns, or an answer before its question; {way_out}")
    columns = dict.fromkeys(dict.fromkeys(("user", "assistant", *roles)), "")
    for role in columns:
        texts = [text.strip() for said, parts in turns if said == role for kind, text in parts if kind == "text"]
        columns[role] = "\n".join(filter(None, texts))
    if clash := sorted(columns.keys() & row.keys()):
        raise UserError(f"{where}: the key {clash[0]} stands beside a conversation, which has it too; rename it")
    shown = [name for _, parts in turns for kind, name in parts if kind == "image"]
    rest = {name: value for name, value in row.items() if name not in (key, "image", "images")}
    return {"image": _images(row, shown, where), **columns, **rest}


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value) and any(
        who in value[0] for who, _ in FORMS.values())  # fmt: skip


def _turn(turn: dict[str, Any], where: str) -> tuple[str, list[tuple[str, str]]]:
    """Read one turn: its column, and its parts, texts and names of images, an empty one where it is named beside."""
    who, said = next((form for form in FORMS.values() if form[0] in turn), ("role", "content"))
    role = ROLES.get(turn[who]) if isinstance(turn.get(who), str) else None
    if role is None:
        raise UserError(f"{where}: a turn of {quoted(turn.get(who))}; turns are of {', '.join(ROLES)}")
    content = turn.get(said)
    given = content if isinstance(content, list) else [content or ""]
    parts = [part for item in given for part in _parts(item, f"{where}: {role}")]
    if role == "assistant" and any(kind == "image" for kind, _ in parts):
        raise UserError(f"{where}: the answer holds an image; a report is text")
    return role, parts


def _parts(item: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield the texts and the images of a turn's content, or of one part of it."""
    kind = item.get("type", "text") if isinstance(item, dict) else "text"
    if kind in ("image", "image_url"):
        named = next((item[key] for key in (kind, "path", "url") if item.get(key) is not None), "")
        name = named.get("url") if isinstance(named, dict) else named
        yield "image", _name(name, where)
        return
    text = item.get("text") if isinstance(item, dict) else item
    if kind != "text" or not isinstance(text, str):
        raise UserError(f"{where}: a part that is no text and no image: {quoted(kind if kind != 'text' else text)}")
    for place, piece in enumerate(text.split(MARK, MOST_MARKS)):
        if place:
            yield "image", ""
        yield "text", piece


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise UserError(f"{where}: an image whose name is no text; write the name of its file")
    if name.lstrip()[:5].lower() == "data:":
        raise UserError(f"{where}: an image within the JSON (data:…); save it as a file and write its name")
    return name


def _images(row: dict[str, Any], shown: list[str], where: str) -> str | list[str] | None:
    """Return the names of the images, from the turns or the keys `image` and `images` beside them."""
    beside = [name for key in ("image", "images") for name in _listed(row.get(key))]
    names = [_name(name, f"{where}: image") for name in beside] or shown
    if (shown and len(names) != len(shown)) or (beside and any(shown)) or "" in names:
        marks = f"{len(shown)} in the turns, {len(beside)} beside them"
        raise UserError(f"{where}: images are not named once each: {marks}")
    return names if len(names) > 1 else names[0] if names else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None or value == "" else [value]
