"""Read the rows of cohorts with one image a case: their images, and labels and vitals by name."""

from typing import Any

import datasets

from vlm.data.cohort import Cohort


def first_image(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the cell of a row's only image, or None."""
    assert len(row["images"]) <= 1
    return row["images"][0] if row["images"] else None


def first_images(rows: datasets.Dataset) -> list[dict[str, Any] | None]:
    """Return the cell of each row's only image, or None."""
    return [first_image({"images": cells}) for cells in rows["images"]]


def rows_of(cohort: Cohort) -> dict[str, dict]:
    """Id → row, with labels and vitals by name and NaN as None."""
    plain = lambda x: None if x != x else round(x, 3)  # noqa: E731
    return {
        row["id"]: {
            **row,
            "labels": {n: plain(x) for n, x in zip(cohort.labels, row["labels"], strict=True)},
            "vitals": {n: plain(x) for n, x in zip(cohort.schema.names, row["vitals"], strict=True)},
            "image": (first_image(row) or {}).get("path"),
        }
        for row in cohort.dataset
    }
