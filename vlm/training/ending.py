"""Handle early ends of training: a signal, a full disk, out of memory. Each message says how to go on."""

import errno
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError

from vlm.errors import UserError
from vlm.training.run_folder import RunFolder, checkpoints_of

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAtSignal:
    """Catch Ctrl-C and SIGTERM in a `with` block, so that the loop saves and stops after the current step.

    A second signal goes to the previous handler. All processes stop at the same step, whichever got the signal.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopAtSignal":
        if threading.current_thread() is threading.main_thread():  # only the main thread may set signal handlers
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self.process:
            self.__exit__()
            self.received = number
            os.write(2, b"\nstopping after this step; once more to stop at once\n")  # print is unsafe in a handler
        elif number == signal.SIGTERM:  # in a data loader worker, sent by the training process
            os._exit(128 + number)

    def received_anywhere(self, device: torch.device) -> int:
        """Return the number of the signal that any process received; 0 for none."""
        if not torch.distributed.is_initialized():
            return self.received
        values = torch.tensor(self.received, device=device)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return int(values)


@contextmanager
def one_line_endings(folder: RunFolder) -> Iterator[None]:
    """Turn out-of-memory and disk errors into a `UserError` that says how to go on."""
    try:
        yield
    except (UserError, OSError, SafetensorError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if isinstance(error, UserError) and isinstance(cause, OSError):
            raise UserError(f"{error}; {_go_on(folder)}") from None
        number = _system_error(cause)
        if number not in DISK_ERRORS:
            raise
        where = getattr(cause, "filename", None) or folder.path
        raise UserError(f"{where}: cannot be written: {os.strerror(number)}; {_go_on(folder)}") from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        way_out = "set a lower --train.micro_batch_size or --evaluation.batch_size (--dry-run says what fits)"
        raise UserError(f"out of memory; {way_out}; {_go_on(folder)}") from None


def _system_error(error: BaseException | None) -> int:
    """Return the errno of an error; safetensors gives it only in its message."""
    if isinstance(error, OSError):
        return error.errno or 0
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else 0


def _is_out_of_memory(error: Exception) -> bool:
    """Check whether an error means out of memory; PyTorch has an exception for the GPU, but not for the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def _go_on(folder: RunFolder) -> str:
    steps = checkpoints_of(folder.checkpoints)
    return f"then go on from step {steps[0]} with --resume" if steps else "no checkpoint was written yet"
