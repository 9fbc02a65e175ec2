"""``deephash export``: other programs read the written files, and find what deephash's own search finds."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import sampled
from omegaconf import OmegaConf

from deephash_cli import choices, files
from deephash_cli.cli import limits, verbs
from deephash_cli.commands import export
from deephash_cli.commands.export import source
from deephash_cli.errors import ArtifactError, ConfigError, DivergedError
from deephash_cli.files import read_sealed, sha256_file
from deephash_cli.retrieval import codes_folder
from deephash_cli.retrieval.codes import CodeSet, pack
from deephash_cli.retrieval.codes_folder import save_codes
from deephash_cli.retrieval.ranking import nearest

LENGTHS = (12, 36, 48, 64)
HOSTILE = [
    "tab\there", "\\", "\\N", "\\.", "\\t", "a\\", "'; DROP TABLE codes; --", '"', "$(touch mark)", "`touch mark`",
    "%s{}", "{table}", ":query", ":'query'", " both sides ", "\x0b\x0c\x1c\x85\x7f", "\u2028\u2029", "\ufeff", "é",
    "e\u0301", "日本/画像 🖼.jpg", "-- x", "/* x", '{"index":{}}', "NULL", "a,b", "\x01", "\U0010fffd",
    "\u202eright to left", "#", "\\x41",
]  # fmt: skip


def write_codes(folder, bits=12, n=300, classes=3):
    """A codes folder with few different codes, so that most distances tie, and with unusual ids."""
    rng = np.random.default_rng(bits)
    centres = rng.integers(0, 2, (4, bits))
    ids = [*HOSTILE, *(f"photo {i}" for i in range(n))]
    sides = []
    for names in (ids[:n], [f"query {i}" for i in range(5)]):
        bits_of = centres[rng.integers(0, 4, len(names))] ^ (rng.random((len(names), bits)) < 0.1)
        labels = (rng.random((len(names), classes)) < 0.4).astype(np.uint8)
        sides.append(CodeSet(pack(bits_of.astype(bool)), bits, labels, names))
    save_codes(folder, sides[1], sides[0], {"provenance": {"dataset": "'; --\n\\.\n"}})
    return sides[0], sides[1]


def call(**settings):
    """Call the verb without the command line."""
    defaults = OmegaConf.load(choices.CONF_DIR / "export.yaml")
    export.run(OmegaConf.merge(defaults, settings))


@pytest.fixture
def exported(capsys, tmp_path):
    """Export codes of a given length, and return the codes, the written folder and the printed text."""

    def run(target, bits=12, shape=None, **settings):
        database, _ = write_codes(tmp_path / f"codes-{bits}", bits, **(shape or {}))
        folder = tmp_path / f"{target}-{bits}"
        call(codes=str(tmp_path / f"codes-{bits}"), to=target, output=str(folder), **settings)
        said = capsys.readouterr().out
        assert said.startswith(f"{folder}: {database.n} codes of {bits} bits for {target}, ")
        assert said.count("\n") == 1
        assert not list(tmp_path.glob(".*"))
        facts = json.loads((folder / "source.json").read_text())
        assert (facts["bits"], facts["bit_order"], facts["count"]) == (bits, "little", database.n)
        return database, folder, said

    return run


def bit_string(packed):
    """Unpack every bit of every byte, bit 0 first, following the definition."""
    return "".join(str(int(byte) >> place & 1) for byte in packed for place in range(8))


def ids_in(folder):
    return (folder / "ids.txt").read_bytes().decode().split("\n")[:-1]


# Each target, as a program without deephash reads it


@pytest.mark.parametrize("bits", LENGTHS)
@pytest.mark.parametrize("classes", [0, 3])
def test_npy(exported, bits, classes):
    database, folder, _ = exported("npy", bits, {"classes": classes})
    np.testing.assert_array_equal(np.load(folder / "codes.npy"), database.packed)
    assert (folder / "labels.npy").exists() == (classes > 0)
    if classes:
        np.testing.assert_array_equal(np.load(folder / "labels.npy"), database.labels)
    assert ids_in(folder) == database.ids


def read_codes(folder, target, kind):
    """Codes of a target in an array, read as its README says."""
    if target == "npy":
        return np.load(folder / "codes.npy")
    if target == "safetensors":
        return pytest.importorskip("safetensors.numpy").load_file(folder / "codes.safetensors")["codes"]
    column = pytest.importorskip("pyarrow.parquet").read_table(folder / "codes.parquet")["code"].to_pylist()
    return np.frombuffer(b"".join(column), kind).reshape(len(column), -1)


FORMS = product(("npy", "parquet", "safetensors"), ("little", "big"), ("uint8", "int8_minus_128", "int8_same_bits"))


@pytest.mark.parametrize("form", sampled(["-".join(form) for form in FORMS], every=4))
def test_every_order_and_type_of_bytes_is_scored_to_the_last_digit(deephash, tmp_path, form):
    target, bit_order, byte_type = form.split("-")
    write_codes(tmp_path / "codes", 36)

    def score(files, *settings):
        labels = [f"{side}_labels={tmp_path}/codes/{side}_labels.npy" for side in ("query", "database")]
        given = [f"{side}={file}" for side, file in files.items()]
        result = deephash("eval", *given, *labels, "bits=36", "output=m.json", "overwrite=true", *settings)
        assert result.code == 0, result
        return {name: value for name, value in json.loads(Path("m.json").read_text()).items() if name != "source"}

    expected = score({side: tmp_path / "codes" / f"{side}.npy" for side in ("query", "database")})
    form = {"bit_order": bit_order, "byte_type": byte_type}
    files, kind = {}, np.dtype(byte_type[: byte_type.index("8") + 1])
    for side in ("query", "database"):
        call(codes=str(tmp_path / "codes"), to=target, output=side, side=side, **form)
        codes, files[side] = read_codes(Path(side), target, kind), f"{side}-codes.npy"
        assert codes.dtype == kind
        np.save(files[side], codes)
        bits = np.unpackbits(np.load(tmp_path / "codes" / f"{side}.npy"), axis=1, bitorder="little")
        plain = np.packbits(bits, axis=1, bitorder=bit_order).astype(int)
        signed = {"uint8": plain, "int8_minus_128": plain - 128, "int8_same_bits": plain - 256 * (plain > 127)}
        np.testing.assert_array_equal(codes, signed[byte_type])
        facts = read_sealed(Path(side, "source.json"))
        assert {name: facts[name] for name in form} == form
        text = Path(side, "README.txt").read_text()
        assert (f"byte_type={byte_type}" in text) == (byte_type != "uint8")
        made = text.split("one value per bit: ")[1].split("\n")[0]
        u = np.where(bits[0, :36], 0.5, -0.5)
        np.testing.assert_array_equal(eval(made, {"numpy": np, "u": u}), codes[0])
    assert score(files, *(f"{name}={value}" for name, value in form.items())) == expected


@pytest.mark.parametrize("bits", LENGTHS)
def test_faiss(exported, bits):
    faiss = pytest.importorskip("faiss")
    database, folder, said = exported("faiss", bits)
    index = faiss.read_index_binary(str(folder / "codes.faiss"))
    assert (index.ntotal, index.d, ids_in(folder)) == (database.n, 8 * database.packed.shape[1], database.ids)
    distances, positions = index.search(database.packed, database.n)
    expected, order = nearest(database.packed, database.packed, bits, database.n)
    assert (distances == expected).all()
    assert [sorted(zip(*row, strict=True)) for row in zip(distances.tolist(), positions.tolist(), strict=True)] == [
        list(zip(*row, strict=True)) for row in zip(expected.tolist(), order.tolist(), strict=True)
    ]
    assert "opened codes.faiss again" in said


def test_a_faiss_index_that_finds_something_else_is_an_error(exported, monkeypatch):
    faiss = pytest.importorskip("faiss")
    other = faiss.IndexBinaryFlat(16)
    other.add(np.random.default_rng(0).integers(0, 256, (300, 2), np.uint8))
    monkeypatch.setattr(faiss, "read_index_binary", lambda _: other)
    with pytest.raises(ArtifactError, match="the index was read back, but finds other neighbours"):
        exported("faiss")


@pytest.mark.parametrize("bits", LENGTHS)
def test_parquet(exported, bits):
    parquet = pytest.importorskip("pyarrow.parquet")
    database, folder, _ = exported("parquet", bits)
    table = parquet.read_table(folder / "codes.parquet")
    assert table["id"].to_pylist() == database.ids
    assert table["code"].to_pylist() == [bytes(row) for row in database.packed]
    assert table["labels"].to_pylist() == [[c for c in range(3) if row[c]] for row in database.labels]
    assert table.schema.metadata[b"bits"] == str(bits).encode()
    assert json.loads(table.schema.metadata[b"provenance"]) == {"dataset": "'; --\n\\.\n"}


def test_parquet_without_labels(exported):
    parquet = pytest.importorskip("pyarrow.parquet")
    _, folder, _ = exported("parquet", 12, {"classes": 0})
    assert parquet.read_table(folder / "codes.parquet").column_names == ["id", "code"]


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("bits", LENGTHS)
def test_safetensors(exported, bits, classes):
    numpy = pytest.importorskip("safetensors.numpy")
    database, folder, _ = exported("safetensors", bits, {"classes": classes})
    arrays = numpy.load_file(folder / "codes.safetensors")
    assert (arrays["codes"] == database.packed).all()
    assert "labels" not in arrays if classes == 0 else (arrays["labels"] == database.labels).all()
    assert ids_in(folder) == database.ids


@pytest.mark.parametrize("bits", LENGTHS)
def test_opensearch(exported, bits, monkeypatch):
    monkeypatch.setattr("deephash_cli.commands.export.codes.opensearch._PART", 4000)
    database, folder, said = exported("opensearch", bits)
    parts = sorted(folder.glob("bulk-*.ndjson"))
    assert len(parts) > 3
    assert all(part.stat().st_size < 5000 for part in parts)
    lines = [json.loads(line) for part in parts for line in part.read_bytes().split(b"\n")[:-1]]
    assert lines[::2] == [{"index": {"_id": str(i)}} for i in range(database.n)]
    documents = lines[1::2]
    assert [d["id"] for d in documents] == database.ids
    assert all(-128 <= value <= 127 for d in documents for value in d["code"])
    assert [[value % 256 for value in d["code"]] for d in documents] == database.packed.tolist()
    mapping = json.loads((folder / "index.json").read_text())["mappings"]["properties"]
    assert mapping.keys() == documents[0].keys()
    assert mapping["code"]["dimension"] == 8 * len(documents[0]["code"])
    assert "never run against a cluster" in said


@pytest.fixture
def cluster():
    """A server that stores what would be sent to a cluster, and refuses documents if told to."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append((self.command, self.path, self.headers["Content-Type"], body))
            text = json.dumps({"errors": server.refusing}, separators=(",", ":")).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PUT = do_POST = answer  # noqa: N815

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.refusing = [], False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_opensearch_script_sends_everything(exported, cluster, monkeypatch):
    monkeypatch.setattr("deephash_cli.commands.export.codes.opensearch._PART", 10_000)
    _, folder, _ = exported("opensearch", 12, table="photos")
    environment = {**os.environ, "OPENSEARCH": f"http://127.0.0.1:{cluster.server_port}", "no_proxy": "*"}
    run = {"env": environment, "timeout": 60, "capture_output": True, "text": True}
    done = subprocess.run(["sh", folder / "load.sh"], **run, check=True)
    (made, *filled, refreshed), parts = cluster.requests, sorted(folder.glob("bulk-*"))
    assert made == ("PUT", "/photos", "application/json", (folder / "index.json").read_bytes())
    assert [request[0] for request in filled] == ["POST"] * len(parts)
    assert {request[1] for request in filled} == {"/photos/_bulk?filter_path=errors,items.*.error"}
    assert {request[2] for request in filled} == {"application/x-ndjson"}
    assert [request[3] for request in filled] == [part.read_bytes() for part in parts]
    assert refreshed[:2] == ("POST", "/photos/_refresh")
    assert [line for line in done.stdout.splitlines() if "bulk" in line] == [part.name for part in parts]
    cluster.refusing = True
    refused = subprocess.run(["sh", folder / "load.sh"], **run, check=False)
    assert (refused.returncode, refused.stderr) == (1, 'bulk-00000.ndjson was refused: {"errors":true}\n')


@pytest.mark.parametrize("bits", LENGTHS)
def test_milvus(exported, bits):
    parquet = pytest.importorskip("pyarrow.parquet")
    database, folder, said = exported("milvus", bits, table="photos")
    table = parquet.read_table(folder / "codes.parquet")
    assert table["position"].to_pylist() == list(range(database.n))
    assert table["id"].to_pylist() == database.ids
    assert table["code"].to_pylist() == database.packed.tolist()
    wanted = json.loads((folder / "schema.json").read_text())
    assert wanted["collection"] == "photos"
    assert [field["name"] for field in wanted["fields"]] == table.column_names
    assert wanted["fields"][2]["settings"]["dim"] == 8 * len(table["code"][0])
    compile((folder / "load.py").read_text(), "load.py", "exec")
    assert "never run against a cluster" in said


def test_pgvector_differs_from_postgres_in_its_statements_only(exported):
    _, plain, _ = exported("postgres", 36)
    _, folder, said = exported("pgvector", 36)
    assert (folder / "codes.copy").read_bytes() == (plain / "codes.copy").read_bytes()
    assert (folder / "table.sql").read_bytes() == (plain / "table.sql").read_bytes()
    assert 'CREATE INDEX ON "codes" USING hnsw (code bit_hamming_ops);' in (folder / "load.sql").read_text()
    assert "code <~> B:'query'" in (folder / "query.sql").read_text()
    for name in ("load.sql", "query.sql"):
        assert "never run against a server" in (folder / name).read_text()
    assert "never run against a server" in said


# PostgreSQL itself


@pytest.fixture(scope="module")
def psql():
    """Run files in a private PostgreSQL server, which nobody else can reach: psql(folder, "-f", "load.sql")."""
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(homes[-1]) if homes else None)
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    programs = Path(found).resolve().parent
    user = "postgres" if os.geteuid() == 0 else None  # a server refuses to run as root
    place = Path(tempfile.mkdtemp(prefix="deephash-"))  # the path of a socket must be short
    if user is not None:
        shutil.chown(place, user)
    address = ["-h", str(place), "-U", "postgres"]
    data = ["-D", str(place / "data")]
    settings = f"-F -c listen_addresses='' -c unix_socket_directories='{place}' -c autovacuum=off"
    run = {"user": user, "cwd": place, "check": True, "timeout": 60, "stdout": subprocess.DEVNULL}
    subprocess.run(
        [programs / "initdb", *data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"], **run
    )
    try:
        subprocess.run([programs / "pg_ctl", *data, "-w", "-l", place / "log", "-o", settings, "start"], **run)

        def execute(folder, *arguments):
            command = [programs / "psql", *address, "-X", "-d", "postgres", "--csv", "-q", *arguments]
            environment = {**os.environ, "PGCLIENTENCODING": "UTF8"}
            return subprocess.run(command, cwd=folder, capture_output=True, timeout=60, env=environment, check=False)

        yield execute
    finally:
        subprocess.run([programs / "pg_ctl", *data, "-m", "immediate", "stop"], **{**run, "check": False})
        shutil.rmtree(place)


@pytest.mark.parametrize("bits", LENGTHS)
def test_postgres_finds_what_our_own_search_finds(exported, psql, tmp_path, bits):
    database, folder, _ = exported("postgres", bits, table=f"codes_{bits}")
    loaded = psql(folder, "-f", "load.sql")
    assert (loaded.returncode, loaded.stderr, loaded.stdout) == (0, b"", b"")
    packed = np.load(tmp_path / f"codes-{bits}" / "query.npy")
    expected = nearest(packed, database.packed, bits, 40)
    for row, query in enumerate(packed):
        found = psql(folder, "-v", "k=40", "-v", f"query={bit_string(query)[:bits]}", "-f", "query.sql")
        assert (found.returncode, found.stderr) == (0, b"")
        lines = list(csv.reader(io.StringIO(found.stdout.decode(), newline="")))
        assert lines[0] == ["id", "position", "distance"]
        assert [(int(d), int(p)) for _, p, d in lines[1:]] == list(
            zip(*(side[row].tolist() for side in expected), strict=True)
        )
        assert [name for name, _, _ in lines[1:]] == [database.ids[int(position)] for _, position, _ in lines[1:]]
    everything = psql(folder, "-c", f'SELECT id, code FROM "codes_{bits}" ORDER BY position').stdout.decode()
    assert list(csv.reader(io.StringIO(everything, newline="")))[1:] == [
        [name, bit_string(code)[:bits]] for name, code in zip(database.ids, database.packed, strict=True)
    ]
    assert not list(folder.glob("mark"))


def test_the_query_of_postgres_runs_as_it_is_and_refuses_another_length(exported, psql):
    database, folder, _ = exported("postgres", 12, table="user")  # a reserved word of SQL
    assert psql(folder, "-f", "load.sql").returncode == 0
    lines = list(csv.reader(io.StringIO(psql(folder, "-f", "query.sql").stdout.decode(), newline="")))
    assert len(lines) == 11
    assert lines[1] == [database.ids[0], "0", "0"]
    refused = psql(folder, "-v", "query=01", "-f", "query.sql")
    assert refused.returncode == 3
    assert b"different sizes" in refused.stderr
    assert psql(folder, "-v", 'query=\'; DROP TABLE "user"; --', "-f", "query.sql").returncode == 3
    again = psql(folder, "-f", "load.sql")
    assert again.returncode == 3
    assert b"already exists" in again.stderr
    assert psql(folder, "-c", 'SELECT count(*) FROM "user"').stdout == b"count\n300\n"


# What the files say, and what is refused


@pytest.mark.parametrize("bits", [12, 48])
@pytest.mark.parametrize("target", export.CODES)
def test_every_folder_says_how_to_load_it(exported, target, bits):
    _, folder, _ = exported(target, bits)
    text = (folder / "README.txt").read_text()
    assert f"300 codes of {bits} bits (database side)" in text
    assert 'bit i is worth 2 ** (i % 8) in byte i // 8, "little" in NumPy.' in text
    assert ("4 bits of the last byte are padding" in text) == (bits == 12)
    assert "{" not in text  # left over from a template


@pytest.mark.parametrize("target", ["faiss", "npy", "parquet", "safetensors"])
def test_the_lines_of_the_readme_run(exported, target):
    database, folder, _ = exported(target, 12)
    lines = [
        line[4:]
        for line in (folder / "README.txt").read_text().split("What this folder contains")[0].splitlines()
        if line[:4] == "    "
    ]
    before = f"import numpy\nqueries = numpy.array({database.packed[:1].tolist()}, numpy.uint8)\n"
    done = subprocess.run(
        [sys.executable, "-c", before + "\n".join(lines)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(database.ids[0] if target != "faiss" else "")
    assert done.stdout


def test_the_query_side(tmp_path):
    write_codes(tmp_path / "codes", 36)
    call(codes=str(tmp_path / "codes"), to="postgres", output="made", side="query")
    packed = np.load(tmp_path / "codes" / "query.npy")
    lines = [f"{bit_string(code)[:36]}\t{i}\tquery {i}" for i, code in enumerate(packed)]
    assert Path("made/codes.copy").read_text().splitlines() == lines
    assert json.loads(Path("made/source.json").read_text())["side"] == "query"


@pytest.mark.parametrize("target", export.CODES)
def test_blocks_of_any_size_give_the_same_files(exported, tmp_path, target, monkeypatch):
    _, folder, _ = exported(target, 36)
    monkeypatch.setattr(source, "ROWS", 7)
    again = tmp_path / "again"
    call(codes=str(tmp_path / "codes-36"), to=target, output=str(again))
    names = sorted(file.name for file in folder.iterdir())
    assert sorted(file.name for file in again.iterdir()) == names
    for name in names:
        if name == "source.json":
            assert read_sealed(again / name)["files"] == names
        elif not name.endswith(".parquet"):  # Parquet files have other row groups
            assert (again / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize("target", export.CODES)
def test_no_codes_at_all(exported, target):
    _, folder, _ = exported(target, 12, {"n": 0})
    assert (folder / "README.txt").is_file()


def test_the_command_line_its_help_and_the_documentation_know_every_target():
    assert limits.WORDS["to"] == (*export.CODES, *export.NETWORKS)
    documentation = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    for target in limits.WORDS["to"]:
        assert f"\n  {target} " in verbs.help_text("export")
        assert f"\n| `{target}` |" in documentation


def test_it_needs_no_torch(tmp_path):
    write_codes(tmp_path / "codes")
    code = f"""
import sys
from deephash_cli.cli import main as cli
code = cli.run(["export", "codes='{tmp_path}/codes'", "to=postgres", "output=made"])
print(code, sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "pyarrow", "faiss", "safetensors"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "0 []", done


def test_the_command_line(deephash):
    write_codes(Path("codes"))
    result = deephash("export", "codes=codes", "to=safetensors", "output=made")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("made: 300 codes of 12 bits for safetensors, ")
    assert result.out.endswith("; checked: read codes.safetensors back; every code and id is the same\n")
    for arguments, sentence in (
        (["to=npz"], "error: to must be faiss or milvus or npy or opensearch or parquet or "),
        (["side=train"], "error: side must be database or query, got train\n"),
        (["to=faiss", "table=5"], "digits and underscores, not starting with a digit, got '5'\n"),
    ):
        result = deephash("export", "codes=codes", "output=other", *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert sentence in result.err


REFUSED = {
    "no target": (
        {"codes": "codes", "output": "made"},
        "needs to=<target>, one of faiss, milvus, npy, opensearch, parquet, pgvector, postgres",
    ),
    "another bit order than the engine's": (
        {"codes": "codes", "to": "faiss", "output": "made", "bit_order": "big"},
        "to=faiss writes codes in the one form that it wants: leave out bit_order= and byte_type=, which are for npy, "
        "parquet, safetensors",
    ),
    "signed bytes of a network": (
        {"run": "a", "to": "onnx", "output": "made", "byte_type": "int8_same_bits"},
        "which are for npy, parquet",
    ),
    "no output": ({"codes": "codes", "to": "faiss"}, "needs output=<folder>"),
    "no codes": ({"to": "faiss", "output": "made"}, "needs run=<run folder> or codes=<folder of codes>, got neither"),
    "both": ({"to": "faiss", "output": "made", "run": "a", "codes": "codes"}, "got both"),
    "no folder": ({"to": "faiss", "output": "made", "codes": "nowhere"}, "nowhere has no manifest.json"),
    "no run": ({"to": "faiss", "output": "made", "run": "codes"}, "codes is not a run folder"),
    "a network": (
        {"to": "onnx", "output": "made"},
        "it needs run=<run folder>, or codes=<folder of codes> that it made, got neither",
    ),
    "a network of a run and of codes": ({"codes": "codes", "run": "a", "to": "onnx", "output": "made"}, "got both"),
    "a network of unknown codes": (
        {"codes": "codes", "to": "onnx", "output": "made"},
        "codes does not say which network made its codes",
    ),
    "something there": (
        {"codes": "codes", "to": "faiss", "output": "codes"},
        "output=codes is codes=codes itself, which is read: choose another output",
    ),
    "a file there": (
        {"codes": "codes", "to": "faiss", "output": "codes/query.npy"},
        "output=codes/query.npy is one of the files of the codes folder",
    ),
    "below a file": (
        {"codes": "codes", "to": "faiss", "output": "codes/query.npy/x"},
        "output=codes/query.npy/x is one of the files of the codes folder",
    ),
}
NAMES = ("a; DROP TABLE b", 'a"b', "Codes", "1", "a\n", "é", "a" * 64, "a-b", "a b", "$a", "")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    settings, sentence = REFUSED[case]
    write_codes(Path("codes"))
    before = sorted(path.as_posix() for path in Path().rglob("*"))
    with pytest.raises((ConfigError, ArtifactError)) as error:
        call(**settings)
    assert sentence in str(error.value)
    assert sorted(path.as_posix() for path in Path().rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_plain_names(name):
    with pytest.raises(ConfigError, match="table must be at most 63 lower-case letters, digits and underscores, not"):
        call(codes="codes", to="postgres", output="made", table=name)


def test_an_opensearch_index_starts_with_a_letter():
    write_codes(Path("codes"))
    with pytest.raises(ConfigError, match="the name of an OpenSearch index must start with a letter, got table=_a"):
        call(codes="codes", to="opensearch", output="made", table="_a")


@pytest.mark.parametrize(
    ("target", "name", "sentence"),
    [
        ("postgres", "a\0b", "without the character NUL, but the id at position 0 is not"),
        ("pgvector", "é" * 1301, "text of at most 2600 bytes"),
        ("milvus", "x" * 65_536, "ids of at most 65535 bytes, got one of 65536"),
    ],
)
def test_ids_that_an_engine_cannot_hold_leave_nothing_behind(target, name, sentence):
    if target == "milvus":
        pytest.importorskip("pyarrow")
    side = CodeSet(np.zeros((2, 1), np.uint8), 8, np.ones((2, 1), np.uint8), [name, "b"])
    save_codes(Path("codes"), side, side, {})
    with pytest.raises(ArtifactError, match=sentence):
        call(codes="codes", to=target, output="made")
    assert [path.name for path in Path().iterdir()] == ["codes"]


@pytest.mark.parametrize(("target", "limit"), [("pgvector", 64_000), ("opensearch", 16_000)])
def test_codes_that_are_too_long(target, limit):
    side = CodeSet(np.zeros((1, 8001), np.uint8), 64_008, np.ones((1, 1), np.uint8), ["a"])
    save_codes(Path("codes"), side, side, {})
    with pytest.raises(ArtifactError, match=f"at most {limit} bits, got 64008"):
        call(codes="codes", to=target, output="made")


@pytest.mark.parametrize(("bits", "rows"), [(12, 65_536), (512, 65_536), (4096, 8192)])
def test_of_long_codes_fewer_are_in_memory_at_once(bits, rows):
    write_codes(Path("codes"), bits, n=5)
    assert source.Source(codes_folder.open_side(Path("codes")), "database", "codes").rows == rows


@pytest.mark.parametrize("value", ["NaN", '"\\ud800"'])
def test_a_manifest_that_is_not_quite_json(value):
    write_codes(Path("codes"))
    manifest = Path("codes/manifest.json")
    manifest.write_text(manifest.read_text().replace('"provenance"', f'"x": {value}, "provenance"'))
    with pytest.raises(ArtifactError, match=r"manifest\.json is not valid JSON "):
        call(codes="codes", to="postgres", output="made")
    assert [path.name for path in Path().iterdir()] == ["codes"]


@pytest.mark.parametrize(("target", "module"), [("faiss", "faiss"), ("parquet", "pyarrow"), ("milvus", "pyarrow")])
def test_a_package_that_is_missing_is_named(monkeypatch, target, module):
    write_codes(Path("codes"))
    monkeypatch.setitem(sys.modules, module, None)
    extra = "faiss" if target == "faiss" else "export"
    with pytest.raises(ConfigError, match=rf"this export needs {module}: pip install 'deephash\[{extra}\]'"):
        call(codes="codes", to=target, output="made")
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("target", "before", "after"),
    [
        ("postgres", b"\tphoto 7\n", b"\tphoto 8\n"),
        ("opensearch", b'"photo 7", "code": [', b'"photo 7", "code": [1'),
        ("opensearch", b'{"index":{"_id":"299"}}\n{"position": 299', b""),
    ],
)
def test_a_disk_that_keeps_something_else_is_noticed(monkeypatch, target, before, after):
    write_codes(Path("codes"))
    honest = source.Source.compare

    def damaged(self, read, path):
        (file,) = path.parent.glob(path.name)
        content = file.read_bytes()
        assert content.count(before) == 1
        start = content.index(before)
        file.write_bytes(content[:start] if not after else content.replace(before, after))
        return honest(self, read, path)

    monkeypatch.setattr(source.Source, "compare", damaged)
    with pytest.raises(ArtifactError, match="was read back"):
        call(codes="codes", to=target, output="made")
    assert [path.name for path in Path().iterdir()] == ["codes"]


def test_an_empty_folder_is_filled():
    write_codes(Path("codes"))
    Path("made").mkdir()
    call(codes="codes", to="postgres", output="made")
    assert Path("made").stat().st_mode & 0o777 == 0o777 & ~files._umask()


def fill(path, meanwhile):
    with files.atomic_folder(path) as folder:
        (folder / "a").write_text("mine")
        meanwhile()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"No space left on device .*; nothing was changed there"):
        fill(tmp_path / "made", lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_filled_first(tmp_path):
    def other():
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").write_text("theirs")

    with pytest.raises(ArtifactError, match="could not write"):
        fill(tmp_path / "made", other)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "theirs"


# The network


def make_encoder(monkeypatch, bits=12, precision="32-true", dataset="image_folder", **changes):
    """A network with random weights, in place of one that is loaded from a run folder."""
    import torch

    from deephash_cli.inference import encoder
    from deephash_cli.models import HashingNetwork, SmallCNN

    torch.manual_seed(0)
    settings = {
        "image_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3, "frozen": True, "frozen_norm": True, "dropout": 0.5,
        "standardize": True, "hidden_units": 0, "channels_last": True, "mirrored": True, **changes,
    }  # fmt: skip
    network = HashingNetwork(SmallCNN(), bits, **settings)
    of_the_run = {"dataset": {"name": dataset}, "trainer": {"precision": precision}}
    made = encoder.Encoder(network, of_the_run, {"method": "dpsh"})
    monkeypatch.setattr(encoder, "load_encoder", lambda _, __: made)
    monkeypatch.setattr("deephash_cli.runs.given_or_latest", lambda run, _: Path(run))
    return made


def noise(n, side):
    import torch

    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


CASES = {
    "12 bits": ({}, {}, 16),
    "images that the graph resizes": ({"bits": 36}, {"pixels": 40}, 40),
    "images of the data set": ({"bits": 64, "dataset": "cifar10", "frozen": False}, {}, 32),
    "half precision": ({"precision": "bf16-mixed", "bits": 48}, {}, 16),
}


@pytest.mark.slow  # the first export imports a compiler
@pytest.mark.parametrize("case", CASES)
def test_torch_export(monkeypatch, capsys, case):
    import torch

    from deephash_cli.models import packed_codes

    network, settings, side = CASES[case]
    encoder = make_encoder(monkeypatch, **network)
    call(run="run", to="torch_export", output="made", **settings)
    assert "values within 0 of the network's, 0 of" in capsys.readouterr().out
    program = torch.export.load("made/encoder.pt2").module()
    for n in (1, 5):
        codes, u = program(noise(n, side))
        assert torch.equal(u, encoder(noise(n, side)))
        assert (codes.numpy() == packed_codes(u)).all()
        assert [bit_string(row)[: encoder.bits] for row in codes] == [
            "".join("01"[int(v >= 0)] for v in row) for row in u
        ]
    assert f"(n, 3, {side}, {side})" in Path("made/README.txt").read_text()
    assert read_sealed(Path("made/source.json")) == {
        "bits": encoder.bits,
        "bit_order": "little",
        "method": "dpsh",
        "files": ["README.txt", "encoder.pt2", "source.json"],
        "sha256": {name: sha256_file(Path("made", name)) for name in ("README.txt", "encoder.pt2")},
    }


@pytest.mark.slow
def test_the_program_runs_where_there_is_no_deephash(monkeypatch):
    make_encoder(monkeypatch, frozen=False)
    call(run="run", to="torch_export", output="made")
    lines = [line[4:] for line in Path("made/README.txt").read_text().splitlines() if line.startswith("    ")]
    code = "\n".join(["import sys", "sys.modules['deephash_cli'] = sys.modules['torchvision'] = None", *lines])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="made", capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "torch.Size([1, 2])\n"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_onnx(monkeypatch, capsys, case):
    runtime = pytest.importorskip("onnxruntime")
    network, settings, side = CASES[case]
    encoder = make_encoder(monkeypatch, **network)
    call(run="run", to="onnx", output="made", **settings)
    assert "ran it on noise" in capsys.readouterr().out
    session = runtime.InferenceSession("made/encoder.onnx")
    assert [(part.name, part.type) for part in session.get_inputs()] == [("images", "tensor(uint8)")]
    assert [part.name for part in session.get_outputs()] == ["codes", "u"]
    for n in (1, 5):
        codes, u = session.run(None, {"images": noise(n, side).numpy()})
        expected = encoder(noise(n, side)).numpy()
        assert np.abs(u - expected).max() < (0.05 if case == "half precision" else 1e-4)
        assert (codes == pack(u >= 0)).all()
    assert {path.name for path in Path("made").iterdir()} == {"encoder.onnx", "README.txt", "source.json"}


@pytest.mark.slow
def test_a_network_that_gives_no_numbers_is_not_exported(monkeypatch):
    encoder = make_encoder(monkeypatch)
    encoder.network.hash_layer.bias.fill_(float("nan"))
    with pytest.raises(DivergedError):
        call(run="run", to="torch_export", output="made")
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_network_that_takes_vectors_is_not_exported(monkeypatch):
    make_encoder(monkeypatch).takes = "vectors"
    with pytest.raises(ConfigError, match="run hashes vectors, but only a network that takes images can be exported"):
        call(run="run", to="torch_export", output="made")
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_network_that_torch_cannot_trace(monkeypatch):
    from torch import nn

    class Choosy(nn.Module):
        def forward(self, x):
            return x[:, :12] if x.sum() > 0 else -x[:, :12]

    make_encoder(monkeypatch).network.hash_layer = Choosy()
    with pytest.raises(ArtifactError, match="cannot trace this network: ") as error:
        call(run="run", to="torch_export", output="made")
    assert "\n" not in str(error.value)
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_program_that_was_written_wrong_is_noticed(monkeypatch):
    import torch

    encoder = make_encoder(monkeypatch)
    load = torch.export.load

    def damaged(path):
        encoder.network.hash_layer.weight.mul_(2)
        return load(path)

    monkeypatch.setattr(torch.export, "load", damaged)
    with pytest.raises(ArtifactError, match="gives other codes; values differ by"):
        call(run="run", to="torch_export", output="made")
    assert not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torch_export", "onnx"])
def test_a_run_from_training_to_export(deephash, photos, target):
    assert deephash("train", *photos, "bits=12", "run_dir=run").code == 0
    result = deephash("export", "run=run", f"to={target}", "output=made")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("made: network, ")
