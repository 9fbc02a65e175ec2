"""Errors of libraries and of the system through the real front end: each is one sentence, and a bug is a traceback."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from deephash_cli import runs
from deephash_cli.commands import serve
from deephash_cli.inference import searcher, shards
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.itq import ITQ
from deephash_cli.models import HashingNetwork

SLOW = pytest.mark.slow
SMALL = ("bits=12", "loader.batch_size=16")
COMMAND = "from deephash_cli.cli.entry import main; main()"
CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB."
)
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "2147483648 bytes. Error code 12 (Cannot allocate memory)"
)
# An error, its exit code, and what the sentence says of it.
ERRORS = {
    "a GPU without memory": (CUDA, 2, "GPU 0 (which has 79.19 GiB) ran out of memory when 20.00 GiB more were needed"),
    "cuBLAS without memory": (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling x"), 2, "ran out of memory"),
    "a CPU without memory": (CPU, 2, "this machine ran out of memory when 2.00 GiB more were needed"),
    "Python without memory": (MemoryError(), 2, "this machine ran out of memory: "),
    "the system without memory": (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "this machine ran out of memory"),
    "a busy GPU": (RuntimeError("CUDA error: all devices are busy or unavailable"), 2, "the GPU cannot be used"),
    "Lightning": (MisconfigurationException("`a` must be `b`.\nMore."), 2, ": `a` must be `b`."),
    "a full disk": (
        OSError(errno.ENOSPC, "No space left on device", "/x/y"), 4, "could not read or write /x/y: No space left"
    ),
    "a full disk, by an open file": (
        OSError(errno.ENOSPC, "No space left on device"), 4, "could not read or write a file: No space left on device"
    ),
    "no permission": (PermissionError(errno.EACCES, "Permission denied", "/x"), 4, "write /x: Permission denied"),
}  # fmt: skip
OF_MEMORY = [name for name in ERRORS if "memory" in name]


def one_sentence(result, code: int, *parts: str) -> None:
    """Check that a command ended with an error of one line, and with this exit code."""
    lines = [line for line in result.surprises.splitlines() if line]
    assert (result.code, len(lines)) == (code, 1), result
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def raising(error: BaseException, epoch: int = 0):
    """A method that raises an error when it is called, in a module that trains from this epoch on."""

    def call(self, *arguments, **named):
        if getattr(self, "current_epoch", epoch) >= epoch:
            raise error
        return step(self, *arguments, **named)

    step = HashingModule.training_step
    return call


# Errors in each part of the work


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (number % 2)) for number, name in enumerate(ERRORS)],
)
def test_an_error_in_training_is_a_sentence(deephash, photos, tmp_path, monkeypatch, name):
    error, code, part = ERRORS[name]
    monkeypatch.setattr(HashingModule, "training_step", raising(error))
    result = deephash("train", *photos, *SMALL, f"run_dir={tmp_path / 'run'}")
    one_sentence(result, code, part, *(["lower loader.batch_size=16"] if name in OF_MEMORY else []))
    assert not (tmp_path / "run" / runs.ERROR).exists()


def test_a_bug_keeps_its_traceback(deephash, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(HashingModule, "training_step", raising(RuntimeError("what is this")))
    result = deephash("train", *photos, *SMALL, f"run_dir={tmp_path / 'run'}")
    assert result.code == 1
    assert "what is this" in result.err
    assert "Traceback" in (tmp_path / "run" / runs.ERROR).read_text()


@pytest.mark.slow
def test_memory_that_runs_out_later_leaves_the_checkpoint_and_names_it(deephash, photos, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(HashingModule, "training_step", raising(CUDA, epoch=1))
        result = deephash("train", *photos, *SMALL, f"run_dir={folder}")
    one_sentence(result, 2, "lower loader.batch_size=16")
    assert f"the run folder is kept: resume={folder} continues after its last checkpoint" in result.out
    assert json.loads((folder / runs.RECORD).read_text())["error"].startswith("GPU 0 (which has 79.19 GiB) ran out")
    assert deephash("train", *photos, *SMALL, f"resume={folder}").code == 0


@pytest.mark.parametrize(
    ("owner", "part", "settings", "lower"),
    [
        (HashingNetwork, "forward", ("model.frozen=false", "head.epochs=0"), "loader.batch_size=16"),
        (HashingNetwork, "features", ("model.frozen=true",), "features.batch_size=64"),
        (HashingNetwork, "features", ("head.epochs=1",), "features.batch_size=64"),
        (ITQ, "fit", ("method=itq",), "fit_rows=54"),
    ],
)
def test_the_setting_to_lower_is_that_of_the_step(deephash, photos, monkeypatch, owner, part, settings, lower):
    monkeypatch.setattr(owner, part, raising(CUDA))
    one_sentence(deephash("train", *photos, *SMALL, *settings), 2, f"lower {lower}, or use a smaller model")
    assert not list(Path("runs").glob("[!.]*"))


def test_codes_without_memory(deephash, photos, monkeypatch):
    forward = HashingNetwork.forward

    def fail(network, x):
        if torch.is_inference_mode_enabled():
            raise CUDA
        return forward(network, x)

    monkeypatch.setattr(HashingNetwork, "forward", fail)
    result = deephash("train", *photos, *SMALL, "trainer.max_epochs=1")
    one_sentence(result, 2, "lower loader.eval_batch_size=64")


@pytest.mark.slow
def test_a_job_without_memory_does_not_end_the_sweep(deephash, photos, monkeypatch):
    step = HashingModule.training_step

    def fail(module, batch, batch_idx):
        if len(batch.indices) > 10:
            raise CUDA
        return step(module, batch, batch_idx)

    monkeypatch.setattr(HashingModule, "training_step", fail)
    result = deephash("train", "-m", *photos, "bits=12", "trainer.max_epochs=1", "loader.batch_size=16,8")
    assert result.code == 6
    assert "Traceback" not in result.err
    assert "1 of 2 jobs failed" in result.err
    assert result.err.count("lower loader.batch_size=16") == 2  # when it happens, and at the end
    assert len(list(Path("runs").glob("*/run.json"))) == 1


@pytest.mark.parametrize("name", ["a GPU without memory", "Lightning", "a full disk", "a CPU without memory"])
def test_an_error_in_encoding_is_a_sentence(deephash, hashed, monkeypatch, name):
    error, code, part = ERRORS[name]
    command = ("encode", f"run={hashed.run}", f"input={hashed.photos}", "output=codes", "num_workers=0", "batch_size=9")
    with monkeypatch.context() as patch:
        patch.setattr(shards.Work, "packed", raising(error))
        one_sentence(deephash(*command), code, part, *(["lower batch_size=9"] if name in OF_MEMORY else []))
    assert deephash(*command).code == 0


@pytest.mark.parametrize("name", ["a GPU without memory", "a full disk"])
@pytest.mark.parametrize("verb", ["search", "serve", "export"])
def test_an_error_in_a_verb_that_reads_a_run_is_a_sentence(deephash, hashed, monkeypatch, verb, name):
    error, code, part = ERRORS[name]
    if verb == "serve":
        monkeypatch.setattr(serve, "listen", raising(error))
    elif verb == "search":
        monkeypatch.setattr(searcher.Searcher, "query", raising(error))
    else:
        monkeypatch.setattr("deephash_cli.commands.export.run", raising(error))
    more = {"search": [f"query={hashed.photos / 'bag' / '000.jpg'}"], "export": ["to=safetensors", "output=out"]}
    one_sentence(deephash(verb, f"run={hashed.run}", *more.get(verb, [])), code, part)


@pytest.mark.parametrize("verb", ["runs", "methods"])
def test_an_error_in_a_verb_without_a_configuration_is_a_sentence(deephash, monkeypatch, verb):
    error, code, part = ERRORS["a full disk"]
    monkeypatch.setattr(f"deephash_cli.commands.{verb}.run", raising(error))
    one_sentence(deephash(verb), code, part)


# Devices


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_before_the_data_are_read(deephash, monkeypatch, accelerator):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    result = deephash("train", "dataset=image_folder", "dataset.root=missing", f"trainer.accelerator={accelerator}")
    one_sentence(
        result, 2, f"trainer.accelerator={accelerator} finds no such device", "use trainer=auto", "trainer=cpu"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("accelerator=gpu", "accelerator=gpu finds no such device on this machine: use accelerator=auto"),
        ("devices=9999", "devices=9999 is more than the"),
    ],
)
def test_encode_refuses_devices_before_it_writes(deephash, hashed, monkeypatch, setting, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    one_sentence(deephash("encode", f"run={hashed.run}", f"input={hashed.photos}", "output=o", setting), 2, message)
    assert not Path("o").exists()


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch warns of an operation that is not deterministic on a GPU
def test_a_batch_that_does_not_fit_on_a_real_gpu(deephash, photos, monkeypatch):
    """Torch takes no more than a thousandth of the memory, so that a batch is too large at once."""
    torch.cuda.set_per_process_memory_fraction(0.0005)
    try:
        settings = ("trainer.accelerator=gpu", "model.image_size=512", "bits=12")
        result = deephash("train", *photos, *settings, "loader.batch_size=54", "loader.eval_batch_size=1")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    one_sentence(result, 2, "GPU 0 (which has", "ran out of memory", "lower loader.batch_size=54")
    assert deephash("train", *photos, *settings[:1], *SMALL).code == 0  # the memory is free again


# Standard streams


def shell(words: str, **more) -> subprocess.CompletedProcess:
    """Run a line in bash, in which $deephash is the console script, in the current folder."""
    script = Path("deephash.sh")
    script.write_text(f'exec {sys.executable} -c "{COMMAND}" "$@"\n')
    line = words.replace("deephash", "bash deephash.sh")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, **more)


@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        ("deephash methods >&-", 0, ""),
        ("deephash methods 2>&-", 0, ""),
        ("deephash methods <&-", 0, ""),
        ("deephash nonsense >&- 2>&- <&-", 2, ""),
        ("deephash nonsense 2>/dev/full", 2, ""),
        ("deephash methods > /dev/full", 4, "could not write to standard output: No space left on device"),
        ("deephash --help > /dev/full", 4, "could not write to standard output: No space left on device"),
        ("deephash train --cfg job > /dev/full", 4, "could not write to standard output: No space left on device"),
        ("deephash methods | head -1; exit ${PIPESTATUS[1]}", 0, ""),
        ("deephash train --cfg job | head -1; exit ${PIPESTATUS[1]}", 0, ""),
    ],
)
def test_a_stream_that_cannot_be_written_to(line, code, err):
    result = shell(line)
    assert result.returncode == code, result
    assert err in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert result.stderr.count("\n") == bool(err)


def test_no_colours_and_no_letters_that_a_terminal_does_not_have():
    result = shell("deephash methods", env={**os.environ, "NO_COLOR": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    assert result.stdout.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["> /dev/full", "| head -1", ">&- 2>&-"])
def test_a_training_continues_without_its_output(photos, deephash, where):
    words = ["train", *photos, *SMALL, "loader.num_workers=0"]
    line = f"deephash {' '.join(words)} run_dir=quiet {where}; exit ${{PIPESTATUS[0]}}"
    result = shell(line)
    assert result.returncode == 0, result
    assert "Traceback" not in result.stderr
    assert ("standard output: No space left" in result.stderr) == ("full" in where)
    assert deephash(*words, "run_dir=loud").code == 0
    files = sorted(Path("loud", "codes").glob("*.npy"))
    assert len(files) >= 2
    for file in files:
        assert file.read_bytes() == Path("quiet", "codes", file.name).read_bytes()
    assert runs.read_record(Path("quiet"))["status"] == "finished"


# Ctrl-C


def test_ctrl_c_before_anything_is_imported_ends_quietly(tmp_path):
    """From the first line of the console script on. Python's own start, before it, is not deephash's."""
    (tmp_path / "slow.py").write_text("import sys, time\nsys.stdout.write('.')\nsys.stdout.flush()\ntime.sleep(30)\n")
    hook = (
        "import sys, importlib.abc\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'deephash_cli.cli.main':\n"
        "            import slow\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hook + COMMAND, "--version"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": _path(tmp_path)},
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.read(1) == "."
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def _path(folder: Path) -> str:
    return os.pathsep.join([str(folder), *(path for path in sys.path if path)])


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_the_start_ends_quietly(photos):
    """Signals from the moment at which Python reads its first line on; the command would take some seconds."""
    begin = f"import sys; sys.stdout.write('.'); sys.stdout.flush()\n{COMMAND}"
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2):
        process = subprocess.Popen(
            [sys.executable, "-c", begin, "train", *photos],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        process.stdout.read(1)
        time.sleep(delay + 0.03)  # the two lines before the handler is set
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert "KeyboardInterrupt" not in err
