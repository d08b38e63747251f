"""A small Kubernetes API server: one RayCluster and its pods, over HTTPS.

It serves what Ray's autoscaler asks for and takes the JSON patches that it sends (RFC 6902, as lenient as the library
in Kubernetes: what is replaced need not be there). Invariants: a patch is applied whole or not at all, and each change
makes a new resourceVersion; who has not the client's certificate is not heard.
"""

from __future__ import annotations

import copy
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from pipeline.kubernetes_pods import Manifest

NAMESPACE = "documents"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_CLUSTERS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters"
_JSON_PATCH = "application/json-patch+json"


class Certificate(NamedTuple):
    """Of the server, and of those who may ask it."""

    chain: Path
    key: Path


class RefusedPatch(Exception):
    """A patch that does not apply."""


class KubernetesApi:
    """What is stored. ``pods``: by name; ``patches``: all that were applied. ``lock``: whoever changes it or looks
    twice has it."""

    def __init__(self, cluster: Manifest) -> None:
        self.cluster = copy.deepcopy(cluster)
        self.cluster["metadata"]["namespace"] = NAMESPACE
        self.pods: dict[str, Manifest] = {}
        self.patches: list[dict[str, Any]] = []
        self.lock = threading.RLock()
        self._version = 0
        self.changed(self.cluster)

    @property
    def name(self) -> str:
        """Of the RayCluster."""
        name: str = self.cluster["metadata"]["name"]
        return name

    def changed(self, thing: Manifest) -> None:
        """Give an object that was changed its next version."""
        self._version += 1
        thing["metadata"]["resourceVersion"] = str(self._version)

    def get(self, url: str) -> tuple[int, Manifest]:
        """Status and body."""
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        with self.lock:
            if path == f"{_CLUSTERS}/{self.name}":
                return 200, copy.deepcopy(self.cluster)
            if path == _PODS:
                return 200, self._pod_list(query["labelSelector"][0])
            pod = self.pods.get(path.removeprefix(f"{_PODS}/"))
            return (404, _status("NotFound", path)) if pod is None else (200, copy.deepcopy(pod))

    def patch(self, url: str, content_type: str, patch: Sequence[dict[str, Any]]) -> tuple[int, Manifest]:
        """Status and body."""
        with self.lock:
            if url != f"{_CLUSTERS}/{self.name}":
                return 404, _status("NotFound", url)
            if content_type != _JSON_PATCH:
                return 415, _status("UnsupportedMediaType", content_type)
            try:
                self.cluster = apply(self.cluster, patch)
            except RefusedPatch as refusal:
                return 422, _status("Invalid", str(refusal))
            self.patches += patch
            self.changed(self.cluster)
            return 200, copy.deepcopy(self.cluster)

    def _pod_list(self, selector: str) -> Manifest:
        label, _, value = selector.partition("=")
        items = [pod for pod in self.pods.values() if pod["metadata"]["labels"].get(label) == value]
        return {
            "apiVersion": "v1",
            "kind": "PodList",
            "metadata": {"resourceVersion": str(self._version)},
            "items": copy.deepcopy(items),
        }


def apply(document: Manifest, patch: Sequence[dict[str, Any]]) -> Manifest:
    """The document with all operations done: add, replace, test. Raises ``RefusedPatch``."""
    patched = copy.deepcopy(document)
    for operation in patch:
        try:
            _operate(patched, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise RefusedPatch(f"{operation}: {error!r}") from error
    return patched


def _operate(document: Any, operation: dict[str, Any]) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document[part]
    key: Any = last if isinstance(document, dict) else len(document) if last == "-" else int(last)
    match operation["op"]:
        case "test":
            if document[key] != operation["value"]:
                raise ValueError(f"it is {document[key]!r}")
        case "add" if isinstance(document, list):
            document.insert(key, operation["value"])
        case "add" | "replace":
            document[key] = operation["value"]
        case other:
            raise ValueError(f"no operation here: {other}")


def _status(reason: str, message: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "message": message}


def make_certificate(folder: Path) -> Certificate:
    """A certificate for 127.0.0.1, signed by itself."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-out", made.chain, "-keyout", made.key], check=True, capture_output=True)
    return made


@contextmanager
def serving(api: KubernetesApi, certificate: Certificate) -> Iterator[int]:
    """The port on 127.0.0.1 where ``api`` is served to those who have the certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(*api.get(self.path))

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._reply(*api.patch(self.path, self.headers["Content-Type"], body))

        def _reply(self, status: int, body: Manifest) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate.chain))
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(certificate.chain, certificate.key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
