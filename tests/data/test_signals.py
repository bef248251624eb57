"""Signals of a table: what is read of each source, what a hostile file says, and what a case holds."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm.config import DataConfig, SectionConfig, SignalColumnConfig, SplitConfig, TableConfig
from vlm.data.case import CaseSpec, random_cases
from vlm.data.dataset import CaseDataset
from vlm.data.fingerprint import contents_fingerprint
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.data.ingest.table import load_table
from vlm.data.prepare.pack import PackOptions, pack
from vlm.data.signals.signal_file import open_signals, read_signal_file, signal_values
from vlm.data.signals.signal_spec import SignalFormat, SignalSpec, from_bytes
from vlm.errors import UserError

ROWS, LENGTH = 12, 40


def beats(rows: int = ROWS, length: int = LENGTH) -> np.ndarray:
    """Make signals of two channels, rows × samples × channels, int16."""
    rng = np.random.default_rng(3)
    return (1000 * rng.normal(size=(rows, length, 2)) + [0, 500]).astype(np.int16)


def config(root: Path, **signal: Any) -> DataConfig:
    """Write a table of cases and describe it with these options of the signal."""
    lines = [f"k{row},p{row},text of case {row},{row % 2}" for row in range(ROWS)]
    (root / "cases.csv").write_text("\n".join(["key,patient,report,label", *lines]))
    options = {"column": "key", "channels": ["I", "V2"], "rate": 100.0, "scale": 0.001} | signal
    table = TableConfig(image=None, id="key", patient="patient", labels=["label"], signal=SignalColumnConfig(**options),
                        report=[SectionConfig("report", ["signal"], "No signal.")])  # fmt: skip
    return DataConfig(source="table", root=str(root), table=table, split=SplitConfig(0.2, 0.2))


def write_npz(root: Path, samples: np.ndarray | None = None, keys: Any = None) -> np.ndarray:
    """Write the signals of all cases in another order than the table's; returns them."""
    samples = beats() if samples is None else samples
    keys = np.array([f"k{row}" for row in range(len(samples))]) if keys is None else keys
    np.savez_compressed(root / "signals.npz", signals=samples[::-1], key=keys[::-1])
    return samples


SHARED = {"file": "signals.npz", "key": "key"}


def test_a_key_finds_its_signal_in_one_file_of_all(tmp_path: Path) -> None:
    """The order of the file differs from the table's; the unit's factor is applied."""
    samples = write_npz(tmp_path)
    cohort = load_table(config(tmp_path, **SHARED))
    for row in range(ROWS):
        found = from_bytes(cohort.dataset[row]["signal"], 2)
        assert found is not None and np.allclose(found, samples[row].T / 1000, atol=1e-6)
    assert cohort.signal == SignalFormat(["I", "V2"], 100.0, 0.001) and not cohort.warnings


@pytest.mark.parametrize("transposed", [False, True])
def test_an_array_without_keys_is_indexed_by_place(tmp_path: Path, transposed: bool) -> None:
    """Both orders of the axes give channels × samples."""
    samples = beats()
    np.save(tmp_path / "all.npy", samples.transpose(0, 2, 1) if transposed else samples)
    data = config(tmp_path, file="all.npy")
    text = (tmp_path / "cases.csv").read_text()
    (tmp_path / "cases.csv").write_text("".join(f"{line.replace('k', '', 1) if n else line}\n"
                                                for n, line in enumerate(text.splitlines())))  # fmt: skip
    found = from_bytes(load_table(data).dataset[4]["signal"], 2)
    assert found is not None and np.allclose(found, samples[4].T / 1000, atol=1e-6)


def test_files_and_lists_in_cells_are_read(tmp_path: Path) -> None:
    """A `.npy`, a table with a header, a JSON list with a gap, an empty cell."""
    data = config(tmp_path, channels=[], rate=1.0, scale=1.0, column="trace")
    np.save(tmp_path / "a.npy", np.arange(5, dtype=np.float32))
    (tmp_path / "b.csv").write_text("beat\n1\n2.5\n\n4\n")
    (tmp_path / "cases.csv").write_text('key;patient;report;label;trace\n1;1;a;1;a.npy\n2;2;b;0;b.csv\n'
                                        '3;3;c;1;[1, null, 3]\n4;4;d;0;\n')  # fmt: skip
    cohort = load_table(data)
    rows = [from_bytes(cell, 1) for cell in cohort.dataset["signal"]]
    assert rows[0].tolist() == [[0, 1, 2, 3, 4]] and rows[1].tolist() == [[1, 2.5, 4]] and rows[3] is None
    assert np.isnan(rows[2][0, 1]) and rows[2][0, 2] == 3
    said = "\n".join(cohort.warnings)
    assert "no finite number" in said and "unequal length" in said and "1 cases have no signal" in said


def test_averaging_is_the_only_resampling(tmp_path: Path) -> None:
    """Two recorded samples become one; a last single one is left out."""
    found = SignalFormat(["a"], 10.0, average=2).samples(np.array([1, 3, 5, 7, 9.0]), "x")
    assert found.tolist() == [[2, 6]]
    with pytest.raises(UserError, match=r"9,000 samples are not 1 to 4,096; set .*average to 3 or more"):
        SignalFormat(["a"], 10.0).samples(np.ones(9000), "row 2")


def test_doubtful_signals_are_named(tmp_path: Path) -> None:
    """A flat channel is a warning; a signal flat in all channels counts as none; infinity is a gap."""
    samples = beats().astype(np.float32)
    samples[1, :, 0], samples[2], samples[3, 4, 1] = 7, 0, np.inf
    write_npz(tmp_path, samples)
    cohort = load_table(config(tmp_path, **SHARED))
    said = "\n".join(cohort.warnings)
    assert "row 3: key: flat: I (1 signals)" in said and "row 4: key: flat in every channel" in said
    assert "row 5: key: samples that are no finite number are gaps" in said
    assert cohort.dataset[2]["signal"] == b"" and np.isnan(from_bytes(cohort.dataset[3]["signal"], 2)).sum() == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": "none.npz"}, "none.npz: no such file of signals"),
        ({"array": "beats"}, "no array 'beats'; it has signals, key"),
        ({"key": "names"}, "no array 'names'"),
        ({"channels": ["I", "II", "V2"]}, "row 2: key: a signal of 40 × 2 is not one of 3 channels"),
        ({"channels": ["I", "I"]}, "data.table.signal: channels: 1 to 16 different names"),
        ({"rate": 0.0}, "data.table.signal: rate: above 0"),
        ({"scale": float("nan")}, "data.table.signal: scale"),
        ({"average": 0}, "data.table.signal: average"),
        ({"average": 41}, "row 2: key: 40 samples are not 1 to 4,096; it has none"),
        ({"file": "", "key": ""}, "row 2: key: 'k0' is no list and no .npy or .csv"),
        ({"column": "trace"}, "no column trace"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """File, array, key, channels, rate and column."""
    write_npz(tmp_path)
    with pytest.raises(UserError) as error:
        load_table(config(tmp_path, **{**SHARED, **change}))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_key_that_the_file_lacks_is_named_with_its_row(tmp_path: Path) -> None:
    """And a key that stands there twice."""
    write_npz(tmp_path, keys=np.array([f"k{row}" for row in range(ROWS - 1)] + ["other"]))
    with pytest.raises(UserError, match=r"row 13: key: signals.npz has no signal 'k11'"):
        load_table(config(tmp_path, **SHARED))
    write_npz(tmp_path, keys=np.array(["k1"] * ROWS))
    with pytest.raises(UserError, match="two signals have one key"):
        load_table(config(tmp_path, **SHARED))


def _npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


HOSTILE = {
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
    "objects": _npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", b"12345678"),
    "huge": _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 2), }\n", b"1234"),
    "negative": _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }\n", b"1234"),
    "code": _npy(b"__import__('os').system('true')\n"),
    "long header": _npy(b"{'descr': '<f4'" + b" " * 9000 + b"}\n"),
    "cut": _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2), }\n", b"1234"),
    "more": _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }\n", b"1234" * 9),
    "words": _npy(b"{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }\n", b"1" * 16),
    "complex": _npy(b"{'descr': '<c16', 'fortran_order': False, 'shape': (1,), }\n", b"1" * 16),
    "structure": _npy(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n", b"1234"),
    "format": _npy(b"{}", version=b"\x09\x00"),
    "deep": _npy(b"-" * 4000 + b"1\n"),
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_array_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """As the file of one case, of all cases, and inside an archive."""
    (tmp_path / "x.npy").write_bytes(HOSTILE[name])
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("signals.npy", HOSTILE[name])
    for read in (
        lambda: read_signal_file(tmp_path / "x.npy"),
        lambda: open_signals(tmp_path / "x.npy", "signals", ""),
        lambda: open_signals(tmp_path / "x.npz", "signals", ""),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert "cannot read the signals" in str(error.value) and "\n" not in str(error.value)


def test_an_archive_that_expands_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """Its directory states another size than the array's header, or it is no archive."""
    header = b"{'descr': '|i1', 'fortran_order': False, 'shape': (10, 10), }\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("signals.npy", _npy(header, bytes(50_000_000)))
    with pytest.raises(UserError, match="its header states 100 bytes, the file has 50,000,000"):
        open_signals(tmp_path / "x.npz", "signals", "")
    (tmp_path / "x.npz").write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match="cannot read the signals"):
        open_signals(tmp_path / "x.npz", "signals", "")


def test_a_file_outside_the_data_is_refused(tmp_path: Path) -> None:
    """By `..`, by an absolute name, and by a link."""
    root = tmp_path / "data"
    root.mkdir()
    np.save(tmp_path / "secret.npy", np.arange(5.0))
    (root / "link.npy").symlink_to(tmp_path / "secret.npy")
    data = config(root, channels=[], column="key")
    for name in ("../secret.npy", str(tmp_path / "secret.npy"), "link.npy"):
        (root / "cases.csv").write_text(f"key,patient,report,label\n{name},1,a,1\n")
        with pytest.raises(UserError, match="leads outside"):
            load_table(data)


@pytest.mark.parametrize("text", ["1,2\n3\n", "1\nx\n", "", "time\n", "1,2\n3,4e\n", "\x00\x01", "1" * 60])
def test_a_faulty_text_file_is_one_line(tmp_path: Path, text: str) -> None:
    """Rows of unequal length, words, nothing, bytes that are no text."""
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_signal_file(tmp_path / "x.csv")
    assert str(error.value).startswith(f"{tmp_path / 'x.csv'}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given", [[], [[]], [[1], [1, 2]], ["a"], [[True]], {"a": 1}, "[1, NaN]", "[[[1]]]", [10**400]]
)
def test_a_list_that_is_no_signal_is_one_line(given: Any) -> None:
    """Empty, of unequal length, of words, too deep, too large."""
    with pytest.raises(UserError, match=r"^the signal: "):
        signal_values(given, "the signal")


# ------------------------------------------------------------------------------------------- cases


def spec_of(data: DataConfig) -> tuple[CaseSpec, Any]:
    """Load the cohort and fit its spec."""
    cohort = load_cohort(data)
    return CaseSpec.fit(cohort, ImageSpec(32), 8), cohort


def test_statistics_come_from_the_training_split(tmp_path: Path) -> None:
    """Other cases do not move them, and normalised training samples have mean 0 and deviation 1."""
    write_npz(tmp_path)
    spec, cohort = spec_of(config(tmp_path, **SHARED))
    rows = CaseDataset(cohort.split("train"), spec, cohort.sections)
    signals = np.stack([rows[index]["signal"].numpy() for index in range(len(rows))])
    assert np.allclose(signals.mean((0, 2)), 0, atol=1e-4) and np.allclose(signals.std((0, 2)), 1, atol=1e-4)
    assert spec.signal is not None and spec.signal.length == LENGTH


def test_a_short_signal_has_a_gap_and_a_long_one_is_cut(tmp_path: Path) -> None:
    """And without a signal every sample is NaN."""
    spec = SignalSpec(["a"], 1.0, 1.0, 1, 4, [1.0], [2.0])
    assert np.isnan(spec.normalise(np.array([[3.0, 5.0]]))).tolist() == [[False, False, True, True]]
    assert spec.normalise(np.arange(9.0)[None]).shape == (1, 4) and np.isnan(spec.normalise(None)).all()
    assert "it has 9 samples, those for training 4; the end is cut" in spec.read(list(np.arange(9.0)))[1][0]
    assert spec.read([5, 5, 5, 5]) == (None, ["the signal is flat and was taken as none"])


def test_a_report_does_not_state_what_a_withheld_signal_says(tmp_path: Path) -> None:
    """Dropout takes the signal and its sentence; a control run keeps the sentence."""
    write_npz(tmp_path)
    data = config(tmp_path, **SHARED)
    spec, cohort = spec_of(data)
    dropped = CaseDataset(cohort.split("train"), spec, cohort.sections, dropout=replace(data.dropout, signal=0.5))
    seen = {
        (bool(dropped[i]["signal"].isnan().all()), dropped[i]["report"] == "No signal.") for i in range(len(dropped))
    }
    assert seen == {(True, True), (False, False)}
    held = CaseDataset(cohort.split("train"), spec, cohort.sections, withhold=["signal"])
    assert held[0]["signal"].isnan().all() and held[0]["report"].startswith("text of case")


def test_synthetic_cases_have_signals_where_the_model_reads_them(tmp_path: Path) -> None:
    """One of them lacks it; a model without signals gets none."""
    write_npz(tmp_path)
    spec, _ = spec_of(config(tmp_path, **SHARED))
    assert [bool(case["signal"].isnan().all()) for case in random_cases(spec, 4)] == [False, False, True, False]
    assert all("signal" not in case for case in random_cases(replace(spec, signal=None), 2))


def test_shards_keep_the_signals(tmp_path: Path) -> None:
    """The packed cohort has the same samples and format, and another signal changes the fingerprint."""
    write_npz(tmp_path)
    data = config(tmp_path, **SHARED)
    pack(data, tmp_path / "shards", PackOptions())
    packed = load_cohort(DataConfig(source="packed", root=str(tmp_path / "shards")))
    plain = load_cohort(data)
    known = dict(zip(plain.dataset["id"], plain.dataset["signal"], strict=True))
    assert packed.signal == plain.signal
    assert all(known[row["id"]] == row["signal"] for row in packed.dataset)
    before = contents_fingerprint(plain)
    write_npz(tmp_path, beats() + 1)
    assert contents_fingerprint(load_cohort(data)) != before
