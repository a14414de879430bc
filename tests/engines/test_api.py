"""The names that the backend uses, held against the libraries that are installed."""

import ast
import json
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from processes import python

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
        "set_preview_feature",
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
    "PreviewFeature": {"RUNTIME_ACTIVATION_RESIZE_10_10"},
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
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    },
    "ExecutionContextAllocationStrategy": {"USER_MANAGED"},
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
        "set_execution_context_allocation_strategy",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    },
    "IRuntimeCache": {"serialize", "deserialize"},
    "CudaGraphStrategy": {"WHOLE_GRAPH_CAPTURE"},
    "DynamicShapesKernelSpecializationStrategy": {"EAGER"},
}

# What the library's module is called, and, by file, its objects: their classes.
MODULE = {"trt", "_trt", "module"}
OBJECTS: dict[str, dict[str, str]] = {
    "build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "get_input": "ITensor",
        "tensor": "ITensor",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
        "wanted": "IOptimizationProfile",
        "kept": "ITimingCache",
        "engine": "ICudaEngine",
        "inspector": "EngineInspector",
    },
    "flavour.py": {},
    "load.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "refitter": "Refitter",
        "parser": "OnnxParserRefitter",
    },
    "options.py": {},
    "tensorrt.py": {
        "engine": "ICudaEngine",
        "_engine": "ICudaEngine",
        "context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "_cache": "IRuntimeCache",
    },
}
# Calls that give such an object.
GIVES = r"make|create_\w+|deserialize_cuda_engine|get_error|get_input|get_output"


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


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("oldest", [False, True], ids=["newest", "oldest"])
def test_the_bindings_of_tensorrt_have_every_name(oldest: bool) -> None:
    """Also where the library is not, which is NVIDIA's alone to give."""
    folder = Path(sys.prefix, "tensorrt-10.13") if oldest else Path(sysconfig.get_path("platlib"))
    if not Path(folder, "tensorrt_bindings").exists():
        pytest.skip(f"{folder} has no bindings of TensorRT: make setup puts them there")
    answer = python(Path(__file__).with_name("tensorrt_names.py"), folder)
    assert answer.returncode == 0, answer.stderr
    there = json.loads(answer.stdout)
    version = tuple(flavour.numbers(there["version"]))
    assert version[:2] == flavour.OLDEST[flavour.TENSORRT] if oldest else version >= (11, 4)
    missing = [
        f"{kind}.{member}"
        for kind, members in listed(flavour.TENSORRT).items()
        for member in members
        if member not in there["names"].get(kind, ())
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


def spelt(node: ast.expr) -> str:
    """The last word of `builder`, `self._engine`, `network.get_input(0)`."""
    if isinstance(node, ast.Call):
        return spelt(node.func)
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def of_a_class(node: ast.expr) -> bool:
    """Whether it is `trt.BuilderFlag`, or another of the module's names."""
    return isinstance(node, ast.Attribute) and spelt(node.value) in MODULE


def gives_an_object(node: ast.expr | None) -> bool:
    """Whether it is a call such as `trt.Refitter(...)` or `builder.create_network(...)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return of_a_class(node.func) or re.fullmatch(GIVES, node.func.attr) is not None


def allowed(owner: ast.expr, objects: dict[str, str]) -> set[str] | None:
    """The names that may follow `owner`; None where it is nothing of the library's."""
    known = listed(flavour.RTX)
    if spelt(owner) in MODULE:
        return set(known)
    kind = spelt(owner) if of_a_class(owner) else objects.get(spelt(owner), "")
    return known.get(kind, set()) if kind or gives_an_object(owner) else None


def unknown(source: str, objects: dict[str, str]) -> list[str]:
    """What `source` uses of the library beyond the lists, and objects that `objects` lacks."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            names = allowed(node.value, objects)
            if names is not None and node.attr not in names:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and spelt(node.func) == "make":
            classes = {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
            found += [ast.unparse(node)] * (not classes <= set(listed(flavour.RTX)))
        elif isinstance(node, ast.Assign) and gives_an_object(node.value):
            found += [ast.unparse(node) for to in node.targets if spelt(to) not in objects]
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_all_that_is_used_is_listed(source: Path) -> None:
    assert unknown(source.read_text(), OBJECTS.get(source.name, {})) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("build.py", "builder.platform_has_fast_fp16"),
        ("build.py", "config.int8_calibrator"),
        ("build.py", "config.max_workspace_size = 1"),
        ("build.py", "conf = builder.create_builder_config()"),
        ("build.py", "builder.create_builder_config().int8_calibrator"),
        ("build.py", "network.get_input(0).no_such_name"),
        ("build.py", "flavour.module.NoSuchClass"),
        ("build.py", "builder = flavour.make('NoSuchClass', log)"),
        ("load.py", "engine.device_memory_size"),
        ("load.py", "trt.NoSuchClass"),
        ("load.py", "trt.EngineValidity.NO_SUCH_MEMBER"),
        ("load.py", "again = trt.Refitter(engine, log)"),
        ("tensorrt.py", "self._engine.device_memory_size"),
        ("tensorrt.py", "lane.context.no_such_method()"),
        ("tensorrt.py", "self.config.set_flag(1)"),  # of another class
    ],
)
def test_what_is_not_listed_is_found(name: str, line: str) -> None:
    assert len(unknown(line, OBJECTS[name])) == 1


def test_nobody_else_uses_the_library() -> None:
    for file in set(PACKAGE.rglob("*.py")) - set(SOURCES):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"module", "_trt"}, file
            elif isinstance(node, ast.Import | ast.ImportFrom):
                named = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                modules = {word for words in flavour.MODULES.values() for word in words}
                assert modules.isdisjoint(named), file


def test_rtx_is_installed_where_it_exists() -> None:
    import platform
    import sys

    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("TensorRT for RTX has no wheel for this platform")
    assert flavour.load(flavour.RTX).version >= "1.7"
