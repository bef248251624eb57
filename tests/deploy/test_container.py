"""The image and the compose file, read as a builder reads them: no daemon is needed."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from tests.http_drafts import image
from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.commands import run_serve
from vlm.app.guard import Access
from vlm.app.serve import serve
from vlm.app.service import Limits, Service
from vlm.cli import build_parser
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine

__all__ = ["image"]  # a fixture

PROJECT = Path(__file__).resolve().parents[2]
FILES = ("Dockerfile", ".dockerignore", "compose.yaml")
PROJECT_FILE = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


class Stage(NamedTuple):
    name: str
    base: str
    lines: list[tuple[str, str]]
    """Instruction and its words, in order."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Instructions of a Dockerfile with their words; comments and line ends within one are taken out."""
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in plain.replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), " ".join(rest.split())


def read_stages() -> list[Stage]:
    stages: list[Stage] = []
    given: dict[str, str] = {}
    for word, rest in instructions((PROJECT / "Dockerfile").read_text(encoding="utf-8")):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda match: given[match[1]], base)
            stages.append(Stage(name, base, []))
        elif stages:
            stages[-1].lines.append((word, rest))
        else:
            assert word == "ARG", "before the first stage there is nothing but arguments"
            name, _, value = rest.partition("=")
            given[name] = value
    return stages


STAGES = read_stages()
TARGETS = ("cpu", "cuda")
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "compose.yaml").read_text(encoding="utf-8"))


def history(target: str) -> list[tuple[str, str]]:
    """The instructions of a target after those of the stages it is made from."""
    (stage,) = (stage for stage in STAGES if stage.name == target)
    return [*(history(stage.base) if stage.base in [each.name for each in STAGES] else []), *stage.lines]


def last(target: str, word: str) -> str:
    """What an instruction says in the end; "" where there is none."""
    return ([rest for name, rest in history(target) if name == word] or [""])[-1]


def resolved(value: str) -> str:
    """A value of the compose file with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


# ------------------------------------------------------------------------------------------ the image


def test_images_are_pinned_and_the_default_is_for_a_cpu() -> None:
    names = [stage.name for stage in STAGES]
    assert STAGES[-1].name == "cpu" and set(TARGETS) <= set(names) and len(set(names)) == len(names)
    outside = [stage.base for stage in STAGES if stage.base not in names]
    assert outside and all(re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base) for base in outside), outside
    (version,) = {re.match(r"python:(3\.\d+)", base)[1] for base in outside}  # type: ignore[index]
    known = [name.rpartition(" ")[2] for name in PROJECT_FILE["project"]["classifiers"] if "Python :: 3." in name]
    assert version in known


def test_nothing_names_a_host_and_nothing_is_fetched_but_by_installers() -> None:
    for name in FILES:
        text = (PROJECT / name).read_text(encoding="utf-8")
        hosts = set(re.findall(r"https?://([\w.-]+)", text)) | set(re.findall(r"\b[\w-]+\.(?:org|io|com|net)\b", text))
        assert hosts <= {"127.0.0.1"}, name
    lines = [line for stage in STAGES for line in stage.lines]
    assert "ADD" not in dict(lines) and not any(re.search(r"\b(curl|wget|git)\b", rest) for _, rest in lines)


def test_no_secret_is_in_a_layer() -> None:
    for word, rest in (line for stage in STAGES for line in stage.lines):
        assert word not in ("ARG", "ENV") or not re.search("token|secret|password|key", rest, re.I), rest


@pytest.mark.parametrize("target", TARGETS)
def test_an_ordinary_user_runs_what_root_owns(target: str) -> None:
    user = last(target, "USER").replace("${UID}", dict(pair.split("=") for word, pair in history(target)
                                                       if word == "ARG" and "=" in pair)["UID"])  # fmt: skip
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    copied = [rest for word, rest in history(target) if word == "COPY"]
    assert copied == [f"--from=installed-{target} /opt/venv /opt/venv"], "by root, and no file of the build beside it"
    after_user = [word for word, _ in history(target)]
    assert "RUN" not in after_user[after_user.index("USER") :]


def test_what_is_copied_is_there_and_is_what_the_package_is_made_of() -> None:
    copied = [path for stage in STAGES for word, rest in stage.lines if word == "COPY" and "--from" not in rest
              for path in rest.split()[:-1]]  # fmt: skip
    assert all((PROJECT / path).exists() for path in copied)
    project = PROJECT_FILE["project"]
    assert set(copied) == {"pyproject.toml", project["readme"], *project["license-files"], "vlm"}
    ignore = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*", "only what is named goes to a build"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied)


def test_extras_and_the_uv_of_the_build_exist() -> None:
    installs = [rest for stage in STAGES for word, rest in stage.lines if word == "RUN" and "-r pyproject.toml" in rest]
    assert len(installs) == len(TARGETS)
    for line in installs:
        extras = re.findall(r"--extra (\S+)", line)
        assert {"app", "dicom", "explain"} <= set(extras) <= PROJECT_FILE["project"]["optional-dependencies"].keys()


def arguments_of(words: list[str]) -> Any:
    """The words of a command as the program takes them; those of a shell's are refused."""
    parsed, left = build_parser().parse_known_args(words)
    assert not left and parsed.run is run_serve
    return parsed


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_of_the_image_serves_to_whoever_has_the_token_alone(target: str, tiny_adapter: Path) -> None:
    (program,) = json.loads(last(target, "ENTRYPOINT"))
    assert program in PROJECT_FILE["project"]["scripts"]
    arguments = arguments_of(json.loads(last(target, "CMD")))
    assert str(arguments.port) == last(target, "EXPOSE")
    assert (arguments.adapter, arguments.host) == (["/adapter"], "0.0.0.0")
    arguments.port, arguments.adapter = 0, [str(tiny_adapter)]
    with pytest.raises(UserError, match="anybody could use it; set CLINICAL_VLM_TOKEN"):
        serve(arguments)


# ------------------------------------------------------------------------------------------ its health


def health_check(port: str) -> int:
    """The exit code of the image's health check, asked of another port."""
    _, _, command = last("cpu", "HEALTHCHECK").partition("CMD ")
    assert command.count("7860") == 1 == command.count(last("cpu", "EXPOSE"))
    _, *words = json.loads(command.replace("7860", port))
    return subprocess.run([sys.executable, *words], timeout=30, capture_output=True).returncode


def test_health_is_that_of_the_running_service(engine: ReportEngine, adapter: Adapter) -> None:
    access = Access.of("0.0.0.0", [], b"0123456789abcdef")
    service = Service(engine, Limits(tokens=2))
    with serving(make_api(service, adapter, access)) as address:
        port = address.rpartition(":")[2]
        with service:
            assert health_check(port) == 0
        assert health_check(port) != 0, "it answers, and writes no drafts any more"
    assert health_check(port) != 0, "nothing listens"


# ------------------------------------------------------------------------------------------ compose


def test_compose_closes_what_the_service_does_not_need() -> None:
    service = COMPOSE["services"]["cpu"]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert [entry.partition(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
    assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    adapter, weights = service["volumes"]
    assert adapter["read_only"] and not adapter["bind"]["create_host_path"]
    assert weights["source"] in COMPOSE["volumes"] and f"HOME={weights['target']}" in last("cpu", "ENV").split()
    assert not any("environment" in each or "env_file" in each for each in COMPOSE["services"].values())


def test_compose_publishes_the_port_on_this_machine_alone_and_asks_for_the_token() -> None:
    service = COMPOSE["services"]["cpu"]
    arguments = arguments_of(service["command"])
    assert service["ports"] == [f"127.0.0.1:{arguments.port}:{arguments.port}"]
    assert arguments.adapter == [service["volumes"][0]["target"]]
    (secret,) = service["secrets"]
    assert str(arguments.token_file) == f"/run/secrets/{secret}"
    token = resolved(COMPOSE["secrets"][secret]["file"])
    ignored = (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert f"/{Path(token)}" in ignored


@pytest.mark.parametrize("name", TARGETS)
def test_compose_builds_the_targets(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["build"]["target"] == name and service["image"] == f"clinical-vlm:{name}"
    if name == "cuda":
        assert service["extends"] == {"service": "cpu"} and service["profiles"] == ["cuda"]
        (gpu,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert gpu["capabilities"] == ["gpu"]
    else:
        arguments = {rest.partition("=")[0] for word, rest in history(name) if word == "ARG"}
        assert service["build"]["args"].keys() <= arguments


def test_the_commands_of_the_page_exist() -> None:
    page = (PROJECT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for line in re.findall(r"^docker .+$", page, re.M):
        words = shlex.split(line.partition("  #")[0])
        if words[1] == "compose":
            named = {word for word in words[3:] if not word.startswith("-")}
            assert named <= COMPOSE["services"].keys(), line
        if "serve" in words:
            arguments_of([word for word in words[words.index("serve") :] if word != "…"])


# ------------------------------------------------------------------------------------------ its rights


def test_it_drafts_without_rights_where_it_may_write_to_two_folders_alone(
    tiny_adapter: Path, tmp_path: Path, image: bytes
) -> None:
    """The image's command on this machine's files: a read-only root, no capabilities, HOME and TMPDIR in memory."""
    if sys.platform != "linux" or os.getuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        pytest.skip("needs root on Linux, which may mount")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = json.loads(last("cpu", "CMD"))
    words[words.index("/adapter")] = str(tiny_adapter)
    served = shlex.join(
        [sys.executable, "-m", "vlm.cli", *words, "--port", port, "--max_new_tokens", "4", "--max_seconds", "300"]
    )
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    mounts = [f"mkdir -p {home} {temporary}", f"mount -t tmpfs none {home}", f"mount -t tmpfs none {temporary}",
              "mount -o remount,bind,ro /"]  # fmt: skip
    setpriv = "setpriv --no-new-privs --bounding-set=-all --inh-caps=-all"
    own_root = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*own_root, " && ".join([*mounts, f"{setpriv} true"])], capture_output=True).returncode:
        pytest.skip("this machine's root may not mount, as in a container")
    steps = [*mounts, f"! touch {tmp_path}/written", f"exec {setpriv} {served}"]
    token = "0123456789abcdef"
    rights = {"HOME": str(home), "TMPDIR": str(temporary), "CLINICAL_VLM_TOKEN": token, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [*own_root, " && ".join(steps)], cwd=PROJECT, env={**os.environ, **rights},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            while health_check(port):
                assert process.poll() is None and process.stdout, process.stdout.read() if process.stdout else ""
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(r"^CapEff:\s+0+$", status, re.M) and re.search(r"^NoNewPrivs:\s+1$", status, re.M)
            asked = {"files": {"image": ("x.png", image)}, "data": {"glucose": "8.7"}, "timeout": 300}
            address = f"http://127.0.0.1:{port}/v1/report"
            assert httpx.post(address, **asked).status_code == 401
            answer = httpx.post(address, **asked, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 200 and answer.json()["vitals"]["glucose"] == 8.7
        finally:
            process.terminate()
