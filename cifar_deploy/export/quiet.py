"""What the libraries say that export, which is nothing to a user, goes nowhere."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

# Standard output and the warnings' filters are the whole process's: of two exports at once each
# would put back what the other had set, and torch's exporter is not made for two, either.
_one = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print and warn nothing meanwhile, one export after another."""
    with _one, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
