"""A Hub on loopback that speaks the protocol of huggingface_hub's client: repositories, commits, LFS, downloads.

It keeps everything in memory, and can be told to refuse a token or to drop connections.
"""

import base64
import hashlib
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.loopback_server import LoopbackHandler, LoopbackServer

TOKEN = "hf_" + "ab12" * 8
START = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer(LoopbackServer):
    """Start it with `with HubServer() as hub`; `hub.url` is its endpoint."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.store = f"http://localhost:{self.server_port}/large"
        """Large files lie on another host, to which the client must send no token."""
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        """LFS objects by SHA-256."""
        self.may_write = True
        self.cut: Counter[str] = Counter()
        """"METHOD part of path" → how many more such requests are cut in the middle."""
        self.broken: set[str] = set()
        """The same, answered by 500."""
        self.seen: list[str] = []

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> Repo:
        self.repos[name] = Repo(private)
        self.repos[name].commit("main", START | files, "initial commit")
        return self.repos[name]

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables by which a program of its own takes this for the Hub, with its cache in a folder."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1"}  # fmt: skip


class Handler(LoopbackHandler):
    server: HubServer

    # ------------------------------------------------------------------------------------ answering

    def answer(self, status: int = 200, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_head(status, len(content), **headers)
        if self.command == "HEAD":
            return
        if self.is_hit(self.server.cut):
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content)

    def error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X_Error_Message": message} | ({"X_Error_Code": code} if code else {})
        self.answer(status, {"error": message}, **headers)

    def is_hit(self, marks: Counter[str] | set[str]) -> bool:
        for mark in marks:
            method, part = mark.split(" ")
            if method == self.command and part in self.path:
                if isinstance(marks, Counter):
                    if marks[mark] < 1:
                        continue
                    marks[mark] -= 1
                return True
        return False

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.server.seen.append(f"{self.command} {url.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and self.is_hit(self.server.cut):
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.read_body()
        if self.is_hit(self.server.broken):
            return self.error(500, "Internal Error")
        authorization = self.headers.get("Authorization")
        if authorization is not None and url.path.startswith("/large/"):
            return self.error(400, "Only one auth mechanism allowed")
        if authorization not in (None, f"Bearer {TOKEN}"):
            return self.error(401, "Invalid credentials in Authorization header")
        self.token = authorization is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self.route([unquote(part) for part in url.path.strip("/").split("/")])

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # -------------------------------------------------------------------------------------- routing

    def route(self, parts: list[str]) -> None:
        match parts:
            case ["api", "repos", "create"]:
                self.create()
            case ["api", "validate-yaml"]:
                self.validate_card()
            case ["large", oid]:
                self.large_file(oid)
            case ["api", "models", user, name, *rest]:
                self.with_repo(f"{user}/{name}", lambda repo: self.api(f"{user}/{name}", repo, rest))
            case ["api", "datasets", user, name, *rest]:
                self.with_repo(f"datasets/{user}/{name}", lambda repo: self.api(f"{user}/{name}", repo, rest))
            case ["datasets", user, name, "resolve", revision, *path]:
                self.with_repo(f"datasets/{user}/{name}", lambda repo: self.download(repo, revision, "/".join(path)))
            case [user, name, "info", "lfs", "objects", "batch"]:
                self.with_repo(f"{user}/{name.removesuffix('.git')}", lambda _: self.lfs_batch(user))
            case [user, name, "resolve", revision, *path]:
                self.with_repo(f"{user}/{name}", lambda repo: self.download(repo, revision, "/".join(path)))
            case _:
                self.error(404, "Not Found")

    def with_repo(self, name: str, go_on) -> None:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.token):
            return self.error(404 if self.token else 401, "Repository not found", "RepoNotFound")
        go_on(repo)

    def writes(self, user: str) -> bool:
        if not self.token:
            self.error(401, "Invalid username or password.")
        elif not self.server.may_write or user != "user":
            self.error(403, "You don't have the rights to write here")
        else:
            return True
        return False

    def create(self) -> None:
        wanted = json.loads(self.body)
        if self.writes(wanted["organization"]):
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in self.server.repos:
                return self.error(409, "You already created this model repo")
            self.server.add(name, {}, private=wanted.get("visibility") == "private")
            self.answer(200, {"url": f"{self.server.url}/{name}"})

    def validate_card(self) -> None:
        import yaml

        head = json.loads(self.body)["content"].split("---")[1]
        right = isinstance(yaml.safe_load(head).get("license", ""), str)
        errors = [] if right else [{"message": '"license" must be a string'}]
        self.answer(200 if right else 400, {"errors": errors, "warnings": []})

    def api(self, name: str, repo: Repo, rest: list[str]) -> None:
        user = name.split("/")[0]
        match rest:
            case [] | ["revision", _] | ["tree", _]:
                revision = repo.find(rest[1] if rest else "main")
                if revision is None:
                    return self.error(404, "Invalid rev id", "RevisionNotFound")
                files = repo.commits[revision]
                if rest[:1] == ["tree"]:
                    return self.answer(200, [entry(path, value) for path, value in files.items()])
                info = {"id": name, "sha": revision, "private": repo.private, "tags": []}
                self.answer(200, info | {"siblings": [{"rfilename": path} for path in files]})
            case ["tree", _, *_]:  # of a folder: no repository here has one
                self.error(404, "Entry not found", "EntryNotFound")
            case ["branch", branch] if self.writes(user):
                if branch in repo.branches:
                    return self.error(409, "Reference already exists")
                repo.branches[branch] = repo.branches["main"]
                self.answer(200, {})
            case ["preupload", branch] if self.writes(user):
                here = repo.commits[repo.branches[branch]]
                files = [file["path"] for file in json.loads(self.body)["files"]]
                self.answer(200, {"files": [upload_mode(path, here.get(path)) for path in files]})
            case ["commit", branch] if self.writes(user):
                self.commit(name, repo, branch)

    # ---------------------------------------------------------------------------------------- files

    def commit(self, name: str, repo: Repo, branch: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            return self.error(412, "The reference has changed")
        files = dict(repo.commits[repo.branches[branch]])
        for line in lines[1:]:
            value = line["value"]
            large = line["key"] == "lfsFile"
            files[value["path"]] = self.server.large[value["oid"]] if large else base64.b64decode(value["content"])
        oid = repo.commit(branch, files, header["summary"])
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def lfs_batch(self, user: str) -> None:
        if self.writes(user):
            objects = []
            for wanted in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{self.server.store}/{wanted['oid']}", "header": {}}}
                objects.append(wanted | ({} if wanted["oid"] in self.server.large else {"actions": upload}))
            self.answer(200, {"transfer": "basic", "objects": objects})

    def large_file(self, oid: str) -> None:
        if self.command != "PUT":
            return self.send_file(self.server.large[oid], ETag=f'"{oid}"')
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.error(400, "another checksum")
        self.server.large[oid] = self.body
        self.answer()

    def download(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.find(revision)
        if commit is None:
            return self.error(404, "Invalid rev id", "RevisionNotFound")
        content = repo.commits[commit].get(path)
        if content is None:
            return self.error(404, "Entry not found", "EntryNotFound")
        oid = hashlib.sha256(content).hexdigest()
        if oid in self.server.large:
            where = {"Location": f"{self.server.store}/{oid}", "X_Linked_Etag": f'"{oid}"'}
            return self.answer(302, X_Repo_Commit=commit, X_Linked_Size=str(len(content)), **where)
        self.send_file(content, X_Repo_Commit=commit, ETag=f'"{git_oid(content)}"')

    def send_file(self, content: bytes, **headers: str) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, content[start:], **headers)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def entry(path: str, content: bytes) -> dict[str, object]:
    values = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return values | ({"lfs": lfs} if is_large(path) else {})


def upload_mode(path: str, content: bytes | None) -> dict[str, object]:
    oid = None if content is None else hashlib.sha256(content).hexdigest() if is_large(path) else git_oid(content)
    return {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, "oid": oid}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch):
    """A Hub on loopback, a token that it takes, and an empty cache."""
    from huggingface_hub import constants

    with HubServer() as server:
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
