"""The systemd unit: its command is one that the program takes, and systemd finds it valid and closed."""

import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from vlm.app.commands import run_serve
from vlm.app.guard import TOKEN_VARIABLE, is_loopback
from vlm.cli import build_parser

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNIT = (DEPLOY / "clinical-vlm.service").read_text(encoding="utf-8")
MOST_EXPOSED = 20
"""Tenths of systemd's measure of exposure, from 0 to 100; a plain service has 92 to 96."""


def settings() -> dict[str, list[str]]:
    """Name → values, as they stand."""
    found = defaultdict[str, list[str]](list)
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT, re.M):
        found[name].append(value)
    return found


def test_its_command_listens_on_this_machine_alone_under_the_proxys_name() -> None:
    (command,) = settings()["ExecStart"]
    program, *words = shlex.split(command)
    assert program.endswith("/bin/clinical-vlm")
    arguments, left = build_parser().parse_known_args(words)
    assert not left and arguments.run is run_serve and is_loopback(arguments.host)
    proxy = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert re.findall(r"server_name (\S+);", proxy) == arguments.allowed_hosts
    assert f"{TOKEN_VARIABLE}=" in UNIT and not any(TOKEN_VARIABLE in value for value in settings()["Environment"])


def test_it_writes_to_its_own_folders_and_leaves_no_case_on_a_disk() -> None:
    found = settings()
    (environment,) = found["Environment"]
    assert dict(pair.split("=") for pair in environment.split()) == {
        "HOME": f"%S/{found['StateDirectory'][0]}", "TMPDIR": f"%t/{found['RuntimeDirectory'][0]}",
    }  # fmt: skip
    assert found["DynamicUser"] == ["yes"] and found["ProtectSystem"] == ["strict"]
    assert found["LimitCORE"] == found["MemorySwapMax"] == ["0"]


def test_systemd_finds_it_valid_and_closed(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / "clinical-vlm.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT, flags=re.M))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert verified.returncode == 0 and unit.name not in verified.stderr, verified.stderr
    judge = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit)]
    judged = subprocess.run(judge, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout
