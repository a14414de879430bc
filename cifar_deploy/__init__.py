"""cifar-deploy: image classifiers from training to deployment, every exported file proved.

    from cifar_deploy import load

    load("resnet18").predict("cat.jpg")

`load` and what belongs to it come from `cifar_deploy.classifier` when they are first asked for:
importing the package imports nothing else.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_deploy.classifier import Classifier, Prediction, load, network
    from cifar_deploy.errors import UserError

__version__ = "0.1.0"

# From 1.31 on ONNX Runtime tells its maker of every session, models' names and errors among it,
# unless this says no before it is first imported; a user's own choice stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Classifier", "Prediction", "UserError", "__version__", "load", "network"]

_HOMES = {
    "Classifier": "cifar_deploy.classifier",
    "Prediction": "cifar_deploy.classifier",
    "load": "cifar_deploy.classifier",
    "network": "cifar_deploy.classifier",
    "UserError": "cifar_deploy.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
