"""`clinical-vlm watch RUN`: show a run in the terminal as it goes."""

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from vlm.errors import UserError
from vlm.training.monitor.frame import frame
from vlm.training.monitor.run_state import Run

SECONDS = 2.0
"""Seconds between two frames."""


def find_run(name: str) -> Path:
    """Find the folder of a run by its path, or by its name in `runs/`; raises `UserError` if there is none."""
    for folder in (Path(name), Path("runs") / name):
        if (folder / "config.yaml").is_file():
            return folder
    reason = "has no config.yaml, so it is no run" if Path(name).is_dir() else "no such run"
    raise UserError(f"{name}: {reason}; name its folder, such as runs/demo")


def watch(folder: Path, once: bool = False, seconds: float = SECONDS) -> None:
    """Show a run until its process ends; one frame with `once`, or if stdout is no terminal."""
    console, run = Console(), Run(folder)
    if once or not console.is_terminal:
        console.print(frame(run, console.width))
        return
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(frame(run, console.width), refresh=True)
                if not run.writer:
                    return
                time.sleep(max(seconds, 0.1))
                run.look()
    except KeyboardInterrupt:  # Ctrl-C closes the view; the run goes on
        print(file=sys.stderr)
