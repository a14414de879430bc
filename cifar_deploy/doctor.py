"""Which formats and runtimes work on this machine, and why not: tried, not guessed."""

import io
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from cifar_deploy import device as machine
from cifar_deploy.disk import Json
from cifar_deploy.errors import one_line


def examine() -> Json:
    """Versions, processor, GPU and driver, and the outcome of a small trial of each runtime."""
    # With a driver that is too old there are devices, and asking one for its name is an error.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(count)]
    return {
        "versions": machine.versions(),
        "platform": platform.platform(),
        "cpu": machine.cpu_name(),
        "gpu": ", ".join(gpus) or "none that torch can use",
        "driver": _driver(),
        "checks": [
            _try("pytorch cpu", _torch_cpu),
            _try("pytorch cuda", _torch_cuda),
            _try("bf16 training", _bf16),
            _try("onnx export", _onnx_export),
            _try("onnxruntime cpu", lambda: _onnxruntime("CPUExecutionProvider")),
            _try("onnxruntime cuda", lambda: _onnxruntime("CUDAExecutionProvider")),
            _try("openvino", _openvino),
            _try("tensorrt", lambda: _tensorrt("tensorrt")),
            _try("tensorrt-rtx", lambda: _tensorrt("tensorrt-rtx")),
        ],
    }


def _try(name: str, trial: Callable[[], str]) -> Json:
    try:
        return {"name": name, "works": True, "detail": trial()}
    except Exception as error:  # the trial's failure is the answer
        return {"name": name, "works": False, "detail": one_line(error)}


def _driver() -> str:
    try:
        import pynvml
    except ImportError:
        return f"unknown (CUDA {torch.version.cuda} in torch)"
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return f"none ({error})"


def _torch_cpu() -> str:
    torch.ones(2, 2) @ torch.ones(2, 2)
    return f"{torch.get_num_threads()} threads"


def _torch_cuda() -> str:
    device = _gpu()
    float((torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)).sum())
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA GPU here")
    return machine.pick("cuda")


def _bf16() -> str:
    """A convolution, there and back, as training computes it."""
    device = machine.pick("auto")
    faster = machine.has_bf16(device)
    filters = torch.ones(8, 8, 3, 3, device=device, requires_grad=True)
    try:
        with torch.autocast(device.type, torch.bfloat16):
            out = torch.conv2d(torch.ones(2, 8, 8, 8, device=device), filters)
        float(torch.autograd.grad(out.sum(), filters)[0].sum())  # waits for a GPU
    except RuntimeError as error:
        if faster:
            raise
        raise RuntimeError(f"{one_line(error)}; training uses fp32") from error
    return f"native on {device.type}" if faster else "slower here than fp32, which training uses"


def _onnx_export() -> str:
    import onnx
    import onnxscript

    return f"onnx {onnx.__version__}, onnxscript {onnxscript.__version__}"


def _onnxruntime(provider: str) -> str:
    import onnxruntime

    from cifar_deploy.runtimes import onnx_runtime

    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this build of ONNX Runtime has no {provider}")
    if provider.startswith("CUDA"):
        _gpu()
        onnx_runtime.preload()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = onnx_runtime.FATAL
    session = onnxruntime.InferenceSession(
        _negation([1]), options, providers=[provider], enable_fallback=0
    )
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime could not start {provider}")
    return f"ONNX Runtime {onnxruntime.__version__}"


def _openvino() -> str:
    from cifar_deploy.runtimes.openvino import core, version

    core().compile_model(core().read_model(io.BytesIO(_negation([1]))), "CPU")
    return version()


def _negation(shape: list[int | str]) -> bytes:
    """An ONNX file of one layer, float32 of `shape` to the same."""
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "trial", value[:1], value[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    raw: bytes = model.SerializeToString()
    return raw


def _tensorrt(name: str) -> str:
    """Builds and, on a GPU, loads an engine of one layer."""
    from cifar_deploy.engines import build, flavour, load
    from cifar_deploy.engines.options import Options, Profile, targets

    flavour.load(name)  # what is not installed is told first
    gpu = torch.cuda.is_available()
    chosen, _ = flavour.choose(name, gpu)
    source = Path("trial.onnx")
    here = load.gpu_of(torch.device("cuda")) if gpu else None
    # TensorRT for RTX supports GPUs that are not among its default targets.
    wanted: tuple[str, ...] = ()
    if here and chosen.name == flavour.RTX and here.compute_capability in targets(chosen):
        wanted = (here.compute_capability,)
    options = Options(profiles=(Profile(1, 1, 1),), compute_capabilities=wanted)
    built = build.build(chosen, _negation(["batch", 32, 32, 3]), source, options)
    if not gpu:
        return f"{chosen} builds engines; running one needs a CUDA device"
    load.deserialise(chosen, built.engine, source, {}, here)
    return f"{chosen} builds and loads engines"
