"""cifar-deploy: image classifiers from training to deployment, every exported file proved.

    from cifar_deploy import benchmark_model, export_model, load, validate_model

    load("resnet18").predict("cat.jpg")
    export_model("resnet18", precision=["fp32", "fp16"])
    validate_model("resnet18")
    benchmark_model("resnet18", batch=[1, 128])

These and what belongs to them come from their modules when they are first asked for: importing the
package imports nothing else.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_deploy.classifier import Classifier, Prediction, load, network
    from cifar_deploy.errors import UserError
    from cifar_deploy.exporting import export_model
    from cifar_deploy.measuring import Measurement, benchmark_model
    from cifar_deploy.proving import Verdict, validate_model

__version__ = "0.1.0"

# From 1.31 on ONNX Runtime tells its maker of every session, models' names and errors among it,
# unless this says no before it is first imported; a user's own choice stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Classifier",
    "Measurement",
    "Prediction",
    "UserError",
    "Verdict",
    "__version__",
    "benchmark_model",
    "export_model",
    "load",
    "network",
    "validate_model",
]

_HOMES = {
    "Classifier": "cifar_deploy.classifier",
    "Prediction": "cifar_deploy.classifier",
    "load": "cifar_deploy.classifier",
    "network": "cifar_deploy.classifier",
    "UserError": "cifar_deploy.errors",
    "export_model": "cifar_deploy.exporting",
    "Measurement": "cifar_deploy.measuring",
    "benchmark_model": "cifar_deploy.measuring",
    "Verdict": "cifar_deploy.proving",
    "validate_model": "cifar_deploy.proving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
