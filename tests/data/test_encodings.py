"""Tables in the encodings of their countries: the letters as they were written, or a question, never mojibake."""

import os
from pathlib import Path

import pytest

from vlm.config import DataConfig, TableConfig
from vlm.data.ingest.read import TableOptions, read_table, reading_notes
from vlm.data.ingest.table import load_table
from vlm.errors import UserError

REPORTS = {
    "cp1251 koi8_r cp866 iso8859_5": [
        "Лёгочные поля без очаговых и инфильтративных изменений.", "Синусы свободны. Тень сердца не расширена.",
        "В нижней доле справа участок затемнения.", "Пневмония левого лёгкого"],
    "cp1251 koi8_u cp1125": [
        "Легеневі поля без вогнищевих змін.", "Тінь серця не розширена.", "У нижній частці справа ділянка затемнення."],
    "gbk gb18030": ["双肺纹理增多，未见明显实变影。", "心影大小形态正常。", "右下肺可见斑片状高密度影。", "女"],
    "big5 cp950": ["雙肺紋理增多，未見明顯實變影。", "心影大小形態正常。", "右下肺可見斑片狀高密度影。"],
    "cp1256 iso8859_6": ["لا توجد عتامات في الرئتين.", "حجم القلب طبيعي.", "عتامة غير متجانسة في الفص السفلي الأيمن."],
    "shift_jis cp932 euc_jp": ["両肺野に明らかな浸潤影を認めません。", "心陰影の拡大なし。",
                               "右下肺野に斑状影を認める。"],
    "euc_kr cp949": ["양쪽 폐에 침윤이 없습니다.", "심장 크기는 정상입니다.", "우하엽에 반점상 음영이 보입니다."],
    "cp1250 iso8859_2": [
        "Pola płucne bez zmian ogniskowych.", "Zagęszczenia miąższowe w płucu prawym, w polu dolnym.", "Mężczyzna"],
    "cp1250 iso8859_2 ": [
        "Plicní křídla bez ložiskových změn.", "Srdeční stín není rozšířen.", "Zastínění v pravém dolním poli."],
    "cp1250 iso8859_2  ": [
        "Mindkét tüdőfélben kóros árnyék nem látható.", "Jobb oldalon az alsó mezőben beszűrődés.", "férfi"],
    "cp1250 ": ["Fără opacităţi pulmonare.", "Opacitate în câmpul pulmonar inferior drept.", "Glicemia este crescută."],
    "cp1253": ["Δεν παρατηρούνται πυκνώσεις στους πνεύμονες.", "Η καρδιακή σκιά είναι φυσιολογική.", "Άνδρας"],
    "cp1254 iso8859_9": [
        "Her iki akciğerde infiltrasyon izlenmedi.", "Sağ alt zonda düzensiz opasite görülmektedir.", "Kan şekeri."],
    "cp1255 iso8859_8": ["אין תסנינים בריאות.", "צל הלב תקין.", "הצללה באונה התחתונה מימין."],
    "cp874": ["ไม่พบเงาผิดปกติในปอดทั้งสองข้าง", "หัวใจขนาดปกติ", "พบเงาทึบที่ปอดขวาล่าง"],
    "cp1257": ["Plaučiuose infiltracijos nematyti.", "Širdies šešėlis nepadidėjęs.",
               "Dešinėje apačioje tamsesnis židinys."],
    "cp1252 iso8859_15 cp850": [
        "Kein Nachweis von Infiltraten, regelrechte Belüftung.", "Das Herz ist normal groß.", "Pleuraerguss möglich."],
    "cp1252 iso8859_15 mac_roman ": [
        "Pas de foyer parenchymateux systématisé.", "Opacité de la base droite, épanchement pleural associé."],
    "cp1252 iso8859_15": ["Silueta cardíaca de tamaño normal.", "Opacidad en el lóbulo inferior, pequeño derrame."],
    "cp1252 ": ["Inga infiltrat i lungorna.", "Hjärtat är normalstort.", "Förtätning i höger underlob."],
    "cp1252  ": ["Não há opacidades pulmonares.", "Coração de tamanho normal.", "A pressão arterial é normal."],
    "cp1252   ": ["José", "Müller", "37.5 °C", "5±1 µmol/l"],
    "cp1252    ": ["37.5 °C", "38°", "5 µg/L", "10 m²"],
}  # fmt: skip
CASES = [(codec, texts) for codecs, texts in REPORTS.items() for codec in codecs.split()]


def write(path: Path, texts: list[str], codec: str, rows: int = 0) -> list[str]:
    said = [texts[number % len(texts)] for number in range(rows or len(texts))]
    lines = [f"c{number},{20 + number % 60},{text.replace(',', ' -')}" for number, text in enumerate(said)]
    path.write_bytes(("\n".join(["case,age,report", *lines]) + "\n").encode(codec))
    return [text.replace(",", " -") for text in said]


@pytest.mark.parametrize("rows", [0, 60])
@pytest.mark.parametrize(("codec", "texts"), CASES, ids=[f"{codec}-{texts[0][:12]}" for codec, texts in CASES])
def test_the_letters_are_read_as_they_were_written(codec: str, texts: list[str], rows: int, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    written = write(path, texts, codec, rows)
    assert read_table(path)["report"].tolist() == written
    (note,) = reading_notes(path)
    assert note.startswith(f"{path}: not UTF-8 (line ") and "set data.table.encoding if they look wrong" in note


@pytest.mark.parametrize(
    ("text", "codec", "candidates"),
    [("муж", "cp1251", ["cp1251"]), ("норма", "koi8_r", ["koi8_r"]), ("niño père", "cp1252", ["cp1252"]),
     ("男", "gbk", ["gb18030", "cp949", "big5"]), ("kadın", "cp1254", ["cp1254"]), ("muž", "cp1250", ["cp1252"])],
)  # fmt: skip
def test_too_few_letters_are_asked_about_in_one_line(text: str, codec: str, candidates: list, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"id,sex\n1,{text}\n".encode(codec))
    try:
        assert read_table(path)["sex"].tolist() == [text], "never another text"
        return
    except UserError as error:
        said = str(error)
    assert said.startswith(f"{path}: line 2 is not UTF-8, and its letters could be ") and "\n" not in said
    assert "set data.table.encoding (--encoding) to one of" in said
    assert all(name in said.partition("to one of")[2] for name in candidates)
    assert read_table(path, TableOptions(codec))["sex"].tolist() == [text], "the way out is one"


LINE = "1,Pas de foyer systématisé et médiastin centré\n"
RUSSIAN = "1,Лёгочные поля без очаговых изменений\n"
BROKEN = [
    ("id,note\n" + LINE * 50).encode() + b"2,caf\xe9\n",
    ("id,note\n" + LINE * 20).encode() + ("" + LINE * 20).encode("cp1252"),
    ("id,note\n" + RUSSIAN * 20).encode() + b"2,\xff\n",
    ("id,note\n" + RUSSIAN * 20).encode() + (RUSSIAN * 20).encode("cp1251"),
    ("id,note\n" + RUSSIAN * 4).encode() + (RUSSIAN.replace("поля", "корни") * 40).encode("cp1251"),
    ("id,note\n" + "1,双肺纹理增多，未见明显实变影\n" * 20).encode()[:-3] + b"\n",
    "id,note\n1,37.5 °C\n".encode() + b"2,\xff\n",
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_damaged_utf8_is_an_error_that_names_its_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    first = next(number for number, line in enumerate(data.split(b"\n"), 1) if not _is_utf8(line))
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}: line {first} is not UTF-8")
    assert "though other lines are" in str(error.value)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_the_encoding_that_is_named_wins(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("id,note\n1,муж\n".encode("koi8_r"))
    assert read_table(path, TableOptions("KOI8-R"))["note"].tolist() == ["муж"] and not reading_notes(
        path, TableOptions("koi8_r"))  # fmt: skip
    data = DataConfig(source="table", root=str(tmp_path),
                      table=TableConfig(file="t.csv", image=None, context="note", encoding="koi8-r"))  # fmt: skip
    assert load_table(data).dataset["context"] == ["муж"]
    for wrong, message in (
        ("utf-8", "line 2 is not in utf-8, which data.table.encoding (--encoding) names"),
        ("ascii", "line 2 is not in ascii"),
        ("klingon", "data.table.encoding: 'klingon' is no encoding; name one that Python knows, such as utf-8"),
        ("rot13", "is no encoding"),
        ("unicode_escape", "is no encoding"),
    ):
        with pytest.raises(UserError) as error:
            read_table(path, TableOptions(wrong))
        assert message in str(error.value) and "\n" not in str(error.value)
    path.write_bytes("id,note\n1,ü\n".encode("utf-8-sig"))
    assert read_table(path, TableOptions("utf-8")).columns.tolist() == ["id", "note"]
    with pytest.raises(UserError, match="begins with the byte order mark of UTF-8, which is not cp1252"):
        read_table(path, TableOptions("cp1252"))
    path.write_bytes("id,note\n1,ü\n".encode("utf-16-le"))
    assert read_table(path, TableOptions("utf-16-le"))["note"].tolist() == ["ü"]


@pytest.mark.parametrize(("codec", "message"), [("iso2022_jp", "in ISO-2022-JP; save it as UTF-8, or set data.table")])
def test_an_encoding_of_seven_bits_is_named(codec: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("id,note\n1,両肺野に明らかな\n".encode(codec))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_table(tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv", TableOptions(codec))["note"].tolist() == ["両肺野に明らかな"]


def test_letters_anywhere_in_a_long_table_count(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    text = "id,note\n" + "1,clear\n" * 200_000 + RUSSIAN * 5
    path.write_bytes(text.encode("cp1251"))
    assert read_table(path)["note"].iloc[-1] == "Лёгочные поля без очаговых изменений"
    path.write_bytes(text.encode())
    assert not reading_notes(path) and os.path.getsize(path) > 1 << 20
