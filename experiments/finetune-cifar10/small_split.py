"""Write small.json: s1_validation with 8000 of its 53,000 database images that nothing is trained on.

To compare settings with: encoding takes seconds. deephash train dataset=cifar10 dataset.split_file=small.json ...
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from deephash_cli.data.cifar10 import cifar10
from deephash_cli.data.protocol import _digest, make_split, save_split

data = cifar10(root=None, download=False)
split = make_split("s1_validation", data, 0)
untrained = np.setdiff1d(split.database, split.train)
chosen = np.sort(np.random.default_rng(0).choice(untrained, 8000, replace=False))
with tempfile.TemporaryDirectory() as folder:
    save_split(Path(folder) / "split.json", split, data)
    content = json.loads((Path(folder) / "split.json").read_text())
content |= {"name": "small_validation", "database": [data.ids[row] for row in chosen]}
content["counts"]["database"] = len(chosen)
content["sha256"] = _digest({role: content[role] for role in ("query", "train", "database")})
Path("small.json").write_text(json.dumps(content))
print(content["sha256"])
