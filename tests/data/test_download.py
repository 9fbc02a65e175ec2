"""Downloads from a server on loopback that cuts connections, changes files, and knows no ranges."""

import hashlib
import http.server
import random
import threading
import time

import pytest
from test_archives import tar_of, zip_of

from deephash_cli.data import cifar10, cifar100, food101, voc2012
from deephash_cli.data import download as download_module
from deephash_cli.data.download import Archive, download, fetch_archives
from deephash_cli.errors import DataError
from deephash_cli.files import lock, read_sealed

CONTENT = random.Random(0).randbytes(3 * 2**20 + 5)  # the same in every process that collects tests
MD5 = hashlib.md5(CONTENT).hexdigest()
LIMIT = 2**23


class Server(http.server.ThreadingHTTPServer):
    """What it sends, and how."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/file": CONTENT}
        self.etag = '"one"'
        self.ranges = True
        self.length = True
        self.cuts = []  # bytes after which each of the next answers ends; None for no end
        self.asked = []  # of each request the header Range

    def handle_error(self, request, client_address):
        """Say nothing: a client may leave before it has read everything."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers["Range"])
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if server.ranges and (asked := self.headers["Range"]):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and self.headers["If-Range"] not in (None, server.etag):
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(content[start:] if end is None else content[start : start + end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download_module, "_PAUSE_S", 0.001)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join(timeout=10)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(*arguments, match):
    with pytest.raises(DataError, match=match) as caught:
        download(*arguments)
    assert "\n" not in str(caught.value)


def test_a_file_is_downloaded_once_and_recorded(server, tmp_path):
    target = tmp_path / "new" / "file"
    download(server.url, target, MD5, LIMIT, len(CONTENT))
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == ["file", "file.json"]
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    record = {"url": server.url, "bytes": len(CONTENT), "md5": MD5, "sha256": sha256}
    assert read_sealed(target.parent / "file.json") == record
    download(server.url, target, MD5, LIMIT, len(CONTENT))
    assert server.asked == [None]
    target.write_bytes(CONTENT[:-1])  # damaged: downloaded again
    download(server.url, target, None, LIMIT)
    assert target.read_bytes() == CONTENT


def test_a_cut_connection_is_continued_at_once(server, tmp_path):
    server.cuts = [2**20, 2**19]
    download(server.url, tmp_path / "file", MD5, LIMIT)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={2**20}-", f"bytes={2**20 + 2**19}-"]


def test_a_later_call_continues(server, tmp_path):
    server.cuts = [2**20, 0, 0, 0, 0]
    refused(
        server.url, tmp_path / "file", MD5, LIMIT, match=r"\(the connection was cut\); 1\.0 MB are kept, and the same"
    )
    assert names(tmp_path) == ["file.part", "file.part.json"]
    server.asked.clear()
    download(server.url, tmp_path / "file", MD5, LIMIT)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [f"bytes={2**20}-"]
    assert names(tmp_path) == ["file", "file.json"]


def begin(server, target):
    """Leave a part of the file."""
    server.cuts = [2**20, 0, 0, 0, 0]
    with pytest.raises(DataError):
        download(server.url, target, None, LIMIT)
    assert (target.with_name("file.part")).stat().st_size == 2**20
    server.asked.clear()


OTHER = CONTENT[::-1]


@pytest.mark.parametrize("etag", ['"two"', 'W/"two"', None])
def test_a_file_that_changed_starts_anew(server, tmp_path, etag):
    if etag is None:
        server.etag = None
    elif etag.startswith("W/"):
        server.etag = 'W/"one"'
    begin(server, tmp_path / "file")
    server.etag, server.files["/file"] = etag, OTHER + b"longer"
    download(server.url, tmp_path / "file", None, LIMIT)
    assert (tmp_path / "file").read_bytes() == OTHER + b"longer"
    assert server.asked[0] == f"bytes={2**20}-"


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges = False
    server.cuts = [2**20]
    download(server.url, tmp_path / "file", MD5, LIMIT)
    assert (tmp_path / "file").read_bytes() == CONTENT
    server.cuts = [2**20] * 10
    refused(server.url, tmp_path / "again" / "file", MD5, LIMIT, match="the connection was cut")  # and not for ever


def test_a_file_that_became_shorter_than_the_part(server, tmp_path):
    begin(server, tmp_path / "file")
    server.files["/file"] = b"abc"
    download(server.url, tmp_path / "file", None, LIMIT)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_a_part_of_unknown_origin_is_not_continued(server, tmp_path):
    begin(server, tmp_path / "file")
    (tmp_path / "file.part.json").write_text("{}")
    download(server.url, tmp_path / "file", MD5, LIMIT)
    assert server.asked == [None]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_part_needs_no_server(server, tmp_path):
    begin(server, tmp_path / "file")
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "file", MD5, LIMIT)
    assert server.asked == []
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_damaged_part_is_noticed(server, tmp_path):
    begin(server, tmp_path / "file")
    (tmp_path / "file.part").write_bytes(b"\0" * 2**20)
    refused(server.url, tmp_path / "file", MD5, LIMIT, match="replaced or damaged on its way; nothing was kept")
    assert names(tmp_path) == []


def test_no_length_given(server, tmp_path):
    server.length = False
    download(server.url, tmp_path / "file", MD5, LIMIT)
    assert (tmp_path / "file").read_bytes() == CONTENT
    refused(server.url, tmp_path / "b", None, 10, match="sent more than the 10 bytes expected; nothing was kept")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("0" * 32, LIMIT), f"sent {len(CONTENT)} bytes with MD5 {MD5}, but 0{{32}} was expected"),
    ((MD5, LIMIT, 7), f"offers {len(CONTENT)} bytes, but 7 were expected: the file was replaced; nothing was kept"),
    ((MD5, 10), f"offers {len(CONTENT)} bytes, more than the 10 accepted; nothing was kept"),
])  # fmt: skip
def test_another_file_than_the_expected_one(server, tmp_path, arguments, sentence):
    refused(server.url, tmp_path / "file", *arguments, match=sentence)
    assert names(tmp_path) == []


def test_no_server_and_no_file(server, tmp_path):
    target = tmp_path / "file"
    refused(
        f"{server.url}x", target, MD5, LIMIT, match="could not download .*404.*; fetch it on a machine with network"
    )
    begun = time.monotonic()
    refused("http://127.0.0.1:9/", target, MD5, LIMIT, match=rf"Connection refused.* put it into {tmp_path}$")
    assert time.monotonic() - begun < 5
    assert names(tmp_path) == []


def test_the_digest_of_the_first_download_is_compared(server, tmp_path):
    target = tmp_path / "file"
    download(server.url, target, None, LIMIT)
    target.unlink()
    download(server.url, target, None, LIMIT)
    target.unlink()
    server.etag, server.files["/file"] = '"two"', OTHER
    refused(server.url, target, None, LIMIT, match=r"sent another file than before: .*file\.json, which you may delete")
    (tmp_path / "file.json").unlink()
    download(server.url, target, None, LIMIT)
    assert target.read_bytes() == OTHER
    target.unlink()
    (tmp_path / "file.json").write_text((tmp_path / "file.json").read_text().replace("sha", "xha"))
    refused(server.url, target, None, LIMIT, match="damaged or edited by hand; delete it")


def test_a_file_that_the_user_put_there_is_recorded(server, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    download(server.url, tmp_path / "file", None, LIMIT)
    assert server.asked == []
    assert read_sealed(tmp_path / "file.json")["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_room_on_the_disk_is_checked_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "free_space", lambda _: 2**20)
    refused(server.url, tmp_path / "file", MD5, LIMIT, match=r"needs 3\.1 MB, but only 1\.0 MB are free in")


def test_two_processes_download_one_file(server, tmp_path):
    """The second waits for the first, and then finds the file."""
    target = tmp_path / "file"
    with (tmp_path / "file.part").open("ab") as first:
        lock(first)
        second = threading.Thread(target=download, args=(server.url, target, MD5, LIMIT))
        second.start()
        time.sleep(0.2)
        assert server.asked == []
        (tmp_path / "file.part").write_bytes(CONTENT)
        (tmp_path / "file.part").rename(target)
    second.join(timeout=20)
    assert server.asked == []
    assert names(tmp_path) == ["file"]


def test_the_archives_are_those_that_torchvision_knows():
    from torchvision.datasets import CIFAR10, CIFAR100, Food101, voc  # importing it takes a second

    ours = [module._ARCHIVE for module in (cifar10, cifar100, food101, voc2012)]
    of_voc = voc.DATASET_YEAR_DICT["2012"]
    theirs = [*((known.url, known.tgz_md5) for known in (CIFAR10, CIFAR100)), (Food101._URL, Food101._MD5)]
    assert [(archive.url, archive.md5) for archive in ours] == [*theirs, (of_voc["url"], of_voc["md5"])]


def test_archives_are_fetched_and_unpacked(server, tmp_path):
    server.files = {
        "/file": tar_of(tmp_path / "a", ("top/one", {})).read_bytes(),
        "/b.zip": zip_of(tmp_path / "b", ("two", {})).read_bytes(),
    }
    second = server.url.replace("file", "b.zip")
    archives = [Archive(server.url, None, None, 9, 999), Archive(second, None, None, 9, 999, into="top")]
    fetch_archives(archives, tmp_path / "data")
    assert (
        (tmp_path / "data" / "top" / "one").read_bytes() == (tmp_path / "data" / "top" / "two").read_bytes() == b"abc"
    )
    fetch_archives(archives, tmp_path / "data")
    assert len(server.asked) == 2
