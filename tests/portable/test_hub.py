"""The hub, against a stand-in on this machine that answers the requests of huggingface_hub."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from portable.hub import download, push
from tests.portable import skip_without
from utils import InputError

COMMIT = "0123456789" * 4


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> path -> content."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status, Content_Type="application/json")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/api/repos/create":
            given = json.loads(body)
            self.server.repositories.setdefault(f"{given.get('organization') or 'me'}/{given['name']}", {})
            self.answer_json({"url": f"{self.address}/me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer_json({"files": files})
        elif self.path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        else:
            name = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories.setdefault(name, {})[line["value"]["path"]] = content
            self.answer_json(
                {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.address}/{name}/commit/{COMMIT}"}
            )

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].split("/")
        if parts[1] == "api":
            name, files = "/".join(parts[3:5]), self.server.repositories.get("/".join(parts[3:5]))
            if files is None:
                self.answer_json({"error": "Repository not found"}, 404)
                return
            listed = [{"type": "file", "path": path, "oid": "0", "size": len(files[path])} for path in files]
            if parts[5:6] == ["tree"]:
                self.answer_json(listed)
            else:
                self.answer_json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
            return
        content = self.server.repositories["/".join(parts[1:3])]["/".join(parts[5:])]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(content, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    skip_without("huggingface_hub")
    import huggingface_hub

    served = Hub()
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{served.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    download_to = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *given, **named: download_to(*given, **named, cache_dir=tmp_path / "cache"),
    )
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    (place / "tokenizer").mkdir(parents=True)
    names = ("model.safetensors", "config.yaml", "preprocessing.json", "vocabulary.json", "README.md", "example.py")
    for name in (*names, "text_encoder.onnx", "tokenizer/tokenizer.json", "secret.txt", "tokenizer/evil.py"):
        (place / name).write_text(name)
    return place


def test_a_model_goes_up_and_comes_down_without_code(hub: Hub, folder: Path) -> None:
    assert push(folder, "me/model") == COMMIT
    up = set(hub.repositories["me/model"])
    assert up == {
        *("model.safetensors", "config.yaml", "preprocessing.json", "vocabulary.json", "README.md", "example.py"),
        *("text_encoder.onnx", "tokenizer/tokenizer.json"),
    }
    hub.repositories["me/model"] |= {"pytorch_model.bin": b"pickle", "tokenizer/tokenizer.py": b"code"}
    down = download("me/model", COMMIT)
    found = {path.relative_to(down).as_posix() for path in down.rglob("*") if path.is_file()}
    assert found == up - {"README.md", "example.py", "text_encoder.onnx"}
    assert (down / "config.yaml").read_text() == "config.yaml"
    assert any(COMMIT in path for path in hub.asked)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:39], COMMIT.replace("0", "g")])
def test_a_revision_is_pinned(revision: str | None) -> None:
    with pytest.raises(InputError, match="give the commit as revision, 40 hexadecimal digits"):
        download("me/model", revision)


def test_other_models_are_refused(hub: Hub) -> None:
    hub.repositories["me/other"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(InputError, match="no model of `python -m portable`"):
        download("me/other", COMMIT)
    with pytest.raises(InputError, match="can't be had from the hub"):
        download("me/absent", COMMIT)


def test_what_is_no_portable_folder_stays_here(folder: Path) -> None:
    (folder / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"no portable model \(config.yaml missing\)"):
        push(folder, "me/model")
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        push(folder, "../model")
