from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes `tmp_path/<name>/{train,test}/<class>/<n>.png` of noise; returns the folder."""

    def write(
        name: str, classes: Sequence[str] = ("ant", "bee"), train: int = 3, test: int = 2
    ) -> Path:
        random = np.random.default_rng(len(name))
        for split, count in (("train", train), ("test", test)):
            for kind in classes:
                folder = tmp_path / name / split / kind
                folder.mkdir(parents=True)
                for n in range(count):
                    pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
                    Image.fromarray(pixels).save(folder / f"{n}.png")
        return tmp_path / name

    return write
