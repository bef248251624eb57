"""Vitals of several values over time, and the rows of a cohort as the vitals that they give."""

from vlm.config import VitalConfig
from vlm.data.cohort import Cohort
from vlm.data.vitals.schema import describe

CRP = VitalConfig(ready="crp", over_time=True, steady=5)
LDH = VitalConfig("ldh", "U/L", over_time=True)


def rows_of(cohort: Cohort) -> dict[str, dict[str, float]]:
    return {row["id"]: describe(cohort.schema, row["vitals"]) for row in cohort.dataset}
