"""A TensorRT engine from this project's own ONNX file, its manifest beside it."""

import functools
from dataclasses import asdict
from pathlib import Path

import torch

from cifar_deploy import __version__, device
from cifar_deploy.cards import read_card
from cifar_deploy.disk import Json, stamp, write_bytes, write_json
from cifar_deploy.engines import build as builder
from cifar_deploy.engines import cache
from cifar_deploy.engines.flavour import TENSORRT, Flavour
from cifar_deploy.engines.load import deserialise, gpu_of
from cifar_deploy.engines.manifest import Gpu
from cifar_deploy.engines.options import Options, check, default_targets
from cifar_deploy.errors import UserError, disk_errors
from cifar_deploy.export.onnx_file import Graphs, export_onnx, recorded
from cifar_deploy.export.quantise import Calibration
from cifar_deploy.store import ModelFolder, manifest_path, read_manifest, write_manifest

# What an engine's manifest has from the ONNX file's.
INHERITED = (
    "model",
    "network",
    "precision",
    "classes",
    "mean",
    "std",
    "test_accuracy",
    "weights_sha256",
)


def export_engine(
    folder: ModelFolder,
    precision: str,
    flavour: Flavour,
    options: Options,
    watch: builder.Watch | None = None,
    calibration: Calibration | None = None,
    graphs: Graphs | None = None,
) -> Path:
    """Build `<name>.<precision>.<flavour>.engine` and write its manifest. Returns the path.

    The ONNX file of that precision is exported first where it is missing or of other weights; also
    where it is of another `calibration`, which int8 needs, or keeps other layers in fp32. `graphs`
    are what `export_onnx` takes.
    Nothing is written before the engine is whole. Raises UserError without trained weights, for
    options that the flavour does not have (`options.check`), and where the build fails
    (`build.build`).
    """
    gpu = cuda_device()
    check(options, flavour, gpu is not None)
    onnx = _onnx(folder, precision, calibration, graphs)
    with disk_errors(onnx, "read"):
        raw = onnx.read_bytes()
    source = read_manifest(onnx, raw)
    assert source
    timing_cache = options.timing_cache
    if timing_cache is not None:
        cache.check(timing_cache)
    elif flavour.name == TENSORRT and gpu:
        timing_cache = cache.path("timing", flavour.version, gpu.name)
    # The build has a thread of its own, in which the first device would be the current one.
    begin = functools.partial(torch.cuda.set_device, torch.cuda.current_device()) if gpu else None
    built = builder.build(flavour, raw, onnx, options, watch, timing_cache, begin)
    path = folder.engine(precision, flavour.name)
    facts: Json = {
        "format": "tensorrt",
        "flavour": flavour.name,
        "tensorrt": flavour.version,
        "cuda": flavour.cuda,
        **{key: source[key] for key in INHERITED},
        **recorded(precision, calibration),
        "onnx": {"file": onnx.name, "sha256": source["sha256"]},
        "inputs": built.inputs,
        "outputs": built.outputs,
        "profiles": [asdict(profile) for profile in options.profiles],
        # TensorRT for RTX builds for its targets, wherever it is done.
        "gpu": asdict(gpu) if gpu and flavour.name == TENSORRT else None,
        "system": device.system() if flavour.name == TENSORRT else None,
        "targets": list(options.compute_capabilities),  # as asked for
        "default_targets": _default_targets(flavour, options),
        "version_compatible": options.version_compatible,
        "hardware_compatibility": options.hardware_compatibility,
        "stripped": options.strip_weights,
        "tf32": options.tf32,
        "workspace_mib": options.workspace,
        "builder_optimization_level": options.level,
        "build_seconds": round(built.seconds, 3),
        "cifar_deploy": __version__,
        "versions": device.versions() | {"torch_cuda": torch.version.cuda},
        "created": stamp(),
    }
    layers = None
    if options.layer_info:
        opened = deserialise(flavour, built.engine, path, facts, gpu)
        layers = builder.layer_information(flavour, opened.engine)
    write_bytes(path, built.engine)
    manifest = write_manifest(path, facts, built.engine)
    if layers is None:
        with disk_errors(layers_path(path), "remove"):  # it is of the engine that was there before
            layers_path(path).unlink(missing_ok=True)
    else:
        whose = {"file": path.name, "sha256": manifest["sha256"]}
        write_json(layers_path(path), {"engine": whose, **layers})
    return path


def _default_targets(flavour: Flavour, options: Options) -> list[str]:
    """What an engine for which no targets were asked runs on, by TensorRT for RTX's own choice."""
    # Without weights it is built for one GPU, and which is not known here.
    if flavour.name == TENSORRT or options.compute_capabilities or options.strip_weights:
        return []
    return default_targets(flavour)


def layers_path(engine: Path) -> Path:
    """Where the per-layer information of an engine stands."""
    return engine.with_suffix(".layers.json")


def cuda_device() -> Gpu | None:
    """The CUDA device that a build would use; None without one."""
    if not torch.cuda.is_available() or not torch.cuda.device_count():
        return None
    return gpu_of(torch.device("cuda", torch.cuda.current_device()))


def _onnx(
    folder: ModelFolder,
    precision: str,
    calibration: Calibration | None,
    graphs: Graphs | None,
) -> Path:
    """The model's ONNX file, exported anew where it is missing, damaged or of other weights.

    Also where its manifest lacks something, being another version's.
    """
    weights = read_card(folder)["weights"]["sha256"]
    path = folder.onnx(precision, engine=True)
    facts = recorded(precision, calibration).get("calibration")
    if path.exists() and manifest_path(path).exists():
        try:
            manifest = read_manifest(path)
        except UserError:  # changed or cut short: its source is at hand
            manifest = None
        if (
            manifest
            and manifest.keys() >= set(INHERITED)
            and manifest["weights_sha256"] == weights
            and manifest.get("calibration") == facts
        ):
            return path
    return export_onnx(folder, precision, calibration, engine=True, graphs=graphs)
