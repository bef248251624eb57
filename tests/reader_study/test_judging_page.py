"""A study is judged over a real socket: blinded, once, by those with a code alone."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.reader_studies import CODES, small_study, written
from tests.serving import serving
from vlm.app.guard import Access
from vlm.errors import UserError
from vlm.locks import locked
from vlm.reader_study.answers import AnswerLog
from vlm.reader_study.judging_page import COOKIE, Judging, make_study_app
from vlm.reader_study.study_file import Layout, Study, read_codes, read_study

FIRST, SECOND = CODES
Open = Callable[..., httpx.Client]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Serves a study, anew on each call from the same folder, and gives a client of a reader's code."""
    with ExitStack() as stack:

        def opening(code: str = FIRST, layout: Layout = "single", token: bytes = b"") -> httpx.Client:
            folder = tmp_path / layout
            if not folder.exists():
                written(small_study(layout=layout), folder)
            study = read_study(folder)
            log = AnswerLog(folder / "answers.jsonl", study)
            app = make_study_app(Judging(folder, read_codes(folder, study), log), Access(token=token))
            client = stack.enter_context(httpx.Client(base_url=stack.enter_context(serving(app)), timeout=60))
            if code:
                assert client.post("/code", files=form(code=code)).status_code == 303
            return client

        yield opening


def form(**fields: str | list[str]) -> list[tuple[str, tuple[None, str]]]:
    """The fields of a multipart form; `_` in a name stands for `-`."""
    pairs = [(name, one) for name, many in fields.items() for one in ([many] if isinstance(many, str) else many)]
    return [(name.replace("_", "-"), (None, value)) for name, value in pairs]


def number_of(page: str) -> str:
    return re.findall(r'name="page" value="(\d+)"', page)[0]


def answers_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_a_reader_judges_leaves_and_goes_on(opened: Open, tmp_path: Path) -> None:
    client = opened()
    page = client.get("/").text
    assert number_of(page) == "1" and "Page 1 of 24" in page
    sent = client.post("/answer", files=form(page="1", verdict_1="major_edits", errors_1=["wrong_place", "other"]))
    assert sent.status_code == 303 and sent.headers["location"] == "/"
    assert number_of(client.get("/").text) == "2"
    again = opened()  # the server was started anew
    assert number_of(again.get("/").text) == "2"
    assert number_of(opened(SECOND).get("/").text) == "1"
    (kept,) = answers_in(tmp_path / "single")
    assert kept["judgements"] == [{"verdict": "major_edits", "errors": ["wrong_place", "other"]}]
    assert (kept["reader"], kept["page"], kept["showings"]) == (1, 1, 1) and 0 < kept["seconds"] < 60
    assert again.post("/leave").status_code == 303
    assert 'name="code"' in again.get("/").text


def test_the_page_is_blinded_and_escaped(opened: Open) -> None:
    page = opened(layout="side_by_side").get("/").text
    assert page.count("<article") == 2 and "&lt;b&gt;bold&lt;/b&gt;" in page and "Cough &amp; fever" in page
    visible = page.partition("</style>")[2].lower()
    assert not any(word in visible for word in ("draft", "reference", "patient", "tiny"))


def test_an_answer_is_not_given_twice_silently(opened: Open, tmp_path: Path) -> None:
    client = opened()
    first = client.post("/answer", files=form(page="1", verdict_1="as_it_stands"))
    second = client.post("/answer", files=form(page="1", verdict_1="not_acceptable"))
    assert (first.status_code, second.status_code) == (303, 409)
    assert "the first answer stands" in second.text and number_of(second.text) == "2"
    assert client.post("/answer", files=form(page="9", verdict_1="not_acceptable")).status_code == 409
    (kept,) = answers_in(tmp_path / "single")
    assert kept["judgements"][0]["verdict"] == "as_it_stands"
    assert kept["seconds"] is None and kept["showings"] == 0, "it was never shown"


def test_a_form_without_a_verdict_is_shown_again_with_what_was_chosen(opened: Open) -> None:
    client = opened(layout="side_by_side")
    client.get("/")
    sent = client.post("/answer", files=form(page="1", verdict_1="minor_edits", errors_2=["wrong_number"]))
    assert sent.status_code == 422 and "say how acceptable text 2 is" in sent.text
    assert re.search(r'name="verdict-1" value="minor_edits" required checked', sent.text)
    assert re.search(r'name="errors-2" value="wrong_number" checked', sent.text)
    sent = client.post("/answer", files=form(page="1", verdict_1="minor_edits", verdict_2="as_it_stands"))
    assert sent.status_code == 303


def test_the_end_is_said(opened: Open) -> None:
    client = opened(layout="side_by_side")
    for number in range(1, 13):
        choices = form(page=str(number), verdict_1="as_it_stands", verdict_2="as_it_stands")
        assert client.post("/answer", files=choices).status_code == 303
    assert "All 12 pages are judged" in client.get("/").text


@pytest.mark.parametrize(
    "fields",
    [
        {"page": "1", "verdict_1": "fine"},
        {"page": "1", "verdict_1": ["as_it_stands", "minor_edits"]},
        {"page": "1", "verdict_1": "as_it_stands", "errors_1": ["other", "other"]},
        {"page": "1", "verdict_1": "as_it_stands", "errors_1": "<script>"},
        {"page": ["1", "1"], "verdict_1": "as_it_stands"},
        {"page": "0", "verdict_1": "as_it_stands"},
        {"page": "25", "verdict_1": "as_it_stands"},
        {"page": "-1", "verdict_1": "as_it_stands"},
        {"page": "١", "verdict_1": "as_it_stands"},
        {"page": "9" * 190, "verdict_1": "as_it_stands"},
        {"page": "1", "verdict_1": "x" * 5000},
        {"page": "1", "verdict_1": "as_it_stands", "errors_1": ["other"] * 200},
        {"verdict_1": "as_it_stands"},
    ],
)
def test_a_hostile_answer_is_refused_and_nothing_is_written(fields: dict, opened: Open, tmp_path: Path) -> None:
    client = opened()
    sent = client.post("/answer", files=form(**fields))
    assert 400 <= sent.status_code < 500 and "<script" not in sent.text
    assert answers_in(tmp_path / "single") == [] and number_of(client.get("/").text) == "1"


def test_other_bodies_are_refused(opened: Open, tmp_path: Path) -> None:
    client = opened()
    for body in ({"json": {"page": 1}}, {"content": b"page=1"}, {"data": {"page": "1"}},
                 {"files": {"page": ("x.txt", b"1")}}, {"content": b"x" * (1 << 20)}):  # fmt: skip
        assert client.post("/answer", **body).status_code in (400, 413, 415)
    assert answers_in(tmp_path / "single") == []


def test_nothing_opens_without_a_code(opened: Open) -> None:
    client = opened("")
    for code in ("aaaa-bbbb-cccd", "", "1", "é", "*", "a" * 190):
        client.cookies.clear()
        assert client.post("/code", files=form(code=code)).status_code == 403
        client.cookies.set(COOKIE, code.encode("ascii", "ignore").decode())
        assert "<article" not in client.get("/").text
        assert client.get("/image/1/1").status_code == 403
        assert client.post("/answer", files=form(page="1", verdict_1="as_it_stands")).status_code == 403
    client.cookies.clear()
    answer = client.post("/code", files=form(code=f"  {FIRST.upper()} "))
    assert answer.status_code == 303 and "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=strict" in answer.headers["set-cookie"]


def test_pictures_are_those_of_the_page(opened: Open, tmp_path: Path) -> None:
    client = opened()
    study = read_study(tmp_path / "single")
    for number, page in enumerate(study.readers[0].pages, 1):
        images = study.cases[page.case].images
        got = client.get(f"/image/{number}/1")
        assert got.status_code == (200 if images else 404)
        if images:
            assert got.content == (tmp_path / "single" / "images" / images[0].file).read_bytes()
            assert got.headers["content-type"] == "image/png" and got.headers["cache-control"] == "no-store"
    for path in ("/image/1/0", "/image/0/1", "/image/1/2", "/image/25/1", "/image/-1/1", "/image/1/..%2fstudy.json",
                 "/study.json", "/codes.json", "/docs", "/openapi.json"):  # fmt: skip
        assert client.get(path).status_code == 404, path


def test_other_pages_hosts_and_tokens_are_kept_out(opened: Open) -> None:
    client = opened()
    judged = form(page="1", verdict_1="as_it_stands")
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/answer", files=judged, headers=headers).status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script" not in policy and "unsafe" not in policy
    assert client.get("/").headers["x-frame-options"] == "DENY"
    guarded = opened("", token=b"0123456789abcdef")
    assert guarded.get("/").status_code == 401 and guarded.get("/healthz").status_code == 200


def test_an_answer_that_cannot_be_written_is_not_thanked_for(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = opened()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlm.reader_study.answers.AnswerLog._write", fail)
    sent = client.post("/answer", files=form(page="1", verdict_1="as_it_stands"))
    assert sent.status_code == 500 and "could not be saved" in sent.text and "checked" in sent.text
    monkeypatch.undo()
    assert client.post("/answer", files=form(page="1", verdict_1="as_it_stands")).status_code == 303


def test_a_second_server_is_kept_out(tmp_path: Path) -> None:
    from vlm.cli import main

    folder = written(small_study(), tmp_path / "study")
    with locked(folder / "answers.jsonl"), pytest.raises(UserError, match="is writing it"):
        main(["reader-study", "serve", str(folder)])


def test_a_study_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = written(small_study(), tmp_path / "study")
    good = json.loads((folder / "study.json").read_text())

    def broken(change: Callable[[dict], None]) -> None:
        values = json.loads(json.dumps(good))
        change(values)
        (folder / "study.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"study\.json"):
            read_study(folder)

    broken(lambda v: v["cases"][1]["images"][0].update(file="../codes.json"))
    broken(lambda v: v["readers"][0]["pages"].pop())
    broken(lambda v: v["readers"][0]["pages"][0].update(case=99))
    broken(lambda v: v["readers"][0]["pages"][0].update(texts=[]))
    broken(lambda v: v["cases"][0]["texts"][0].update(sources=[]))
    broken(lambda v: v.update(layout="mosaic"))
    broken(lambda v: v.update(extra=1))
    broken(lambda v: v["readers"].clear())
    (folder / "study.json").write_text(json.dumps(good))
    study: Study = read_study(folder)
    (folder / "codes.json").write_text(json.dumps({"aaaa-bbbb-cccc": 7}))
    with pytest.raises(UserError, match=r"codes\.json: must map codes"):
        read_codes(folder, study)
