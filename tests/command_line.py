"""The command line as a user runs it."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def infer(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "infer.py", "--max_new_tokens", "6", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
