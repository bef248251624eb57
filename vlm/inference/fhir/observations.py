"""Read a patient's vitals from FHIR Observations: found by LOINC code, converted by UCUM unit, newest or all."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from vlm.config import VitalConfig
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.series import STUDY_TIME
from vlm.data.vitals.units import ucum_conversion, units_of
from vlm.data.vitals.values import read_value
from vlm.errors import UserError
from vlm.inference.fhir.codes import LOINC, NOBODY, UCUM
from vlm.inference.fhir.patient import UNDATED, from_patient
from vlm.inference.fhir.request import indication_of

STATUSES = ("final", "preliminary", "amended", "corrected")
"""Accepted states; Observations in another, such as `entered-in-error`, are not read."""


class _Unread(Exception):
    """Raised where an Observation's value is left out; its text is the warning."""


class _Value(NamedTuple):
    value: Any
    when: datetime


def is_fhir(values: Any) -> bool:
    """Check whether JSON values are FHIR: one resource or a list of them."""
    return isinstance(values, list) or (isinstance(values, dict) and "resourceType" in values)


def context_of(values: Any, where: str = "vitals", given: str = "") -> tuple[str, tuple[str, ...]]:
    """Return the context that ServiceRequests tell, and warnings; `given` is the user's own, which stands before it.

    Raises `UserError` as `indication_of` does.
    """
    requests = [(place, one) for place, one in _resources(values, where) if one["resourceType"] == "ServiceRequest"]
    context, notes = indication_of(requests, given)
    return context, tuple(notes)


def from_fhir(values: Any, schema: VitalsSchema, where: str = "vitals") -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return vitals by name, in the schema's units, and warnings on what was left out.

    `values` is a Bundle, an Observation or a list of Observations, of R4 or later, with the Patient or without; other
    resources are skipped (`context_of` reads ServiceRequests). Of several Observations of one vital the newest is
    used; those of a vital over time are its series, up to the start of the ImagingStudy if there is one. They take
    precedence over sex and age of the Patient. A vital without a LOINC code is found by its name in `code.text`.
    Raises `UserError` that names `where` and the entry for a broken resource, and for Observations of more than one
    patient.
    """
    left_out: Counter[str] = Counter()
    resources = list(_resources(values, where))
    observations = [(place, one) for place, one in resources if one["resourceType"] == "Observation"]
    patients = [(place, one) for place, one in resources if one["resourceType"] == "Patient"]
    studies = [(place, one) for place, one in resources if one["resourceType"] == "ImagingStudy"]
    requests = [one for _, one in resources if one["resourceType"] == "ServiceRequest"]
    read = [*(one for _, one in observations + studies), *requests]
    _check_one_patient(read, [one for _, one in patients], where)
    found: dict[str, list[_Value]] = {}
    for place, observation in observations:
        for name, value in _values(observation, schema, place, left_out):
            found.setdefault(name, []).append(_Value(value, _time(observation, place)))
    warnings = [f"left out {count} of {len(observations)} Observations: {why}" for why, count in left_out.items()]
    started = max((_time(one, place, ("started",)) for place, one in studies), default=UNDATED)
    told, notes = _over_time(found, schema, started)
    warnings += notes
    once = {name: several for name, several in found.items() if name not in schema.features}
    warnings += [f"{name} is there {len(several)} times; the newest was taken"
                 for name, several in once.items() if len(several) > 1]  # fmt: skip
    newest = told | {name: max(reversed(several), key=lambda one: one.when).value for name, several in once.items()}
    for place, patient in patients:
        times = [_time(one, where) for where, one in observations]
        told, notes = from_patient(patient, schema, place, max(times, default=UNDATED))
        newest = told | newest
        warnings += notes
    return newest, tuple(warnings if observations or patients or requests else ["there is no Observation in it"])


def _over_time(
    found: Mapping[str, list[_Value]], schema: VitalsSchema, started: datetime
) -> tuple[dict[str, Any], list[str]]:
    """Return the series among the values, with the study's time, and warnings on what was left out of them."""
    series: dict[str, Any] = {}
    warnings = []
    for name in (name for name in schema.features if name in found):
        values = sorted(found[name], key=lambda one: one.when)
        if len(values) == 1 and values[0].when == UNDATED:  # a plain value, taken as that of the study's time
            series[name] = values[0].value
            continue
        dated = [one for one in values if UNDATED < one.when <= (started if started > UNDATED else one.when)]
        if dated:
            series[name] = [[one.when.isoformat(), one.value] for one in dated]
        if left := len(values) - len(dated):
            warnings.append(f"left out {left} of {len(values)} values of {name}: after the study, or without a date")
    return series | ({STUDY_TIME: started.isoformat()} if started > UNDATED and series else {}), warnings


def _values(
    observation: dict[str, Any], schema: VitalsSchema, place: str, left_out: Counter[str]
) -> Iterator[tuple[str, Any]]:
    """Yield (vital, value) of an Observation and its components; count in `left_out` why there is none."""
    if observation["status"] not in STATUSES:
        left_out[f"status {observation['status']}"] += 1
        return
    parts = [observation, *_list(observation, "component", place)]
    known = [(vital, part) for part in parts if (vital := _vital_of(part, schema, place))]
    if not known:
        left_out["no vital of the adapter has such a code"] += 1
    for vital, part in known:
        try:
            value = _read(vital, part, place)
        except _Unread as reason:
            left_out[str(reason)] += 1
        else:
            if value is not None:
                yield vital.name, value


def _resources(values: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, resource) of each Observation, Patient and ServiceRequest; check what each must have."""
    kind = "list" if isinstance(values, list) else values.get("resourceType")
    if kind == "Patient" and not values.keys() & {"gender", "birthDate"}:
        raise UserError(
            f"{where}: a Patient; give a Bundle, an Observation or a list of these, or its gender or birthDate"
        )
    if kind not in ("list", "Bundle", "Observation", "Patient", "ServiceRequest"):
        raise UserError(f"{where}: a {kind}; give a Bundle, an Observation or a list of these")
    bundled = [entry.get("resource") for entry in _list(values, "entry", where)] if kind == "Bundle" else []
    for number, resource in enumerate({"list": values, "Bundle": bundled}.get(kind, [values]), 1):
        place = f"{where}: entry {number}"
        if resource is None and kind == "Bundle":  # an entry with only a request
            continue
        if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
            raise UserError(f"{place} is no FHIR resource: it has no resourceType")
        if resource["resourceType"] == "Observation":
            if not isinstance(resource.get("status"), str):
                raise UserError(f"{place}: an Observation without a status")
            _mapping(resource, "code", place, required=True)
            yield place, resource
        elif resource["resourceType"] in ("Patient", "ImagingStudy", "ServiceRequest"):
            yield place, resource


def _check_one_patient(observations: list[dict[str, Any]], patients: list[dict[str, Any]], where: str) -> None:
    subjects = [_mapping(observation, "subject", where) for observation in observations]
    references = {str(subject.get("reference", subject)) for subject in subjects if subject and subject != NOBODY}
    if len(references) > 1:
        raise UserError(f"{where}: Observations of {len(references)} subjects; give those of one patient")
    if len(patients) > 1:
        raise UserError(f"{where}: {len(patients)} Patients; give one")
    named = [reference.rpartition("/")[2] for reference in references if re.search(r"(^|/)Patient/", reference)]
    if patients and named and patients[0].get("id") not in (None, named[0]):
        raise UserError(f"{where}: the Observations are of another patient than the Patient that is there")


def _vital_of(part: Mapping[str, Any], schema: VitalsSchema, place: str) -> VitalConfig | None:
    """Find the vital with this code; of several with one code the one with this name."""
    code = _mapping(part, "code", place, required=True)
    codes = {str(coding.get("code")) for coding in _list(code, "coding", place) if coding.get("system") == LOINC}
    named = [vital for vital in schema.given if vital.name == code.get("text")]
    if not codes:
        return next((vital for vital in named if not vital.loinc), None)
    fitting = [vital for vital in schema.given if codes & ({vital.loinc, *vital.also_loinc} - {""})]
    return fitting[0] if len(fitting) == 1 else next((vital for vital in named if vital in fitting), None)


def _read(vital: VitalConfig, part: Mapping[str, Any], place: str) -> Any:
    """Read the value in the vital's unit or one of its categories; None where the Observation declares it absent."""
    kinds = [key for key in part if key.startswith("value")]
    if not kinds:
        return None
    if vital.categories:
        return _read_category(vital, part, place)
    if "valueInteger" in part:
        return _convert(vital, part["valueInteger"], "", place)
    if "valueQuantity" not in part:
        raise _Unread(f"{vital.name} is a {kinds[0]}, not a valueQuantity")
    quantity = _mapping(part, "valueQuantity", place)
    if "value" not in quantity:
        return None
    code, unit = quantity.get("code"), quantity.get("unit")
    written = code or unit if quantity.get("system") == UCUM else unit or code
    return _convert(vital, quantity["value"], str(written or ""), place)


def _convert(vital: VitalConfig, number: Any, unit: str, place: str) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UserError(f"{place}: the value of {vital.name} is not a number")
    pair = ucum_conversion(vital, unit)
    if pair is None:
        raise _Unread(f"{vital.name} is in {unit or 'no unit'}, not in {units_of(vital)}")
    return number if pair == (1.0, 0.0) else pair[0] * number + pair[1]


def _read_category(vital: VitalConfig, part: Mapping[str, Any], place: str) -> str:
    """Return the first word of the concept that is a category or one of its usual spellings."""
    concept = _mapping(part, "valueCodeableConcept", place)
    codings = _list(concept, "coding", place)
    words = [part.get("valueString"), concept.get("text")]
    words += [coding.get(key) for coding in codings for key in ("display", "code")]
    for word in filter(None, words):
        try:
            return vital.categories[int(read_value(vital, word, place))]
        except (UserError, ValueError):  # no category, or a word for missing
            continue
    raise _Unread(f"{vital.name} is none of {', '.join(vital.categories)}")


def _time(
    resource: Mapping[str, Any], place: str, keys: Sequence[str] = ("effectiveDateTime", "effectiveInstant")
) -> datetime:
    """Return when it was measured; a day or a year alone is its beginning, and no time at all is before all others."""
    period = _mapping(resource, "effectivePeriod", place)
    times = (*map(resource.get, keys), period.get("end"), period.get("start"))
    text = next(filter(None, times), None)
    if text is None:
        return UNDATED
    try:
        padded = text + "-01-01"[len(text) - 4 :] if len(text) in (4, 7) else text
        time = datetime.fromisoformat(padded)
    except (TypeError, ValueError):
        raise UserError(f"{place}: the time of the {resource['resourceType']} is not one that FHIR knows") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _mapping(values: Mapping[str, Any], key: str, place: str, required: bool = False) -> Mapping[str, Any]:
    found = values.get(key, None if required else {})
    if not isinstance(found, dict):
        raise UserError(f"{place}: {key} {'is missing' if found is None else 'is not an object'}")
    return found


def _list(values: Mapping[str, Any], key: str, place: str) -> list[dict[str, Any]]:
    found = values.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise UserError(f"{place}: {key} is not a list of objects")
    return found
