"""Give the images of a case as the options of `draft` name them: files, or a study fetched from an archive."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vlm.inference.dicomweb import Archive, check_address
from vlm.inference.options import images_of
from vlm.inference.study_images import StudyImage


@contextmanager
def given_images(arguments: argparse.Namespace) -> Iterator[list[StudyImage]]:
    """Yield the images of the case; a fetched study lies in a private folder, which is removed after the block.

    Raises `UserError` as `images_of` and `Archive.fetch` do.
    """
    archive = archive_of(arguments)
    if archive is None:
        yield [StudyImage(*image) for image in images_of(arguments)]
        return
    with TemporaryDirectory(prefix="clinical-vlm-study-") as folder:
        archive.fetch(arguments.study, Path(folder))
        yield [StudyImage(folder)]


def archive_of(arguments: argparse.Namespace) -> Archive | None:
    """Return the archive that the study is in, if it is in one."""
    if not arguments.study:
        return None
    return Archive(check_address(arguments.dicomweb, arguments.dicomweb_http))
