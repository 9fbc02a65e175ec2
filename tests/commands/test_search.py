"""``deephash search``: the images with the nearest codes, in a table, in JSON and in a picture."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import digests
import numpy as np
import pytest
from PIL import Image
from searching import ranked, twin, with_continuous

from deephash_cli import runs
from deephash_cli.errors import ConfigError
from deephash_cli.files import read_json, read_sealed, sha256_file
from deephash_cli.inference import contact_sheet as sheets
from deephash_cli.inference.encoder import load_encoder
from deephash_cli.retrieval import codes_folder, ranking
from deephash_cli.retrieval.codes import pack
from deephash_cli.retrieval.codes_folder import open_side


@pytest.fixture
def continuous(hashed, tmp_path):
    """A copy of the run, which kept the continuous codes of its queries."""
    run = Path(shutil.copytree(hashed.run, tmp_path / "continuous"))
    query, database, manifest = codes_folder.load_codes(run / runs.CODES)
    kept = {name: manifest[name] for name in ("provenance", "evaluation")}
    codes_folder.save_codes(run / runs.CODES, with_continuous(query), replace(database, u=None), kept)
    digests.renew(run)
    return run


@pytest.fixture
def search(deephash, hashed):
    """Return a function that searches in the run, and returns the results from the JSON file and the printed text."""

    def call(*arguments):
        result = deephash("search", f"run={hashed.run}", "output=found.json", *arguments)
        assert (result.code, result.err) == (0, "")
        return json.loads(Path("found.json").read_text())["queries"], result.out

    return call


def expected(run, side, name, k):
    """Return the expected results from a slow loop: sorted by distance, then position, without the image itself."""
    query, database = open_side(run / runs.CODES, side), open_side(run / runs.CODES)
    code = query.packed[list(query.ids).index(name)]
    distances = np.bitwise_count(np.asarray(database.packed) ^ code).sum(axis=1, dtype=int)
    order = np.lexsort((np.arange(len(distances)), distances)).tolist()
    order = [i for i in order if database.ids[i] != name]
    return [(database.ids[i], int(distances[i])) for i in order[:k]]


def test_a_file_finds_what_its_code_is_near(search, hashed):
    name = open_side(hashed.run / runs.CODES, "query").ids[0]
    (query,), out = search(f"query={hashed.photos / name}", "k=7")
    found = [(result["id"], result["distance"]) for result in query["results"]]
    assert found == expected(hashed.run, "query", name, 7)
    assert query["labels"] == [name.split("/")[0]]  # the folder is named like a class
    assert all(result["relevant"] == (result["labels"] == query["labels"]) for result in query["results"])
    for position, distance in found:
        assert f" {distance} │ {position} " in out


def test_rescoring_orders_the_shortlist(search, hashed):
    name = open_side(hashed.run / runs.CODES, "query").ids[0]
    arguments = (f"query={hashed.photos / name}", "rescore=asymmetric", "k=5")
    (query,), out = search(*arguments, "shortlist=20")
    packed = np.asarray(open_side(hashed.run / runs.CODES).packed)
    with Image.open(hashed.photos / name) as image:
        (u,) = load_encoder(hashed.run).continuous([image.convert("RGB")]).numpy().astype(np.float64)
    near = [j for _, j in twin(pack(u[None] >= 0), packed, 12)[0][:20]]
    found = [(result["score"], result["distance"], result["position"]) for result in query["results"]]
    assert found == ranked(u, packed, 5, near)
    assert json.loads(Path("found.json").read_text())["shortlist"] == 20
    assert f" {found[0][0]:.5g} │ " in out
    (query,), _ = search(*arguments, "shortlist=54")
    assert [result["position"] for result in query["results"]] == [j for _, _, j in ranked(u, packed, 5)]
    (query,), out = search(*arguments, "radius=4")
    inside = [j for distance, j in twin(pack(u[None] >= 0), packed, 12)[0] if distance <= 4]
    assert [result["position"] for result in query["results"]] == [j for _, _, j in ranked(u, packed, 54, inside)]


def test_rescoring_takes_the_continuous_code_of_an_id_from_the_run(deephash, hashed, continuous):
    query, database, _ = codes_folder.load_codes(continuous / runs.CODES)
    settings = ("rescore=asymmetric", "shortlist=54", "k=5", "output=found.json", "picture=null")
    result = deephash("search", f"run={continuous}", f"query={query.ids[2]}", *settings)
    assert (result.code, result.err) == (0, "")
    (found,) = json.loads(Path("found.json").read_text())["queries"]
    assert [(r["score"], r["distance"], r["position"]) for r in found["results"]] == ranked(
        query.u[2].astype(float), database.packed, 5
    )
    result = deephash("search", f"run={continuous}", f"query={database.ids[0]}", *settings)
    assert result.code == 2
    assert result.err == (
        f"error: rescore= needs the continuous code of query={database.ids[0]}, but {continuous / runs.CODES} has no "
        "database_u.npy: give the image itself, as a file, or leave out rescore=\n"
    )


def test_an_id_is_left_out_of_its_own_results(search, hashed):
    name = open_side(hashed.run / runs.CODES).ids[3]
    (query,), _ = search(f"query={name}", "k=54", "picture=null")
    found = [(result["id"], result["distance"]) for result in query["results"]]
    assert found == expected(hashed.run, "database", name, 54)
    assert len(found) == 53
    assert not Path("search.png").exists()


@pytest.mark.parametrize("index", ["exact", "flat"])
def test_a_radius_is_inclusive_and_finds_all(search, hashed, index):
    pytest.importorskip("faiss")
    name = open_side(hashed.run / runs.CODES).ids[0]
    ranked = expected(hashed.run, "database", name, 54)
    radius = ranked[30][1]
    (query,), out = search(f"query={name}", "k=5", f"radius={radius}", f"index={index}")
    within = [(name, distance) for name, distance in ranked if distance <= radius]
    assert [(result["id"], result["distance"]) for result in query["results"]] == within
    assert f"... and {len(within) - 5} more within distance {radius}" in out


def test_an_index_that_was_saved(deephash, search, hashed):
    pytest.importorskip("faiss")
    assert deephash("index", f"run={hashed.run}", "kind=ivf", "output=ivf.faiss", "ivf.probes=30").code == 0
    name = open_side(hashed.run / runs.CODES, "query").ids[0]
    (query,), _ = search(f"query={name}", "index=ivf.faiss")
    found = [(result["id"], result["distance"]) for result in query["results"]]
    assert found == expected(hashed.run, "query", name, 10)


def test_other_codes_are_searched_in(deephash, search, hashed):
    settings = ("num_workers=0", "accelerator=cpu")
    assert (
        deephash("encode", f"run={hashed.run}", f"input={hashed.photos / 'bag'}", "output=codes", *settings).code == 0
    )
    (query,), _ = search("codes=codes", f"query={hashed.photos / 'bag' / '004.jpg'}", "k=20")
    assert {"id": "004.jpg", "distance": 0} in [{k: r[k] for k in ("id", "distance")} for r in query["results"]]
    assert {result["relevant"] for result in query["results"]} == {None}  # the codes have no labels
    with Image.open("search.png") as picture:
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000  # photos were drawn


def test_a_folder_is_many_queries(search, hashed):
    queries, out = search(f"query={hashed.photos}", "k=3")
    assert [query["query"] for query in queries] == sorted(query["query"] for query in queries)
    assert len(queries) == 60
    assert "... and 40 more queries" in out
    assert queries[0]["labels"] == ["bag"]


def test_the_picture_shows_query_and_results(search, hashed):
    name = open_side(hashed.run / runs.CODES, "query").ids[0]
    search(f"query={hashed.photos / name}", "k=4", "picture=four.webp")
    with Image.open("four.webp") as picture:
        assert picture.format == "WEBP"
        assert picture.size == (5 * 144 + 8 + 24, 186)


def test_frames_tell_right_from_wrong():
    tiles = [sheets.Tile(Image.new("RGB", (30, 30), "blue"), "t", "n", right) for right in (None, True, False)]
    with Image.open(
        io.BytesIO(sheets.contact_sheet([[*tiles, sheets.Tile(None, "t" * 90, "n\n", True)]], ".png"))
    ) as i:
        frames = [i.convert("RGB").getpixel((x, 60)) for x in (9, 177, 321, 465)]
    assert frames == [(200, 200, 200), (26, 150, 65), (215, 25, 28), (26, 150, 65)]
    with pytest.raises(ConfigError, match=r"picture must end in .png, .webp, .jpg, .jpeg, got .gif"):
        sheets.contact_sheet([tiles], ".gif")


def test_more_than_ten_results_go_into_rows():
    tiles = [sheets.Tile(None, "t", "n", None)] * 24
    with Image.open(io.BytesIO(sheets.contact_sheet([tiles], ".png"))) as picture:
        assert picture.size == (11 * 144 + 8 + 24, 3 * 178 + 8)


def test_without_a_run_the_newest_finished_one_is_taken(deephash, hashed, monkeypatch):
    shutil.copytree(hashed.run, "runs/one")
    result = deephash("search", "query=bag/000.jpg", "picture=null")
    assert result.code == 0
    assert result.out.startswith("runs/one: itq, 12 bits, image_folder, 54 images\n")
    digests.edit("runs/one/run.json", status="failed")
    assert "there is no finished run under runs here" in deephash("search", "query=bag/000.jpg").err


def test_codes_are_searched_with_the_run_that_made_them(deephash, hashed):
    """Not with the newest run; found at its place when the codes were made, or else under runs/ by its id."""
    settings = (f"input={hashed.photos / 'bag'}", "num_workers=0", "accelerator=cpu")
    shutil.copytree(hashed.run, "made")
    assert deephash("encode", "run=made", "output=codes", *settings).code == 0
    newer = Path(shutil.copytree(hashed.run, "runs/newer"))
    identity = read_sealed(newer / "run.json")["id"]
    digests.edit(newer / "run.json", id="another", started="2099-01-01T00:00:00+00:00")
    query = ("search", f"query={hashed.photos / 'bag' / '004.jpg'}", "picture=null")
    assert deephash(*query, "codes=codes").out.startswith("made: itq, 12 bits, bag, 20 images\n")
    Path("made").rename("runs/moved")
    assert deephash(*query, "codes=codes").out.startswith("runs/moved: itq")
    assert deephash(*query, "codes=runs/moved/codes").out.startswith("runs/moved: itq, 12 bits, image_folder, 54")
    (newer / "codes" / "manifest.json").write_text("{}")
    shutil.copytree("runs/moved/codes", "copied")  # the run's own codes do not say its id, but its checkpoint
    assert deephash(*query, "codes=copied").out.startswith("runs/moved: itq")
    shutil.rmtree("runs/moved")
    for codes, said in (
        (
            "codes",
            f"were made by run {identity} in {Path('made').absolute()}, which is neither there nor under runs",
        ),
        ("copied", "were made by a run whose checkpoint has the SHA-256 "),
        ("nothing", "nothing has no manifest.json"),
    ):
        result = deephash(*query, f"codes={codes}")
        assert result.code == (4 if codes == "nothing" else 2)
        assert said in result.err
        assert result.err.count("\n") == 1


def test_links_that_encode_followed_are_shown(deephash, hashed, tmp_path):
    """Links to folders and to files; paths in a list that lead out of the folder are said to be outside."""
    Path("photos").mkdir()
    Path("photos/folder").symlink_to(hashed.photos / "bag")
    Path("photos/file.jpg").symlink_to(hashed.photos / "boot" / "000.jpg")
    settings = (f"run={hashed.run}", "num_workers=0", "accelerator=cpu")
    assert "codes of 21 images" in deephash("encode", *settings, "input=photos", "output=codes").out
    from deephash_cli.inference.searcher import Pictures

    def pictures(codes):
        return Pictures(json.loads(Path(codes, "manifest.json").read_text())["source"])

    for name in open_side(Path("codes")).ids:
        assert pictures("codes").get(name) is not None
    outside = str(hashed.photos / "coat" / "000.jpg")
    Path("list.txt").write_text(f"photos/../photos/file.jpg\n{outside}\n")
    assert deephash("encode", *settings, "input=list.txt", "output=listed").code == 0
    listed = pictures("listed")
    assert [listed.get(name) is not None for name in open_side(Path("listed")).ids] == [True, False]
    assert listed.why_not(outside) == (
        f"{outside} is not shown, because it lies outside {Path.cwd()}, the folder of the encoded images"
    )


def test_codes_of_another_network_are_refused(deephash, hashed):
    codes = Path(shutil.copytree(hashed.run / "codes", "other"))
    provenance = read_sealed(codes / "manifest.json")["provenance"]
    digests.edit(codes / "manifest.json", provenance={**provenance, "checkpoint": {"sha256": "0" * 64}})
    result = deephash("search", f"run={hashed.run}", "codes=other", "query=bag/000.jpg")
    assert result.code == 4
    assert "were made by a different network" in result.err


@pytest.mark.parametrize("index", ["exact", "flat"])
def test_the_first_bits_choose_a_shortlist_and_all_bits_order_it(deephash, hashed, index):
    database = open_side(hashed.run / runs.CODES)
    packed = np.asarray(database.packed)
    name = open_side(hashed.run / runs.CODES, "query").ids[0]
    code = open_side(hashed.run / runs.CODES, "query").packed[0]
    near = np.bitwise_count(packed[:, :1] & 15 ^ code[:1] & 15).sum(axis=1, dtype=int)
    every = np.bitwise_count(packed ^ code).sum(axis=1, dtype=int)
    shortlist = sorted(range(len(packed)), key=lambda row: (near[row], row))[:20]
    wanted = sorted(shortlist, key=lambda row: (every[row], row))[:7]
    settings = ("k=7", "prefix_bits=4", "shortlist=20", f"index={index}", "output=found.json", "picture=null")
    result = deephash("search", f"run={hashed.run}", f"query={hashed.photos / name}", *settings)
    assert result.code == 0
    assert result.err == (
        "warning: the first 4 bits were not trained to be a code by themselves: only nested lengths are\n"
    )
    found = json.loads(Path("found.json").read_text())
    assert [entry["position"] for entry in found["queries"][0]["results"]] == wanted
    assert [entry["distance"] for entry in found["queries"][0]["results"]] == [every[row] for row in wanted]
    assert (found["prefix_bits"], found["shortlist"]) == (4, 20)
    for typed, sentence in ((("radius=3",), "leave out one of the two"), (("k=9", "shortlist=8"), "raise it")):
        result = deephash("search", f"run={hashed.run}", f"query={hashed.photos / name}", "prefix_bits=4", *typed)
        assert result.code == 2
        assert sentence in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "needs query="),
        (["query=nowhere"], 3, "is neither a file, nor a folder, nor the id of an image"),
        (["query=page.jpg"], 3, "cannot be read: it is none of JPEG"),
        (["query=x.npy"], 2, "contains vectors, but the run hashes images"),
        (["query=empty"], 3, "contains no images"),
        (["query={photo}", "rescore=asymmetric", "k=20", "shortlist=19"], 2, "shortlist must be at least k, got"),
        (["query={photo}", "rescore=symmetric"], 2, "rescore must be asymmetric, got symmetric"),
        (["query={photo}", "k=0"], 2, "k must be a whole number, at least 1, got 0"),
        (["query={photo}", "picture=a.tiff"], 2, "picture must end in"),
        (["query={photo}", "prefix_bits=12"], 2, "prefix_bits must be below the 12 bits of the codes, got 12"),
        (["query={photo}", "prefix_bits=4", "index=x.npy"], 2, "builds an index of the first bits"),
        (["query={photo}", "index=tree"], 2, "an index is one of exact, flat, hnsw, ivf, multihash, or a file"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(deephash, hashed, arguments, code, sentence):
    Path("page.jpg").write_text("<html>")
    Path("empty").mkdir()
    np.save("x.npy", np.zeros((1, 3), np.float32))
    filled = (argument.format(photo=hashed.photos / "bag" / "000.jpg") for argument in arguments)
    result = deephash("search", f"run={hashed.run}", *filled)
    assert result.code == code
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_a_folder_names_all_images_that_cannot_be_read(deephash, hashed):
    folder = Path(shutil.copytree(hashed.photos / "bag", "mixed"))
    for number in (1, 3, 4, 8, 9, 11):
        (folder / f"{number:03}.jpg").write_text("<html>")
    (folder / "in").mkdir()
    (folder / "in" / "zero.png").write_bytes(b"")
    result = deephash("search", f"run={hashed.run}", "query=mixed")
    assert result.code == 3
    assert (
        "7 of the 21 images in query=mixed cannot be read: 001.jpg, 003.jpg, 004.jpg, 008.jpg, 009.jpg, 011.jpg ("
        in (result.err)
    )
    assert "in/zero.png (" in result.err
    assert result.err.endswith("); replace or remove them\n")
    assert "bad_images" not in result.err


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [("database_ids.txt", lambda content: b"\n".join([content.split(b"\n")[1], *content.split(b"\n")[1:]]),
      "ids must be unique, got "),
     ("database_labels.npy", lambda content: content[:-1] + b"\x02", "labels must be 0 or 1 (multi-hot), got 2")],
    ids=["an id twice", "a label of 2"],
)  # fmt: skip
def test_every_command_checks_ids_and_labels(deephash, hashed, name, damage, reason):
    """The digests in the manifest fit, so only the content tells."""
    codes = Path(shutil.copytree(hashed.run / runs.CODES, "codes"))
    (codes / name).write_bytes(damage((codes / name).read_bytes()))
    manifest = read_json(codes / "manifest.json")
    entry = {"sha256": sha256_file(codes / name), "bytes": (codes / name).stat().st_size}
    kept = {key: value for key, value in manifest.items() if key not in ("sealed", "seal")}
    (codes / "manifest.json").write_text(json.dumps({**kept, "files": {**manifest["files"], name: entry}}))
    run = f"run={hashed.run}"
    calls = {
        "eval": ["codes=codes"], "search": [run, "codes=codes", f"query={hashed.photos}/bag/000.jpg"],
        "serve": [run, "codes=codes", "port=0"], "index": ["codes=codes", "output=x.faiss"],
        "export": ["codes=codes", "to=parquet", "output=x"],
    }  # fmt: skip
    for verb, settings in calls.items():
        result = deephash(verb, *settings)
        assert result.code == 4, (verb, result)
        assert f"codes, database side: {reason}" in result.err, (verb, result)
        assert result.err.count("\n") == 1


def test_a_folder_of_codes_cannot_show_other_files(deephash, hashed, tmp_path):
    """Ids in a third-party folder cannot name files outside the folder of images, or have classes built."""
    (tmp_path / "photos").mkdir()
    shutil.copy(hashed.photos / "bag" / "000.jpg", tmp_path / "secret.jpg")
    from deephash_cli.inference.searcher import Pictures

    pictures = Pictures({"root": str(tmp_path / "photos")})
    for name in ("../secret.jpg", "a\0b", "a" * 5000, "/", "", ".", "a/../../secret.jpg"):
        assert pictures.get(name) is None
    assert pictures.get(str(tmp_path / "secret.jpg")) is None
    codes = Path(shutil.copytree(hashed.run / "codes", "foreign"))
    digests.edit(codes / "manifest.json", source={"dataset": {"_target_": "os.getcwd"}})
    result = deephash("search", f"run={hashed.run}", "codes=foreign", "query=bag/000.jpg")
    assert result.code == 2
    assert "which deephash does not trust by default" in result.err


def test_the_search_is_the_one_of_faiss(search, hashed):
    faiss = pytest.importorskip("faiss")
    database = open_side(hashed.run / runs.CODES)
    index = faiss.IndexBinaryFlat(16)
    index.add(np.ascontiguousarray(database.packed))
    query = open_side(hashed.run / runs.CODES, "query")
    distances, _ = index.search(np.ascontiguousarray(query.packed), 10)
    ours, positions = ranking.nearest(query.packed, database.packed, 12, 10)
    assert (distances == ours).all()
    (found,), _ = search(f"query={query.ids[0]}", "picture=null")
    assert [result["position"] for result in found["results"]] == positions[0].tolist()
    assert [result["distance"] for result in found["results"]] == distances[0].tolist()
