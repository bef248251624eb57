"""An adapter fetched from the Hub: links of its cache are followed, paths of a machine are refused."""

import shutil
from pathlib import Path

import pytest

from tests.untrusted_adapters import folder, lora, other, part, refusal, saved, trained
from vlm.adapter import load
from vlm.atomic import write_manifest
from vlm.errors import UserError

__all__ = ["folder", "other", "saved", "trained"]  # fixtures


# ------------------------------------------------------------------------------------ fetched


def as_fetched(folder: Path) -> Path:
    """The same in the form of the Hub's cache: links to blobs."""
    snapshot = folder.parent / "models--a--b" / "snapshots" / ("0" * 40)
    blobs = folder.parent / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        shutil.copy(file, blobs / f"{file.name}-sum")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}-sum")
    return snapshot


def test_links_of_the_hubs_cache_are_followed_and_no_others(folder: Path, tiny_llm: str) -> None:
    snapshot = as_fetched(folder)
    assert load(snapshot, base=tiny_llm)
    secret = folder.parent / "secret"
    secret.write_text("not yours")
    for target in (str(secret), "../../blobs/hop"):
        (snapshot / "README.md").unlink()
        (snapshot / "README.md").symlink_to(target)
        (snapshot.parent.parent / "blobs" / "hop").unlink(missing_ok=True)
        (snapshot.parent.parent / "blobs" / "hop").symlink_to(secret)
        assert "README.md: is a link that leads out" in refusal(snapshot)


@pytest.mark.parametrize("base", ["/models/x", "./x", "../x", "~/x", "a/b/c", "..", "C:\\x"])
def test_a_fetched_adapter_names_no_path_of_this_machine(base: str, folder: Path) -> None:
    part("llm", base=base)(folder)
    lora(base_model_name_or_path=base)(folder)
    write_manifest(folder)
    assert "is a path of a machine; name your own copy with --base" in refusal(as_fetched(folder))


def test_nor_a_cnn_there(folder: Path, tiny_llm: str) -> None:
    part("vision", weights="/models/cnn.safetensors")(folder)
    write_manifest(folder)
    with pytest.raises(UserError, match=r"model\.vision\.weights: '/models/cnn\.safetensors' is a path of a machine"):
        load(as_fetched(folder), base=tiny_llm)
