"""An image inside a Parquet table: a cell says where its bytes lie, and never holds them."""

from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class EmbeddedImage:
    """An image in a cell of a Parquet file; no message prints its bytes."""

    file: str
    column: str
    """As the file writes it."""
    row: int
    """Of the file, from 0."""
    size: int
    """Bytes."""
    name: str = ""
    """Of the file that it was made of, where the cell has one."""

    def __repr__(self) -> str:
        return f"<{self.size:,} bytes>"
