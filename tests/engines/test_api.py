"""The names that the backend uses, held against the libraries that are installed."""

import ast
from pathlib import Path
from typing import Any

import pytest

import cifar_deploy
from cifar_deploy.engines import flavour
from cifar_deploy.errors import UserError

PACKAGE = Path(cifar_deploy.__file__).parent
SOURCES = [*sorted((PACKAGE / "engines").glob("*.py")), PACKAGE / "runtimes/tensorrt.py"]

# All that is called of TensorRT 10.13, 11 and TensorRT for RTX 1.7, by class.
SHARED: dict[str, set[str]] = {
    "Builder": {
        "create_network",
        "create_optimization_profile",
        "create_builder_config",
        "build_serialized_network",
    },
    "INetworkDefinition": {
        "get_input",
        "get_output",
        "num_inputs",
        "num_outputs",
    },
    "ITensor": {"name", "dtype", "shape"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "IOptimizationProfile": {"set_shape"},
    "IBuilderConfig": {
        "add_optimization_profile",
        "set_flag",
        "clear_flag",
        "set_memory_pool_limit",
        "hardware_compatibility_level",
        "builder_optimization_level",
        "profiling_verbosity",
        "progress_monitor",
        "create_timing_cache",
        "set_timing_cache",
    },
    "ITimingCache": {"serialize"},
    "BuilderFlag": {"TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"},
    "MemoryPoolType": {"WORKSPACE"},
    "HardwareCompatibilityLevel": {"AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"},
    "ProfilingVerbosity": {"DETAILED"},
    "LayerInformationFormat": {"JSON"},
    "IProgressMonitor": {"phase_start", "step_complete", "phase_finish"},
    "ILogger": {"log", "ERROR", "INTERNAL_ERROR", "WARNING"},
    "OnnxParser": {"parse", "get_error"},
    "ParserError": {"desc", "node_name", "node_operator"},
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed"},
    "Refitter": {"refit_cuda_engine"},
    "OnnxParserRefitter": {"refit_from_bytes"},
    "EngineInspector": {"get_engine_information"},
    "ICudaEngine": {
        "create_engine_inspector",
        "create_execution_context",
        "device_memory_size_v2",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
        "num_optimization_profiles",
    },
    "IExecutionContext": {
        "execute_async_v3",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    },
    "TensorIOMode": {"INPUT"},
    "DataType": {"UINT8", "FLOAT"},
}
# What TensorRT for RTX has besides.
RTX_ONLY: dict[str, set[str]] = {
    "IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"},
    "ComputeCapability": {"SM86"},
    "Runtime": {"get_engine_validity"},
    "EngineValidity": {"INVALID"},
    "EngineInvalidityDiagnostics": {"MALFORMED_ENGINE"},
    "ICudaEngine": {"create_runtime_config"},
    "IRuntimeConfig": {
        "create_runtime_cache",
        "set_runtime_cache",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    },
    "IRuntimeCache": {"serialize", "deserialize"},
    "CudaGraphStrategy": {"WHOLE_GRAPH_CAPTURE"},
    "DynamicShapesKernelSpecializationStrategy": {"EAGER"},
}


def installed(name: str) -> flavour.Flavour:
    try:
        return flavour.load(name)
    except UserError as error:
        pytest.skip(str(error))


def listed(name: str) -> dict[str, set[str]]:
    if name == flavour.TENSORRT:
        return SHARED
    return {kind: SHARED.get(kind, set()) | RTX_ONLY.get(kind, set()) for kind in SHARED | RTX_ONLY}


@pytest.mark.parametrize("name", flavour.NAMES)
def test_the_library_has_every_name(name: str) -> None:
    module = installed(name).module
    missing = [
        f"{kind}.{member}"
        for kind, members in listed(name).items()
        for member in members
        if not hasattr(getattr(module, kind, None), member)
    ]
    assert missing == []


def members(module: Any) -> set[str]:
    """Every public name of the classes that are used."""
    inside = {name for kind in listed(flavour.RTX) for name in vars(getattr(module, kind))}
    return {name for name in inside if not name.startswith("_")}


# Names of our own, of torch and of rich that TensorRT happens to have as well.
OTHERS = {"engine", "reset", "update"}


def test_the_backend_uses_no_other_name() -> None:
    library = members(installed(flavour.RTX).module)
    known = set().union(*listed(flavour.RTX).values())
    used = {
        node.attr
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert (used & library) - known <= OTHERS
    # And the list holds nothing that is used no longer, but for what is looked up by name.
    by_name = {"SM86", "MALFORMED_ENGINE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"}
    defined = {"phase_start", "step_complete", "phase_finish", "log"}
    methods = set().union(*listed(flavour.RTX).values()) - by_name - defined
    assert methods <= used


def test_rtx_is_installed_where_it_exists() -> None:
    import platform
    import sys

    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("TensorRT for RTX has no wheel for this platform")
    assert flavour.load(flavour.RTX).version >= "1.7"
