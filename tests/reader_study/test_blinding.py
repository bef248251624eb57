"""Orders that tell nothing, and codes that nobody guesses."""

from tests.reader_studies import small_study
from vlm.reader_study.blinding import merge_same, new_code, shuffled_pages


def test_every_reader_judges_every_text_in_an_order_of_their_own() -> None:
    cases = small_study(cases=30, alike=[3]).cases
    pages = [shuffled_pages(cases, "single", 0, reader) for reader in (1, 2)]
    assert [len(some) for some in pages] == [59, 59] and pages[0] != pages[1]
    together = shuffled_pages(cases, "side_by_side", 0, 1)
    assert sorted(page.case for page in together) == list(range(30))
    first = [page.texts[0] for page in together if len(page.texts) == 2]
    assert 5 < sum(first) < 25, "neither source always stands first"


def test_texts_that_differ_in_white_space_alone_are_one() -> None:
    merged = merge_same([("draft", "A  report.\n"), ("reference", "A report."), ("constant", "Another.")])
    assert [(text.text, text.sources) for text in merged] == [("A  report.", ["draft", "reference"]),
                                                             ("Another.", ["constant"])]  # fmt: skip


def test_codes_are_hard_to_guess() -> None:
    codes = {new_code() for _ in range(200)}
    assert len(codes) == 200 and all(len(code) == 14 for code in codes)
