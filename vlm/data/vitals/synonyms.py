"""Synonyms in several languages: yes and no, the sexes, missing values."""

import re
import unicodedata


def plain_word(text: str) -> str:
    """Normalize to lower case and one Unicode form; strip spaces, quotes and byte order marks."""
    word = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return word.strip("\u200b\ufeff'\"")


def _words(text: str) -> frozenset[str]:
    """Collect the words of a text, normalized by `plain_word`; underscores join words of several parts."""
    return frozenset(plain_word(word.replace("_", " ")) for word in text.split())


MISSING = _words("""
    na n/a #n/a #na <na> nan none null \\n unknown unk missing - -- --- ? . .. * nd n.d. n/d not_done not_measured
    not_recorded not_available not_tested not_performed pending cancelled canceled refused declined unable_to_obtain uto
    haemolysed hemolyzed clotted insufficient qns not_known not_given not_stated unbekannt nicht_bestimmt k.a. inconnu
    non_fait desconocido sconosciuto nieznany неизвестно не_известно не_определено не_определялось нет_данных н/д н.д.
    未知 不详 不詳 未测 未測 不明 미상 غير_معروف άγνωστο n/k nk u/k not_applicable not_specified unspecified
    not_mentioned not_reported no_data blank empty prefer_not_to_say keine_angabe nicht_beurteilbar non_renseigné
    sin_datos brak_danych не_указано не_указан нд нет_сведений 未说明 未說明 未提及 不适用 無回答
    not_assessed not_evaluated not_determined unassessed unavailable nicht_gemessen nicht_untersucht non_mesuré
    не_опр. не_опред. не_измерялось не_исследовалось не_проводилось не_выполнялось 未查 未做 測定なし
""") | {""}
YES = _words("""
    yes y true t positive pos + present detected ja oui si sí sim да д tak ano igen kyllä evet ναι نعم 是 有 阳性 陽性
    はい あり 예 있음 양성 положительный положительно положительная имеется есть positiv positif positivo positiva
    pozitif dodatni vorhanden présent presente j +ve ya có так выявлено обнаружено 存在 真 wahr vrai verdadero
    verdadeiro vero waar sant sand tosi истина prawda pravda igaz doğru
    s da áno taip jā jah var 네 כן ใช่ có vâng ++ +++ detectado détecté rilevato nachgewiesen présente
    выявлен выявлена обнаружен обнаружена имеются положит полож pozytywny pozytywna pozitivní pozitív pozitivan
    θετικό θετικός θετική θετικο θετικος إيجابي موجب חיובי 存在する 有り 检出 檢出
""")
NO = _words("""
    no n false f negative neg - absent nein non não нет н nie ne nem nei nej hayır yok όχι لا 否 无 無 阴性 陰性
    いいえ なし 아니오 없음 음성 отрицательный отрицательно отрицательная отсутствует negativ négatif
    negativo negativa negatif ujemny fehlt ausente not_present not_detected keine kein -ve tidak không ні не_выявлено
    не_обнаружено 不存在 假 falsch faux falso onwaar falskt falsk epätosi ложь fałsz nepravda hamis yanlış
    не nu nee nē ei hayir 아니요 לא ไม่ ไม่ใช่ absente assente nicht_vorhanden nicht_nachgewiesen non_détecté
    no_detectado не_выявлен не_выявлена не_обнаружен не_обнаружена не_имеется отриц отр negatywny negatywna negativní
    negatív negativan αρνητικό αρνητικός αρνητική αρνητικο αρνητικος οχι سلبي سالب שלילי 没有 沒有 無し 未检出 未檢出
""")
"""Words for no, including the localized truth values of spreadsheets."""
UNCERTAIN = _words("""
    uncertain equivocal indeterminate possible questionable unclear inconclusive borderline probable likely
    suspected not_sure ± +/- unsicher fraglich unklar möglich verdacht incertain douteux incierto dudoso niepewny
    сомнительно сомнительный под_вопросом возможно подозрение 可疑 疑似 疑い 不确定 不確定
""")
FEMALE = _words("""
    f female fem woman w weiblich femme girl frau femenino femenina mujer mulher feminino feminina féminin femmina donna
    vrouw kvinna kvinde kvinne nainen kobieta k žena ženský nő kadın weibl ♀ dame fille девочка 女孩 女生
    ж жен жен. женский женская женщина жін жінка
    женск женск. жена женски жіноча девушка 女 女性 女子 女士 女の子 여 여성 여자 أنثى انثى زن
    γυναίκα γυναικα θήλυ θηλυ θ נקבה נ หญิง nữ kadin femminile naine moteris sieviete femeie ženska
    žensko zena ž lady
""")
MALE = _words("""
    m male man männlich homme boy h mann herr masculino masculina masculin hombre varón homem maschio uomo mies
    mężczyzna muž mužský férfi erkek männl masc ♂ garçon мальчик 男孩 男生
    м муж муж. мужской мужская мужчина чол чоловік 男 男性 男子 남 남성 남자
    ذكر مرد άνδρας ανδρας άρρεν αρρεν זכר ז ชาย nam e maschile mand mees vyras vīrietis bărbat moški muško muz
    mezczyzna мужск мужск. мъж мушки чоловіча 先生 男の子
""")
OTHER = _words("""
    o other x d divers diverse intersex nonbinary non-binary transgender undetermined indeterminate ambiguous u другой
    другое 其他
""")
"""Words for a sex that is neither, or not stated."""


_SQUEEZED = {re.sub("[. ]", "", word) for word in MISSING}


def is_missing_word(text: str) -> bool:
    """Check whether a text is one of `MISSING`, in any case, with or without points: `N.A.`, `k. A.`."""
    word = plain_word(text)
    return word in MISSING or re.sub("[. ]", "", word) in _SQUEEZED
