"""Small tables to write in tests, and the schemas of their vitals."""

import math
from pathlib import Path
from typing import Any

from vlm.config import DataConfig, TableConfig
from vlm.data.vitals.catalog import CATALOG
from vlm.data.vitals.schema import VitalsSchema

NAN = math.nan
SCHEMA = VitalsSchema(tuple(CATALOG.values()))
PRESSURE = VitalsSchema((CATALOG["systolic"], CATALOG["diastolic"]))


def table_of(folder: Path, text: str, **changes: Any) -> DataConfig:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return DataConfig(source="table", root=str(folder), table=TableConfig(file="t.csv", image=None, **changes))


HEAD = "id,patient,age,edema,report,split\n"
