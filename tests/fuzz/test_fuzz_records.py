"""Records of runs and codes in which a value was edited give the same result, or one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import digests
import mutations
import pytest
import yaml
from omegaconf import OmegaConf

from deephash_cli import runs
from deephash_cli.cli import arguments, checking, verbs
from deephash_cli.data.image_folder import image_folder
from deephash_cli.data.protocol import load_split
from deephash_cli.files import read_sealed
from deephash_cli.runs import RETRIEVAL

Work = Callable[[], Any]


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """The configurations of the verbs, composed once, for verbs that are called without the command line."""
    return {
        verb: checking.check(verb, [], None, multirun=False) for verb in ("eval", "search", "export", "index", "encode")
    }


@pytest.fixture(scope="module")
def originals(hashed, tmp_path_factory, settings) -> Path:
    """A folder with a run under ``runs/a``, codes that ``deephash encode`` made of its photos, and the photos."""
    place = tmp_path_factory.mktemp("originals")
    shutil.copytree(hashed.run, place / "runs" / "a")
    shutil.copytree(hashed.photos, place / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        verbs.load("encode").run(OmegaConf.merge(settings["encode"], encoding()))
    return place


@pytest.fixture
def place(originals, monkeypatch) -> Path:
    """The current folder, with a copy of the run, the codes and the photos."""
    shutil.copytree(originals, Path.cwd(), dirs_exist_ok=True)
    return Path.cwd()


def encoding() -> dict[str, Any]:
    return {"run": "runs/a", "input": "photos", "output": "codes", "num_workers": 0, "accelerator": "cpu"}


def works(settings: dict[str, Any]) -> dict[str, Work]:
    """Return by name what can be done with a run and with codes; each returns what must not change."""

    def call(verb: str, **chosen: Any) -> Any:
        return verbs.load(verb).run(OmegaConf.merge(settings[verb], chosen))

    def listed(verb: str, *words: str) -> None:
        verbs.load(verb).run(arguments.parse(verb, words))

    def evaluated(**chosen: Any) -> Any:
        metrics = call("eval", **chosen)
        classes = len(metrics["per_class"]["map"])
        names = metrics.get("class_names") or ["?"] * classes
        assert len(names) == classes, f"{len(names)} names of {classes} classes"
        assert all(isinstance(name, str) for name in names), f"class names {names}"
        return {name: metrics[name] for name in ("map", "map_stable", "per_class", "queries", "database")}

    def searched(**chosen: Any) -> Any:
        found = call("search", picture=None, k=5, **chosen)
        return [[(hit["id"], hit["distance"]) for hit in one["results"]] for one in found]

    def exported(to: str, **chosen: Any) -> None:
        shutil.rmtree("out", ignore_errors=True)
        call("export", to=to, output="out", **chosen)

    def split() -> Any:
        found = load_split(Path("runs/a/split.json"), image_folder("photos"))
        return [rows.tolist() for rows in (found.train, found.query, found.database)]

    return {
        "eval run": lambda: evaluated(run="runs/a"),
        "eval codes": lambda: evaluated(codes="runs/a/codes"),
        "search run": lambda: searched(run="runs/a", query="photos/bag/003.jpg"),
        "search codes": lambda: searched(run="runs/a", codes="codes", query="photos/bag/003.jpg"),
        "export postgres": lambda: exported("postgres", codes="runs/a/codes"),
        "export opensearch": lambda: exported("opensearch", codes="codes"),
        "export safetensors": lambda: exported("safetensors", run="runs/a"),
        "index": lambda: call("index", run="runs/a", kind="flat", output="flat.faiss"),
        "encode": lambda: call("encode", **encoding()),
        "compare": lambda: listed("compare", "runs"),
        "compare as LaTeX": lambda: listed("compare", "runs", "--output", "table.tex"),
        "runs": lambda: listed("runs", "runs"),
        "runs as JSON": lambda: listed("runs", "runs", "--format", "json", "--sort", "map"),
        "report": lambda: listed("report", "runs", "-o", "report.html"),
        "split": split,
    }


# For each file, what reads it.
READERS = {
    "runs/a/codes/manifest.json": (
        "eval run", "eval codes", "search run", "export postgres", "export safetensors", "index",
    ),
    "codes/manifest.json": ("search codes", "export opensearch", "encode"),
    "codes/encode.json": ("encode", "search codes"),
    "runs/a/run.json": ("eval run", "search run", "runs", "runs as JSON", "compare", "report", "index"),
    "runs/a/metrics.json": ("compare", "compare as LaTeX", "runs", "runs as JSON", "report"),
    "runs/a/split.json": ("search run", "split"),
    "runs/a/config.yaml": ("compare", "runs", "report", "search run", "eval run"),
    f"runs/a/{RETRIEVAL}": ("report",),
}  # fmt: skip
SAME = ("eval run", "eval codes", "search run", "search codes", "split")  # their results do not depend on the edit


def edited(file: Path, number: int) -> str:
    """Change one value in a file, or a few of its bytes, and return what was changed."""
    rng = mutations.rng_of(number)
    original = file.read_bytes()
    if rng.integers(5) == 0:
        file.write_bytes(mutations.content(rng, original))
        return "bytes"
    if file.suffix == ".yaml":
        changed, what = mutations.value(rng, yaml.safe_load(original))
        file.write_text(yaml.safe_dump(changed, allow_unicode=False))
        return what
    changed, what = mutations.value(rng, read_sealed(file))
    try:
        file.write_bytes(mutations.as_json(changed).encode("utf-8", errors="surrogatepass"))
    except ValueError:  # a number of more digits than Python writes
        file.write_bytes(b"[1" + b"0" * 5000 + b"]")
    return what


@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize("numbers", mutations.chunks(2, 152))
def test_edited_records(place, settings, file, numbers):
    do = works(settings)
    same = {*SAME} - {"search run"} if file.endswith(".yaml") else {*SAME}  # other settings are another network
    right = {name: do[name]() for name in READERS[file] if name in same}
    original = Path(file).read_bytes()
    failures = []
    for number in numbers:
        what = edited(Path(file), number)
        present = Path(file).read_bytes()
        for name in READERS[file]:
            result, wrong = mutations.refusal(do[name])
            if wrong is None and result is not None and name in right and result != right[name]:
                wrong = f"another result: {str(result)[:200]}"
            if wrong:
                failures.append(f"{number}: {name}, {what}: {wrong}")
            Path(file).write_bytes(present)  # a reader may have mended it
        Path(file).write_bytes(original)
    assert not failures, mutations.report(failures)


@pytest.mark.parametrize("change", ["shorter", "longer", "numbers", "empty", "the same twice", "a text"])
def test_names_of_classes_that_do_not_fit_the_labels(place, settings, change):
    """A number under the name of another class would be a wrong result: refused, or without names."""
    file = Path("runs/a/codes/manifest.json")
    manifest = read_sealed(file)
    names = manifest["provenance"]["class_names"]
    manifest["provenance"]["class_names"] = {
        "shorter": names[:1] + names[2:], "longer": ["new", *names], "numbers": [1, 2, 3], "empty": [],
        "the same twice": [names[0], names[0], names[1]], "a text": "bag",
    }[change]  # fmt: skip
    digests.put(file, manifest)
    digests.renew("runs/a")
    do = works(settings)
    for name in ("eval run", "search run"):
        _, wrong = mutations.refusal(do[name])
        assert wrong is None, name
    (place / "runs" / "a" / runs.METRICS).unlink()
    _, wrong = mutations.refusal(do["report"])
    assert wrong is None
