"""Read a dataset of the Hugging Face Hub at one commit, or a folder of one: Parquet shards, a split in their names.

Parquet alone is fetched and read: no code of a repository is run, and no pickle.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import pandas as pd

from vlm.config import DataConfig
from vlm.data.cohort import SPLIT_WORDS, Cohort
from vlm.data.ingest.column_names import find_column, listed
from vlm.data.ingest.measurements import cell_text
from vlm.data.ingest.read import read_chunks
from vlm.data.ingest.table import CHUNK, Part, load_frames
from vlm.data.splits import SPLITS, assign_splits
from vlm.errors import UserError
from vlm.hub_client import hub_client, hub_errors, planned_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[\w.-]+|[^/@]+))?(?:/(.+))?", re.ASCII)
"""Address of a dataset: its id, the revision, a folder in it."""
CONVERTED = "refs/convert/parquet"
"""Revision in which the Hub keeps its own Parquet copy of a dataset."""
ROW, SPLIT = "(row)", "(split)"
"""Names of added columns; in brackets, for a dataset's own column may be called `split`."""


def load_hub(data: DataConfig) -> Cohort:
    """Read the Parquet shards of `data.root`, `hf://datasets/OWNER/NAME@REVISION` or a folder, by `data.table`.

    The splits of their names are kept; a split that is missing is drawn from the patients of `train`. Raises
    `UserError` for what the Hub refuses, for shards that are lost, damaged or of several tables, and for a patient in
    two splits.
    """
    folder, notes = (Path(data.root), []) if "://" not in data.root else _fetched(data.root)
    shards = _shards(folder, data.root)
    splits = set(shards.values())
    fixed = data.table.split is None and splits != {""}
    if fixed and data.split.folds:
        raise UserError(f"--folds: {data.root} has splits of its own; leave --folds away")
    if fixed and (lost := [name for name in SPLITS if name not in splits]):
        notes.append(f"{data.root}: no split {' or '.join(lost)}; drawn from the patients of train by data.split")
    table = replace(data.table, split=SPLIT if fixed else data.table.split,
                    id=data.table.id or (None if data.table.study else ROW))  # fmt: skip
    cohort = load_frames(_parts(shards, data), table, replace(data, root=str(folder)), folder)
    return replace(cohort, warnings=(*notes, *cohort.warnings))


def _fetched(address: str) -> tuple[Path, list[str]]:
    """Fetch the Parquet files of one commit to the Hub's cache, after printing their size; return folder and notes."""
    parts = ADDRESS.fullmatch(address)
    if parts is None or ".." in address.split("/"):
        raise UserError(f"data.root: {address}: write hf://datasets/OWNER/NAME@REVISION, or a folder")
    repo, revision, inside = parts.groups()
    pattern = f"{inside.rstrip('/')}/*.parquet" if inside else "*.parquet"
    api = hub_client()
    with hub_errors(f"data.root: {address}: the Hub did not give it", revision):
        commit = api.resolve_revision(repo, repo_type="dataset", revision=revision)
        size = _size(api, address, repo, commit, pattern)
        print(f"{repo}: commit {commit.resolved}: {size}", file=sys.stderr)
        folder = Path(api.snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=pattern))
    here = f"hf://datasets/{repo}@{commit.resolved}"
    notes = [] if revision == commit.resolved else [
        f"{address}: names no commit, which may change; write {here}{f'/{inside}' if inside else ''} to keep this one"
    ]  # fmt: skip
    return folder / (inside or ""), notes


def _size(api: "HfApi", address: str, repo: str, commit: str, pattern: str) -> str:
    """Describe what will be fetched; raises `UserError` if there is nothing, and if no Hub answers."""
    files = planned_files(api, repo, commit, [pattern], "dataset")
    if files is None:  # no list of the files: the cache may hold a part, which would be a smaller dataset
        raise UserError(f"data.root: {address}: the Hub cannot be reached; set data.root to a folder of its files")
    if not files:
        way_out = "" if CONVERTED in address else f"; the Hub's own copy may be at hf://datasets/{repo}@{CONVERTED}"
        raise UserError(f"data.root: {address}: no Parquet file at this revision{way_out}")
    size, more = (sum(file.file_size or 0 for file in files if file.will_download or every) for every in (True, False))
    return f"{len(files):,} Parquet files of {size / 1e6:,.1f} MB, of which {more / 1e6:,.1f} MB are fetched now"


def _shards(folder: Path, root: str) -> dict[Path, str]:
    """List the Parquet files below a folder, each with the split of its name, empty if no name tells one."""
    if not folder.is_dir():
        raise UserError(f"{root}: no such folder; set data.root to hf://datasets/OWNER/NAME@REVISION, or to a folder")
    files = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
    names = [file.relative_to(folder) for file in files]
    if not files:
        saved = any(folder.rglob("state.json"))
        way_out = '; write it as Parquet: load_from_disk(…)["train"].to_parquet("train.parquet")' if saved else ""
        raise UserError(f"{root}: a folder without .parquet files{way_out}")
    tables = {"/".join(part for part in name.parts[:-1] if not _split_of(part)) for name in names}
    if len(tables) > 1:
        several = listed(sorted(table or "." for table in tables))
        raise UserError(f"{root}: holds several tables, {several}; add the folder of one to data.root")
    _refuse_lost(names, root)
    found = {file: next(filter(None, map(_split_of, reversed(name.parts))), "")
             for file, name in zip(files, names, strict=True)}  # fmt: skip
    if len(set(found.values())) > 1 and "" in found.values():
        odd = next(file for file, split in found.items() if not split)
        raise UserError(f"{odd}: its name tells no split (train, validation, test) as those of the other files do")
    return found


def _split_of(part: str) -> str:
    """Read the one split that a part of a path names, as in `train-00000-of-00002.parquet`; else empty."""
    words = re.split(r"[^a-z]+", part.lower())
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else ""


def _refuse_lost(names: Sequence[PurePath], root: str) -> None:
    """Raise `UserError` if shards are numbered `-00000-of-00003` and not all are there, or converted in part alone."""
    numbered: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := re.search(r"^(.*)-(\d{5})-of-(\d{5})", str(name)):
            numbered.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
        if any(part.startswith("partial-") for part in name.parts):
            raise UserError(f"{root}: {name}: the Hub converted a part of the dataset alone; fetch its own files")
    for (stem, count), there in numbered.items():
        if len(there) != count:
            raise UserError(f"{root}: {stem}: {len(there):,} of {count:,} shards are there; fetch the others")


def _parts(shards: dict[Path, str], data: DataConfig) -> Iterator[Part]:
    """Yield the rows of each shard with their number in its split, and the split."""
    table, read = data.table, Counter[str]()
    missing = set(SPLITS) - set(shards.values())
    own = table.patient or table.study or table.id
    for path, split in shards.items():
        for frame in read_chunks(path, CHUNK):
            rows = [f"{split or 'row'}-{read[split] + place}" for place in range(1, len(frame) + 1)]
            read[split] += len(rows)
            frame = frame.assign(**{ROW: rows, SPLIT: split})
            if split == "train" and missing:
                patients = map(cell_text, frame[find_column(frame.columns, own, str(path))]) if own else rows
                drawn = pd.Series(assign_splits(list(patients), data.split), frame.index, dtype=object)
                frame[SPLIT] = drawn.where(drawn.isin(missing), "train")
            yield path, frame
