"""Read sex and age from a FHIR Patient."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from vlm.config import VitalConfig
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.units import conversion
from vlm.data.vitals.values import read_value
from vlm.errors import UserError

UNDATED = datetime.min.replace(tzinfo=UTC)
SEX, AGE = "46098-0", "30525-0"
"""LOINC codes of the vitals in a Patient."""
_MIDDLE = {4: "-07-01", 7: "-15"}
"""Length of a date without its day → suffix for the middle of its year or month."""
GENDERS = ("male", "female", "other", "unknown")


def from_patient(
    patient: Mapping[str, Any], schema: VitalsSchema, place: str, seen: datetime
) -> tuple[dict[str, Any], list[str]]:
    """Return values by name, and notes on them: the age is that on the day `seen`, or today where it is undated.

    Raises `UserError` that names `place` for a gender or a date that FHIR does not know.
    """
    values: dict[str, Any] = {}
    notes: list[str] = []
    gender, born = patient.get("gender"), patient.get("birthDate")
    if gender is not None and gender not in GENDERS:
        raise UserError(f"{place}: the gender of the Patient is none of {', '.join(GENDERS)}")
    sex = _vital(schema, SEX, "sex")
    side = math.nan if gender is None or sex is None or not sex.categories else read_value(sex, gender, place)
    if sex is not None and not math.isnan(side):
        values[sex.name] = sex.categories[int(side)]
    elif gender and sex is not None:
        notes.append(f"the Patient's gender is {gender}: {sex.name} is not given")
    age = _vital(schema, AGE, "age")
    if born is not None and age is not None:
        day, whose = (date.today(), "today") if seen == UNDATED else (seen.date(), "the newest Observation")
        died = _day(patient.get("deceasedDateTime"))
        if died is not None and died < day:
            day, whose = died, "the day of death"
        pair = conversion(age, "years")
        if pair is None:
            notes.append(f"left out the Patient's birthDate: {age.name} is in {age.unit or 'no unit'}, not in years")
        else:
            values[age.name] = pair[0] * _years(born, day, place) + pair[1]
            rough = "" if len(str(born)) == 10 else ", from the middle of what the birthDate says"
            notes.append(f"{age.name} is that of {day.isoformat()}, {whose}{rough}")
    return values, notes


def _vital(schema: VitalsSchema, code: str, name: str) -> VitalConfig | None:
    """Find the vital of a LOINC code, else the one of that name."""
    coded = [vital for vital in schema.vitals if code in (vital.loinc, *vital.also_loinc)]
    named = [vital for vital in schema.vitals if name in (vital.name.lower(), *vital.aliases)]
    return next(iter(coded or named), None)


def _day(text: Any) -> date | None:
    """Parse the day of a FHIR date or time; of a year or month alone the middle."""
    text = str(text)[:10]
    try:
        return date.fromisoformat(text + _MIDDLE.get(len(text), ""))
    except ValueError:
        return None


def _years(born: Any, day: date, place: str) -> float:
    """Compute the age in whole years, below two months as a fraction; a year or month alone counts as its middle."""
    if not isinstance(born, str) or not re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", born):
        raise UserError(f"{place}: the birthDate of the Patient is not one that FHIR knows, such as 1956-04-30")
    birth = _day(born)
    if birth is None:
        raise UserError(f"{place}: the birthDate of the Patient is no day of the calendar")
    months = 12 * (day.year - birth.year) + day.month - birth.month - (day.day < birth.day)
    if months < 0 and not day.isoformat().startswith(born):  # the middle of this year or month may be in the future
        raise UserError(f"{place}: the Patient is born after {day.isoformat()}")
    months = max(months, 0)
    return float(months // 12) if months >= 24 else months / 12
