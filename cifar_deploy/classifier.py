"""The library's public face: `load` a model or a file, `predict` pictures of any kind."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from cifar_deploy import address, architectures
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.deployment import DeploymentGraph
from cifar_deploy.data.dataset import SIZE, Images
from cifar_deploy.data.image import from_pillow, read_image, to_array
from cifar_deploy.device import pick
from cifar_deploy.errors import UserError
from cifar_deploy.package import manifest
from cifar_deploy.runtimes.load import (
    ONNXRUNTIME,
    check_onnx,
    open_file,
    open_model,
    open_runtime,
)
from cifar_deploy.runtimes.protocol import Logits, Runtime, unanswered
from cifar_deploy.store import EXPORTED

if TYPE_CHECKING:
    import torch


class Array(Protocol):
    """What is an array to NumPy, as a tensor on the CPU."""

    def __array__(self, dtype: Any = None) -> Any:
        """The array."""


# A path, a Pillow image, an array, or any number of them, mixed.
Picture: TypeAlias = "str | PathLike[str] | Image.Image | npt.NDArray[np.uint8] | Array"
Pictures: TypeAlias = "Picture | Iterable[Picture]"

ARRAYS = "arrays are uint8, RGB, [height, width, 3] or [n, height, width, 3]"


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one picture. `probability` is that of `label`, whose place is `index`."""

    label: str
    index: int
    probability: float
    logits: npt.NDArray[np.float32] = field(repr=False)  # [classes]
    classes: tuple[str, ...] = field(repr=False)

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """The softmax of `logits`, float64 [classes]: they add up to 1."""
        return _softmax(self.logits)

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes with their probabilities, the likeliest first."""
        order = np.argsort(-self.logits, kind="stable")[:count].tolist()
        shares = self.probabilities.tolist()
        return [(self.classes[i], shares[i]) for i in order]


class Classifier:
    """A model, loaded and ready; `load` makes one."""

    def __init__(self, runtime: Runtime, classes: tuple[str, ...], name: str) -> None:
        self.classes = classes
        self.name = name
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"<{self.name} in {self._runtime.runtime} on {self._runtime.device}>"

    def predict(self, images: Pictures) -> list[Prediction]:
        """One `Prediction` a picture, in order: a list also for a single one.

        A picture is a path, a Pillow image, or an array, uint8 [height, width, 3], RGB, of any
        size; an array [n, height, width, 3] is n pictures; a list may mix them all. What is not
        32x32 is resized (bilinear, antialiased), and EXIF orientation is followed, so a path and
        the image opened from it get the same answer. Raises UserError for what is no picture.
        """
        return [self._prediction(row) for row in self.logits(images)]

    def logits(self, images: Pictures) -> Logits:
        """Float32 [n, classes] of the pictures that `predict` takes."""
        pixels = pictures(images)
        shape = len(pixels), len(self.classes)
        if not len(pixels):
            return np.empty(shape, np.float32)
        answer = self._runtime.logits(pixels)
        if answer.shape != shape:  # a graph may declare another one than it gives
            raise UserError(
                f"{self.name} gives {list(answer.shape)} logits where {list(shape)} were promised; "
                "export it again"
            )
        if unanswered(answer).any():
            raise UserError(f"{self.name} answers with NaN or infinity; export it again, in fp32")
        return answer

    def _prediction(self, logits: npt.NDArray[np.float32]) -> Prediction:
        best = int(logits.argmax())
        share = float(_softmax(logits)[best])
        return Prediction(self.classes[best], best, share, logits, self.classes)


def load(
    model: "str | PathLike[str]",
    device: "str | int | torch.device" = "auto",
    trust: bool = False,
    runtime: str | None = None,
) -> Classifier:
    """Load what `model` names.

    A model's name or alias or its folder: the trained weights, in PyTorch fp32. An exported file:
    that file, in its runtime. A folder that `cifar-deploy package --target cpp` wrote: the file in
    it. `grpc://HOST:PORT/MODEL`: what a server has of this name. `device` is "auto" (CUDA where
    there is a GPU), "cpu", "cuda", "cuda:N", the number N alone or a torch.device. Engines are
    code: `trust` loads one whose manifest is missing or does not match. `runtime` is what runs an
    ONNX file, "onnxruntime", which is the default, or "openvino", on a CPU.

    Raises UserError where there is no such thing, where it is damaged, and where it cannot run.
    """
    name, where = architectures.named(model), pick(device)
    path = Path(name)
    if found := address.read(name):
        if runtime:
            raise UserError(f"{model} runs on its server; a runtime can be chosen for an ONNX file")
        opened, classes = open_file(found, where)
        return Classifier(opened, classes, str(found))
    if manifest.is_package(path):
        file, classes, known = manifest.open_package(path)
        onnx = _onnx(file, runtime)
        return Classifier(open_runtime(file, where, known=known, onnx=onnx), classes, str(path))
    if path.suffix in EXPORTED or path.is_file():
        opened, classes = open_file(path, where, trust, _onnx(path, runtime))
    elif runtime:
        raise UserError(f"{model} runs in PyTorch; a runtime can be chosen for an ONNX file")
    else:
        opened, classes = open_model(architectures.folder(name), where)
    return Classifier(opened, classes, name)


def network(
    model: "str | PathLike[str]", device: "str | int | torch.device" = "cpu"
) -> DeploymentGraph:
    """The trained network of a model, by its name, alias or folder, as a torch module on `device`.

    It takes a uint8 tensor [n, 32, 32, 3], RGB, there, and gives logits, float32 [n, classes]; it
    is in eval mode. Its `network` takes normalised images, float32 [n, 3, 32, 32]; `classes` are
    the logits' names; `mean` and `std`, per channel, are of pixels scaled to 0..1.

    Raises UserError as `load` does, and for an exported file.
    """
    name, where = architectures.named(model), pick(device)
    return weights.load(architectures.folder(name)).graph().eval().to(where)


def _onnx(file: Path, runtime: str | None) -> str:
    """What runs `file` if it is an ONNX file. Raises UserError where it was chosen and cannot."""
    if runtime:
        check_onnx([runtime])
    if runtime and file.suffix != ".onnx":
        raise UserError(f"{file} has one runtime; it can be chosen for an ONNX file")
    return runtime or ONNXRUNTIME


def pictures(images: Pictures) -> Images:
    """Every picture as the networks take it: uint8 [n, 32, 32, 3], RGB.

    Raises UserError as `Classifier.predict` does.
    """
    return np.concatenate([np.empty((0, SIZE, SIZE, 3), np.uint8), *_each(images)])


def _each(images: Any) -> Iterator[Images]:
    """The pictures in `images`, in order, as batches uint8 [n, 32, 32, 3]."""
    if isinstance(images, str | PathLike):
        yield read_image(Path(images))[None]
    elif isinstance(images, Image.Image):
        name = getattr(images, "filename", "") or "the image"
        yield from_pillow(images, str(name))[None]
    elif hasattr(images, "__array__"):
        yield _from_array(images)
    elif isinstance(images, Iterable) and not isinstance(images, bytes | bytearray | dict):
        for image in images:
            yield from _each(image)
    else:
        raise UserError(
            f"a {type(images).__name__} is no picture; give a path, a Pillow image or an array "
            "(of bytes: PIL.Image.open(io.BytesIO(...)))"
        )


def _from_array(given: Any) -> Images:
    try:
        array = np.asarray(given)
    except Exception as error:  # a tensor on a GPU, or with gradients, or whatever it raises
        raise UserError(f"this {type(given).__name__} is no array in memory: {error}") from error
    if array.ndim == 3:
        array = array[None]
    sizes = ", ".join(map(str, array.shape))
    if array.dtype != np.uint8:
        raise UserError(f"the array is {array.dtype} [{sizes}]; {ARRAYS}, from 0 to 255")
    if array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape[1:]:
        raise UserError(f"the array is uint8 [{sizes}]; {ARRAYS}")
    if array.shape[1:3] == (SIZE, SIZE):
        return np.ascontiguousarray(array)
    small = [to_array(Image.fromarray(np.ascontiguousarray(image))) for image in array]
    return np.stack(small) if small else np.empty((0, SIZE, SIZE, 3), np.uint8)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shares = np.exp(logits.astype(np.float64) - logits.max())
    result: npt.NDArray[np.float64] = shares / shares.sum()
    return result
