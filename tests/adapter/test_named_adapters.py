"""An adapter by its short name: trained here, or published and fetched, which is hostile until it is checked."""

import hashlib
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hub_adapters import REPO, folder, saved, trained
from tests.hub_server import hub
from tests.loopback_server import LoopbackHandler, LoopbackServer
from vlm import ClinicalVLM
from vlm.adapter import FILES, release_file, resolve
from vlm.adapter.hub import push
from vlm.adapter.named import NAMED, HubCommit
from vlm.adapter.release_file import ReleaseFile, pack
from vlm.adapter.validate import check_sources, is_fetched
from vlm.cli import main
from vlm.config import LLMConfig, ModelConfig
from vlm.errors import UserError

__all__ = ["folder", "hub", "saved", "trained"]  # fixtures

TEXTS = {"LICENSE": b"a licence", "NOTICE.md": b"a notice"}
TOP = "clinical-vlm-demo-1"
NAME = f"{TOP}.zip"


class Handler(LoopbackHandler):
    server: "FileServer"

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        with suppress(BrokenPipeError, ConnectionResetError):
            match self.path.split("/")[1]:
                case "moved":
                    self.send_head(302, 0, Location=f"/whole/{NAME}")
                case "missing":
                    self.send_head(404, 0)
                case "cut":
                    self.send_head(200, len(self.server.content))
                    self.wfile.write(self.server.content[:100])
                    self.close_connection = True
                case "endless":
                    self.send_head(200, 1 << 40)
                    while True:
                        self.wfile.write(bytes(1 << 16))
                case "drip":
                    self.send_head(200, len(self.server.content))
                    for byte in self.server.content:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
                case _:
                    self.send_head(200, len(self.server.content))
                    self.wfile.write(self.server.content)


class FileServer(LoopbackServer):
    """Serve one file at `whole/NAME`, and badly at others."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.content = b""
        self.seen: list[str] = []

    def publish(self, monkeypatch: pytest.MonkeyPatch, way: str = "whole", **changes: object) -> None:
        """Write into the table that the demo lies here."""
        url = f"http://127.0.0.1:{self.server_port}/{way}/{NAME}"
        place = ReleaseFile(url, len(self.content), hashlib.sha256(self.content).hexdigest())
        monkeypatch.setitem(NAMED, "demo", NAMED["demo"]._replace(place=place._replace(**changes)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and an empty cache."""
    monkeypatch.setenv("CLINICAL_VLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def published(here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A server with the release file of `folder`, which the table names."""
    pack(folder, here / NAME, TEXTS)
    with FileServer() as server:
        server.content = (here / NAME).read_bytes()
        server.publish(monkeypatch)
        yield server


def kept() -> list[Path]:
    place = Path(os.environ["CLINICAL_VLM_CACHE"]) / "adapters"
    return sorted(place.iterdir()) if place.is_dir() else []


# --------------------------------------------------------------------------------------- which is taken


def test_before_it_is_published_one_line_says_how_to_train_it(here: Path, monkeypatch) -> None:
    for name, known in list(NAMED.items()):
        monkeypatch.setitem(NAMED, name, known._replace(place=None))
        with pytest.raises(UserError) as error:
            resolve(name)
        assert str(error.value).startswith(f"{name}: no folder runs/{name}/adapter here, and not published yet; ")
        assert f"clinical-vlm train --config {name} (needs" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="demo: no folder runs/demo/adapter here"):
        main(["draft", "--vitals", "glucose=5.1"])  # the default of --adapter


def test_the_run_here_comes_first_and_a_folder_of_that_name_before_it(published, folder, here, capfd) -> None:
    shutil.copytree(folder, here / "runs" / "demo" / "adapter")
    assert resolve("demo") == Path("runs/demo/adapter") and published.seen == []
    assert capfd.readouterr().err == "demo: runs/demo/adapter, trained here\n"
    (here / "demo").mkdir()
    with pytest.raises(UserError, match=r"demo: no adapter_config\.json; not a complete adapter folder"):
        resolve("demo")
    assert capfd.readouterr().err == "demo: demo, the folder of this name here\n"
    shutil.copytree(folder, here / "demo", dirs_exist_ok=True)
    assert resolve("demo") == Path("demo") and published.seen == []


def test_a_name_has_no_revision(here: Path) -> None:
    with pytest.raises(UserError, match="demo: is a name; a revision is one of a Hub id"):
        resolve("demo", "main")


def test_a_place_on_the_hub_is_fetched_at_its_commit(hub, here, folder, monkeypatch, capfd) -> None:
    commit = push(folder, REPO).commit
    monkeypatch.setitem(NAMED, "demo", NAMED["demo"]._replace(place=HubCommit(REPO, commit)))
    assert resolve("demo").name == commit
    assert "demo: trained on synthetic cases, Apache-2.0\n" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------ fetched once


def test_it_is_fetched_once_and_drafts_as_it_did(published, trained, tiny_llm, monkeypatch, capfd) -> None:
    model = ClinicalVLM.from_pretrained("demo", base=tiny_llm)
    said = capfd.readouterr().err
    assert said.count("downloading demo") == 1 and published.seen == [f"/whole/{NAME}"]
    case = (None, {"glucose": 8.7})
    assert model.predict_many([case], max_new_tokens=4) == trained.predict_many([case], max_new_tokens=4)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published.shutdown()
    (place,) = kept()
    assert resolve("demo") == place and "downloading" not in capfd.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == sorted(FILES)


def test_offline_nothing_is_asked_for(published, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not in the cache, and HF_HUB_OFFLINE forbids to fetch it"):
        resolve("demo")
    assert published.seen == [] and kept() == []


def test_a_redirection_is_followed(published, monkeypatch) -> None:
    published.publish(monkeypatch, "moved")
    assert resolve("demo") in kept() and len(published.seen) == 2


def test_a_fetched_adapter_names_no_path_of_a_machine(published) -> None:
    place = resolve("demo")
    assert is_fetched(place.resolve())
    with pytest.raises(UserError, match="'/etc' is a path of a machine"):
        check_sources(place, ModelConfig(llm=LLMConfig(base="/etc")))


@pytest.mark.skipif(os.name == "nt", reason="no such owners")
def test_a_cache_that_was_changed_is_not_used(published) -> None:
    place = resolve("demo")
    place.chmod(0o777)
    with pytest.raises(UserError, match="may be written by other users"):
        resolve("demo")
    place.chmod(0o700)
    with (place / "README.md").open("a") as file:
        file.write("more")
    with pytest.raises(UserError, match=r"README\.md: damaged: .*; remove .*, it is made anew"):
        resolve("demo")


# -------------------------------------------------------------------------------------- bad downloads


@pytest.mark.parametrize(
    ("way", "changes", "message"),
    [
        ("whole", {"sha256": "0" * 64}, "SHA-256 is .* not 0000"),
        ("whole", {"size": 1000}, "larger than 1,000 bytes; not used"),
        ("endless", {}, "larger than .* bytes; not used"),
        ("missing", {}, "the server answered 404"),
        ("cut", {}, "the connection broke"),
        ("drip", {}, "not whole within 1 s"),
    ],
)
def test_a_bad_download_is_one_line_and_leaves_nothing(published, way, changes, message: str, monkeypatch) -> None:
    monkeypatch.setattr(release_file, "SECONDS", 1)
    published.publish(monkeypatch, way, **changes)
    begun = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        resolve("demo")
    assert "\n" not in str(error.value) and kept() == [] and time.monotonic() - begun < 30


def test_a_server_that_is_not_there_is_one_line(published, monkeypatch) -> None:
    published.publish(monkeypatch, url=f"http://127.0.0.1:9/{NAME}")
    with pytest.raises(UserError, match="the connection broke"):
        resolve("demo")
    assert kept() == []


# --------------------------------------------------------------------------------------- bad archives


def rewritten(change: Callable[[zipfile.ZipInfo], None], **options: int) -> Callable[[bytes, Path], bytes]:
    """The same archive with each entry changed."""

    def rewrite(content: bytes, work: Path) -> bytes:
        (work / "old.zip").write_bytes(content)
        with zipfile.ZipFile(work / "old.zip") as old, zipfile.ZipFile(work / "new.zip", "w") as new:
            for entry in old.infolist():
                data = old.read(entry)
                entry = zipfile.ZipInfo(entry.filename)
                change(entry)
                new.writestr(entry, data, **options)
        return (work / "new.zip").read_bytes()

    return rewrite


def appended(name: str, data: bytes = b"text", mode: int = stat.S_IFREG | 0o644) -> Callable[[bytes, Path], bytes]:
    """The archive with one more entry."""

    def append(content: bytes, work: Path) -> bytes:
        (work / "more.zip").write_bytes(content)
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        with zipfile.ZipFile(work / "more.zip", "a") as archive:
            archive.writestr(entry, data)
        return (work / "more.zip").read_bytes()

    return append


def rename(before: str, after: str) -> Callable[[zipfile.ZipInfo], None]:
    def change(entry: zipfile.ZipInfo) -> None:
        entry.filename = entry.filename.replace(before, after)

    return change


def grown(content: bytes, work: Path) -> bytes:
    """Every entry says that it holds a gigabyte."""
    (work / "grown.zip").write_bytes(content)
    with zipfile.ZipFile(work / "grown.zip", "a") as archive:
        for entry in archive.filelist:
            entry.file_size = entry.compress_size = 1 << 30
        archive._didModify = True  # type: ignore[attr-defined]  # so that the directory is written anew
    return (work / "grown.zip").read_bytes()


def of_other_bytes(content: bytes, work: Path) -> bytes:
    place = content.index(b"clinical_vlm_version")
    return content[:place] + b"C" + content[place + 1 :]


OTHERS = "does not hold the files of an adapter, each once, and no others"
NO_FILE = f"{NAME}: no release file"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (appended("../evil.json"), OTHERS),
        (appended("/tmp/evil.json"), OTHERS),
        (appended(f"{TOP}/adapter/evil.py"), OTHERS),
        (appended(f"{TOP}/adapter/../config.json"), OTHERS),
        (appended(f"{TOP}/adapter/sub/config.json"), OTHERS),
        pytest.param(appended(f"{TOP}/adapter/config.json"), OTHERS, marks=pytest.mark.filterwarnings("ignore")),
        (appended(f"{TOP}/adapter/link", b"/etc/passwd", stat.S_IFLNK | 0o777), OTHERS),
        (rewritten(rename("adapter/vlm.safetensors", "adapter/vlm.pt")), OTHERS),
        (rewritten(rename(f"{TOP}/adapter/", "../../")), OTHERS),
        (rewritten(rename("NOTICE.md", "notice.md")), OTHERS),
        (rewritten(lambda entry: None, compress_type=zipfile.ZIP_DEFLATED), "is compressed, and may grow"),
        (rewritten(lambda entry: None, compress_type=zipfile.ZIP_LZMA), "is compressed, and may grow"),
        (grown, "is larger than|holds more bytes than it has"),
        (of_other_bytes, f"{NO_FILE}: Bad CRC-32"),
        (lambda content, work: content[: len(content) // 2], f"{NO_FILE}: File is not a zip file"),
        (lambda content, work: b"PK\x05\x06" + bytes(18), OTHERS),
        (lambda content, work: b"", f"{NO_FILE}: File is not a zip file"),
        (lambda content, work: b"<html>", f"{NO_FILE}: File is not a zip file"),
    ],
)
def test_a_hostile_archive_of_the_right_checksum_is_refused(spoil, message, published, tmp_path, monkeypatch) -> None:
    work = tmp_path / "spoilt"
    work.mkdir()
    published.content = spoil(published.content, work)
    published.publish(monkeypatch)
    before = {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in path.parents}
    with pytest.raises(UserError, match=message) as error:
        resolve("demo")
    assert "\n" not in str(error.value) and kept() == []
    assert {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in path.parents} == before | {
        tmp_path / "cache"
    }


@pytest.mark.parametrize("name", ["vlm.safetensors", "README.md"])
def test_an_archive_of_a_damaged_adapter_is_refused(name: str, published, folder, here, monkeypatch) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"x")
    pack(folder, here / NAME, TEXTS)
    published.content = (here / NAME).read_bytes()
    published.publish(monkeypatch)
    with pytest.raises(UserError, match=f"{name}: damaged"):
        resolve("demo")
    assert kept() == []
