"""Define the user-facing exception, and handle it in the programs."""

import difflib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from vlm.host import prepare_host
from vlm.plain import escaped


class UserError(Exception):
    """Report a mistake the user can mend: one line that names the file, row, column or key, and the way out.

    It may quote untrusted text, so it is cut and escaped wherever it is shown.
    """

    def __str__(self) -> str:
        return escaped(super().__str__())


class Stopped(Exception):
    """Report that a signal stopped the work; the line says how to resume."""

    def __init__(self, line: str, signal: int) -> None:
        super().__init__(line)
        self.exit_code = 128 + signal


EXTRAS = {
    "accelerate": "train", "captum": "explain", "charset_normalizer": "table", "datasets": "table",
    "defusedxml": "excel", "dicomweb_client": "dicom", "evaluate": "eval", "fastapi": "app",
    "fastapi_offline": "app", "gradio": "app", "highdicom": "dicom", "imagehash": "check", "matplotlib": "eval",
    "mlflow": "mlflow", "nltk": "eval", "openpyxl": "excel", "pandas": "table", "pyarrow": "table", "pydicom": "dicom",
    "python_multipart": "app", "radeval": "radeval", "ray": "ray", "rich": "train", "rouge_score": "eval",
    "sacrebleu": "eval", "scipy": "eval", "shtab": "completion", "sklearn": "eval", "starlette": "app",
    "tensorboard": "tracking", "uvicorn": "app", "xllamacpp": "llamacpp",
}  # fmt: skip
"""Import name of an optional package → the extra that installs it."""


def require(package: str, needed_by: str) -> None:
    """Raise `UserError` that begins with `needed_by` unless an optional package is installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{needed_by}; pip install 'clinical-vlm[{EXTRAS[package]}]'")


@contextmanager
def missing_extras() -> Iterator[None]:
    """Turn a failed import of an optional package into a `UserError` that names its extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise UserError(f"{package} is not installed; pip install 'clinical-vlm[{EXTRAS[package]}]'") from None


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Find the known name closest to an unknown one, if one is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff) if len(name) <= 100 else []
    return found[0] if found else None


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn any exception of a library but out-of-memory into a `UserError` that begins with `what`."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # an untrusted base or CNN can make a library raise nearly anything
        if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{what}: {reason if len(reason) <= 300 else reason[:300] + '…'}") from None


def run_program(main: Callable[[], None]) -> None:
    """Run `main`; end a `UserError` as one line on stderr and exit code 2, never as a traceback.

    Deprecation warnings of libraries, and bitsandbytes' note about an optional package, are silenced.
    """
    prepare_host()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.CRITICAL)
    try:
        with missing_extras():
            main()
    except UserError as error:
        # A data loader's worker wraps the error in its own traceback; our message is the end of it.
        said = UserError("".join(map(str, error.args)).rpartition("\nvlm.errors.UserError: ")[2].strip())
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)  # a progress bar may be on the line
        sys.exit(stopped.exit_code)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush fails
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
