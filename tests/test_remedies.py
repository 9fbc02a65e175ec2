"""Every remedy that a message offers works when it is typed into bash: commands, settings, options and packages."""

import ast
import functools
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deephash_cli import choices, runs
from deephash_cli.cli import arguments, checking, hydra_keys, lengths, sweep, verbs
from deephash_cli.cli.limits import PATHS
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.runs import listing
from deephash_cli.runs.folder import check_unused
from deephash_cli.runs.outputs import settle

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deephash_cli"
GAP = "\x01"  # what a message fills in
TYPED = "\x02"  # the same, by way of errors.command, which quotes it for the shell

# Which verbs the messages of a folder come from; elsewhere any verb that has settings.
VERBS = {
    "methods": ("train",),
    "models": ("train",),
    "training/checkpoints": ("train", "encode", "search", "serve", "export"),
    "training": ("train",),
    "data": ("train", "encode"),
    "inference": ("encode", "search", "serve", "export"),
    **{f"commands/{verb}": (verb,) for verb in verbs.names() if verbs.is_composed(verb)},
}
COMPOSED = tuple(verb for verb in verbs.names() if verbs.is_composed(verb))
# Choices with which deephash train has keys that it does not have by default.
CONTEXTS = (
    (), *[(f"dataset={name}",) for name in ("image_folder", "csv", "vectors", "cifar10", "imagenet100", "webdataset")],
    ("method=klsh",), ("method=dpn",), ("model=alexnet",), ("dataset=vectors", "model=vectors"),
)  # fmt: skip
# What a reader puts in the place of <...>; any other is the name of a file or folder.
SAMPLES = {"number": "1", "name": "fashion_mini", "target": "parquet", "method": "itq", "any": "1"}
PLACE = "my place (1), it's"
# What looks like a setting, and the reason that it is none.
NO_SETTINGS = {
    "key": "stands for any setting",
    "return_inverse": "an argument of NumPy's unique",
    "bitorder": "an argument of NumPy's packbits",
    "image": "a field of the form that curl sends",
    "difficult": "an element of the XML files of PASCAL VOC",
}
OTHER_PROGRAMS = re.compile(r"docker run [^)]*|curl .*")

_VALUE = r"(?:<[^>]*>|\[[^\]]*\]|[^\s'\"\[<]*)"
_WORD = rf"(?:--?[a-z][a-z-]*|<[^>]*>|{GAP}|{TYPED}|[a-z][\w./]*={_VALUE})"
COMMAND = re.compile(rf"deephash (-?[a-z]+|{GAP})((?: {_WORD})*)")
SETTING = re.compile(rf"(?<![\w./=@<-])([a-z][a-z0-9_]*(?:[./][a-z0-9_]+)*)=({_VALUE})")
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*(?!\w)")
INSTALL = re.compile(rf"pip install ('[^']*'|[\w.{GAP}-]+)")


@dataclass(frozen=True)
class Message:
    """A text of the package, with ``GAP`` for each value that is filled in."""

    file: str
    line: int
    text: str

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs that may print it."""
        found = [names for start, names in VERBS.items() if re.match(rf"{start}[/.]", self.file)]
        return found[0] if found else COMPOSED


@dataclass(frozen=True)
class Remedy:
    """A part of a message that can be typed, with samples in the place of ``<...>``."""

    typed: str
    verbs: tuple[str, ...]
    message: Message


def rendered(node: ast.AST, pick: int = 0) -> str:
    """The text of a string in the source; of a choice between two texts, the one that ``pick`` says."""
    if isinstance(node, ast.JoinedStr):
        return "".join(rendered(part, pick) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return rendered(node.value, pick)
    if isinstance(node, ast.IfExp):
        return rendered((node.body, node.orelse)[pick], pick)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "command":
        return " ".join(rendered(word, pick).replace(GAP, TYPED) for word in node.args)
    return GAP


@functools.cache
def messages() -> list[Message]:
    """Every text of the package in one line and of several words, except docstrings."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        others = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        # tests/cli/test_names.py types what shlex.quote makes
        others |= {id(word) for call in calls if ast.unparse(call.func) == "shlex.quote" for word in call.args}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant | ast.JoinedStr | ast.Call) or id(node) in parts | others:
                continue
            texts = dict.fromkeys((rendered(node, 0), rendered(node, 1)))  # in this order in every process
            said = [text for text in texts if " " in text and "\n" not in text]
            found += [Message(path.relative_to(PACKAGE).as_posix(), node.lineno, text) for text in said]
    return found


def sampled(text: str) -> str:
    """Replace each ``<...>`` by what a reader would type."""
    return re.sub(r"<([^>]*)>", lambda match: shlex.quote(SAMPLES.get(match[1], PLACE)), text)


def split(message: Message) -> tuple[list[re.Match[str]], str]:
    """The commands in a message, and the message without them and without the commands of other programs."""
    commands = [match for match in COMMAND.finditer(message.text) if match[1] in verbs.names()]
    left = OTHER_PROGRAMS.sub("", COMMAND.sub("deephash ", message.text))
    return commands, INSTALL.sub("", left)


def of_kind(kind: str) -> Iterator[Remedy]:
    """Yield all remedies of a kind: command, setting, option or install."""
    for message in messages():
        commands, left = split(message)
        if kind == "command":
            for match in commands:
                yield Remedy(sampled(match[0].rstrip(".,;:)?")), (match[1],), message)
        elif kind == "setting":
            for match in SETTING.finditer(left):
                if match[1] not in NO_SETTINGS:
                    yield Remedy(f"{match[1]}={sampled(match[2].rstrip('.,;:)?'))}", message.verbs, message)
        elif kind == "option":
            for match in OPTION.finditer(left):
                yield Remedy(match[0], message.verbs, message)
        else:
            for match in INSTALL.finditer(message.text):
                yield Remedy(match[0], (), message)


@functools.cache
def once(kind: str) -> list[Remedy]:
    """All remedies of a kind, those that are the same for the same verbs once."""
    return list({(remedy.typed, remedy.verbs): remedy for remedy in of_kind(kind)}.values())


def words_in_bash(lines: Sequence[str]) -> list[list[str]]:
    """The words that bash makes of each line; a pattern of files that it would look for counts as an error."""
    script = "shopt -s failglob\nset -u\n" + "".join(f"printf '%s\\0' {line} {GAP}\n" for line in lines)
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert not result.stderr, result.stderr
    words = result.stdout.split("\0")[:-1]
    return [list(group) for is_end, group in itertools.groupby(words, lambda word: word == GAP) if not is_end]


@functools.cache
def keys(verb: str, context: tuple[str, ...]) -> set[str]:
    """Everything that can stand before ``=`` behind a verb."""
    from hydra import initialize_config_dir

    lengths.register(None)
    with initialize_config_dir(str(choices.CONF_DIR), version_base="1.3"):
        return set(checking._known_keys(verb, context))


def contexts(verb: str, key: str) -> list[tuple[str, ...]]:
    """The contexts in which a verb has a key."""
    return [context for context in CONTEXTS[: None if verb == "train" else 1] if key in keys(verb, context)]


@functools.cache
def accepted_together(verb: str, context: tuple[str, ...]) -> set[str]:
    """Settings that a verb accepts all at once, which is quicker than one by one; empty if it refuses them."""
    words = {}
    for remedy in once("setting"):
        (word,) = shlex.split(remedy.typed)
        key, _, value = word.partition("=")
        fixed = value and not re.search(f"[{GAP}{TYPED}]", value) and key not in choices.group_names()
        if fixed and verb in remedy.verbs and contexts(verb, key)[:1] == [context]:
            words.setdefault(key, word)
    try:
        checking.check(verb, [*context, *(arguments.normalize(word, verb) for word in words.values())], None, False)
    except ConfigError:
        return set()
    return set(words.values())


@functools.cache
def refused(verb: str, word: str) -> str:
    """What a verb says against a setting in whatever context; "" if one accepts it."""
    key, _, value = word.partition("=")
    if verb == "encode" and re.match(r"dataset[.=]", word):
        verb = "train"
    said = f"unknown key {key}"
    if verb == "train" and key in choices.group_names():
        return "" if not value or GAP in value or value in choices.choices(key) else f"{key} has no choice {value}"
    for context in contexts(verb, key):
        if not value or GAP in value or TYPED in value or word in accepted_together(verb, context):
            return ""
        try:
            checking.check(verb, [*context, arguments.normalize(word, verb)], None, multirun=False)
        except ConfigError as error:
            said = str(error)
        else:
            return ""
    return said


@functools.cache
def options(verb: str) -> set[str]:
    """The options of a verb, with those of every verb."""
    import argparse

    from hydra._internal.utils import get_args_parser

    if verbs.is_composed(verb):
        parser = get_args_parser()
        more = {"--check"} if verb == "index" else set()
    else:
        parser, more = argparse.ArgumentParser(add_help=False), set()
        verbs.load(verb).add_arguments(parser)
    return {name for action in parser._actions for name in action.option_strings} | more | {"--help", "--version"}


def test_there_are_remedies():
    for kind, least in {"command": 10, "setting": 50, "option": 8, "install": 5}.items():
        assert len(once(kind)) >= least, kind
    assert NO_SETTINGS.keys() <= {match[1] for message in messages() for match in SETTING.finditer(message.text)}


def test_bash_reads_every_remedy_as_it_is_meant():
    typed = [
        remedy.typed for kind in ("command", "setting", "option", "install") for remedy in once(kind)
        if GAP not in remedy.typed and TYPED not in remedy.typed
    ]  # fmt: skip
    assert words_in_bash(typed) == [shlex.split(line) for line in typed]


def test_brackets_are_quoted(deephash):
    """Some shells, and bash with failglob, take what is in brackets for a pattern of file names."""
    for typed, words in {
        ("train", "loader.pin_memory=1,2"): ["loader.pin_memory=[1,2]"],
        ("train", "metrics.ks=0"): ["metrics.ks=[1,10]"],
        ("train", "logger=wandb", "logger.tags=a"): ["logger.tags=[a,b]"],
    }.items():
        message = deephash(*typed).err
        assert words_in_bash(re.findall("'[^']*=\\[.*\\]'", message)) == [words], message


@pytest.mark.parametrize("remedy", once("setting"), ids=lambda remedy: f"{remedy.message.file}:{remedy.typed!r}")
def test_every_setting_is_accepted(remedy):
    (word,) = shlex.split(remedy.typed)
    assert any(not refused(verb, word) for verb in remedy.verbs), (remedy, refused(remedy.verbs[0], word))


@pytest.mark.parametrize("remedy", once("command"), ids=lambda remedy: remedy.typed)
def test_every_command_is_understood(remedy):
    _, verb, *rest = shlex.split(remedy.typed)
    if not rest:
        return
    if not verbs.is_composed(verb):
        assert verb == "methods" or arguments.parse(verb, rest)
        return
    for word in rest:
        assert word in (GAP, TYPED) or (word in options(verb) if word.startswith("-") else not refused(verb, word)), (
            word
        )


def test_a_command_names_a_verb():
    for message in messages():
        for match in COMMAND.finditer(message.text):
            assert not re.search("=| -", match[2]) or match[1] in (*verbs.names(), GAP), message


@pytest.mark.parametrize("remedy", once("option"), ids=lambda remedy: f"{remedy.message.file}:{remedy.typed}")
def test_every_option_exists(remedy):
    if remedy.message.text.startswith("hf download "):  # of the client of the hub, which is installed with timm
        line = [Path(sys.executable).with_name("hf"), "download", "--help"]
        shown = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout
        assert f"{remedy.typed} " in shown
        return
    assert any(remedy.typed in options(verb) for verb in (*remedy.verbs, *verbs.names())), remedy


def test_every_package_exists():
    from deephash_cli.models import PACKAGED_WEIGHTS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {Requirement(text).name for text in itertools.chain(project["dependencies"], *extras.values())}
    known |= set(re.findall(r"^\$ pip install (\S+)$", (ROOT / "docs" / "scale.md").read_text(), re.M))
    for choice, package in hydra_keys.PLUGINS.items():  # Hydra's own plugins are called hydra-<choice>-<kind>
        _, kind, name = choice.split("/")
        hydras = "hydra-colorlog" if kind.endswith("logging") else f"hydra-{name.partition('_')[0]}-{kind}"
        assert package in (hydras, "'deephash[optuna]'"), choice
    named = ["deephash[optuna]", *(shlex.split(remedy.typed)[2] for remedy in once("install"))]
    named += [package.replace("_", "-") for package, _ in PACKAGED_WEIGHTS.values()]
    named += [f"deephash[{name}]" for name in extras_of_exports()]
    for name in named:
        if GAP in name:
            continue
        wanted = Requirement(name)
        assert wanted.extras <= extras.keys(), name
        assert wanted.name in known or (wanted.name == "deephash" and wanted.extras), name


def extras_of_exports() -> list[str]:
    """The extras that the exports ask for by ``optional(module, extra)``."""
    trees = [ast.parse(path.read_text()) for path in (PACKAGE / "commands" / "export").rglob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [ast.literal_eval(call.args[1]) for call in calls if ast.unparse(call.func) == "optional"]
    assert found
    return found


def test_a_path_in_a_remedy_is_quoted_for_the_shell():
    """What a message fills into a command or behind a setting to type goes through errors.command."""
    advised = re.compile(
        rf"(?:[:;,] |\b(?:or|with|and|set|add|use|give|write) )({'|'.join(map(re.escape, PATHS))}|{GAP})={GAP}"
    )
    for message in messages():
        assert not advised.search(message.text), message
        assert not re.search(rf"=\[[^\]]*{GAP}", message.text), message
        for match in COMMAND.finditer(message.text):
            assert GAP not in match[2] or match[1] not in verbs.names(), message


ODD = (
    "it's (1)",
    "-x",
    '$HOME `a` "b"',
    "a&b;c|d",
    "two\nlines\t\\",
    "é\xa0日",
    "~",
    "#1",
    "*",
    "[x]",
    "!",
    "${x}",
    "a=b, c",
)


def named(said: str, before: str, after: str, key: str) -> Path:
    """The path behind a key in the part of a message between two texts, as bash and then deephash read it."""
    typed = re.search(f"{before}(.*?){after}", said, re.S)
    assert typed, said
    (words,) = words_in_bash([typed[1]])
    (word,) = [word for word in words if word.startswith(key)]
    return Path(arguments.value_of(arguments.normalize(word)))


@pytest.fixture(params=ODD)
def record(request):
    """The folder of a run with an odd name, which has its record only."""
    run = runs.create(Path("runs"), "x", request.param)
    run.start("bits: 8\n", "", [])
    run.end("failed", "")
    run.close()
    return run.path


def test_a_run_of_any_name_is_named_in_remedies(record):
    """The messages about a run that is not finished, and about results that are not complete."""
    from deephash_cli.inference.encoder import load_encoder
    from deephash_cli.runs.results import read

    with pytest.raises(ConfigError) as occupied:
        check_unused(record)
    assert named(str(occupied.value), ", or ", " to continue", "resume=").samefile(record)
    with pytest.raises(ArtifactError) as unfinished:
        load_encoder(record)
    assert named(str(unfinished.value), "; (?=deephash)", " finishes it", "resume=").samefile(record)
    (record / runs.METRICS).write_text("{}")
    with pytest.raises(ArtifactError) as incomplete:
        read(record)
    said = str(incomplete.value)
    assert named(said, ": (?=deephash)", " writes it again", "run=").samefile(record)
    assert named(said, ": (?=deephash)", " writes it again", "output=").samefile(record / runs.METRICS)


def test_a_folder_of_runs_of_any_name_is_named_after_a_sweep(record, capsys):
    folder = record / ".sweeps" / "a" / "jobs-1"
    folder.mkdir(parents=True)
    (folder / "job-0000.json").write_text(
        '{"status": "finished", "overrides": ["seed=1"], "settings": ["seed=1"], "metrics": {"map": 0.5}, "number": 0}'
    )
    sweep.conclude(folder)
    said = capsys.readouterr().out
    (words,) = words_in_bash([said[said.index("deephash report") :].rstrip("\n")])
    assert listing.paths_and_filters(arguments.parse("report", words[2:]).words) == ([Path(words[2])], {})
    assert Path(words[2]).samefile(record)


@pytest.mark.parametrize("package", ["my_hashing", "a b", "$(x)"])
def test_a_package_to_trust(package):
    from deephash_cli.training.trust import require_trusted

    with pytest.raises(ConfigError) as refused:
        require_trusted({"_target_": f"{package}.Net"}, ())
    (words,) = words_in_bash([str(refused.value).partition("add ")[2]])
    assert words == [f"allowed_targets=[{package}]"]
    if package.isidentifier():
        assert checking.check("search", words, None, multirun=False).allowed_targets == [package]


@pytest.mark.parametrize(("verb", "name"), [("compare", "--output "), ("report", "--output "), ("search", "output=")])
def test_a_file_of_ones_own_is_replaced_with_the_word_that_is_advised(verb, name):
    Path("mine").write_text("mine")
    with pytest.raises(ConfigError) as refusal:
        settle(verb, {name: "mine"}, {})
    (words,) = words_in_bash([str(refusal.value).partition("or add ")[2].removesuffix(" to replace it")])
    if name == "output=":
        assert checking.check(verb, words, None, multirun=False).overwrite is True
    else:
        assert arguments.parse(verb, ["runs", *words]).overwrite is True


def test_two_filters_are_written_as_one():
    words = ["dataset=a b", "dataset=c$"]
    with pytest.raises(ConfigError) as refusal:
        listing.paths_and_filters([*words, "."])
    (typed,) = words_in_bash([str(refusal.value).partition("write ")[2].removesuffix(" for runs with either value")])
    assert listing.paths_and_filters([*typed, "."])[1] == {"dataset": "a b,c$"}


def test_new_codes_are_searched_by_the_command_that_is_printed(deephash, hashed):
    place = Path("it's (1), $x")
    place.mkdir()
    run = place / "run"
    run.symlink_to(hashed.run)
    encoded = deephash(
        "encode", f"run={run}", f"input={hashed.photos}", f"output={place}/codes", "num_workers=0", "accelerator=cpu"
    )
    assert encoded.code == 0, encoded
    line = encoded.out.partition("search them: ")[2].rstrip("\n")
    (words,) = words_in_bash([line.replace("<image>", shlex.quote(f"{hashed.photos}/bag/000.jpg"))])
    assert words[:2] == ["deephash", "search"]
    assert deephash(*words[1:], "picture=null").code == 0
