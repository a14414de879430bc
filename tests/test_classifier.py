"""`from cifar_deploy import load`: what it loads, what it takes, what it answers."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import cifar_deploy
from cifar_deploy import Classifier, Prediction, UserError, architectures, load, network
from cifar_deploy.architectures import weights
from cifar_deploy.architectures.custom_resnet import LOGIT_SCALE
from cifar_deploy.data import cifar10
from cifar_deploy.data.dataset import Dataset, Images
from cifar_deploy.data.image import read_image
from cifar_deploy.disk import sha256_of, write_json
from cifar_deploy.export.onnx_file import export_onnx
from cifar_deploy.package import cpp, source
from cifar_deploy.package.vectors import Vectors
from cifar_deploy.package.write import write
from cifar_deploy.store import ModelFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """An untrained simple_cnn whose logits are far apart, saved and exported."""
    made = ModelFolder(tmp_path_factory.mktemp("models") / "simple_cnn")
    torch.manual_seed(5)
    network = architectures.build("simple_cnn")
    with torch.no_grad():
        list(network.parameters())[-2].mul_(20)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    facts = weights.header("simple_cnn", "cifar", cifar10.CLASSES, mean, std)
    weights.save(made.weights, network.state_dict(), facts)
    stored = {"sha256": sha256_of(made.weights)}
    write_json(
        made.card, {"network": "simple_cnn", "weights": stored, "data": {"name": "CIFAR-10"}}
    )
    export_onnx(made, "fp32")
    return made


@pytest.fixture(scope="module")
def images() -> Images:
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def classifier(folder: ModelFolder) -> Classifier:
    return load(folder.onnx("fp32"), device="cpu")


@pytest.fixture
def package(folder: ModelFolder, images: Images, tmp_path: Path) -> Path:
    found = source.find(folder, folder.onnx("fp32"))
    vectors = Vectors(images, np.zeros((7, 10), np.float32), "nothing", "noise")
    write(cpp.contents(found, vectors), tmp_path / "package", "package")
    return tmp_path / "package"


# --- answers ------------------------------------------------------------------------------------


def test_a_prediction_says_what_the_logits_say(classifier: Classifier, images: Images) -> None:
    found = classifier.predict(images)
    logits = classifier.logits(images)
    shares = torch.from_numpy(logits).double().softmax(1).numpy()
    assert len(found) == 7
    for prediction, row, share in zip(found, logits, shares, strict=True):
        assert isinstance(prediction, Prediction)
        assert prediction.index == row.argmax()
        assert prediction.label == cifar10.CLASSES[prediction.index]
        assert prediction.probability == pytest.approx(share.max())
        assert np.array_equal(prediction.logits, row)
        assert prediction.probabilities == pytest.approx(share)
        order = np.argsort(-row)[:3]
        assert [name for name, _ in prediction.top(3)] == [cifar10.CLASSES[i] for i in order]
        assert [p for _, p in prediction.top(3)] == pytest.approx(share[order])
    assert len({prediction.index for prediction in found}) > 1
    assert "logits" not in repr(found[0])


def test_every_kind_of_picture_gets_the_same_answer(
    classifier: Classifier, images: Images, tmp_path: Path
) -> None:
    wanted = classifier.logits(images)
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    kinds: list[Any] = [
        images,
        list(images),
        tuple(paths),
        [str(path) for path in paths],
        (Image.open(path) for path in paths),
        torch.from_numpy(images),
        [images[0], paths[1], str(paths[2]), Image.fromarray(images[3]), images[4:6], images[6]],
        images[::-1][::-1],  # not contiguous
    ]
    for kind in kinds:
        assert np.allclose(classifier.logits(kind), wanted, atol=1e-4), type(kind)
    singles: list[Any] = [images[0], paths[0], str(paths[0]), Image.fromarray(images[0])]
    for single in singles:
        (prediction,) = classifier.predict(single)
        assert np.allclose(prediction.logits, wanted[0], atol=1e-4), type(single)
    assert classifier.predict([]) == []
    assert classifier.logits(images[:0]).shape == (0, 10)


def test_other_sizes_are_resized_as_files_are(classifier: Classifier, tmp_path: Path) -> None:
    large = np.random.default_rng(1).integers(0, 256, (2, 50, 90, 3), np.uint8)
    path = tmp_path / "large.png"
    Image.fromarray(large[1]).save(path)
    wanted = classifier.logits(read_image(path))
    for picture in (large[1], Image.fromarray(large[1]), path):
        assert np.allclose(classifier.logits(picture), wanted, atol=1e-4)
    assert np.allclose(classifier.logits(large)[1:], wanted, atol=1e-4)
    grey = Image.fromarray(large[0]).convert("LA")
    assert len(classifier.predict(grey)) == 1


def test_an_opened_image_is_turned_as_its_file_is(classifier: Classifier, tmp_path: Path) -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:16] = 255
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(half).save(path, exif=exif, quality=95)
    with Image.open(path) as opened:
        turned = classifier.logits(opened)
    assert np.allclose(turned, classifier.logits(path))
    assert not np.allclose(turned, classifier.logits(half), atol=1e-2)


# --- the network ------------------------------------------------------------------------------


def test_the_network_is_a_module(folder: ModelFolder, real_data: Dataset) -> None:
    images = real_data.test.images[:64]
    wanted = load(folder.path, "cpu").logits(images)
    module = network(folder.path)
    assert not any(part.training for part in module.modules())
    logits = module(torch.from_numpy(images))
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.detach().numpy(), wanted, atol=1e-4)
    assert np.abs(wanted).max() > 0.1
    assert module.classes == cifar10.CLASSES
    assert (module.mean, module.std) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])

    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (module.mean, module.std))
    normal = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    logits = module.network(normal.requires_grad_())
    np.testing.assert_allclose(logits.detach().numpy(), wanted, atol=1e-4)
    logits[:, 3].sum().backward()
    assert normal.grad is not None
    assert bool((normal.grad.flatten(1).abs().sum(1) > 0).all())


def test_the_network_is_named_as_a_model_is(
    folder: ModelFolder, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(folder.path.parent))
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    found = [network(name, torch.device("cpu"))(pixels) for name in ("simple_cnn", folder.path)]
    assert torch.equal(*found)
    cases: list[tuple[Any, str, str]] = [
        (folder.onnx("fp32"), "cpu", "is a file; here goes a trained model"),
        (package, "cpu", "what `cifar-deploy package` wrote, no trained model"),
        ("resnet81", "cpu", "did you mean resnet18"),
        ("resnet18", "cpu", "cifar-deploy train resnet18"),
        ("simple_cnn", "tpu", "--device tpu"),
        (3, "cpu", "a int is no model"),
    ]
    for name, device, said in cases:
        with pytest.raises(UserError, match=said):
            network(name, device)
    with pytest.raises(UserError, match=r"--device cuda:99: .* use --device cpu"):
        network("simple_cnn", 99)


def test_the_documented_features(
    real_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(__file__).parents[1]
    (code,) = (
        block.partition("```")[0]
        for block in (root / "docs" / "python.md").read_text().split("```python\n")[1:]
        if "register_forward_hook" in block.partition("```")[0]
    )
    for name, image in zip(("cat.jpg", "dog.png"), real_data.test.images, strict=False):
        Image.fromarray(image).save(tmp_path / name)
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(root / "models"))
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(code, made)
    said = code.rpartition("# ")[2].strip()
    assert capsys.readouterr().out.strip() == said == "torch.Size([2, 512])"
    logits = made["model"].network.classifier(made["features"][0]) * LOGIT_SCALE
    wanted = load("custom_resnet", "cpu").logits(["cat.jpg", "dog.png"])
    np.testing.assert_allclose(logits.detach().numpy(), wanted, atol=1e-4)


# --- what is loaded -----------------------------------------------------------------------------


def test_everything_that_can_be_named(
    folder: ModelFolder, package: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(folder.path.parent))
    wanted = load(folder.onnx("fp32"), "cpu").logits(images)
    named = {
        "simple_cnn": "PyTorch",
        str(folder.path): "PyTorch",
        folder.path: "PyTorch",
        str(folder.onnx("fp32")): "ONNX Runtime",
        package: "ONNX Runtime",
        f"{package}/": "ONNX Runtime",
    }
    for name, runtime in named.items():
        loaded = load(name, device="cpu")
        assert runtime in repr(loaded)
        assert loaded.classes == cifar10.CLASSES
        assert np.allclose(loaded.logits(images), wanted, atol=1e-3), name


def test_a_graph_that_gives_more_than_it_declares_is_told(
    folder: ModelFolder, images: Images, tmp_path: Path
) -> None:
    model = onnx.load(folder.onnx("fp32"))
    (output,) = model.graph.output
    (last,) = (node for node in model.graph.node if output.name in node.output)
    last.output[0] = "once"
    twice = [("Concat", ["once", "once"], "twice"), ("Identity", ["twice"], output.name)]
    for kind, given, made in twice:
        axis = {"axis": 1} if kind == "Concat" else {}
        model.graph.node.append(onnx.helper.make_node(kind, given, [made], **axis))
    onnx.save(model, tmp_path / "more.onnx")
    said = r"more\.onnx gives \[2, 20\] logits where \[2, 10\] were promised; export it again"
    with pytest.raises(UserError, match=said):
        load(tmp_path / "more.onnx", "cpu").predict(images[:2])


def test_labels_that_a_terminal_would_obey_are_refused(package: Path, tmp_path: Path) -> None:
    place = shutil.copytree(package, tmp_path / "hostile")
    labels = (place / "labels.txt").read_text()
    changed = labels.replace("airplane", "\x1b[2J", 1).encode()
    (place / "labels.txt").write_bytes(changed)
    known = (place / "manifest.txt").read_text()
    old, new = (hashlib.sha256(text).hexdigest() for text in (labels.encode(), changed))
    assert old in known
    (place / "manifest.txt").write_text(known.replace(old, new))
    with pytest.raises(UserError, match=r"labels\.txt has control characters; package it again"):
        load(place, "cpu")


def test_what_the_host_has_by_default_changes_no_model(folder: ModelFolder, images: Images) -> None:
    wanted = load(folder.path, "cpu").logits(images)
    torch.manual_seed(0)
    chance = torch.rand(1)
    before = torch.get_default_dtype()
    torch.set_float32_matmul_precision("medium")
    try:
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            torch.set_default_dtype(dtype)
            torch.manual_seed(0)
            assert np.array_equal(load(folder.path, "cpu").logits(images), wanted)
            torch.set_default_dtype(before)
            assert torch.rand(1) == chance  # the host's random numbers go on as they were
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_default_dtype(before)


def test_answers_that_are_no_numbers_are_told(
    folder: ModelFolder, images: Images, tmp_path: Path
) -> None:
    model = onnx.load(folder.onnx("fp32"))
    weight = next(one for one in model.graph.initializer if len(one.dims) == 2)
    broken = np.full(tuple(weight.dims), np.nan, np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(broken, weight.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(UserError, match=r"nan\.onnx answers with NaN or infinity; export it again"):
        load(tmp_path / "nan.onnx", "cpu").predict(images[:1])


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "x/" + "y" * 300])
def test_what_no_file_can_be_called_is_told(folder: ModelFolder, name: str) -> None:
    with pytest.raises(UserError, match="is no name of a model or a file"):
        load(name, "cpu")
    loaded = load(folder.path, "cpu")
    with pytest.raises(UserError):
        loaded.predict(name)


def test_openvino_is_imported_by_one_thread_of_several() -> None:
    pytest.importorskip("openvino")
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
from cifar_deploy.runtimes.openvino import core
sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(8) as threads:
    cores = set(map(id, threads.map(lambda _: core(), range(8))))
assert len(cores) == 1, cores
assert "openvino_telemetry" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_runs_an_onnx_file_can_be_chosen(
    folder: ModelFolder, package: Path, images: Images
) -> None:
    pytest.importorskip("openvino")
    wanted = load(folder.onnx("fp32"), "cpu").logits(images)
    for name in (folder.onnx("fp32"), package):
        loaded = load(name, "cpu", runtime="openvino")
        assert "OpenVINO" in repr(loaded)
        np.testing.assert_allclose(loaded.logits(images), wanted, atol=1e-3)
    with pytest.raises(UserError, match=r"runtime tvm: it can be onnxruntime or openvino$"):
        load(package, "cpu", runtime="tvm")
    with pytest.raises(UserError, match=r"runs in PyTorch; a runtime can be chosen for an ONNX"):
        load(folder.path, "cpu", runtime="openvino")
    with pytest.raises(UserError, match=r"a\.engine has one runtime"):
        load("a.engine", "cpu", runtime="openvino")


def test_the_command_predicts_with_the_same_code(
    folder: ModelFolder, package: Path, images: Images, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(images[0]).save(path)
    command = [sys.executable, "-m", "cifar_deploy", "predict", str(package), str(path)]
    command += ["--device", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (prediction,) = load(package, "cpu").predict(path)
    assert json.loads(done.stdout)[0]["top"] == [
        {"class": name, "probability": pytest.approx(share, abs=1e-5)}
        for name, share in prediction.top(3)
    ]


def test_the_public_face_is_there_without_loading_it() -> None:
    assert set(cifar_deploy.__all__) <= set(dir(cifar_deploy))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = cifar_deploy.lod  # type: ignore[attr-defined]
    assert issubclass(UserError, Exception)


# --- what is refused ----------------------------------------------------------------------------


def test_what_is_no_picture(classifier: Classifier, images: Images, tmp_path: Path) -> None:
    text = tmp_path / "note.png"
    text.write_text("not a picture")
    cut = io.BytesIO()
    Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(cut, "BMP")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "gone.png", "gone.png"),
        (str(text), "is not an image"),
        (Image.open(io.BytesIO(cut.getvalue()[:9000])), "cannot be read as an image"),
        (images.astype(np.float32), r"float32 \[7, 32, 32, 3\]; arrays are uint8"),
        (images.transpose(0, 3, 1, 2), r"uint8 \[7, 3, 32, 32\]"),
        (images[0, :, :, 0], r"uint8 \[32, 32\]"),
        (images[:, :0], r"uint8 \[7, 0, 32, 3\]"),
        (np.zeros((1, 1, 32, 32, 3), np.uint8), r"uint8 \[1, 1, 32, 32, 3\]"),
        (torch.zeros(32, 32, 3, requires_grad=True), "Tensor"),
        (b"\x89PNG", "a bytes is no picture"),
        (None, "a NoneType is no picture"),
        ([images[0], 7], "a int is no picture"),
        ({"a.png": 1}, "a dict is no picture"),
    ]
    for picture, said in cases:
        with pytest.raises(UserError, match=said):
            classifier.predict(picture)


def test_what_cannot_be_loaded(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_DEPLOY_MODELS", str(tmp_path))
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.tar.gz").write_text("")
    cases = [
        ("resnet81", "did you mean resnet18"),
        ("resnet18", "cifar-deploy train resnet18"),
        (tmp_path / "gone.onnx", "gone.onnx"),
        (tmp_path / "a.txt", "no exported format"),
        (tmp_path / "a.tar.gz", "no exported format"),
        (tmp_path, "no trained weights"),
    ]
    for name, said in cases:
        with pytest.raises(UserError, match=said):
            load(name)
    with pytest.raises(UserError, match="--device tpu"):
        load(folder.path, device="tpu")
    with pytest.raises(UserError, match="a int is no model"):
        load(3)  # type: ignore[arg-type]


def test_a_device_is_named_as_torch_names_it(folder: ModelFolder, images: Images) -> None:
    assert load(folder.path, device=torch.device("cpu")).logits(images).shape == (7, 10)
    with pytest.raises(UserError, match=r"--device cuda:99: .* use --device cpu"):
        load(folder.path, device=99)


def change(line: str, into: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / "manifest.txt"
        text = path.read_text()
        assert line in text
        path.write_text(text.replace(line, into))

    return change


def append(name: str, data: bytes) -> Callable[[Path], None]:
    def append(package: Path) -> None:
        with (package / name).open("ab") as out:
            out.write(data)

    return append


def of_another(name: str) -> Callable[[Path], None]:
    """Puts what speaks of another file in the place of `name`, as where two packages are mixed."""

    def of_another(package: Path) -> None:
        path = package / name
        facts = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**facts, "sha256": "0" * 64}))

    return of_another


def test_labels_that_are_no_text(package: Path) -> None:
    labels = package / "labels.txt"
    before = sha256_of(labels)
    labels.write_bytes(b"\xff\n" * 10)
    change(before, sha256_of(labels))(package)
    with pytest.raises(UserError, match="no UTF-8 text"):
        load(package)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (append("model.onnx", b"\0"), "model.onnx is not the file that manifest.txt speaks of"),
        (append("labels.txt", b"zebra\n"), "labels.txt is not the file"),
        (append("manifest.txt", b"file other.onnx\n"), "file stands in it twice"),
        (append("manifest.txt", b"\xff"), "is no manifest"),
        (append("manifest.txt", b"x" * 65536), "more than 65536 bytes"),
        (change("format 1", "format 2"), "its format is 2"),
        (change("file model.onnx", "file ../model.onnx"), "no plain file name"),
        (change("file model.onnx", "file a\0b"), "no plain file name"),
        (change("file model.onnx", "file include"), "Is a directory"),
        (change("labels labels.txt\n", "labels model.onnx\n"), "model.onnx is not the file"),
        (change("file model.onnx\n", ""), "file is missing"),
        (change("file model.onnx", "file gone.onnx"), "gone.onnx"),
        (change("classes 10", "classes 9"), "has 10 names"),
        (of_another("manifest.json"), "manifest.json is not the manifest of model.onnx"),
        (of_another("proof.json"), "proof.json is not the proof of model.onnx; package it again"),
        (append("proof.json", b"}"), "proof.json is not JSON"),
    ],
)
def test_a_damaged_package(package: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(package)
    with pytest.raises(UserError, match=said):
        load(package)
