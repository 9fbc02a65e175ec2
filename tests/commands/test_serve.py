"""``deephash serve``: its answers, the requests that it refuses, and the page in a browser."""

import asyncio
import base64
import contextlib
import errno
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from synthetic import write_run

from deephash_cli.commands import serve
from deephash_cli.commands.serve.app import create_app
from deephash_cli.commands.serve.connections import Limits
from deephash_cli.commands.serve.guard import Guard
from deephash_cli.commands.serve.server import make_server
from deephash_cli.errors import ArtifactError
from deephash_cli.inference.searcher import Hit, Searcher

NASTY = "<img src=x onerror=alert(1)>"
HERE = "http://127.0.0.1:8000"
MAX_BYTES = 100_000


class Fake(Searcher):
    """Forty images; the first are nearest to any query. Number 3 has no picture, number 2 has markup as its name."""

    def __init__(self, shortlist=None):
        self.shortlist = shortlist
        self.bits, self.n, self.title, self.class_names = 12, 40, "DPSH & co, 12 bits, toys", ["bag", "boot"]
        self.encoder = SimpleNamespace(takes="images")
        self.database = SimpleNamespace(ids=[f"bag/{i}" if i != 2 else NASTY for i in range(self.n)])
        self.inside = self.most_inside = 0
        self.sizes = []

    def find(self, image, k):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.sizes.append(image.size)
        time.sleep(0.01)
        self.inside -= 1
        scores = [None if self.shortlist is None else 7.65432 - i for i in range(k)]
        return [Hit(self.database.ids[i], i, i // 4, ["bag" if i % 3 else "boot"], None, scores[i]) for i in range(k)]

    def picture(self, id):  # noqa: A002
        position = self.database.ids.index(id)
        return None if position == 3 else Image.new("RGB", (28, 28) if position else (900, 300), (6 * position, 90, 9))


@pytest.fixture
def searcher():
    return Fake()


@pytest.fixture
def client(searcher):
    app = create_app(searcher, 10, Limits(MAX_BYTES))
    return TestClient(app, base_url=HERE, raise_server_exceptions=False)


def encoded(kind="PNG", size=(30, 20), **options):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 40, 40)).save(file, kind, **options)
    return file.getvalue()


def ask(client, content, name="photo.jpg", headers=None, **form):
    return client.post("/api/search", files={"image": (name, content)}, data=form, headers=headers)


def sentence(response, status):
    """Return the error of an answer; check that it is JSON with one sentence, with the headers of every answer."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "\n" not in response.json()["error"]
    assert str(Path.cwd().anchor) + "tmp" not in response.json()["error"]
    return response.json()["error"]


# Answers


def test_the_nearest_images_of_an_upload(client):
    response = ask(client, encoded(), k=4)
    assert response.status_code == 200
    assert response.json() == {
        "query": {"width": 30, "height": 20},
        "bits": 12,
        "database": 40,
        "shortlist": None,
        "results": [
            {
                "id": NASTY if i == 2 else f"bag/{i}",
                "distance": 0,
                "score": None,
                "labels": ["bag" if i % 3 else "boot"],
                "position": i,
                "image": f"/api/image/{i}",
            }
            for i in range(4)
        ],
    }


def test_rescored_answers_have_scores_and_no_more_than_the_shortlist():
    client = TestClient(create_app(Fake(shortlist=20), 10, Limits(MAX_BYTES)), base_url=HERE)
    answer = ask(client, encoded(), k=20).json()
    assert answer["shortlist"] == client.get("/api/info").json()["shortlist"] == 20
    assert [hit["score"] for hit in answer["results"]] == [7.65432 - i for i in range(20)]
    assert sentence(ask(client, encoded(), k=21), 422) == "k must be a whole number, at most 20, got '21'"


def test_without_k_there_are_as_many_as_the_command_says(client):
    assert len(ask(client, encoded()).json()["results"]) == 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF", "TIFF"])
def test_every_format_is_read_whatever_its_name(client, kind):
    assert ask(client, encoded(kind), name="photo.txt").status_code == 200


def test_an_image_is_turned_upright(client, searcher):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert ask(client, encoded("JPEG", exif=exif)).json()["query"] == {"width": 20, "height": 30}
    assert searcher.sizes == [(20, 30)]


def test_one_search_at_a_time_however_many_ask(client, searcher):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(client, encoded()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 8
    assert searcher.most_inside == 1


def test_pictures_are_small_and_those_of_few_pixels_exact(client, searcher):
    first = client.get("/api/image/0")
    assert first.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(first.content)).size == (256, 85)
    picture = Image.open(io.BytesIO(client.get("/api/image/5").content)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(searcher.picture("bag/5")))


def test_info(client):
    told = client.get("/api/info").json()
    assert (told["title"], told["bits"], told["database"], told["classes"]) == (
        "DPSH & co, 12 bits, toys", 12, 40, ["bag", "boot"],
    )  # fmt: skip
    assert (told["k"], told["max_k"], told["max_bytes"]) == (10, 40, MAX_BYTES)


def test_the_description_has_every_path_and_what_it_answers(client):
    spec = client.get("/openapi.json").json()
    assert set(spec["paths"]) == {"/api/search", "/api/image/{position}", "/api/info"}
    form = spec["components"]["schemas"]["Body_search_api_search_post"]["properties"]
    assert set(form) == {"image", "k"}
    assert (form["k"]["minimum"], form["k"]["maximum"], form["k"]["default"]) == (1, 40, 10)
    for path in spec["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                schema = response.get("content", {}).get("application/json", {}).get("schema", {})
                assert status == "200" or schema["$ref"].endswith("/Error")
    page = client.get("/docs").text
    for path in spec["paths"]:
        assert path in page
    assert f"curl -F image=@photo.jpg -F k=10 {HERE}/api/search" in page


@pytest.mark.parametrize("address", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(client, address):
    response = client.get(address)
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert "access-control-allow-origin" not in response.headers
    linked = re.findall(r'(?:src|href)="([^"]*)"', response.text)
    assert linked
    for link in linked:
        assert link == "data:," or link.startswith("#") or client.get(f"/{link}").status_code == 200, link
    assert "DPSH &amp; co" in response.text


# Refusals


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"just some words\n", "none of JPEG, PNG, WEBP, BMP, GIF, AVIF, TIFF, whatever its name says"),
        (b"<!DOCTYPE html><html><body>hello</body></html>", "none of JPEG, PNG, WEBP, BMP, GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of JPEG, PNG, WEBP, BMP, GIF"),
        (encoded("JPEG", (300, 300))[:700], "truncated"),
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be read"),
        # A header that announces more pixels than fit into any memory.
        (encoded("GIF").replace(bytes([30, 0, 20, 0]), bytes([255] * 4), 1), "pixels"),
    ],
)
def test_what_is_no_image_is_refused(client, searcher, content, says):
    assert says in sentence(ask(client, content), 415)
    assert searcher.sizes == []


def test_a_file_that_is_too_large_is_refused_by_its_length(client):
    told = sentence(ask(client, bytes(MAX_BYTES + 1)), 413)
    assert told.startswith("an upload may have 100,000 bytes, this one has more; ")
    assert "max_bytes=" in told


def test_a_file_of_untold_length_is_refused_once_it_is_too_large(client):
    """The upload arrives in chunks; those beyond the limit are not read."""
    taken = 0

    def chunks():
        nonlocal taken
        yield b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        for _ in range(100):
            taken += 10_000
            yield bytes(10_000)
        yield b"\r\n--edge--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    response = client.post("/api/search", content=chunks(), headers=headers)
    assert sentence(response, 413).startswith("an upload may have 100,000 bytes")


@pytest.mark.parametrize(
    ("k", "says"),
    [
        (0, "k must be a whole number, at least 1, got '0'"),
        (41, "k must be a whole number, at most 40, got '41'"),
        ("ten", "k must be a whole number, got 'ten'"),
        ("9" * 5000, f"k must be a whole number, got '{'9' * 40}'"),
    ],
)
def test_k_out_of_range(client, k, says):
    assert sentence(ask(client, encoded(), k=k), 422) == says


def test_forms_that_are_none(client):
    for form in ({"data": {"k": 3}}, {"json": {"image": "x"}}, {"content": b"x"}):
        assert "curl -F image=@photo.jpg" in sentence(client.post("/api/search", **form), 422)
    broken = client.post("/api/search", content=b"--x", headers={"Content-Type": "multipart/form-data"})
    assert "boundary" in sentence(broken, 400)


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("/api/image/3", 404, "the picture of image 3 is not available; only its code is"),
        ("/api/image/40", 422, "position must be a whole number, at most 39, got '40'"),
        ("/api/image/-1", 422, "position must be a whole number, at least 0, got '-1'"),
        ("/api/image/bag%2F0", 404, "there is nothing at this address; /docs lists what there is"),
        ("/api/image/..%2f..%2fetc%2fpasswd", 404, "there is nothing at this address; /docs lists what there is"),
        ("/page.html", 404, "there is nothing at this address; /docs lists what there is"),
        ("/api/search", 405, "GET cannot be used at this address; /docs lists what can"),
    ],
)
def test_addresses_that_have_nothing(client, address, status, says):
    assert sentence(client.get(address), status) == says


@pytest.mark.parametrize("error", [ArtifactError("/tmp/secret.npy is damaged"), RuntimeError("/tmp/secret.npy")])
def test_what_only_this_machine_may_know_is_not_sent(client, searcher, monkeypatch, error, capsys):
    def broken(*_):
        raise error

    monkeypatch.setattr(searcher, "find", broken)
    response = ask(client, encoded())
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "terminal" in response.json()["error"]
    assert ("secret" in capsys.readouterr().err) == isinstance(error, ArtifactError)  # uvicorn prints the other


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:9", "127.0.0.1:65535"])
def test_names_of_this_machine(client, host):
    assert client.get("/api/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", "0.0.0.0", "", "localhost@evil"],
)
def test_another_name_is_refused(client, searcher, host):
    """Otherwise another site could make its name resolve to this machine's address, and read the answers."""
    assert "answers only to localhost and 127.0.0.1" in sentence(client.get("/api/info", headers={"Host": host}), 400)
    sentence(ask(client, encoded(), headers={"Host": host}), 400)
    assert searcher.sizes == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "https://127.0.0.1:8000"},
        {"Origin": HERE, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_elsewhere_cannot_search(client, searcher, headers):
    assert "another web site" in sentence(ask(client, encoded(), headers=headers), 403)
    assert searcher.sizes == []


def test_the_own_page_and_programs_can(client):
    for headers in ({}, {"Origin": HERE}, {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}):
        assert ask(client, encoded(), headers=headers).status_code == 200


def test_an_upload_that_the_disk_has_no_room_for(client, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", full)
    assert sentence(ask(client, encoded()), 507) == "the server has no room for this upload; its terminal says where"
    assert "an upload could not be stored in" in capsys.readouterr().err


def test_requests_that_wait_when_the_server_stops_are_not_done(client, searcher):
    client.app.state.is_stopping = True
    assert "the server is stopping" in sentence(ask(client, encoded()), 503)
    assert "the server is stopping" in sentence(client.get("/api/image/0"), 503)
    assert searcher.sizes == []


def test_uploads_that_wait_are_limited():
    """Eight of the largest size may wait at the same time; when they are done, there is room again."""
    go_on = asyncio.Event()

    async def waiting(scope, receive, send):
        await receive()
        await go_on.wait()

    guard = Guard(waiting, max_bytes=1000, body_seconds=60)

    async def upload():
        async def receive():
            return {"type": "http.request", "body": bytes(1000), "more_body": False}

        async def send(_):
            raise AssertionError("the application answers nothing")

        scope = {"type": "http", "method": "POST", "headers": [(b"host", b"localhost")]}
        await guard(scope, receive, send)

    async def all_of_them():
        first = [asyncio.create_task(upload()) for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="too many large uploads are waiting") as refused:
            await upload()
        assert refused.value.status_code == 503
        go_on.set()
        await asyncio.gather(*first)
        await upload()

    asyncio.run(all_of_them())


# Clients that take their time

SHORT = Limits(MAX_BYTES, header_seconds=0.4, body_seconds=0.4, linger_seconds=0.4, connections=5)
HEAD = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
PART = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'


@contextlib.contextmanager
def serving(searcher, limits):
    """Run a server on a thread. Yields its port."""
    with serve.listen(0) as listening:
        server = make_server(create_app(searcher, 10, limits), limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def port(searcher):
    with serving(searcher, SHORT) as number:
        yield number


def connected(port, sent):
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(sent)
    return client


def everything(client):
    """Read until the server ends the connection."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            got += part
    return got


SECOND_HEAD = b"GET /api/info HTTP/1.1\r\nHost: localhost\r\n\r\nGET /api/in"


@pytest.mark.parametrize("sent", [HEAD, *(pytest.param(sent, marks=pytest.mark.slow) for sent in (b"", SECOND_HEAD))])
def test_a_head_that_does_not_come_to_an_end(port, sent):
    begun = time.monotonic()
    clients = [connected(port, sent) for _ in range(3)]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/info", timeout=20) as answer:
        assert answer.status == 200
    for client in clients:
        assert everything(client).count(b"HTTP/1.1 200") == sent.count(b"GET /api/info ")
        client.close()
    assert time.monotonic() - begun < 15


def test_a_body_that_does_not_come_to_an_end(port, searcher):
    with connected(port, HEAD + b"Content-Length: 5000\r\n\r\n" + PART) as client:
        answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"a request must arrive within 0.4 seconds, and this one has not" in answer
    assert searcher.sizes == []


def test_an_upload_without_an_end_is_cut(port):
    chunk = b"%x\r\n" % 50_000 + bytes(50_000) + b"\r\n"
    first = b"%x\r\n" % len(PART) + PART + b"\r\n"
    with connected(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + first) as client:
        sent = 0
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while sent < 500_000_000:
                client.sendall(chunk)
                sent += 50_000
    assert sent < 50_000_000  # what the buffers of the system hold, far more than the 100,000 bytes that are read


def test_a_refused_upload_of_known_length_gets_its_answer(port):
    """Although the client reads nothing before it has sent everything."""
    content = bytes(2 * MAX_BYTES)
    for header in (b"", b"Connection: close\r\n"):
        head = HEAD + header + b"Content-Length: %d\r\n\r\n" % len(content)
        with connected(port, head) as client:
            time.sleep(0.1)
            client.sendall(content)
            assert b"an upload may have 100,000 bytes" in everything(client)


def test_many_connections_do_not_keep_others_out(port):
    clients = [connected(port, HEAD) for _ in range(20)]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/info", timeout=20) as answer:
        assert answer.status == 200
    for client in clients:
        client.close()


def test_it_stops_at_once_whatever_its_clients_do(searcher, capfd):
    begun = time.monotonic()
    with serving(searcher, Limits(MAX_BYTES)) as port:
        clients = [connected(port, sent) for sent in (b"", HEAD, HEAD + b"Content-Length: 5000\r\n\r\n" + PART) * 5]
        time.sleep(0.3)
    assert time.monotonic() - begun < 10
    assert capfd.readouterr() == ("", "")
    for client in clients:
        assert everything(client) == b""
        client.close()


# The verb


def test_it_listens_on_this_machine_only():
    with serve.listen(0) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with pytest.raises(Exception, match=f"port {port}: another program is using it; choose another such as port="):
            serve.listen(port)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "there is no finished run under runs here: give run=<run folder>"),
        (("run=x",), 4, "x is not a run folder"),
        (("run=x", "port=65536"), 2, "port must be a whole number, from 0 to 65535, got 65536"),
        (("run=x", "port=http"), 2, "port must be a whole number"),
        (("run=x", "rescore=asymmetric", "shortlist=9"), 2, "shortlist must be at least k, got shortlist=9 and k=10"),
        (("run=x", "k=0"), 2, "k must be a whole number, at least 1, got 0"),
        (("run=x", "max_bytes=0"), 2, "max_bytes must be a whole number, at least 1, got 0"),
        (("run=x", "host=0.0.0.0"), 2, "unknown key 'host'"),
    ],
)
def test_settings_that_cannot_work(deephash, arguments, code, says):
    result = deephash("serve", *arguments)
    assert result.code == code, result
    assert says in result.err
    assert result.err.count("\n") == 1


def test_without_its_packages_it_says_what_to_install(deephash, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else name)
    write_run("runs/one")
    assert deephash("serve").err == "error: deephash serve needs uvicorn: pip install 'deephash[serve]'\n"


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"encoder": SimpleNamespace(takes="vectors")}, 2, "runs/one hashes vectors, but the page takes images: give "),
        ({"n": 0}, 4, "there is nothing to search: runs/one has no codes of images"),
    ],
)
def test_what_cannot_be_searched(deephash, monkeypatch, searcher, change, code, says):
    write_run("runs/one")
    vars(searcher).update(change)
    monkeypatch.setattr("deephash_cli.inference.searcher.open_searcher", lambda *_, **__: searcher)
    result = deephash("serve", "port=0")
    assert (result.code, result.err.count("\n")) == (code, 1)
    assert result.err.startswith(f"error: {says}")


RUN = """
import sys
sys.path[:0] = {tests!r}
import test_serve
from deephash_cli.cli import main as cli
from deephash_cli.inference import searcher
searcher.open_searcher = lambda *_, **__: test_serve.Fake()
sys.argv = ["deephash", "serve", "port=0"]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_answers_until_it_is_stopped(number, code):
    write_run("runs/one")
    command = [sys.executable, "-c", RUN.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "loading runs/one ...\n"
        assert lines[1] == "DPSH & co, 12 bits, toys, 40 images\n"
        address = re.search(r"http://127\.0\.0\.1:\d+", lines[2])
        assert address, lines
        with urllib.request.urlopen(f"{address[0]}/api/info", timeout=30) as answer:
            assert answer.status == 200
            assert "server" not in answer.headers
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (code, "", "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process in /proc")
def test_large_images_take_the_memory_of_one_and_give_it_back():
    """Ten parallel images of 81 megapixels: one decoded image of four bytes a pixel, and some of its rows twice."""
    write_run("runs/one")
    command = [sys.executable, "-c", RUN.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def megabytes(name):
        return int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1000

    def search():
        body = PART + content + b"\r\n--edge--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
        request = urllib.request.Request(f"{address[0]}/api/search", body, headers)
        with urllib.request.urlopen(request, timeout=200) as answer:
            answers.append(answer.status)

    try:
        assert process.stdout
        address = re.search(r"http://127\.0\.0\.1:\d+", [process.stdout.readline() for _ in range(3)][2])
        assert address
        answers, content = [], encoded(size=(30, 30))
        search()
        before = megabytes("VmRSS")
        content = encoded(size=(9000, 9000))
        threads = [threading.Thread(target=search) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 11
        assert megabytes("VmHWM") < before + 500
        assert megabytes("VmRSS") < before + 100
    finally:
        process.kill()
        process.communicate(timeout=60)


# In a browser


@pytest.fixture
def address(searcher):
    with serving(searcher, Limits(MAX_BYTES)) as port:
        yield f"http://127.0.0.1:{port}/"


def drop(page, content, kind="drop"):
    """Drop a file on the page or paste it."""
    text = base64.b64encode(content).decode()
    events = {
        "drop": "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})",
        "paste": "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})",
    }
    page.evaluate(f"""(() => {{
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob("{text}"), (letter) => letter.charCodeAt(0));
        data.items.add(new File([bytes], "photo.png", {{type: "image/png"}}));
        document.body.dispatchEvent({events[kind]});
    }})()""")


FOUND = "document.querySelectorAll('#results li').length"


def test_an_image_in_a_browser(page, address, tmp_path):
    page.open(address)
    assert page.evaluate("document.title") == "DPSH & co, 12 bits, toys: 40 images"
    drop(page, encoded())
    page.until(f"{FOUND} === 10")
    page.until("[...document.images].every(image => image.complete)")
    assert page.evaluate("document.querySelector('#status').textContent") == "10 of 40, nearest first."
    assert page.evaluate("document.querySelector('#about').textContent") == "photo.png, 30 x 20 pixels"
    assert page.evaluate("document.querySelector('#classes').innerText").split() == ["bag", "6", "boot", "4"]
    assert page.evaluate("[...document.querySelectorAll('.id')].map(id => id.textContent)") == [
        NASTY if i == 2 else f"bag/{i}" for i in range(10)
    ]
    assert page.evaluate("[...document.querySelectorAll('.distance b')].map(b => Number(b.textContent))") == [
        i // 4 for i in range(10)
    ]
    assert page.evaluate("document.querySelectorAll('.frame')[3].textContent") == "no picture on this machine"
    assert page.evaluate("document.querySelectorAll('.frame img.small').length") == 8  # not the first, which is large
    # Another number of results; another way to give an image; a file chosen in the dialog.
    page.evaluate(
        "(() => { const k = document.querySelector('#k'); k.value = '20'; k.dispatchEvent(new Event('change')) })()"
    )
    page.until(f"{FOUND} === 20")
    page.evaluate("document.querySelector('#k').value = '5'")
    drop(page, encoded(), "paste")
    page.until(f"{FOUND} === 5")
    chosen = tmp_path / "chosen.jpg"
    chosen.write_bytes(encoded("JPEG", (40, 50)))
    page.choose("#file", chosen)
    page.until("document.querySelector('#about').textContent === 'chosen.jpg, 40 x 50 pixels'")
    # The only error message is about the missing picture.
    assert set(page.problems) == {"Failed to load resource: the server responded with a status of 404 (Not Found)"}
    assert all(asked.startswith((address, f"blob:{address}", "data:,")) for asked in page.requests)


def test_scores_in_a_browser(page, searcher, address):
    searcher.shortlist = 20
    with serving(searcher, Limits(MAX_BYTES)) as port:
        page.open(f"http://127.0.0.1:{port}/")
        assert "Rescored\nthe 20 nearest" in page.evaluate("document.querySelector('.facts').innerText")
        drop(page, encoded())
        page.until(f"{FOUND} === 10")
        says = page.evaluate("document.querySelector('#status').textContent")
        assert says == "10 of 40, largest score first, among the 20 nearest."
        shown = page.evaluate(
            "[...document.querySelectorAll('#results li')[1].querySelectorAll('.distance')].map(p => p.innerText)"
        )
        assert [text.split() for text in shown] == [["6.654", "score"], ["0", "of", "12", "bits", "differ"]]


@pytest.mark.slow
def test_errors_and_sizes_in_a_browser(page, address):
    page.open(address, width=390, dark=True)
    for content, says in (
        (b"no image", "it is none of JPEG"),
        (bytes(MAX_BYTES + 1), "an upload may have 100000 bytes, this file has 100001; choose a smaller one"),
    ):
        drop(page, content)
        page.until(f"document.querySelector('#error').textContent.includes({says!r})")
        assert page.evaluate(FOUND) == 0
    assert page.evaluate("document.activeElement.tagName") == "BODY"
    for key in ("file", "k"):  # the keyboard reaches both
        page.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        assert page.evaluate("document.activeElement.id") == key
    drop(page, encoded())
    page.until(f"{FOUND} === 10")
    assert page.evaluate("document.querySelector('#error').hidden")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.open(f"{address}docs", width=390)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_a_page_elsewhere_learns_nothing_in_a_browser(page, address, searcher):
    """The same machine with another port is another origin."""
    with serving(Fake(), Limits(MAX_BYTES)) as other:
        page.open(f"http://127.0.0.1:{other}/api/info")  # no policy of its own stops this document
        for mode in ("cors", "no-cors"):
            asked = f"fetch('{address}api/search', {{method: 'POST', mode: '{mode}', body: new FormData()}})"
            page.evaluate(f"{asked}.then(answer => answer.type, () => 'refused')")
    assert searcher.sizes == []
