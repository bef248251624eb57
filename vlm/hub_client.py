"""Ask the Hugging Face Hub by its client, and say in one line what it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vlm.compat import hub_http
from vlm.errors import UserError
from vlm.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.file_download import DryRunFileInfo

STATUS_MESSAGES = {
    401: "the token was refused; log in again with `hf auth login`",
    403: "the token may not do this; it needs the right to write there",
    412: "it was changed in the meantime; look at it and push again",
    429: "too many requests; try again later",
}
"""HTTP status → message for the user."""


def hub_client() -> "HfApi":
    """Return a client that names this package."""
    from huggingface_hub import HfApi

    return HfApi(library_name="clinical-vlm", library_version=__version__)


def planned_files(
    api: "HfApi", repo: str, commit: str, patterns: list[str], repo_type: str = "model"
) -> "list[DryRunFileInfo] | None":
    """List the files of a commit that match, with their sizes, before any is fetched; None where no Hub answers."""
    from huggingface_hub.errors import DryRunError, RepositoryNotFoundError

    try:
        return api.snapshot_download(  # type: ignore[return-value]
            repo, repo_type=repo_type, revision=commit, allow_patterns=patterns, dry_run=True
        )
    except DryRunError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise error.__cause__ from None
        return None


@contextmanager
def hub_errors(what: str, revision: str | None) -> Iterator[None]:
    """Turn the client's exceptions into one `UserError` with the reason and the way out."""
    from huggingface_hub.errors import RevisionResolutionError

    try:
        yield
    except (hub_http().HTTPError, RevisionResolutionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{what}: {reason(error, revision)}") from None


def reason(error: BaseException, revision: str | None) -> str:
    """Say what an error of the client means for the user."""
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # an upload's own error is its cause
        return reason(error.__cause__, revision)
    if isinstance(error, errors.GatedRepoError):
        return "access to it is given on its page, to the account of your token"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one that your token may not see; `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {revision}"
    if isinstance(error, errors.RevisionResolutionError | errors.LocalEntryNotFoundError):
        return "it cannot be reached, and the cache does not hold all of it"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if status in STATUS_MESSAGES:
        return STATUS_MESSAGES[status]
    if status >= 500:
        return f"the Hub is out of order ({status}); try again later"
    if isinstance(error, hub_http().TransportError):
        return f"the connection broke ({type(error).__name__}); try again"
    return " ".join(str(error).split())
