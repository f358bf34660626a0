"""A small look-alike of the Hugging Face Hub for tests: standard library, loopback only.

It serves what huggingface_hub, transformers and datasets call to push and pull: content-addressed blobs, repositories
as immutable commits, LFS and xet uploads, private repositories. It has no gating, quotas, pull requests or card checks.

    with MiniHub(xet=True) as hub:
        subprocess.run([...], env=hub.client_env(home))  # the client reads its settings when it is imported
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

USER, TOKEN = "tester", "hf_test"
LFS_SUFFIXES = {
    ".arrow", ".bin", ".gif", ".jpeg", ".jpg", ".model", ".mp4", ".npy", ".npz", ".parquet", ".pkl", ".png", ".pt",
    ".pth", ".safetensors", ".tar", ".webp", ".zip",
}  # fmt: skip
TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
REPO_VERBS = {"revision", "tree", "paths-info", "refs", "commits", "preupload", "commit"}
REPO_VERBS |= {"xet-read-token", "xet-write-token", "auth-check"}


class HubError(Exception):
    """Becomes an HTTP answer; `code` is the Hub's X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


class XetFolder:
    """The folder that hf_xet uploads to, and downloads from, when the Hub answers with a `local://` address."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.address = f"local://{folder}"
        self.folder = folder
        self.shards_read: set[str] = set()
        self.files: dict[str, tuple[str, int]] = {}  # sha256: (xet hash, size)

    def read_new_shards(self) -> None:
        """Learn which files were uploaded: 48-byte records, a file's header, its segments and its metadata."""

        def printed(digest: bytes) -> str:  # four little-endian 64-bit numbers
            return "".join(digest[i : i + 8][::-1].hex() for i in range(0, 32, 8))

        for shard in self.folder.rglob("shards/*.mdb"):
            if shard.name in self.shards_read:
                continue
            self.shards_read.add(shard.name)
            data, at = shard.read_bytes(), 48
            while data[at : at + 32] != b"\xff" * 32:
                digest, flags, segments = data[at : at + 32], *struct.unpack_from("<II", data, at + 32)
                size = sum(struct.unpack_from("<I", data, at + 48 * (k + 1) + 36)[0] for k in range(segments))
                has_verification, has_metadata = flags & 1 << 31, flags & 1 << 30
                at += 48 * (1 + segments) + (48 * segments if has_verification else 0)
                if has_metadata:
                    self.files[printed(data[at : at + 32])] = (printed(digest), size)
                    at += 48


class Store:
    """Blobs on disk, repositories in memory; a commit maps every path to an entry."""

    def __init__(self, root: Path, xet: bool):
        self.blobs = root / "blobs"
        self.blobs.mkdir(parents=True)
        self.xet = XetFolder(root / "cas") if xet else None
        self.lock = threading.RLock()
        self.repos: dict[str, dict[str, Any]] = {}

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blob(sha256).write_bytes(data)
        return sha256

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256

    def size(self, sha256: str) -> int:
        """Bytes of a blob, here or in the xet folder.

        Raises:
            HubError: it was not uploaded.
        """
        if self.blob(sha256).exists():
            return self.blob(sha256).stat().st_size
        if self.xet:
            self.xet.read_new_shards()
        if not self.xet or sha256 not in self.xet.files:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        return self.xet.files[sha256][1]

    def entry(self, sha256: str, lfs: bool) -> dict[str, Any]:
        size = self.size(sha256)
        if not lfs:
            return {"size": size, "sha256": sha256, "oid": git_oid(self.blob(sha256).read_bytes()), "lfs": 0}
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return {"size": size, "sha256": sha256, "oid": git_oid(pointer), "lfs": len(pointer)}

    def get(self, kind: str, name: str) -> dict[str, Any]:
        if f"{kind}/{name}" not in self.repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repos[f"{kind}/{name}"]

    def create(self, kind: str, name: str, private: bool) -> None:
        with self.lock:
            if f"{kind}/{name}" in self.repos:
                raise HubError(409, "You already created this repo")
            repo = {"id": name, "kind": kind, "private": private, "head": None, "commits": {}}
            self.repos[f"{kind}/{name}"] = repo
            attributes = "".join(f"*{suffix} filter=lfs\n" for suffix in sorted(LFS_SUFFIXES)).encode()
            self.commit(
                repo, {"summary": "initial commit"}, {".gitattributes": self.entry(self.put(attributes), False)}
            )

    def resolve(self, repo: dict[str, Any], revision: str) -> str:
        if revision in ("main", "refs/heads/main"):
            return repo["head"]
        if revision in repo["commits"]:
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, repo: dict[str, Any], header: dict[str, Any], changes: dict[str, dict | None]) -> str:
        """changes: path to entry, or to None, which deletes (a folder when the path ends with '/')."""
        with self.lock:
            parent = repo["head"]
            if header.get("parentCommit") not in (None, parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(repo["commits"][parent]["tree"]) if parent else {}
            for path, entry in changes.items():
                if entry is not None:
                    tree[path] = entry
                elif path.endswith("/"):
                    tree = {name: value for name, value in tree.items() if not name.startswith(path)}
                elif tree.pop(path, None) is None:
                    raise HubError(404, f"A file with the name {path} does not exist", "EntryNotFound")
            commit = {"parent": parent, "title": header.get("summary", ""), "date": now(), "tree": tree}
            sha = hashlib.sha1(json.dumps([commit, time.time_ns()], sort_keys=True).encode()).hexdigest()
            repo["commits"][sha], repo["head"] = commit, sha
            return sha


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: MiniHub

    # Plumbing

    def log_message(self, format: str, *args: Any) -> None:
        self.hub.log.append(f"{self.command} {self.path} {args[1] if len(args) > 1 else ''}")

    def reply(self, body: Any = b"", status: int = 200, headers: dict[str, str] | None = None) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        try:
            self.body = self.read_body() if self.command in ("POST", "PUT", "DELETE") else b""
            self.hub.raise_fault(self.command, url.path)
            self.route(url.path.strip("/").split("/"))
        except HubError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            self.reply({"error": error.message}, error.status, {"X-Error-Message": error.message, **code})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("true", "1")

    def user(self, required: bool = False) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if (token and token != TOKEN) or (required and not token):
            raise HubError(401, "Invalid username or password.")
        return USER if token else None

    def repo(self, kind: str, name: str, write: bool = False) -> dict[str, Any]:
        user = self.user(required=write)
        repo = self.hub.store.get(kind, name)
        if repo["private"] and user is None:
            raise HubError(401, "Repository not found", "RepoNotFound")
        self.check_namespace(name, write)
        return repo

    def check_namespace(self, name: str, write: bool = True) -> None:
        if write and name.split("/")[0] not in (USER, *self.hub.orgs):
            raise HubError(403, f"Forbidden: pass a token with write access to {name}")

    # Routes

    def route(self, parts: list[str]) -> None:
        if parts[0] == "api":
            return self.api(parts[1:])
        if parts[0] == "_lfs":
            return self.lfs_object(parts[1])
        kind = "model"
        if parts[0] in ("datasets", "spaces"):
            kind, parts = TYPES[parts[0]], parts[1:]
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return self.lfs_batch(kind, "/".join(parts[:-4]).removesuffix(".git"))
        if "resolve" in parts[:3]:
            at = parts.index("resolve")
            name, path = "/".join(parts[:at]), unquote("/".join(parts[at + 2 :]))
            return self.download(kind, name, unquote(parts[at + 1]), path)
        raise HubError(404, f"no such page: {self.path}")

    def api(self, parts: list[str]) -> None:
        head = parts[0]
        if head == "whoami-v2":
            access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
            orgs = [{"type": "org", "name": name, "roleInOrg": "admin"} for name in self.hub.orgs]
            return self.reply({"type": "user", "name": self.user(required=True), "orgs": orgs, "auth": access})
        if head == "validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if head == "repos":
            return self.create_or_delete(parts[1])
        if head in TYPES:
            at = 3 if len(parts) >= 3 and parts[2] not in REPO_VERBS else 2
            return self.repo_api(TYPES[head], "/".join(parts[1:at]), *map(unquote, parts[at:]))
        raise HubError(404, f"unknown API {self.path}")

    def create_or_delete(self, verb: str) -> None:
        user, given = self.user(required=True), self.json()
        kind = given.get("type") or "model"
        name = f"{given.get('organization') or user}/{given['name']}"
        self.check_namespace(name)
        if verb == "create":
            url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
            try:
                private = bool(given.get("private")) or given.get("visibility") == "private"
                self.hub.store.create(kind, name, private)
            except HubError as error:
                return self.reply({"error": error.message, "url": url}, error.status)
            return self.reply({"url": url, "name": name, "id": name})
        if verb == "delete":
            self.hub.store.get(kind, name)
            del self.hub.store.repos[f"{kind}/{name}"]
            return self.reply({})
        raise HubError(404, f"unknown API {self.path}")

    def repo_api(self, kind: str, name: str, verb: str = "revision", *rest: str) -> None:
        store = self.hub.store
        repo = self.repo(kind, name, write=verb in ("preupload", "commit", "xet-write-token"))
        revision = rest[0] if rest else "main"
        if verb == "revision":
            return self.reply(self.info(repo, revision))
        if verb == "auth-check":
            return self.reply({})
        if verb == "tree":
            return self.tree(repo, revision, "/".join(rest[1:]))
        if verb == "paths-info":
            return self.paths_info(repo, revision)
        if verb == "refs":
            heads = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo["head"]}]
            return self.reply({"branches": heads, "tags": [], "converts": [], "pullRequests": []})
        if verb == "commits":
            return self.reply(self.commits(repo, store.resolve(repo, revision)))
        if verb == "preupload":
            return self.preupload(repo, revision)
        if verb == "commit":
            return self.commit(repo)
        if store.xet is not None:
            expiry = int(time.time()) + 3600
            return self.reply(
                {"accessToken": "xet", "exp": expiry, "casUrl": store.xet.address},
                headers={
                    "X-Xet-Cas-Url": store.xet.address,
                    "X-Xet-Access-Token": "xet",
                    "X-Xet-Token-Expiration": str(expiry),
                },
            )
        raise HubError(404, f"unknown API {self.path}")

    def commits(self, repo: dict[str, Any], sha: str | None) -> list[dict[str, Any]]:
        rows = []
        while sha:
            commit = repo["commits"][sha]
            parents = [commit["parent"]] if commit["parent"] else []
            rows.append({"id": sha, "title": commit["title"], "message": "", "date": commit["date"]})
            rows[-1] |= {"authors": [{"user": USER}], "parents": parents}
            sha = commit["parent"]
        return rows

    # Reading

    def info(self, repo: dict[str, Any], revision: str) -> dict[str, Any]:
        store = self.hub.store
        sha = store.resolve(repo, revision)
        tree = repo["commits"][sha]["tree"]
        siblings: list[dict[str, Any]] = []
        for path, entry in sorted(tree.items()):
            siblings.append({"rfilename": path})
            if self.flag("blobs"):
                siblings[-1] |= {"size": entry["size"], "blobId": entry["oid"], "lfs": self.lfs_json(entry)}
        card = {}
        if "README.md" in tree:
            text = store.blob(tree["README.md"]["sha256"]).read_text("utf-8")
            header = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
            card = yaml.safe_load(header.group(1)) if header else {}
        names = {"id": repo["id"], "modelId": repo["id"], "author": repo["id"].split("/")[0], "sha": sha}
        state = {"private": repo["private"], "gated": False, "disabled": False, "lastModified": now()}
        return {**names, **state, "cardData": card, "tags": card.get("tags") or [], "siblings": siblings}

    def lfs_json(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        if not entry["lfs"]:
            return None
        return {"oid": entry["sha256"], "sha256": entry["sha256"], "size": entry["size"], "pointerSize": entry["lfs"]}

    def entry_json(self, path: str, entry: dict[str, Any], repo: dict[str, Any], sha: str) -> dict[str, Any]:
        row = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
        if entry["lfs"]:
            row["lfs"] = self.lfs_json(entry)
            if xet_hash := self.hub.xet_hash(entry["sha256"]):
                row["xetHash"] = xet_hash
        commit = repo["commits"][sha]
        return {**row, "lastCommit": {"id": sha, "title": commit["title"], "date": commit["date"]}}

    def tree(self, repo: dict[str, Any], revision: str, folder: str) -> None:
        sha = self.hub.store.resolve(repo, revision)
        tree = repo["commits"][sha]["tree"]
        prefix = f"{folder.strip('/')}/" if folder else ""
        rows = {}
        for path, entry in tree.items():
            if not path.startswith(prefix):
                continue
            names = path.removeprefix(prefix).split("/")
            for depth in range(1, len(names) if self.flag("recursive") else min(len(names), 2)):
                parent = prefix + "/".join(names[:depth])
                rows[parent] = {"type": "directory", "path": parent, "size": 0, "oid": git_oid(parent.encode())}
            if self.flag("recursive") or len(names) == 1:
                rows[path] = self.entry_json(path, entry, repo, sha)
        if prefix and not rows:
            raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
        start, size = int(self.query.get("cursor", 0)), self.hub.page_size
        headers = {"X-Repo-Commit": sha}
        if len(rows) > start + size:
            query = "&".join(f"{key}={quote(value)}" for key, value in self.query.items() if key != "cursor")
            page = f"{self.hub.endpoint}{urlsplit(self.path).path}?{query}&cursor={start + size}"
            headers["Link"] = f'<{page}>; rel="next"'
        self.reply([rows[path] for path in sorted(rows)][start : start + size], headers=headers)

    def paths_info(self, repo: dict[str, Any], revision: str) -> None:
        sha = self.hub.store.resolve(repo, revision)
        tree = repo["commits"][sha]["tree"]
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = self.json()["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        rows = []
        for path in (path.strip("/") for path in paths):
            if path in tree:
                rows.append(self.entry_json(path, tree[path], repo, sha))
            elif any(name.startswith(f"{path}/") for name in tree):
                rows.append({"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())})
        self.reply(rows)

    def download(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self.repo(kind, name)
        sha = self.hub.store.resolve(repo, revision)
        entry = repo["commits"][sha]["tree"].get(path)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if entry is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.reply(b"Entry not found", 404, {**headers, **missing})
            return
        headers["ETag"] = f'"{entry["sha256"] if entry["lfs"] else entry["oid"]}"'
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
        if xet_hash := self.hub.xet_hash(entry["sha256"]):
            token_route = f"{self.hub.endpoint}/api/{kind}s/{name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": token_route}
        if self.command == "HEAD" and entry["lfs"]:  # the headers tell the size; a file in the xet folder has no blob
            self.reply(b"", 200, headers)
            return
        data, status = self.hub.store.blob(entry["sha256"]).read_bytes(), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.command == "GET":
            start, stop = int(asked.group(1)), int(asked.group(2) or len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            data, status = data[start:stop], 206
        self.reply(data, status, headers)

    # Writing

    def preupload(self, repo: dict[str, Any], revision: str) -> None:
        sha = self.hub.store.resolve(repo, revision)
        tree, given = repo["commits"][sha]["tree"], self.json()
        ignored = [line for line in (given.get("gitIgnore") or "").splitlines() if line and line[0] != "#"]
        files = []
        for file in given["files"]:
            path, entry = file["path"], tree.get(file["path"])
            binary = b"\0" in base64.b64decode(file.get("sample") or "")
            lfs = file["size"] and (binary or Path(path).suffix.lower() in LFS_SUFFIXES)
            known = entry and (entry["sha256"] if entry["lfs"] else entry["oid"])  # what the client compares with
            skip = any(fnmatch.fnmatch(path, pattern) for pattern in ignored)
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": skip, "oid": known})
        self.reply({"files": files, "commitOid": sha})

    def commit(self, repo: dict[str, Any]) -> None:
        store, header, changes = self.hub.store, {}, {}
        for line in filter(bytes.strip, self.body.splitlines()):
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                changes[value["path"]] = store.entry(store.put(base64.b64decode(value["content"])), False)
            elif key == "lfsFile":
                changes[value["path"]] = store.entry(value["oid"], True)
            elif key == "deletedFile":
                changes[value["path"]] = None
            elif key == "deletedFolder":
                changes[value["path"].rstrip("/") + "/"] = None
        sha = store.commit(repo, header, changes)
        prefix = "" if repo["kind"] == "model" else f"{repo['kind']}s/"
        url = f"{self.hub.endpoint}/{prefix}{repo['id']}/commit/{sha}"
        self.reply({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def lfs_batch(self, kind: str, name: str) -> None:
        given = self.json()
        self.repo(kind, name, write=given.get("operation") == "upload")
        objects = []
        for wanted in given["objects"]:
            row: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.hub.store.blob(wanted["oid"]).exists():
                href = f"{self.hub.endpoint}/_lfs/{wanted['oid']}"
                row["actions"] = {"upload": {"href": href}, "verify": {"href": href}}
            objects.append(row)
        self.reply({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_object(self, oid: str) -> None:
        if self.command == "PUT" and self.hub.store.put(self.body) != oid:
            raise HubError(400, "sha256 mismatch")
        if not self.hub.store.blob(oid).exists():
            raise HubError(404, "object does not exist")
        self.reply({})


class MiniHub:
    """The server, as a context manager. `log` holds the requests, `faults` makes some of them fail.

    Args:
        xet: large files travel through hf_xet, as on the Hub; else through LFS. xet takes one client process at a time.
        page_size: entries per page of a folder listing.
    """

    def __init__(self, xet: bool = False, page_size: int = 1000):
        self.orgs = ("org",)
        self.page_size = page_size
        self.log: list[str] = []
        self.faults: list[tuple[str, str, int]] = []  # (method, pattern of the path, status)
        self.root = Path(tempfile.mkdtemp(prefix="minihub"))
        self.store = Store(self.root, xet)
        handler = type("HubHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def client_env(self, home: Path) -> dict[str, str]:
        """Environment for a client process that talks to this server only; `home` is its cache."""
        settings = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
        switches = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "0" if self.store.xet else "1"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        return {**inherited, **settings, **switches, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def files(self, name: str, kind: str = "model") -> list[str]:
        """Paths in the newest commit of a repository."""
        repo = self.store.get(kind, name)
        return sorted(repo["commits"][repo["head"]]["tree"])

    def entry(self, name: str, path: str, kind: str = "model") -> dict[str, Any]:
        """What the newest commit holds at a path: `size`, `sha256`, ..."""
        repo = self.store.get(kind, name)
        return repo["commits"][repo["head"]]["tree"][path]

    def read(self, name: str, path: str, kind: str = "model") -> bytes:
        """A file that did not travel through xet."""
        return self.store.blob(self.entry(name, path, kind)["sha256"]).read_bytes()

    def xet_hash(self, sha256: str) -> str | None:
        files = self.store.xet.files if self.store.xet else {}
        return files[sha256][0] if sha256 in files else None

    def raise_fault(self, method: str, path: str) -> None:
        for wanted, pattern, status in self.faults:
            if wanted == method and re.search(pattern, path):
                raise HubError(status, "a fault that the test asked for")

    def __enter__(self) -> MiniHub:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.root, ignore_errors=True)
