"""Set environment variables of libraries for a command and its child processes, before the imports."""

import os

SETTINGS = {
    "OPENCV_FOR_THREADS_NUM": "1",  # image workers and PyTorch share the cores
    "OPENCV_IO_MAX_IMAGE_PIXELS": "50000000",  # in addition to our own limit, in case a decoder sees another size
    "OPENCV_LOG_LEVEL": "SILENT",  # an unreadable file is our own one-line error
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def prepare_host() -> None:
    """Set the variables that the user has not set. Only commands call it; importing the package sets none."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
