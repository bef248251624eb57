"""Files that were not saved together, and every damage to an adapter, are refused by name."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import read_json
from tests.corruption import campaign
from tests.untrusted_adapters import (
    LORA,
    REST,
    Spoil,
    config,
    folder,
    lora,
    manifest,
    other,
    part,
    raw,
    refusal,
    saved,
    trained,
)
from vlm.adapter import load, resolve
from vlm.atomic import MANIFEST, write_manifest
from vlm.cli import main as run_command
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM

__all__ = ["folder", "other", "saved", "trained"]  # fixtures


# ------------------------------------------------------------------------------------ the manifest


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.copy(f.parent / "other" / REST, f), f"{REST}: damaged: its SHA-256 differs"),
        (lambda f: shutil.copy(f.parent / "other" / MANIFEST, f), f"{LORA}: damaged"),
        (lambda f: shutil.copy(f.parent / "other" / "metrics.json", f), "metrics.json: damaged: "),
        (lambda f: os.truncate(f / REST, 5000), f"{REST}: damaged: 5000 bytes"),
        (lambda f: (f / MANIFEST).unlink(), f"no {MANIFEST}, which was saved with it"),
        (lambda f: (f / "metrics.json").unlink(), "metrics.json: cannot be read: No such file"),
        (part("prompt", system="Nothing is ever wrong."), "config.json: damaged"),
        (manifest(lambda m: m.pop("config.json")), f"{MANIFEST}: damaged: it does not list config.json"),
        (manifest(lambda m: m.update({"../secret": m[REST]})), f"{MANIFEST}: damaged"),
        (manifest(lambda m: m.update({"/dev/zero": m[REST]})), f"{MANIFEST}: damaged"),
        (manifest(lambda m: m.update({"x.py": m[REST]})), "x.py: cannot be read"),
        (raw(MANIFEST, b"[" * 100_000), f"{MANIFEST}: damaged"),
        (raw(MANIFEST, b" " * (3 << 20)), f"{MANIFEST}: larger than 2 MiB"),
    ],
)
def test_what_was_not_saved_together_is_refused(spoil: Spoil, message: str, folder: Path, other: Path) -> None:
    shutil.copytree(other, folder.parent / "other")
    (folder.parent / "secret").write_text("not yours")
    spoil(folder)
    said = refusal(folder)
    assert message in said, said


def test_the_card_may_be_edited(folder: Path) -> None:
    """People do so on the Hub's page."""
    (folder / "README.md").write_text("# Ours\n")
    assert load(folder)
    (folder / "README.md").unlink()
    assert load(folder)


def test_an_adapter_of_an_earlier_version_loads_says_so_and_can_get_a_manifest(
    folder: Path, trained: ClinicalVLM, monkeypatch, capfd
) -> None:
    (folder / MANIFEST).unlink()  # as format 1 was first written
    config(lambda c: c.pop("sealed"))(folder)
    assert read_json(folder / "config.json")["format"] == 1
    again = load(folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trained.state_dict().items())
    said = capfd.readouterr().err
    assert (
        f"{folder}: saved by an earlier version, without a {MANIFEST}" in said and said.count("clinical-vlm seal") == 1
    )
    run_command(["seal", str(folder)])
    assert resolve(str(folder)) == folder and "earlier version" not in capfd.readouterr().err
    lora(r=3)(folder)
    with pytest.raises(UserError, match=r"adapter_config\.json: r: '3' is not what"):
        run_command(["seal", str(folder)])


def as_far_as_damage_shows(folder: Path) -> None:
    """The base is the same for all."""
    resolve(str(folder))


def without_cards(saved: Path, other: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters without their cards, which may be edited, and sealed so."""
    for number, source in enumerate((saved, other)):
        shutil.copytree(source, tmp_path / str(number) / "adapter", ignore=shutil.ignore_patterns("README.md"))
        write_manifest(tmp_path / str(number) / "adapter")
    return tmp_path / "0" / "adapter", tmp_path / "1" / "adapter"


def test_every_damage_to_an_adapter_is_refused_by_name(saved: Path, other: Path, tmp_path: Path) -> None:
    """A sample; `make soak` tries 6,000."""
    tried = campaign(*without_cards(saved, other, tmp_path), tmp_path / "work", as_far_as_damage_shows, 60)
    assert len(tried) == 8


@pytest.mark.soak
def test_six_thousand_damages_to_an_adapter(saved: Path, other: Path, tmp_path: Path) -> None:
    """1,000 for each of six files."""
    tried = campaign(*without_cards(saved, other, tmp_path), tmp_path / "work", as_far_as_damage_shows, 6000, 1)
    print(f"damaged {tried.total()} adapters, 0 loaded: {dict(tried)}")
