"""Reference to an image embedded in a Parquet table; a cell holds the location of its bytes, never the bytes."""

from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class EmbeddedImage:
    """Location of an image in a Parquet file; no message prints its bytes."""

    file: str
    column: str
    """Column name, as in the file."""
    row: int
    """Row of the file, from 0."""
    size: int
    """Size of the image, bytes."""
    name: str = ""
    """Name of the original file, if the cell has one."""

    def __repr__(self) -> str:
        return f"<{self.size:,} bytes>"
