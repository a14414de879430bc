import platform
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from cifar_deploy import architectures
from cifar_deploy.export.onnx_file import PRECISIONS

if TYPE_CHECKING:
    from conftest import Shelf


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    """TensorRT for RTX, which builds engines without a GPU; it exists for this platform only."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("TensorRT for RTX has no wheel for this platform")
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


@pytest.fixture(scope="module")
def logger(trt: ModuleType) -> Any:
    # One for all: TensorRT keeps the first and complains of another.
    return trt.Logger(trt.Logger.ERROR)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_engine_builds(
    name: str, precision: str, shelf: "Shelf", trt: ModuleType, logger: Any
) -> None:
    builder = trt.Builder(logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    raw = shelf.exported(name, precision).path.read_bytes()
    errors = [] if parser.parse(raw) else [str(parser.get_error(i)) for i in range(1)]
    assert errors == []
    images, logits = network.get_input(0), network.get_output(0)
    assert (images.name, images.dtype, tuple(images.shape)) == (
        "images",
        trt.uint8,
        (-1, 32, 32, 3),
    )
    assert (logits.name, logits.dtype, tuple(logits.shape)) == ("logits", trt.float32, (-1, 10))
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, 32, 32, 3), (128, 32, 32, 3), (1024, 32, 32, 3))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    # The engine holds the weights, in the file's precision.
    assert engine.nbytes > 0.95 * len(raw)
