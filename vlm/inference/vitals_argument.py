"""Parse vitals given to a command: names and values in a line, JSON, or a file of it."""

import re
from pathlib import Path
from typing import Any

from vlm.errors import UserError
from vlm.inference.fhir import is_fhir
from vlm.untrusted import parse_json, read_json, read_yaml

MOST_RESOURCES = 100_000
"""Most resources in a FHIR file of vitals."""
LONGEST = 1 << 20
ENDINGS = (".json", ".yaml", ".yml")
"""Endings of a file that stands in place of the values."""
_NEXT = re.compile(r"[;\n]|,(?=\s*(?:$|[;\n,]|[^\d\s,;=:][^,;=:]*[=:]))")
"""End of a value: a comma only where another name follows, for it may be a decimal one."""


def read_vitals(text: str) -> Any:
    """Parse `name=value, name=value`, JSON, or a JSON or YAML file: names and values, or FHIR resources.

    A series is `glucose=9.1@-48h;11.2@0h`, or in JSON a list of pairs.

    `:` stands for `=` and `;` for the comma as well; with `;` a comma in a number is a decimal one. Raises
    `UserError` for anything else.
    """
    text = text.strip()
    if text.endswith(ENDINGS) and not text.startswith(("{", "[")):
        read = read_json(Path(text), "the vitals", MOST_RESOURCES) if text.endswith(".json") else read_yaml(
            Path(text), "the vitals")  # fmt: skip
        return _checked(read, text)
    return parse_vitals(text)


def parse_vitals(text: str, where: str = "--vitals") -> Any:
    """Parse vitals as `read_vitals` does, but from no file; `where` begins the messages."""
    text = text.strip()
    if len(text) > LONGEST:
        raise UserError(f"{where}: longer than {LONGEST >> 20} MiB; write them to a .json file and name it")
    if text.startswith(("{", "[")):
        try:
            return _checked(parse_json(text.encode(), MOST_RESOURCES), where)
        except ValueError as error:
            inner = re.fullmatch(r"\{([^{}\[\]]*)\}", text)  # a shell may have removed the quotes
            if not inner or '"' in text:
                raise UserError(f"{where}: no valid JSON: {error}") from None
            text = inner[1]
    return _pairs(text, where)


def _checked(values: Any, where: str) -> Any:
    if not isinstance(values, dict) and not is_fhir(values):
        raise UserError(
            f'{where}: vitals are one object, such as {{"glucose": 8.7, "bp": "145/90"}}, or FHIR resources'
        )
    return values


def _whole_series(parts: list[str]) -> list[str]:
    """Join the points of a series, `glucose=9.1@-48h;11.2@0h`: a part without a name belongs to the one before."""
    joined: list[str] = []
    for part in parts:
        if joined and "@" in joined[-1] and re.match(r"[^=:@]*@", part):
            joined[-1] = f"{joined[-1]};{part}"
        else:
            joined.append(part)
    return joined


def _pairs(text: str, where: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    text = text.translate(str.maketrans("：；，＝", ":;,="))
    for part in filter(str.strip, _whole_series(_NEXT.split(text))):
        pair = re.fullmatch(r"([^=:]*?)\s*[=:]\s*(.*)", part.strip(), re.DOTALL)
        name, value = (pair[1].strip("\"' "), pair[2].strip("\"' ")) if pair else ("", "")
        if not name:
            raise UserError(f'{where}: {part.strip()!r:.80} is no name=value; write "glucose=8.7, bp=145/90"')
        rest = re.search(r",\s*(.*)", value, re.DOTALL)
        if rest and not rest[1][:1].isdigit():
            raise UserError(f'{where}: {rest[1]!r:.80} is no name=value; write "glucose=8.7, bp=145/90"')
        if rest and ";" not in text and "\n" not in text:
            point = value.replace(", ", ",").replace(",", ".", 1)
            way_out = f"write {name}={point} with a point, or a thousand without a comma; or ; between the values"
            if "@" in value:
                way_out = "write ; between the points of a series, and a point in a number"
            raise UserError(f"{where}: {name}={value}: a comma stands between two values; {way_out}")
        if name in values:
            raise UserError(f"{where}: {name} is given twice")
        values[name] = value
    return values
