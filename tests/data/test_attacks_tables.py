"""Tables that were made to exhaust whoever reads them: each costs bounded memory and ends in one line."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import parquet_bombs, table_bombs
from vlm.data.ingest.read import read_table
from vlm.data.size_limits import LONGEST_ROW
from vlm.errors import UserError

MOST = 400
"""MiB above the import, for any of them."""
SECONDS = 60
ATTACKS = {**table_bombs.BOMBS, **parquet_bombs.BOMBS}

WATCHED = """
import json, os, resource, sys
from pathlib import Path
from vlm.data.ingest.read import read_chunks, read_table
from vlm.errors import UserError

def peak():
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024

def seconds():  # of the processor: the machine may do much else
    return sum(os.times()[:4])

for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        before, start, said = peak(), seconds(), ""
        try:
            rows = sum(len(chunk) for chunk in read_chunks(Path(name)))
        except UserError as error:
            rows, said = -1, str(error)
        print(json.dumps([name, rows, said, peak() - before, seconds() - start]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, float, float]]:
    """Name of the attack → rows or -1, the error, MiB above the import, seconds; all in one process's children."""
    files = {}
    for number, (name, (file, write, _)) in enumerate(ATTACKS.items()):
        path = tmp_path_factory.mktemp(f"attack{number}") / file
        write(path)
        files[str(path)] = name
    run = subprocess.run(
        [sys.executable, "-c", WATCHED, *files], capture_output=True, text=True, timeout=500, check=True
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {files[path]: tuple(outcome) for path, *outcome in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_bounded_memory_and_time(name: str, outcomes) -> None:
    assert name in outcomes, "the process died of it"
    rows, error, memory, seconds = outcomes[name]
    message = ATTACKS[name][2]
    assert memory < MOST and seconds < SECONDS
    assert message in error and "\n" not in error and len(error) < 700
    assert (rows == -1) == bool(message), "what is no bomb is read"


def test_texts_below_the_limits_are_read(tmp_path: Path) -> None:
    long = "a" * (LONGEST_ROW // 2)
    (tmp_path / "t.csv").write_text(f"id,note\n1,{long}\n")
    assert read_table(tmp_path / "t.csv")["note"].tolist() == [long]
    pq.write_table(pa.table({"note": [long, "b"]}), tmp_path / "t.parquet", compression="none")
    assert read_table(tmp_path / "t.parquet")["note"].tolist() == [long, "b"]
    rows = "".join(f"{number},0,0,1,0,No acute finding in either lung.\n" for number in range(300_000))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(("id,a,b,c,d,note\n" + rows).encode()))
    assert len(read_table(tmp_path / "t.csv.gz")) == 300_000, "a table of labels and one sentence is no bomb"
    many = pa.array(["No acute finding."] * 300_000).dictionary_encode()
    pq.write_table(pa.table({"id": range(300_000), "note": many}), tmp_path / "t.parquet")
    assert set(read_table(tmp_path / "t.parquet")["note"]) == {"No acute finding."}


def test_a_cell_beyond_the_limit_is_named_by_its_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "note": ["a" * (LONGEST_ROW + 1)]}), tmp_path / "t.parquet", compression="none")
    with pytest.raises(UserError, match="column note: a cell is longer than 8 million characters"):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("value", "kind"), [(2**31 - 1, pa.date32()), (2**62, pa.duration("s")), (2**62, pa.timestamp("us"))]
)
def test_a_time_that_python_has_not_is_named_by_its_column(value: int, kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "seen": pa.array([value], kind)}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: cannot read the table: column seen: "):
        read_table(tmp_path / "t.parquet")


def test_a_device_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="no such table"):
        read_table(tmp_path / "t.csv")
