"""Say what evidence a case has, drop parts of it at random, and compose the report that the rest supports."""

from collections.abc import Collection, Sequence

import numpy as np

from vlm.config import DropoutConfig, SectionConfig
from vlm.data.sections import join_sections
from vlm.data.study import PRIOR, StudyPicture


def compose_report(
    texts: Sequence[str | None],
    sections: Sequence[SectionConfig],
    available: Collection[str],
    headings: bool = False,
) -> str:
    """Join the sections of a report whose evidence is available; `otherwise` stands in for the rest.

    A report must not state what its reader cannot see: a model trained to do so invents findings.
    """
    parts: list[str | None] = []
    for text, section in zip(texts, sections, strict=True):
        # None: reports of this source lack this section
        shown = text is None or all(need in available for need in section.needs)
        parts.append(text if shown else section.otherwise)
    return join_sections(parts, sections, headings)


def available_evidence(
    names: Sequence[str], vitals: np.ndarray, roles: Collection[str], context: str = "", signal: bool = False
) -> set[str]:
    """Collect the evidence of a case: image, vitals (any of them), prior, context, signal, vitals and views by name.

    `roles` are those of its images (see `role_of`), the empty one for a current image of unknown view.
    """
    present = {name for name, value in zip(names, vitals, strict=True) if not np.isnan(value)}
    kinds = {"vitals": present, "image": set(roles) - {PRIOR}, "context": context.strip(), "signal": signal}
    return present | (set(roles) - {""}) | {kind for kind, any_of in kinds.items() if any_of}


def with_prior_report(context: str, prior_report: str) -> str:
    """Add the report of an earlier study to the text of the prompt."""
    return "\n".join(filter(None, (context.strip(), f"Prior report: {prior_report.strip()}" if prior_report else "")))


def drop_roles(
    pictures: list[StudyPicture], context: str, prior_report: str, dropout: DropoutConfig, rng: np.random.Generator
) -> tuple[list[StudyPicture], str, str]:
    """Drop further views, all of the prior or the context at random; the first current image stays."""
    draws = rng.random(2 + len(pictures))
    if draws[0] < dropout.prior:
        pictures, prior_report = [item for item in pictures if not item.prior], ""
    lost = [not item.prior and place > 0 and draws[2 + place] < dropout.view for place, item in enumerate(pictures)]
    kept = [item for item, gone in zip(pictures, lost, strict=True) if not gone]
    return kept, "" if draws[1] < dropout.context else context, prior_report
