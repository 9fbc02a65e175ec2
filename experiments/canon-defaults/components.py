"""Write 256 principal components of features, turned by a random rotation.

python components.py <folder that deephash features wrote>
"""

import sys
from pathlib import Path

import numpy as np

folder = Path(sys.argv[1])
features = np.load(folder / "vectors.npy").astype(np.float64)
centred = features - features.mean(axis=0)
variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((256, 256)))
np.save(folder / "components.npy", (centred @ directions[:, ::-1][:, :256] @ rotation).astype(np.float32))
print(f"share of the variance: {variances[::-1][:256].sum() / variances.sum():.3f}")
