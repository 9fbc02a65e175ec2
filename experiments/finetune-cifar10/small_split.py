"""Write small.json: s1_validation with 8000 of its 53,000 database images that nothing is trained on.

To compare settings with: encoding takes seconds. deephash train dataset=cifar10 dataset.split_file=small.json ...
"""

from pathlib import Path

import numpy as np

from deephash_cli.data.cifar10 import cifar10
from deephash_cli.data.protocol import make_split, save_split, split_of

data = cifar10(root=None, download=False)
whole = make_split("s1_validation", data, 0)
untrained = np.setdiff1d(whole.database, whole.train)
chosen = np.sort(np.random.default_rng(0).choice(untrained, 8000, replace=False))
small = split_of(data, "small_validation", whole.version, whole.seed, whole.query, whole.train, chosen)
save_split(Path("small.json"), small, data)
print(small.sha256)
