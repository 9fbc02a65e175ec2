"""Make a folder of 1,200 images a class from CIFAR-10 as a folder of files: python subset.py <cifar10> <new folder>.

It has the first 1,100 training images and the first 100 test images of each class.
"""

import shutil
import sys
from pathlib import Path

source, subset = map(Path, sys.argv[1:])
for part, images in (("train", 1100), ("test", 100)):
    for folder in sorted((source / part).iterdir()):
        (subset / folder.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir())[:images]:
            shutil.copyfile(file, subset / folder.name / f"{part}_{file.name}")
