"""Networks of timm, by name, from the hub or from a folder, with the preprocessing and pooling of their weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from deephash_cli.console import say
from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, command, first_line, short
from deephash_cli.files import read_json
from deephash_cli.models import efficientnet_lite0
from deephash_cli.models import weights as files
from deephash_cli.models.origin import Origin, count, readable, trained_on

_HUB, _FOLDER = "hf-hub", "local-dir"
SOURCES = (_HUB, _FOLDER)
_WORDS = ("none", "auto", "packaged")  # values of model.weights that are no file
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_CONFIG_LIMIT = 2**24  # bytes; the names and descriptions of 21,000 classes take 3 MB
# The DINOv3 authors evaluate retrieval with the class token; timm's default is the mean over the patches.
_ADVISED_POOLING = {"_dinov3": "token"}
# Arguments of timm.create_model that are no part of an architecture: a run's record must not set them.
_NOT_OF_AN_ARCHITECTURE = (
    "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args",
    "pretrained_strict", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only",
    "pruned",
)  # fmt: skip


class _Described(NamedTuple):
    """What is known of a network of timm before it is built."""

    source: str | None  # hf-hub, local-dir or None for timm's own names
    place: str  # repository with its revision, or folder
    architecture: str
    defaults: Mapping[str, Any]  # timm's description of the weights
    arguments: Mapping[str, Any]  # arguments of create_model that the description has


def timm_backbone(
    name: str,
    weights: str,
    image_size: int | None = None,
    dynamic_img_size: bool = False,
    global_pool: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build any network of timm, without its classifier.

    EfficientNet-Lite0, the default, is built by `efficientnet_lite0`, which does not import timm.
    The projection to the space that CLIP shares with texts counts as a classifier and is left out, too.

    Args:
        name: Name of the network in timm, with or without the tag of its weights, ``hf-hub:<org>/<name>@<revision>``,
            or ``local-dir:<folder>`` with ``config.json`` and ``model.safetensors``.
        weights: Source of the weights: ``none`` (random), ``packaged`` (from an installed package), ``auto`` (from the
            folder; or packaged if a package exists, otherwise from the hub, downloaded or cached), or a file with the
            state dict of the whole network.
        image_size: Side of the input in pixels; None means that of the weights. Position embeddings are resampled.
        dynamic_img_size: Whether a transformer resamples its position embeddings for each input instead.
        global_pool: Pooling, such as ``token`` or ``avg``; None means that of the weights, but the class token for
            DINOv3.
        arguments: Further arguments of ``timm.create_model``, as the record of a run has them; None for none.

    Returns:
        Module from images ``(n, 3, s, s)`` to features ``(n, num_features)``. Its ``origin`` has the preprocessing of
        the weights.

    Raises:
        ConfigError: If timm has no such network, or it cannot be built for that size or pooling.
        ArtifactError: If the weights cannot be loaded; the message says how to provide them.
    """
    is_plain = not arguments and not dynamic_img_size and global_pool in (None, "avg")
    if name == efficientnet_lite0.NAME and weights in _WORDS and is_plain:
        return efficientnet_lite0.build("none" if weights == "none" else "packaged", image_size)
    described = _describe(name)
    own_size = _own_size(described)
    made_with = {**described.arguments, **_checked(arguments or {})}
    if dynamic_img_size:
        made_with["dynamic_img_size"] = True
    elif described.defaults.get("fixed_input_size"):
        made_with["img_size"] = image_size or made_with.get("img_size") or own_size
    network, source = _loaded(name, described, made_with, weights)
    own_pooling = _pooling(network)
    if described.source and isinstance(own_pooling, str) and described.defaults.get("global_pool"):
        made_with["global_pool"] = own_pooling  # without the description, timm would take another
    advised = next((pool for part, pool in _ADVISED_POOLING.items() if part in described.architecture), None)
    pooling = global_pool if global_pool is not None else advised if _has_token(network) else None
    _take_off_classifier(name, network, pooling if pooling != own_pooling else None)
    preprocessing = _preprocessing(name, network, image_size or made_with.get("img_size") or own_size)
    changed = {key: value for key, value in made_with.items() if (key, value) != ("img_size", own_size)}
    if _pooling(network) != own_pooling:
        changed["pooling"] = _pooling(network)
    network.origin = replace(
        _weights_of(name, described, weights, source),
        parameters=count(network),
        arguments=made_with,
        preprocessing=preprocessing,
        pooling=_pooling(network),
        changed=changed,
    )
    network.num_features = _output_width(name, network, preprocessing.size)
    if weights not in _WORDS:
        say(f"weights of {Path(weights).name}, preprocessing of timm's {described.architecture}: {preprocessing}")
    return network


def _describe(name: str) -> _Described:
    """Find the architecture that a name stands for and timm's description of its weights. Only the hub is asked.

    Raises:
        ConfigError: If the name is none that timm knows.
        ArtifactError: If the description is missing or damaged.
    """
    source, _, place = name.partition(":")
    source = source.replace("_", "-")
    if source not in SOURCES:
        return _registered(name)
    if not place:
        raise ConfigError(f"{name} has nothing after {source}:, which needs a repository or a folder")
    file = _hub_file(name, place, _CONFIG) if source == _HUB else Path(place) / _CONFIG
    if not file.is_file():
        kind = f"has no {_CONFIG}" if file.parent.is_dir() else "is not a folder"
        raise ArtifactError(
            f"{file.parent} {kind}: {name} needs a folder with {_CONFIG} and {_WEIGHTS}, such as "
            f"{command('hf', 'download', 'timm/<name>', '--local-dir', str(file.parent))} makes on a machine online"
        )
    content = read_json(file, _CONFIG_LIMIT)
    architecture = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(architecture, str):
        raise ArtifactError(f"{file} does not describe a network of timm: it has no architecture")
    _require_registered(architecture)
    defaults, arguments = content.get("pretrained_cfg", content), content.get("model_args") or {}
    if not isinstance(defaults, dict) or not isinstance(arguments, dict):
        raise ArtifactError(f"{file} does not describe a network of timm: pretrained_cfg or model_args is no object")
    return _Described(source, place, architecture, defaults, _checked(arguments))


def _registered(name: str) -> _Described:
    import timm
    from timm.models import get_pretrained_cfg

    if "/" in name or ":" in name:
        raise ConfigError(
            f"timm has no network {short(name)!r}: a name of the hub is written {_HUB}:<org>/<name>, a folder "
            f"{_FOLDER}:<folder>"
        )
    architecture, _, tag = name.partition(".")
    _require_registered(architecture)
    try:
        defaults = get_pretrained_cfg(name)
    except RuntimeError as error:
        exist = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
        raise ConfigError(
            f"timm has no weights {short(tag)!r} of {architecture}; it has {', '.join(exist) or 'none'}"
        ) from error
    return _Described(None, name, architecture, defaults.to_dict() if defaults else {}, {})


def _require_registered(architecture: str) -> None:
    import timm

    if not timm.is_model(architecture) or "." in architecture:
        from difflib import get_close_matches

        near = get_close_matches(architecture, timm.list_models(), n=3)
        similar = f"; similar names are {', '.join(near)}" if near else ""
        raise ConfigError(f"timm has no network {short(architecture)!r}{similar}; timm.list_models() lists all")


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of an architecture from a file that may have been edited.

    Raises:
        ArtifactError: If one of them is none of an architecture, such as a place to read weights from.
    """
    if wrong := [name for name in arguments if name in _NOT_OF_AN_ARCHITECTURE]:
        raise ArtifactError(f"{short(wrong[0])} is no argument of an architecture: the record was edited by hand")
    return dict(arguments)


def _own_size(described: _Described) -> int:
    size = described.defaults.get("input_size") or (3, 224, 224)
    try:
        _, height, width = size
    except (TypeError, ValueError):
        height, width = 0, 1
    if height != width or type(height) is not int:
        raise ConfigError(f"{described.place} takes images of {short(str(size))}; only squares are supported")
    return height


def _loaded(name: str, described: _Described, made_with: Mapping[str, Any], weights: str) -> tuple[Any, str]:
    """Build a network and load its weights.

    Returns:
        The network, and the source of its weights as a record names it.
    """
    import timm

    if weights == "auto" and name in files.PACKAGED_WEIGHTS:
        weights = "packaged"
    if weights != "auto":
        network = _built(name, lambda: timm.create_model(name, pretrained=False, **made_with))
        if weights == "packaged":
            files.load_by_position(network, files.packaged(described.architecture))
        elif weights != "none":
            files.load_by_name(network, Path(weights))
            return network, files.described(Path(weights))
        return network, weights
    file = Path(described.place) / _WEIGHTS if described.source == _FOLDER else None
    if file is not None and not file.is_file():
        raise ArtifactError(files.missing(name, f"{file.parent} has no {_WEIGHTS}; put it there"))
    try:
        network = timm.create_model(name, pretrained=True, **made_with)
    except Exception as error:  # the client of the hub raises errors of many libraries
        _built(name, lambda: timm.create_model(name, pretrained=False, **made_with))
        if file is not None or "state_dict" in str(error):
            raise ArtifactError(f"{file or 'the weights of the hub'} cannot be loaded: {_last_line(error)}") from error
        raise _not_fetched(name, _repository(described) or "", _WEIGHTS, error) from error
    return network, files.described(file) if file is not None else _of_the_hub(described)


def _built(name: str, build: Any) -> Any:
    """Build a network without weights.

    Raises:
        ConfigError: If its settings do not fit it.
    """
    try:
        return build()
    except DeephashError:
        raise
    except Exception as error:  # every architecture checks its arguments in its own way
        raise ConfigError(f"timm cannot build {name} with these settings: {_last_line(error)}") from error


def _repository(described: _Described) -> str | None:
    """Return the repository of the hub that has the weights, with a revision if one was asked for."""
    return described.place if described.source == _HUB else described.defaults.get("hf_hub_id")


def _hub_file(name: str, repository: str, file: str) -> Path:
    """Return a file of the hub, from its cache or downloaded into it.

    Raises:
        ArtifactError: If it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    repo, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(repo, file, revision=revision or None))
    except Exception as error:  # of many libraries
        raise _not_fetched(name, repository, f"{_CONFIG} {_WEIGHTS}", error) from error


def _not_fetched(name: str, repository: str, wanted: str, error: Exception) -> ArtifactError:
    """Return the error for files of the hub that are neither in its cache nor could be fetched."""
    from huggingface_hub import constants, errors

    if not repository:
        return ArtifactError(files.missing(name, f"timm could not fetch them ({first_line(error)})"))
    repo, _, revision = repository.partition("@")
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    if isinstance(error, errors.GatedRepoError):
        reason = f"its authors ask for consent: accept it at https://huggingface.co/{repo}, then run hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"the hub has no revision {revision} of {repo}"
    elif isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        reason = f"the hub has no {repo}, or it is not public"
    elif constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        reason = "the hub cannot be reached (HF_HUB_OFFLINE=1 does not try)"
    else:
        reason = f"timm could not fetch them ({first_line(error)})"
    fetch = command("hf", "download", repo, *wanted.split(), *(["--revision", revision] if revision else []))
    return ArtifactError(
        files.missing(
            name,
            f"{_WEIGHTS} is not in {folder} and {reason}; {fetch} puts it there, here or on another machine with a "
            "network",
        )
    )


def _of_the_hub(described: _Described) -> str:
    """Return where the weights of the hub came from, with the commit if the cache of the hub has it."""
    from huggingface_hub import try_to_load_from_cache

    repository = _repository(described)
    if repository is None:
        return str(described.defaults.get("url") or "unknown")
    repo, _, revision = repository.partition("@")
    wanted = described.defaults.get("hf_hub_filename") or _WEIGHTS
    found = try_to_load_from_cache(repo, wanted, revision=revision or None)
    commit = Path(found).parent.name if isinstance(found, str) else revision
    return f"{_HUB}:{repo}@{commit}" if commit else f"{_HUB}:{repo}"


def _weights_of(name: str, described: _Described, weights: str, source: str) -> Origin:
    """Return what is known of the weights. A file of the user's says nothing, and random weights know nothing."""
    origin = Origin(readable(name), described.architecture, 0, weights=source)
    if source == "none" or weights not in _WORDS:
        return origin
    tag = described.defaults.get("tag") or described.place.partition("@")[0].partition(".")[2]
    licence = described.defaults.get("license")
    pretraining, labelled = trained_on(str(tag))
    known = isinstance(licence, str) and licence != "unknown"
    return replace(origin, licence=licence if known else None, pretraining=pretraining, labelled=labelled)


def _pooling(network: Any) -> str | None:
    """Return the pooling of a network, from the module that pools; None if the network has none of timm's kinds."""
    head = getattr(network, "head", None)
    for found in (getattr(head, "global_pool", None), getattr(network, "global_pool", None)):
        if isinstance(pool := getattr(found, "pool_type", found), str):
            return pool
    return None


def _has_token(network: Any) -> bool:
    return getattr(network, "cls_token", None) is not None


def _take_off_classifier(name: str, network: Any, pooling: str | None) -> None:
    """Remove the classifier, and change the pooling if one is given. The norm stays where the weights have it."""
    if pooling is None:
        network.reset_classifier(0)
        return
    try:
        network.reset_classifier(0, pooling)
    except Exception as error:  # some assert, others do not take a pooling
        reason = _last_line(error)
        raise ConfigError(
            f"{name} cannot pool by {short(str(pooling))}, set another model.global_pool: {reason}"
        ) from error


def _preprocessing(name: str, network: nn.Module, size: int) -> Preprocessing:
    from timm.data.config import resolve_model_data_config

    found = resolve_model_data_config(network)
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    patch = max(patch) if isinstance(patch, tuple) else 1
    if size % patch:
        below = size - size % patch
        near = f"{below} or {below + patch}" if below else str(patch)
        raise ConfigError(
            f"{name} divides images into patches of {patch} pixels: set model.image_size to {near}, got {size}"
        )
    return Preprocessing(
        size=size,
        crop=float(found["crop_pct"]),
        crop_mode=found["crop_mode"],
        interpolation=found["interpolation"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def _output_width(name: str, network: nn.Module, size: int) -> int:
    """Return the length of the feature vectors, by computing one: not every network says it rightly.

    Raises:
        ConfigError: If the network does not take an image of this size, or does not give one vector for an image.
    """
    training = network.training
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # whatever an architecture asserts
        raise ConfigError(f"{name} does not take images of {size} pixels: {_last_line(error)}") from error
    finally:
        network.train(training)
    if features.ndim != 2:
        raise ConfigError(
            f"{name} gives {tuple(features.shape[1:])} values for an image and not one vector: set model.global_pool, "
            "such as to avg"
        )
    return int(features.shape[1])


def _last_line(error: Exception) -> str:
    """Return the line of an error that says what is wrong: PyTorch's first one only names the class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return short(lines[min(1, len(lines) - 1)]) if lines else type(error).__name__
