"""Settings of the libraries that a command makes for its process and its children, before they are imported."""

import os

SETTINGS = {
    "OPENCV_FOR_THREADS_NUM": "1",  # the workers that read images and PyTorch share the cores
    "OPENCV_IO_MAX_IMAGE_PIXELS": "50000000",  # beside our own limit, in case a decoder sees another size
    "OPENCV_LOG_LEVEL": "SILENT",  # an unreadable file is our own one-line error
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def prepare_host() -> None:
    """Set what the user has not set. Commands call it; importing the package changes nothing of its host."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
