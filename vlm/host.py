"""Set environment variables of libraries for a command and its child processes, and limit a child's resources."""

import logging
import os
import sys
import time
from pathlib import Path

SETTINGS = {
    "OPENCV_FOR_THREADS_NUM": "1",  # image workers and PyTorch share the cores
    "OPENCV_IO_MAX_IMAGE_PIXELS": "50000000",  # in addition to our own limit, in case a decoder sees another size
    "OPENCV_LOG_LEVEL": "SILENT",  # an unreadable file is our own one-line error
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def prepare_host() -> None:
    """Set the variables that the user has not set, and quiet bitsandbytes. Commands alone call it."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # early ones warn on a CPU that they have no 8-bit Adam


def limit_process(memory: int, cpu_seconds: int | None = None, writes: bool = True) -> None:
    """Limit this process to `memory` bytes and CPU time beyond its current use, and to no file writes.

    Linux enforces all of it, other systems a part, and Windows nothing.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {resource.RLIMIT_CPU: cpu_seconds + int(time.process_time())} if cpu_seconds else {}
    limits |= {} if writes else {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + memory
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)  # no limit can be raised
        resource.setrlimit(kind, (most, most))
