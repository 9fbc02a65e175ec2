"""Keep secrets out of everything that is written or printed.

A secret is the value of an environment variable, for two reasons: a configuration took it from there with
``${oc.env:NAME}``, whatever the name is, or its name suggests a secret.
"""

import os
import re

HIDDEN = "<hidden>"
_SUSPICIOUS = re.compile(r"key|token|secret|password", re.IGNORECASE)
# Variables that name places, people and jobs; runs are found and compared by such values.
_HARMLESS = re.compile(
    r"DEEPHASH_\w+|HOME|USER|LOGNAME|HOSTNAME|PWD|TMPDIR|CUDA_VISIBLE_DEVICES|WANDB_(PROJECT|ENTITY|MODE)|"
    r"SLURM_(JOB_ID|JOB_NAME|ARRAY_JOB_ID|ARRAY_TASK_ID|PROCID|NTASKS|NNODES|SUBMIT_DIR|TMPDIR)"
)
_SHORTEST, _LONG = 4, 8  # characters: shorter values are no secrets, and long ones are hidden inside words, too
_taken: set[str] = set()


def is_suspicious(name: str) -> bool:
    """Return whether the name of a variable or of a setting suggests that its value is a secret."""
    return _SUSPICIOUS.search(name) is not None


def remember(name: str, value: str) -> None:
    """Remember, for as long as this process lives, that a configuration took a value from an environment variable.

    The value of a variable that names a place or a job is no secret, and neither is a path that exists: without it, the
    data of a run could not be found again.

    Args:
        name: Name of the variable.
        value: Its value.
    """
    if is_suspicious(name) or not (_HARMLESS.fullmatch(name) or _is_place(value)):
        _taken.add(value)


def has_secret(text: str) -> bool:
    """Return whether a text contains a secret."""
    return hide(text) != text


def hide(text: str) -> str:
    """Return a text with ``<hidden>`` in place of each secret."""
    by_name = {value for name, value in os.environ.items() if len(value) >= _LONG and is_suspicious(name)}
    for secret in sorted(_taken | by_name, key=len, reverse=True):
        if secret not in text or len(secret) < _SHORTEST:
            continue
        if len(secret) >= _LONG:
            text = text.replace(secret, HIDDEN)
        else:  # inside a longer word it would be a coincidence
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def _is_place(value: str) -> bool:
    try:
        return os.sep in value and os.path.exists(value)  # noqa: PTH110  # Path raises an error for a long name
    except ValueError:  # a null byte
        return False
