"""Mutated command lines keep their meaning or are refused in a sentence: no traceback, and no text that is changed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mutations
import pytest
import yaml

from deephash_cli.cli import arguments, checking, launch
from deephash_cli.cli.limits import TEXTS

# Valid command lines of every verb with a configuration. ``train`` takes longest to compose, so it stands here less.
LINES = [
    "search query=photo.jpg",
    "search codes=codes query=photo.jpg k=20 output=found.json picture=null",
    "search run=runs/a query=bag/001.jpg index=hnsw hnsw.ef_search=80 radius=3",
    "eval run=runs/a",
    "eval codes=folder ks=[10,100] map_at=[1000] output=metrics.json radius=2 zero_hits=skip",
    "eval query=q.npy database=d.npy query_labels=ql.npy database_labels=dl.npy bits=48 bit_order=big output=m.json",
    "encode input=photos output=codes bad_images=skip shard_size=100 shards=[0,1]",
    "encode run=runs/a input=list.txt root=photos output=codes devices=2 launcher=ray workers=4 gpus_per_worker=0.5",
    "index run=runs/a kind=ivf ivf.lists=10 output=ivf.faiss seed=1 --check",
    "export run=runs/a to=postgres output=exported table=codes side=query",
    "serve codes=codes run=runs/a port=0 k=5 max_bytes=1000",
    "train method=dpsh bits=48 seed=3 loss.quantization_weight=10 run_dir=out",
    "train dataset=image_folder dataset.root=photos bits=24 method=itq runs=all",
    "train dataset=csv dataset.file=table.csv dataset.root=photos optimizer.lr=3e-4 logger=none",
    "train dataset=image_list dataset.root=images dataset.train=train.txt dataset.query=test.txt trainer.max_epochs=2",
    "train dataset=vectors dataset.vectors=x.npy dataset.labels=y.npy dataset.ids=names.txt method=itq",
]
SWEEPS = [
    "train bits=12,24,48 seed=1,2,3",
    "train method=dpsh,dtsh dataset=image_folder dataset.root=photos optimizer.lr=1e-3,1e-4",
    "train experiment=fashion_small_cnn bits=48 seed=range(1,3) runs=out",
]
ODD_WORDS = (
    "", " ", "-", "--", "-m", "-x", "--multirun", "--config-dir", "--config-dir=nowhere", "--config-dir=photos",
    "-cd", "--config-name=train", "--config-path=.", "--package", "-p", "--info", "--resolve", "-sc", "--hydra-help",
    "--run", "--experimental-rerun=x", "=", "=a", "a=", "+", "~", "++", "@", "a", "é=1", "_target_=os.system",
    "hydra.run.dir=x", "hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.searchpath=[file://x]", "hydra=1",
    "defaults=[]", "+a.b.c=1", "k", "k.x=1", "query.x=1", "~k", "~query", "allowed_targets=[os]",
    "+_target_=os.system", "???=1",
)  # fmt: skip
# Names that files can have. Each must work as it is, without any quotes but those of the shell.
NAMES = (
    "IMG (1).jpg", "é.jpg", "e\u0301.jpg", "日本.jpg", "🙂.jpg", "a,b.jpg", "a=b.jpg", "it's.jpg", 'say "hi".jpg',
    "#1.jpg", "a&b.jpg", "[x].jpg", "[1]", "{x}.jpg", "{a: b}", "100%.jpg", "a;b.jpg", "a|b.jpg", "what?*.jpg",
    "$HOME.jpg", "a@b.jpg", "a:b.jpg", "!x.jpg", "`x`.jpg", "a\\b.jpg", "a\\", "2024", "007", "1e5", "-1", "0x1f",
    "1_000", "inf", "nan", "true", "no", "null.jpg", " leading.jpg", "trailing ", "a  b.jpg", "glob(*)",
    "choice(a,b)", "range(3)", "str(1)", "~x.jpg", "a~b", "+x.jpg", "x" * 255, "my photos (2024), été",
    "my photos (2024), été/a=b & c's #1.png", "...", "a'b\"c.jpg", "'", '"', "'a.jpg", 'a".jpg', "(", "x)",
    "a\u00a0b.jpg", "<b>.jpg", "[bold].jpg", "[/].jpg", "???", "a\tb.jpg",
)  # fmt: skip
VERB_OF = {
    **dict.fromkeys(("run", "codes", "query", "output", "picture", "index"), "search"),
    **dict.fromkeys(("input", "root"), "encode"),
    **dict.fromkeys(("database", "query_labels", "database_labels"), "eval"),
    "check_output": "index",
    "table": "export",
    **dict.fromkeys(("lists", "sha256"), "data split fashion_mini"),
    "against": "data audit fashion_mini",
    "model.timm_name": "train model=timm",
}
DATASET_OF = {
    "dataset.root": "image_folder", "dataset.file": "csv", "dataset.train": "image_list",
    "dataset.query": "image_list", "dataset.database": "image_list", "dataset.vectors": "vectors",
    "dataset.labels": "vectors", "dataset.ids": "vectors", "dataset.split_file": "csv", "dataset.shards": "webdataset",
    "dataset.lists": "coco", "dataset.classes": "imagenet100",
}  # fmt: skip


def setting(config: Any, key: str) -> Any:
    """Return the value of a dotted key in a printed configuration."""
    for part in key.split("."):
        config = config[part]
    return config


def is_same_text(typed: str, value: Any) -> bool:
    """Return whether a configuration has the text that was typed, or another name of the same file.

    Text in quotes may stand for what is in them, and an interpolation for another text.
    """
    in_quotes = len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "'\""
    if typed.lower() == "null" or not typed.strip():
        return value in (None, typed)
    return is_same_file(typed, value) or in_quotes or "${" in typed


def is_same_file(typed: str, value: Any) -> bool:
    """Return whether a configuration names the file that was typed; ``./x`` and ``x`` are the same."""
    return isinstance(value, str) and (value == typed or Path(value).absolute() == Path(typed).absolute())


def mutate(rng: Any, line: Sequence[str]) -> tuple[list[str], int | None]:
    """Return a line of which one word is changed, and the place of that word; None if words are added or removed."""
    words = list(line)
    at = int(rng.integers(len(words)))
    key, equals, value = words[at].partition("=")
    kind = int(rng.integers(14))
    if kind <= 5:
        words[at] = f"{key}{equals}{mutations.text(rng, value)}"
    elif kind == 6:
        words[at] = f"{key}{equals}{mutations.pick(rng, mutations.PIECES)}"
    elif kind == 7:
        words[at] = mutations.text(rng, words[at])
    elif kind == 8:
        words[at] = f"{mutations.text(rng, key)}{equals}{value}"
    elif kind == 9:
        words[at] = mutations.pick(rng, ("+", "++", "~", "+ ", "--", "-", "~~")) + words[at]
    elif kind == 10:
        words[at] = f"{key}{mutations.pick(rng, ('@', '@x', '@_global_', '@:x', '.', '/x', '[0]'))}{equals}{value}"
    elif kind == 11:
        words[at] = (
            f"{key}{equals}{mutations.pick(rng, ('ten', '1.5', '-3', '1e400', '[1]', '{a:1}', 'True', '0', '1 0'))}"
        )
    elif kind == 12:
        words.insert(at, mutations.pick(rng, ODD_WORDS))
        return words, None
    else:
        words.insert(at, f"{key}{equals}{mutations.text(rng, value)}")
        return words, None
    return words, at


def changed_meaning(verb: str, words: list[str], at: int | None, config: Any) -> str | None:
    """Return which setting of a line is not in the configuration as it was typed; None if all are."""
    if not isinstance(config, dict) or at is None or words[at].startswith("-"):
        return None
    keys = [word.partition("=")[0] for word in words]
    touched = keys[at].lstrip("+~").strip()
    for place, (key, word) in enumerate(zip(keys, words, strict=True)):
        value = word.partition("=")[2]
        if keys.count(key) > 1 or (verb == "encode" and key.startswith("dataset")):
            continue
        if place != at and (not touched or key.startswith(touched) or touched.startswith(key)):
            continue
        key = "code_bits" if verb == "eval" and key == "bits" else key
        try:
            found = setting(config, key)
        except (KeyError, TypeError):
            continue  # a group
        if key in TEXTS and not is_same_text(value, found):
            return f"{key} is {found!r} instead of {value!r}"
        if re.fullmatch(r"\d{1,9}", value) and key not in TEXTS and type(found) is int and found != int(value):
            return f"{key} is {found!r} instead of {value}"
    return None


def run(deephash: Any, verb: str, words: list[str], at: int | None) -> str | None:
    """Return what is wrong with the answer to a command line; None if nothing is."""
    try:
        result = deephash(verb, "--cfg", "job", *words)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if result.code not in mutations.EXIT_CODES:
        return f"exit {result.code}: {result.err[:300]!r}"
    if "Traceback" in result.err or len(result.err.splitlines()) > 3 or "\x1b" in result.err:
        return f"exit {result.code} with {len(result.err.splitlines())} lines on stderr: {result.err[:300]!r}"
    if result.code:
        return None if result.err.strip() else "refused without a word"
    if any(word.startswith("-") and word != "--check" for word in words):
        return None
    return changed_meaning(verb, words, at, yaml.safe_load(result.out))


@pytest.mark.parametrize("numbers", mutations.chunks(20, 970))
def test_mutated_command_lines(deephash, numbers):
    Path("photos").mkdir()
    failures = []
    for number in numbers:
        rng = mutations.rng_of(number)
        verb, *line = mutations.pick(rng, LINES).split()
        words, at = mutate(rng, line)
        if wrong := run(deephash, verb, words, at):
            failures.append(f"{number}: {wrong}\n   {[verb, *words]!r}")
    assert not failures, mutations.report(failures)


@pytest.mark.parametrize("numbers", mutations.chunks(10, 310))
def test_mutated_sweeps(numbers):
    failures = []
    for number in numbers:
        rng = mutations.rng_of(number)
        line = mutations.pick(rng, SWEEPS).split()[1:]
        words, at = mutate(rng, line)
        if any(re.search(r"range\(|glob|shuffle", word) for word in words) and rng.integers(2):
            continue  # a long range would be composed value by value

        def check(words: list[str] = words, at: int | None = at) -> str | None:
            from omegaconf import OmegaConf

            given = [arguments.normalize(word, "train") for word in words]
            parsed = launch.parse_options("train", ["-m", *given])
            config = checking.check("train", list(parsed.overrides), parsed.config_dir, multirun=True)
            values = OmegaConf.to_container(config)
            return changed_meaning("train", words, at, values) if "," not in "".join(words) else None

        meaning, wrong = mutations.refusal(check)
        if wrong and "characters" in wrong and "several lines" not in wrong:
            wrong = None  # lists of choices may be long
        if wrong or meaning:
            failures.append(f"{number}: {wrong or meaning}\n   {['train', '-m', *words]!r}")
    assert not failures, mutations.report(failures)


@pytest.mark.parametrize("numbers", mutations.chunks(60, 460))
def test_mutated_options(numbers):
    """The verbs without a configuration only parse here; nothing is run."""
    lines = ["compare runs", "compare runs --output tables", "report runs -o report.html", "runs status=failed",
             "runs all --sort map", "sync runs --dry-run", "sync runs --project hashing", "methods itq"]  # fmt: skip
    failures = []
    for number in numbers:
        rng = mutations.rng_of(number)
        verb, *line = mutations.pick(rng, lines).split()
        words, _ = mutate(rng, line)
        _, wrong = mutations.refusal(lambda verb=verb, words=words: arguments.parse(verb, words))
        if wrong:
            failures.append(f"{number}: {wrong}\n   {[verb, *words]!r}")
    assert not failures, mutations.report(failures)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * bool(i % 4), id=ascii(name)) for i, name in enumerate(NAMES)]
)
def test_any_name_of_a_file_works_in_quotes_of_the_shell(deephash, name):
    result = deephash("search", f"query={name}", "--cfg", "job")
    assert result.code == 0, result
    assert is_same_file(name, yaml.safe_load(result.out)["query"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my photos (2024), été/a=b & c's #1.png", "2024", " 'x, [y].png "])
@pytest.mark.parametrize("key", TEXTS)
def test_any_name_of_a_file_works_for_every_key(deephash, key, name):
    """All of the command is run, to its printed configuration, and not its check alone."""
    if key in ("resume", "group"):
        pytest.skip("names no file that may be missing")
    verb = VERB_OF.get(key, "train")
    dataset = [f"dataset={DATASET_OF[key]}"] if key in DATASET_OF else []
    result = deephash(*verb.split(), *dataset, f"{key}={name}", "--cfg", "job")
    assert result.code == 0, result
    assert is_same_file(name, setting(yaml.safe_load(result.out), key))


@pytest.mark.parametrize("name", ["my conf (2024), été", "a=b", "it's"])
def test_a_configuration_folder_of_any_name(deephash, name):
    (Path(name) / "optimizer").mkdir(parents=True)
    (Path(name) / "optimizer" / "mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.125\n_partial_: true\n")
    result = deephash("train", "--config-dir", name, "optimizer=mine", "--cfg", "job")
    assert result.code == 0, result
    assert yaml.safe_load(result.out)["optimizer"]["lr"] == 0.125


@pytest.mark.slow
def test_the_lines_are_valid(deephash):
    """A mutation of a line that is refused as it is would show nothing."""
    for line in LINES:
        verb, *words = line.split()
        result = deephash(verb, "--cfg", "job", *words)
        assert result.code == 0, (line, result)
        assert changed_meaning(verb, words, 0, yaml.safe_load(result.out)) is None, line
    for line in SWEEPS:
        checking.check("train", [arguments.normalize(word) for word in line.split()[1:]], None, multirun=True)
