"""The command line: verbs, help, completion, exit codes. Imports nothing heavy at the top."""

import gc
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from deephash_cli import __version__, phases
from deephash_cli.choices import choices
from deephash_cli.cli import streams, verbs
from deephash_cli.cli.limits import LONGEST, TEXTS, WORDS
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, Stopped, hint, print_error
from deephash_cli.failures import explained

EXAMPLES = """\
  deephash train method=dpsh bits=48                        the default: Fashion-MNIST, minutes on a CPU
  deephash train -m bits=12,24,48 seed=1,2,3                a sweep; started again, it runs only what is missing
  deephash train dataset=image_folder dataset.root=photos   your own images, one sub-folder per class
  deephash train resume=auto                                continue the same run after an interruption
  deephash eval run=runs/<folder>                           recompute every number from the codes on disk
  deephash search query=photo.jpg                           find the nearest images: a table and a picture
  deephash serve                                            the same as a web page: drop an image on it
  deephash encode input=photos output=codes                 codes of new images, from the newest run's network
  deephash index run=runs/<folder> kind=hnsw --check        a faiss index, with its recall and speed
  deephash export run=runs/<folder> to=faiss output=out     codes or a network for other programs
  deephash features dataset=cifar10 output=features         a backbone's features as .npy files for any program
  deephash data audit cifar10                               what is in a split: labels, overlap, duplicates
  deephash compare runs                                     methods by code length: mean and deviation over seeds
  deephash report runs -o report.html                       tables, charts and images of your runs in one HTML file
  deephash runs                                             list your runs and their status
  deephash verify runs                                      compare every file with its digest; say what is damaged
  deephash sync runs                                        upload to W&B the runs that were logged offline
  deephash methods                                          list the choices of method=
  deephash train --cfg job                                  print the whole configuration"""

HELP = f"""\
deephash {__version__}: learn binary codes for images and measure them the same way every time

Verbs:
{{verbs}}

Examples:
{EXAMPLES}

deephash <verb> --help lists its choices and settings. deephash --version prints the versions.
Shell completion: eval "$(deephash -sc install=bash)"   (or zsh, fish)
Exit codes: 0 done, 2 usage, 3 data, 4 checkpoint or codes, 5 diverged, 6 jobs of a sweep failed, 130 Ctrl-C, 1 bug"""


def main() -> None:
    """Run the console script, and exit with its code."""
    streams.prepare()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `deephash --help | head` ends quietly
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # schedulers warn with it; only a training has something to save
    gc.set_threshold(50_000, 50)  # collecting garbage often while thousands of modules load costs half a second
    code = run(sys.argv[1:])
    if error := streams.lost():
        code = _without_output(code, error)
    gc.freeze()  # otherwise Python would search all objects of all modules for garbage at exit, and find none
    sys.exit(code)


def _without_output(code: int, error: OSError) -> int:
    """Say that text is lost, and return the exit code: only a command whose results are in files has succeeded."""
    in_files = sys.argv[1] in ("train", "encode", "features") and "--cfg" not in sys.argv
    print_error(ArtifactError(f"could not write to standard output: {error.strerror}; its text is lost"))
    return code if in_files else code or ArtifactError.exit_code


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    phases.restart()
    try:
        with explained():
            return _run(arguments)
    except DeephashError as error:
        print_error(error)
        return error.exit_code
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help()
        return 0
    if arguments[0] == "--version":
        print_version()
        return 0
    if arguments[0] in ("-sc", "--shell-completion"):
        return complete(arguments)
    verb, rest = arguments[0], list(arguments[1:])
    if verb not in verbs.names():
        raise ConfigError(f"unknown verb {verb!r}{hint(verb, verbs.names())}; verbs: {', '.join(verbs.names())}")
    if any(argument in ("-h", "--help") for argument in rest) or (verb == "data" and not rest):
        print_verb_help(verb)
        return 0
    if "--version" in rest:
        print_version()
        return 0
    if verbs.is_composed(verb):
        from deephash_cli.cli.launch import launch

        return launch(verb, rest)
    from deephash_cli.cli.arguments import parse

    verbs.load(verb).run(parse(verb, rest))
    return 0


def print_help() -> None:
    """Print the verbs, with examples."""
    _print(HELP.format(verbs="\n".join(f"  {verb:9}{verbs.summary(verb)}" for verb in verbs.names())))


def print_version() -> None:
    """Print the versions of deephash and of the packages that results depend on, without importing them."""
    from importlib import metadata  # a third of the time that the help takes

    packages = ("torch", "pytorch-lightning", "hydra-core", "numpy")
    _print(f"deephash {__version__} ({', '.join(f'{name} {metadata.version(name)}' for name in packages)})")


def print_verb_help(verb: str) -> None:
    """Print what can be chosen and set, read from the help text and the configuration folder."""
    _print(verb_help(verb))


def verb_help(verb: str) -> str:
    """Return the help of a verb as it is printed, with the groups and the examples in it."""
    more = {"bits": f", or any whole number from 1 to {LONGEST}"}
    groups = "\n".join(f"  {name:<12}{', '.join(choices(name))}{more.get(name, '')}" for name in verbs.groups(verb))
    text = verbs.help_text(verb).replace("{examples}", EXAMPLES)
    return text.replace("{groups}", f"Groups and their choices:\n{groups}")


def complete(arguments: Sequence[str]) -> int:
    """Print completions for the shell and return the exit code: verbs and methods here, everything else by Hydra."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if arguments[1:] and arguments[1].startswith("query="):
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            prefix = words[1] if len(words) == 2 else ""
            _print(" ".join(verb for verb in verbs.names() if verb.startswith(prefix)))
            return 0
        if words[1] in ("methods", "data"):
            started = "" if line.endswith(" ") else words[-1]
            names = choices("method") if words[1] == "methods" else [*WORDS["action"], *choices("dataset")]
            _print(" ".join(name for name in names if name.startswith(started)))
            return 0
        if words[1] not in verbs.names() or not verbs.is_composed(words[1]):
            return 0
        shorter = _without_names(line.replace(f" {words[1]}", "", 1))
        os.environ["COMP_LINE"] = shorter
        os.environ["COMP_POINT"] = str(len(shorter))
        return _complete(words[1], arguments)
    return _complete("train", arguments)


def _without_names(line: str) -> str:
    """Return a line to complete without its paths and names: they change no completion, and Hydra cannot read them."""
    try:
        words = shlex.split(line)
    except ValueError:  # the word to complete starts with a quote
        return line
    last = "" if line.endswith(" ") else words.pop()
    kept = [word for word in words if word.split("=")[0] not in TEXTS and word.split() == [word]]
    return " ".join([*kept, last])


def _complete(verb: str, arguments: Sequence[str]) -> int:
    from deephash_cli.cli.launch import run_hydra

    return run_hydra(verb, list(arguments))


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
