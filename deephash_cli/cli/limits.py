"""Limits of settings that the configuration itself cannot express: ranges of numbers, words, lists and texts."""

from deephash_cli.choices import modules

LONGEST = 4096  # the largest number of bits in a code

# Lowest and highest value of numeric settings; None means no upper limit.
RANGES: dict[str, tuple[float, float | None]] = {
    "bits": (1, LONGEST),
    "seed": (0, 2**31 - 1),
    "dataset.split_seed": (0, 2**31 - 1),
    "dataset.images": (100, 1_000_000),
    "dataset.imbalance": (1, None),
    "dataset.labelled": (2, None),
    "trial": (2, None),
    "trainer.max_epochs": (1, None),
    "trainer.num_nodes": (1, None),
    "loader.batch_size": (2, None),
    "loader.eval_batch_size": (1, None),
    "loader.num_workers": (0, None),
    "features.batch_size": (1, None),
    "fit_rows": (2, None),
    "model.image_size": (8, None),
    "model.network.hidden_units": (0, None),
    "model.network.dropout": (0, 1),
    "head.epochs": (0, None),
    "head.lr": (0, None),
    "head.batch_size": (2, None),
    "ema.decay": (0, 1),
    "optimizer.lr": (0, None),
    "optimizer.weight_decay": (0, None),
    "model.backbone_lr": (0, None),
    "loss.quantization_weight": (0, None),
    "validation.queries": (0, None),
    "validation.every_n_epochs": (1, None),
    "checkpoint.every_n_epochs": (1, None),
    "checkpoint.every_seconds": (0, None),
    "metrics.radius": (0, None),
    "radius": (0, None),
    "pixels": (8, None),
    "k": (1, None),
    "prefix_bits": (1, LONGEST),
    "shortlist": (1, None),
    "shard_size": (1, None),
    "batch_size": (1, None),
    "num_workers": (0, None),
    "devices": (1, None),
    "workers": (1, None),
    "gpus_per_worker": (0, None),
    "port": (0, 65535),
    "max_bytes": (1, None),
    "queries": (1, None),
}
# Numeric settings that may be the word auto instead.
AUTOMATIC = ("loader.num_workers", "num_workers")
# Settings that take one of a few words.
WORDS: dict[str, tuple[str, ...]] = {
    "bit_order": ("little", "big"),
    "byte_type": ("uint8", "int8_minus_128", "int8_same_bits"),
    "kind": tuple(modules("retrieval/indexes")),
    "zero_hits": ("zero", "skip"),
    "metrics.zero_hits": ("zero", "skip"),
    "similar": ("one", "all"),
    "metrics.similar": ("one", "all"),
    "side": ("database", "query"),
    "to": (*modules("commands/export/codes"), *modules("commands/export/network")),
    "features.precision": ("fp32", "bf16"),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
    "bad_images": ("stop", "skip"),
    "accelerator": ("auto", "cpu", "gpu"),
    "launcher": ("local", "ray"),
    "rescore": ("asymmetric",),
    "dtype": ("float16", "float32"),
    "action": ("audit", "split"),
}  # fmt: skip
# Settings that are lists of whole numbers, with the lowest number that is allowed in each.
LISTS = {"nested": 1, "metrics.ks": 1, "dataset.map_at": 1, "ks": 1, "map_at": 1, "shards": 0}
# Settings that are the path of a file or folder, or may be one. Any name works, in quotes for the shell alone.
PATHS = (
    "run_dir", "runs", "resume", "dataset.root", "dataset.file", "dataset.split_file", "dataset.train", "dataset.query",
    "dataset.database", "dataset.shards", "dataset.vectors", "dataset.labels", "dataset.ids", "dataset.lists",
    "dataset.classes", "run", "codes", "output", "query", "database", "query_labels", "database_labels", "input",
    "root", "picture", "index", "check_output", "model.weights", "model.timm_name", "against", "lists",
)  # fmt: skip
# Settings that must be text; most have no default that would show it.
TEXTS = (*PATHS, "group", "dataset.name", "dataset.protocol", "logger.project", "logger.entity", "table", "sha256")
# Settings that every configuration with their group must have, even if the user's own file sets them to null.
NEEDED = (
    "dataset.name", "dataset.protocol", "dataset.source", "dataset.map_at", "metrics.ks", "metrics.radius",
    "metrics.zero_hits",
)  # fmt: skip
# Settings that have a default and may still be set to null.
OPTIONAL = ("picture", "trial", "model.image_size")
