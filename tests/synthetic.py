"""Run folders made up for tests."""

import json
from pathlib import Path

import yaml
from PIL import Image

from deephash_cli import runs


def write_run(folder, method="dpsh", bits=12, seed=0, value=0.5, split="a" * 64, changes=None, **more):
    """A run folder as ``deephash train`` leaves it, as far as tables need it."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    settings = {
        "method": method, "bits": bits, "seed": seed, "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        "trainer": {"max_epochs": 3}, **(changes or {}),
    }  # fmt: skip
    metrics = {
        "map": value, "map_stable": value / 2, "empty_ball_rate": value, "precision_at_k": {"10": value},
        "method": method, "bits": bits, "seed": seed, "queries": 100, "database": 900, "dataset": "toys",
        "split": {"name": "holdout", "sha256": split}, "policies": {"ties": "exact"}, "versions": {"deephash": "0.1.0"},
        "validation": None,
    }  # fmt: skip
    record = {
        "status": "finished", "started": "2026-01-01T00:00:00+00:00", "fingerprint": runs.fingerprint(settings),
        "overrides": [], "error": None,
    }  # fmt: skip
    (folder / runs.CONFIG).write_text(yaml.safe_dump(settings))
    (folder / runs.METRICS).write_text(json.dumps({**metrics, **more.get("metrics", {})}))
    (folder / runs.RECORD).write_text(json.dumps({**record, **more.get("record", {})}))
    return folder


def backbone(name="toy_net", on_classes=None, **changes):
    """The entries of ``metrics.json`` that say where the backbone of a run comes from."""
    record = {
        "name": name, "architecture": name, "arguments": {}, "weights": f"hf-hub:toys/{name}@1", "licence": "mit",
        "pretraining": "ImageNet-1k", "labelled": ["imagenet"], "parameters": 5_300_000, "preprocessing": None,
        "pooling": "avg",
    }  # fmt: skip
    known = {} if on_classes is None else {"pretrained_on_classes": on_classes}
    return {"backbone": {**record, **changes}, **known}


def curves(bits, value):
    """The parts of ``metrics.json`` that are more than a number, as the present version writes them."""
    return {
        "precision_at_k": {str(k): value for k in (1, 10, 100, 1000)},
        "pr_by_rank": {"rank": [1, 2, 9], "precision": [value, value / 2, 0.1], "recall": [0.1, 0.5, 1.0]},
        "pr_by_radius": {
            "radius": list(range(bits + 1)),
            "precision": [value] * (bits + 1),
            "recall": [radius / bits for radius in range(bits + 1)],
        },
        "distances": {"relevant": [bits + 1 - d for d in range(bits + 1)], "other": list(range(1, bits + 2))},
        "per_class": {"map": [value, None, value / 2], "queries": [50, 0, 50]},
        "bit_balance": {"mean_deviation": 0.1, "max_deviation": 0.2, "ones": [0.5] * (bits - 1) + [0.3]},
        "bit_correlation": {"mean_absolute": 0.05, "max_absolute": 0.25},
        "unique_code_ratio": 0.5,
    }


def write_steps(folder, values=(3.0, 2.0, 1.0)):
    """A ``metrics.jsonl`` with a training loss and a validation mAP, and a line that was torn."""
    lines = [
        line
        for step, value in enumerate(values, 1)
        for line in ({"step": step, "train/loss": value}, {"step": step, "validation/map": 1 - value / 4})
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (Path(folder) / runs.STEPS).write_text(text + '{"step": 9, "train/lo')


def write_gallery(folder, queries=2, k=3, tile=16, name="bag", changes=None):
    """The images that a run kept of what queries found, each of one colour."""
    image = Image.new("RGB", (tile * (k + 1), tile * queries))
    for row in range(queries):
        for column in range(k + 1):
            image.paste(
                (60 * column, 100 * row, 90), (column * tile, row * tile, (column + 1) * tile, (row + 1) * tile)
            )
    image.save(Path(folder) / "retrieval.webp")
    record = {
        "tile": tile,
        "k": k,
        "ties": "in the order of the database",
        "queries": [
            {
                "id": f"{name}/{row}",
                "labels": [name],
                "average_precision": 0.25,
                "kind": "drawn",
                "results": [
                    {"id": f"{name}/r{place}", "labels": [name], "distance": place, "relevant": place % 2 == 0}
                    for place in range(k)
                ],
            }
            for row in range(queries)
        ],
    }
    (Path(folder) / "retrieval.json").write_text(json.dumps({**record, **(changes or {})}))
