"""A model repository for Triton Inference Server, as Kubernetes and KServe load it too.

The configuration's fields: the server's docs/user_guide/model_configuration.md, and the ModelConfig
message of its model_config.proto, with which the tests parse it; those of CUDA: README.md of its
onnxruntime_backend.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from cifar_deploy.data.dataset import SIZE
from cifar_deploy.errors import UserError
from cifar_deploy.package import texts
from cifar_deploy.package.manifest import text
from cifar_deploy.package.source import Engine, Source
from cifar_deploy.package.write import Contents
from cifar_deploy.runtimes.protocol import BATCH

PLATFORMS = {"onnx": ("onnxruntime_onnx", "onnxruntime"), "tensorrt": ("tensorrt_plan", "tensorrt")}
DELAY = 100
FILES = {"onnx": "model.onnx", "tensorrt": "model.plan"}
# There is code in a version-compatible engine, which the server runs only where it is told to
# (README.md of its tensorrt_backend).
COMPATIBLE = "--backend-config=tensorrt,version-compatible=true"


@dataclass(frozen=True)
class Serving:
    """How the server is to run a model."""

    instances: int = 1  # on each GPU, or on the CPU
    max_batch: int | None = None  # images; None: what the file takes, or `validate` ran
    queue_delay: int | None = None  # microseconds that a request waits for others; DELAY


def contents(source: Source, serving: Serving = Serving()) -> Contents:
    """The repository: `<model>/config.pbtxt`, `<model>/1/model.*`, labels, and a README beside.

    Raises UserError for an engine that Triton cannot serve, and for batches that a file does not
    take.
    """
    if source.backend not in PLATFORMS:
        raise UserError(
            f"{source.path}: Triton's TensorRT backend loads no engines of TensorRT for RTX; "
            "package one of --flavour tensorrt, or --format onnx"
        )
    smallest, largest = source.batches
    if smallest > 1 and not source.fixed_batch:
        raise UserError(
            f"{source.path} takes batches from {smallest} on, Triton sends single images too; "
            "export an engine whose profile begins at 1"
        )
    if source.engine and not source.fixed_batch:
        _check_gaps(source.path, source.engine, serving.max_batch or largest)
    if source.fixed_batch and (serving.max_batch, serving.queue_delay) != (None, None):
        raise UserError(
            f"{source.path} takes batches of {largest} only, and the server puts none together; "
            "leave out --max-batch and --queue-delay"
        )
    if serving.max_batch and largest and serving.max_batch > largest:
        raise UserError(f"{source.path} takes at most {largest} images; lower --max-batch")
    name = source.folder.name
    text([("model", name), *(("class", label) for label in source.classes)])  # refuses line breaks
    platform, backend = PLATFORMS[source.backend]
    # A file of one batch size is served as it is: Triton then takes that batch as a plain shape.
    batch = [source.fixed_batch] if source.fixed_batch else []
    most = serving.max_batch or largest or BATCH
    # One that begins above the largest batch would be asked for a batch that it does not take.
    profiles = enumerate(source.engine.profiles if source.engine else ())
    said = {
        **texts.facts(source),
        "profiles": [number for number, profile in profiles if profile.min <= most],
        "engine": source.engine,
        "on_cpu": not source.engine and source.precision == "int8",
        "kserve_name": _kserve_name(name),
        "served": shlex.quote(f"grpc://localhost:8001/{name}"),
        "platform": platform,
        "backend": backend,
        "option": COMPATIBLE if source.manifest.get("version_compatible") else "",
        "file": FILES[source.backend],
        # Of an ONNX file, which has no limit, the largest batch that `validate` runs.
        "max_batch_size": 0 if batch else most,
        "instances": serving.instances,
        "queue_delay": DELAY if serving.queue_delay is None else serving.queue_delay,
        "input_dims": [*batch, SIZE, SIZE, 3],
        "output_dims": [*batch, len(source.classes)],
    }
    return {
        f"{name}/config.pbtxt": texts.render("config.pbtxt.j2", **said),
        f"{name}/labels.txt": texts.labels(source),
        f"{name}/1/{FILES[source.backend]}": source.data,
        "README.md": texts.render("triton.README.md.j2", **said),
        **texts.common(source, None),
    }


def _check_gaps(path: Path, engine: Engine, largest: int) -> None:
    """Raise UserError for an engine that refuses some batch up to `largest`.

    The server merges requests to batches of any size up to the largest.
    """
    reached = 0
    for profile in sorted(engine.profiles, key=lambda p: p.min):
        if profile.min > reached + 1 and reached < largest:
            raise UserError(
                f"{path} takes no batch of {reached + 1}, which Triton may put together; "
                "export an engine whose profiles leave none out"
            )
        reached = max(reached, profile.max)


def _kserve_name(name: str) -> str:
    """`name` as KServe allows it: small letters, digits and hyphens, a letter first.

    Its webhook's IsvcNameFmt is [a-z]([-a-z0-9]*[a-z0-9])?.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return plain if plain[:1].isalpha() else f"model-{plain}".rstrip("-")
