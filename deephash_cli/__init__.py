"""deephash: learn binary codes for images, write them to disk, and measure them the same way every time.

These modules are public; docs/python.md shows how a notebook uses them. All others may change without notice.

- ``retrieval.arrays``: `evaluate` scores codes that are NumPy arrays.
- ``retrieval.codes``: binarize, pack and unpack codes; ``retrieval.codes_folder``: codes on disk.
- ``retrieval.metrics``, ``ranking``, ``scoring``: the metrics themselves. None of ``retrieval`` needs torch.
- ``inference.encoder``: `load_encoder` gives the network of a finished run; ``inference.searcher``: search with it.
- ``cli.checking``: `train_settings` composes a configuration; ``training.fit``, ``inputs``, ``instantiate``: its parts.
- ``methods``, ``methods.parts``, ``models``, ``data``, ``schedules``: what a configuration is made of.
- ``runs``: the files of a run folder, their settings and results.
- ``errors``: every error that a user can cause.
"""

__version__ = "0.1.0"
