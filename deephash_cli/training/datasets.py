"""Load the data of a run, divide them, and check that they suit its settings, before torch is imported.

Paths, columns, labels and pairs are known before any feature is computed, so a mistake in them must cost no time.
"""

import contextlib
import functools

from omegaconf import DictConfig, OmegaConf

from deephash_cli.choices import CONF_DIR, choices
from deephash_cli.console import say, warn
from deephash_cli.data import inspection, trial
from deephash_cli.data.changes import Changes, in_words
from deephash_cli.data.dataset import RetrievalDataset, Vectors
from deephash_cli.data.identity import missing_images_kept
from deephash_cli.data.pairs import require_pairs
from deephash_cli.data.protocol import Split
from deephash_cli.data.summary import summary
from deephash_cli.data.training_part import divide
from deephash_cli.errors import ConfigError, DataError
from deephash_cli.phases import phase
from deephash_cli.training import caution
from deephash_cli.training.method_facts import UNKNOWN, facts_of
from deephash_cli.training.targets import as_yaml, build

_Unreadable = tuple[tuple[str, str], ...] | None

# Where a data set that has no labels takes them from, for messages.
_LABELS_FROM = {
    "csv": " (a column labels in the table)",
    "image_folder": " (a sub-folder for each class)",
    "vectors": " (with dataset.labels=<file.npy>)",
}


@phase("data")
def prepare_data(config: DictConfig, unreadable: _Unreadable = None) -> tuple[RetrievalDataset, Split]:
    """Load the data set of a configuration, check it, and divide it. The last data set and division are kept.

    Args:
        config: Composed configuration of ``deephash train``.
        unreadable: Ids of the images that ``bad_images=skip`` takes out of the data set, each with a reason; None to
            find them.

    Returns:
        The data set, and its division into training set, queries and database.

    Raises:
        ConfigError: If the data set, the model and the method do not fit each other.
        DataError: If the data are missing, damaged, or do not fit the method.
    """
    changes = Changes.of(config.dataset)
    source = as_yaml(config.dataset.source)
    skipped = unreadable if config.bad_images == "skip" else ()
    dataset = load_dataset(source, skipped)
    module, _, name = str(config.module["_target_"]).rpartition(".")
    facts = facts_of(module, name)
    supervision, trained_on = facts.supervision, facts.inputs
    _require_fitting(config, dataset, supervision)
    fit_rows = config.fit_rows if trained_on == "features" else 0
    _look_at_vectors(source, skipped, fit_rows, OmegaConf.select(config, "module.scaling") == "standard")
    place = config.dataset.protocol, config.dataset.split_seed, config.dataset.split_file
    split = _divide(source, skipped, *place, changes)
    if facts.transductive:
        require_whole_training_part(config, split)
    if config.trial:
        dataset, split = trial.reduce(dataset, split, config.trial)
    if supervision not in ("none", UNKNOWN):
        require_pairs(dataset.labels[split.train])
    return dataset, split


def forget() -> None:
    """Forget the data set and division that are kept, because their files may have changed."""
    load_dataset.cache_clear()
    _divide.cache_clear()
    _look_at_vectors.cache_clear()


@functools.lru_cache(maxsize=1)
def load_dataset(source: str, unreadable: _Unreadable = ()) -> RetrievalDataset:
    """Load the data set that a node of the configuration describes, and warn of images that show nothing.

    The last data set is kept in memory, because the runs of a sweep share it.

    Args:
        source: Node ``dataset.source`` of the configuration, as YAML.
        unreadable: Ids of images to take out of the data set because they cannot be read, each with a reason; None to
            decode every image once and take out those that cannot be read.

    Raises:
        DataError: If the data are missing or damaged.
        ConfigError: If the node cannot be built.
    """
    with contextlib.nullcontext() if unreadable == () else missing_images_kept():
        dataset = build(OmegaConf.create(source))
    dataset = inspection.without(dataset, inspection.unreadable_images(dataset) if unreadable is None else unreadable)
    for sentence in inspection.peculiarities(dataset):
        warn(sentence)
    return dataset


@functools.lru_cache(maxsize=1)
def _divide(
    source: str, unreadable: _Unreadable, protocol: str, seed: int, file: str | None, changes: Changes
) -> Split:
    """Divide a data set. How a user's own data were understood is said once for each division, and what was changed."""
    dataset = load_dataset(source, unreadable)
    split = divide(dataset, protocol, seed, file, changes)
    if dataset.reading is not None:
        say(summary(dataset, split, file))
    if split.changes:
        say(f"{'; '.join(in_words(split.changes))}: {len(split.train)} training images")
    return split


def require_whole_training_part(config: DictConfig, split: Split) -> None:
    """Refuse a method that trains on the whole database if the training part of the division was reduced.

    Args:
        config: Composed configuration, of such a method.
        split: Division of the data set.

    Raises:
        ConfigError: If the training part was reduced.
    """
    if split.changes:
        raise ConfigError(
            f"method={config.method} learns from the labels of the whole database, so its training part cannot have "
            f"{' and '.join(in_words(split.changes))}: choose another method, or leave out "
            f"{' and '.join(Changes.of(config.dataset).typed) or 'dataset.split_file'}"
        )


@functools.lru_cache(maxsize=1)
def _look_at_vectors(source: str, unreadable: _Unreadable, fit_rows: int, centred: bool) -> None:
    """Warn of vectors that will not give useful codes, once for each data set."""
    dataset = load_dataset(source, unreadable)
    if isinstance(dataset.images, Vectors):
        caution.look_at(dataset.images, dataset.labels.shape[1], fit_rows, centred)


def _require_fitting(config: DictConfig, dataset: RetrievalDataset, supervision: str) -> None:
    """Check that the data set suits the model and the method, before anything is computed.

    Raises:
        ConfigError: If the model takes images but the data set holds vectors, or the other way round; or if the head
            is to be trained first although the backbone is frozen.
        DataError: If the method learns from labels but the data set has no labels, or if all vectors are the same.
    """
    backbone = OmegaConf.select(config, "model.network.backbone._target_")
    holds = "vectors" if isinstance(dataset.images, Vectors) else "images"
    takes = "vectors" if str(backbone).endswith(".NoBackbone") else "images"
    if holds != takes:
        raise ConfigError(
            f"dataset={config.dataset.name} holds {holds} but model={config.model.name} takes {takes}: leave out model="
        )
    if config.head.epochs and config.model.frozen:
        raise ConfigError(
            f"head.epochs={config.head.epochs} needs model.frozen=false, got model.frozen=true: leave out head.epochs "
            "and set trainer.max_epochs"
        )
    if not dataset.class_names and supervision not in ("none", UNKNOWN):
        raise DataError(
            f"method={config.method} learns from labels, but data set {dataset.name} has no labels: "
            f"add labels{_LABELS_FROM.get(dataset.name, '')}, or choose a method that needs none: "
            f"{', '.join(_without_labels())}"
        )


def _without_labels() -> list[str]:
    """Return the names of the methods of deephash that learn from images alone."""
    files = {name: OmegaConf.load(CONF_DIR / "method" / f"{name}.yaml") for name in choices("method")}
    classes = {name: str(OmegaConf.select(file, "module._target_")).rpartition(".") for name, file in files.items()}
    return [name for name, (module, _, cls) in classes.items() if facts_of(module, cls).supervision == "none"]
