"""Read the images of a cohort's rows, of cohorts with one image a case."""

from typing import Any

import datasets


def first_image(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the cell of a row's only image, or None."""
    assert len(row["images"]) <= 1
    return row["images"][0] if row["images"] else None


def first_images(rows: datasets.Dataset) -> list[dict[str, Any] | None]:
    """Return the cell of each row's only image, or None."""
    return [first_image({"images": cells}) for cells in rows["images"]]
