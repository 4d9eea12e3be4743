"""Downloads from a server on this machine: by several processes at once, and by one where something goes wrong."""

import gzip
import hashlib
import json
import os
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from src.data import arrays
from src.data.arrays import DOWNLOADING
from src.system.errors import UserError
from src.system.explain import explain
from src.system.locks import turn
from tests import pools
from tests.helpers import WARM, data

SETS = {
    "mnist": ("data=mnist", "data.dataset.path=tests.pools.MNIST", "data.checksum=null"),
    "binarized_mnist": ("data=binarized_mnist", "data._target_=tests.pools.BinarizedMNIST"),
}


def published() -> dict[str, bytes]:
    """Files of both data sets, with some random images each."""
    rng, files = np.random.default_rng(0), {}
    for part in ("train", "t10k"):
        pixels = rng.integers(0, 256, (200, 28, 28), dtype=np.uint8).tobytes()
        idx = {"images-idx3": struct.pack(">4i", 2051, 200, 28, 28) + pixels}
        idx["labels-idx1"] = struct.pack(">2i", 2049, 200) + bytes(200)
        files |= {f"{part}-{kind}-ubyte.gz": gzip.compress(content) for kind, content in idx.items()}
    for part in ("train", "valid", "test"):
        lines = (" ".join(map(str, row)) for row in rng.integers(0, 2, (20, 784)))
        files[f"binarized_mnist_{part}.amat"] = "\n".join(lines).encode()
    return files


class Server(ThreadingHTTPServer):
    """Serves files slowly; ``asked`` counts how often each was asked for, ``answer`` may answer otherwise."""

    pause = 0.0  # seconds before each eighth of a file

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked = files, Counter()
        self.answer: Callable[[BaseHTTPRequestHandler, bytes], None] = slowly
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        sums |= {name: hashlib.md5(files[name]).hexdigest() for name in files if name.endswith(".gz")}
        self.env = {"MIRROR": f"http://127.0.0.1:{self.server_port}", "SUMS": json.dumps(sums)}


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.headers["Method"] == "HEAD":  # so torchvision looks whether it is redirected
            slowly(self, b"")
            return
        self.server.asked[name] += 1
        self.server.answer(self, self.server.files[name])

    def log_message(self, *_: object) -> None:
        pass


def slowly(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    for start in range(0, len(content), len(content) // 8 + 1):
        time.sleep(request.server.pause)
        request.wfile.write(content[start : start + len(content) // 8 + 1])


def half(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content[: len(content) // 2])


def page(request: BaseHTTPRequestHandler, content: bytes) -> None:
    slowly(request, b"<html>Log in to this network first")


def nothing(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.send_error(404)


def nonsense(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.wfile.write(b"220 mail.example.org\r\n\r\n")


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    with Server(published()) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        sums = json.loads(running.env["SUMS"])
        resources = tuple((name, sums[name]) for name, _ in pools.MNIST.resources)
        monkeypatch.setattr(pools.MNIST, "mirrors", (f"{running.env['MIRROR']}/",))
        monkeypatch.setattr(pools.MNIST, "resources", resources)
        parts = {part: sums[f"binarized_mnist_{part}.amat"] for part in pools.BinarizedMNIST.SHA256}
        monkeypatch.setattr(pools.BinarizedMNIST, "URL", running.env["MIRROR"])
        monkeypatch.setattr(pools.BinarizedMNIST, "SHA256", parts)
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "locks"), [("mnist", True), ("binarized_mnist", True), ("binarized_mnist", False)])
def test_processes_that_start_together_download_once(name, locks, server, tmp_path):
    """The first sweep on a new machine. Without locks several may download, and none loses anything by it."""
    server.pause = 0.1 if locks else 0.03
    words = (*SETS[name], f"data.root={tmp_path}/data")
    env = {**os.environ, **server.env} if locks else {**os.environ, **server.env, "NO_LOCKS": "1"}
    if name == "binarized_mnist" and locks:  # by a process that was killed
        (tmp_path / "data" / "binarized_mnist").mkdir(parents=True)
        (tmp_path / "data" / "binarized_mnist" / ".binarized_mnist_train.amat-killed.part").write_text("0 1")
    with tempfile.TemporaryFile("w+") as output:
        started = [WARM.start("tests.pools", words, env, output) for _ in range(3)]
        ended = [process.wait(120) for process in started]
        output.seek(0)
        said = output.read()
    assert ended == [0, 0, 0], said
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    assert set(server.asked) == {file for file in server.files if ("amat" in file) == (name == "binarized_mnist")}
    if locks:
        assert set(server.asked.values()) == {1}
        assert f"{name}: waiting for another process, which downloads into {tmp_path}/data" in said
    assert not list(tmp_path.rglob(".*"))


def silent(request: BaseHTTPRequestHandler, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    time.sleep(1)


@pytest.mark.parametrize("name", SETS)
def test_a_server_that_falls_silent_is_left(name, server, tmp_path, monkeypatch):
    """torchvision would wait for ever, and so would all who wait for its lock."""
    monkeypatch.setattr(arrays, "STALLED", 0.2)
    server.answer = silent
    with pytest.raises(UserError, match="could not be downloaded .*timed out"):
        _ = data(*SETS[name], f"data.root={tmp_path}").pool
    assert socket.getdefaulttimeout() is None
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("answer", [half, page, nothing, nonsense])
@pytest.mark.parametrize("name", SETS)
def test_whatever_a_server_answers_is_one_line_and_no_part_of_a_file_is_taken(name, answer, server, tmp_path):
    words = (*SETS[name], f"data.root={tmp_path}")
    server.answer = answer
    for _ in range(2):
        with pytest.raises(UserError, match=rf"^{name}( is not|: what .* sends is not the published).* Put ") as caught:
            _ = data(*words).pool
        assert "\n" not in explain(caught.value)
    assert not list(tmp_path.rglob("*.amat")) + list(tmp_path.rglob("*-ubyte")) + list(tmp_path.rglob(".*"))
    server.answer = slowly
    assert len(data(*words).pool) in (400, 60)


def test_a_download_in_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for words in SETS.values():
        with pytest.raises(UserError, match=r"could not be downloaded \(.*Not a directory.*Put "):
            _ = data(*words, f"data.root={tmp_path}/file/data").pool


def test_data_that_may_only_be_read_or_while_others_download_are_read(server):
    with tempfile.TemporaryDirectory() as name:  # pytest's own may be entered by nobody else
        root = Path(name, "data")
        words = [(*some, f"data.root={root}") for some in SETS.values()]
        images = [len(data(*some).pool) for some in words]
        with turn(root, DOWNLOADING):
            assert [len(data(*some).pool) for some in words] == images
        for folder in (root.parent, root, *root.rglob("*/")):
            folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:  # whom permissions do not stop
            os.seteuid(65534)
        try:
            assert [len(data(*some).pool) for some in words] == images
            (damaged,) = (tuple(word.replace(f"={root}", f"={root}/MNIST") for word in some) for some in words[:1])
            with pytest.raises(UserError, match="could not be downloaded .*Permission denied"):
                _ = data(*damaged).pool
        finally:
            os.seteuid(user)
            for folder in (root.parent, root, *root.rglob("*/")):
                folder.chmod(0o755)
        assert not list(root.rglob(".*"))
