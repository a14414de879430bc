"""Images in one file, for programs that read no others: CIFAR-10's binary version."""

from pathlib import Path

import numpy as np

from cifar_deploy.data.dataset import Split
from cifar_deploy.disk import write_bytes
from cifar_deploy.errors import UserError


def write_records(split: Split, path: Path) -> None:
    """Write `split` to `path`: of each image a byte for its class, then 1,024 a colour, red first.

    As https://www.cs.toronto.edu/~kriz/cifar.html has it. Raises UserError for more classes than a
    byte can tell, and where the disk refuses.
    """
    if split.labels.max() > 255:
        raise UserError(f"{path}: a byte for the class is too little for more than 256 classes")
    planes = split.images.transpose(0, 3, 1, 2).reshape(len(split), -1)
    write_bytes(path, np.column_stack([split.labels.astype(np.uint8), planes]).tobytes())
