"""A folder that a C++ program embeds: `cifar_deploy::Classifier::load` reads its manifest.txt."""

import math
from collections.abc import Iterator
from pathlib import Path

from cifar_deploy.data.dataset import SIZE
from cifar_deploy.disk import sha256_of
from cifar_deploy.engines.manifest import runs_on
from cifar_deploy.errors import UserError
from cifar_deploy.package import manifest, texts
from cifar_deploy.package.source import Source
from cifar_deploy.package.vectors import Vectors
from cifar_deploy.package.write import Contents
from cifar_deploy.store import shipped

FILES = {"onnx": "model.onnx", "tensorrt": "model.engine", "tensorrt-rtx": "model.engine"}
# Of the C++ library: the headers, what finds the runtimes, and the program. The project that builds
# it is ours.
HEADERS = "include"
LIBRARY = {
    "cmake/CifarDeploy.cmake": "cmake/CifarDeploy.cmake",
    "classify.cpp": "examples/classify.cpp",
}


def contents(source: Source, vectors: Vectors) -> Contents:
    """The package: model, manifests, labels, test vectors, headers, and a CMake project.

    Raises UserError where a name cannot stand in the manifest, and for a version-compatible engine.
    """
    if source.manifest.get("version_compatible"):
        raise UserError(
            f"{source.path}: the C++ library loads no version-compatible engines; export it "
            "without --version-compatible"
        )
    labels = texts.labels(source)
    images = vectors.images.tobytes()
    logits = vectors.logits.astype("<f4").tobytes()
    entries = [
        *_entries(source, labels),
        ("vectors_from", vectors.made_by),
        ("vectors_count", len(vectors.images)),
        ("vectors_sha256", f"{sha256_of(images)} {sha256_of(logits)}"),
        *(judged := [*_judged(source)]),
    ]
    said = {
        **texts.facts(source),
        "file": FILES[source.backend],
        "vectors": vectors,
        "judged": bool(judged),
        "runs_on": runs_on(source.manifest) if source.engine else "",
        "upper": source.backend.upper().replace("-", "_"),  # as the CMake option has it
    }
    return {
        manifest.NAME: manifest.text(entries).encode(),
        "labels.txt": labels,
        FILES[source.backend]: source.data,
        "vectors/images.rgb": images,
        "vectors/logits.f32": logits,
        "README.md": texts.render("cpp.README.md.j2", **said),
        "CMakeLists.txt": texts.render("CMakeLists.txt.j2", **said),
        **_library(),
        **texts.common(source, vectors),
    }


def _entries(source: Source, labels: bytes) -> Iterator[tuple[str, object]]:
    """What the C++ library reads, in the order of its format."""
    smallest, largest = source.batches
    yield "format", manifest.FORMAT
    yield "model", source.folder.name
    yield "network", source.network
    yield "precision", source.precision
    yield "backend", source.backend
    yield "file", FILES[source.backend]
    yield "bytes", len(source.data)
    yield "sha256", source.sha256
    yield "input", source.input
    yield "output", source.output
    yield "height", SIZE
    yield "width", SIZE
    yield "classes", len(source.classes)
    for name in source.classes:
        manifest.text([("class", name)])  # a line of labels.txt each
    yield "labels", "labels.txt"
    yield "labels_sha256", sha256_of(labels)
    yield "min_batch", smallest
    yield "max_batch", largest
    yield "fixed_batch", source.fixed_batch
    if engine := source.engine:
        yield "tensorrt", engine.tensorrt
        yield "compute_capability", engine.capability
        if engine.gpu:
            yield "gpu", engine.gpu
        if engine.system:
            yield "system", engine.system
        yield "profiles", " ".join(f"{p.min}:{p.opt}:{p.max}" for p in engine.profiles)


def _judged(source: Source) -> Iterator[tuple[str, object]]:
    """What the file had right where it was proved, for a target to see whether it has, too.

    Nothing where it is not proved, or by a proof from before it told the test images' digest.
    """
    proof = source.proof
    if not proof or not source.proved or "test_set_sha256" not in (data := proof["data"]):
        return
    count = data["images"]
    yield "test_count", count
    yield "test_right", round(proof["accuracy"] * count)
    # In images: as good within the margin of `validate`, which is in percentage points.
    yield "test_margin", math.floor(proof["margin_points"] / 100 * count + 1e-6)
    yield "test_from", f"{proof['runtime']} {proof['provider']}"
    yield "test_sha256", data["test_set_sha256"]


def _library() -> Contents:
    """The header-only library and the program, from where they came with cifar-deploy."""
    found = {name: shipped(f"cpp/{path}").read_bytes() for name, path in LIBRARY.items()}
    home = shipped(f"cpp/{HEADERS}")
    for path in sorted(filter(Path.is_file, home.rglob("*"))):
        found[f"{HEADERS}/{path.relative_to(home).as_posix()}"] = path.read_bytes()
    return found
