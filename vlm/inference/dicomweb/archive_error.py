"""Define the error of an archive, told apart from a mistake of its user."""

from vlm.errors import UserError


class ArchiveError(UserError):
    """Report in one line, without a word of its own, what an archive did wrong.

    `status` is the HTTP status for a client whose request this server passed on: 502, 504 for an archive that takes too
    long, 404 for one without the study.
    """

    def __init__(self, line: str, status: int = 502) -> None:
        super().__init__(line)
        self.status = status
