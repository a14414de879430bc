"""GPUs that TensorRT for RTX may not support."""

import contextlib
import re
from collections.abc import Iterator

import pytest

from cifar_deploy.errors import UserError

UNSUPPORTED = r"does not support this (GPU's )?compute capability|cannot run on this GPU"


@contextlib.contextmanager
def supported() -> Iterator[None]:
    """Skip where the library says that it does not support this GPU."""
    try:
        yield
    except UserError as error:
        if re.search(UNSUPPORTED, str(error)):
            pytest.skip(str(error))
        raise
