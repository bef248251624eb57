"""Read the data files and fill in the templates that come with the package, and embed pictures in pages."""

import base64
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from jinja2 import Environment


def load_yaml(package: str, name: str) -> Any:
    """Load a YAML file of a package of ours."""
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def _templates(package: str, escape: bool) -> "Environment":
    import jinja2  # imported on first use: drafting needs no template

    found, strict = jinja2.PackageLoader(package, "."), jinja2.StrictUndefined
    return jinja2.Environment(loader=found, autoescape=escape, undefined=strict, trim_blocks=True, lstrip_blocks=True,
                              keep_trailing_newline=True)  # fmt: skip


def render(package: str, template: str, escape: bool = True, **values: Any) -> str:
    """Fill in a template of a package of ours; with `escape`, no value can become markup."""
    return _templates(package, escape).get_template(template).render(values)


def data_uri(kind: str, data: bytes) -> str:
    """Encode a file of a MIME type as a link within a page itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
