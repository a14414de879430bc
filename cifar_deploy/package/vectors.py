"""Test vectors: images, and the logits that the packaged file answered with here."""

from dataclasses import dataclass

from cifar_deploy.architectures import weights
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.device import pick
from cifar_deploy.disk import sha256_of
from cifar_deploy.errors import UserError
from cifar_deploy.package.source import Source
from cifar_deploy.runtimes.load import open_runtime
from cifar_deploy.runtimes.protocol import Logits, Runtime
from cifar_deploy.runtimes.pytorch import PyTorch
from cifar_deploy.store import check_weights

COUNT = 64


@dataclass(frozen=True)
class Vectors:
    """Images, uint8 [n, 32, 32, 3], and logits, float32 [n, classes], and whose they are."""

    images: Images
    logits: Logits
    made_by: str
    data: str  # the data set's name


def make(source: Source, dataset: Dataset) -> Vectors:
    """64 test images, evenly spread over the test set, and the logits of the packaged file.

    They come from the file in the runtime that `validate` uses: an ONNX file in ONNX Runtime on
    the CPU, where the same file gives the same bits, an engine on the GPU. Where the engine cannot
    run here they are those of the PyTorch reference. Raises UserError where the file is another
    one by then, or the weights are.
    """
    images = dataset.test.spread(COUNT).images
    runtime: Runtime
    try:
        runtime = open_runtime(source.path, pick("cpu" if source.backend == "onnx" else "auto"))
        logits = runtime.logits(images)
    except UserError:
        if source.backend == "onnx":
            raise
        trained = weights.load(source.folder)
        check_weights(source.path, source.manifest, trained.card["weights"]["sha256"])
        runtime = PyTorch(trained, pick("cpu"))
        logits = runtime.logits(images)
    if sha256_of(source.path) != source.sha256:
        raise UserError(f"{source.path} was changed while it was read; try again")
    made_by = f"{runtime.runtime} {runtime.provider}"
    return Vectors(images, logits, made_by, dataset.name)
