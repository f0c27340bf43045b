"""A Hugging Face Hub on this machine's loopback address: as much of it as a push and a download of a model take."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_loopback"
OWNER = "owner"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The Hub.

    Attributes:
        repositories: files by name, by repository.
        private: whether each repository is.
        unknown: requests that it does not know.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.unknown: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.removeprefix("/api/").split("/")
        if parts == ["validate-yaml"]:
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self._answer(200, {"errors": [], "warnings": []})
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        elif parts == ["repos", "create"]:
            self._create(json.loads(body))
        elif parts[0] == "models" and parts[1] != OWNER:
            self._answer(403, {"error": "You don't have the rights"})
        elif parts[0] == "models" and parts[3:] == ["preupload", "main"]:
            known = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer(200, {"files": [known | {"path": file["path"]} for file in json.loads(body)["files"]]})
        elif parts[0] == "models" and parts[3:4] == ["commit"]:
            repository = "/".join(parts[1:3])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[repository][line["value"]["path"]] = content
            url = f"{self.server.url}/{repository}/commit/{COMMIT}"
            self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self._unknown()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        parts = path.removeprefix("api/models/").split("/")
        files = self.server.repositories.get("/".join(parts[:2]))
        if files is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("api/models/") and parts[2:3] in ([], ["revision"]):
            siblings = [{"rfilename": name} for name in files]
            self._answer(200, {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings, "tags": []})
        elif path.startswith("api/models/") and parts[2:3] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in files.items()
            ]
            self._answer(200, entries)
        elif parts[2:3] == ["resolve"] and "/".join(parts[4:]) in files:
            body = files["/".join(parts[4:])]
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            self._answer(200, body, {"ETag": etag, "X-Repo-Commit": COMMIT})
        else:
            self._unknown()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _create(self, wanted: dict[str, Any]) -> None:
        repository = f"{wanted.get('organization', OWNER)}/{wanted['name']}"
        url = {"url": f"{self.server.url}/{repository}", "name": repository}
        if not repository.startswith(f"{OWNER}/"):
            self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif repository in self.server.repositories:
            self._answer(409, url)
        else:
            self.server.repositories[repository] = {}
            self.server.private[repository] = wanted.get("private", wanted.get("visibility") == "private")
            self._answer(200, url)

    def _unknown(self) -> None:
        self.server.unknown.append(f"{self.command} {self.path}")
        self._answer(404, {"error": "Not found"})

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None: ...
