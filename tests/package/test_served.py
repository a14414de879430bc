"""What a server answers: a package in a real Triton, which pytriton brings along.

That one has no backend but Python's, so a few lines of Python run the packaged file there; all
else, the protocol, the package's configuration and its labels, is as it will be.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import need
from processes import Refused, Run, call, python
from workshop import NAME

from cifar_deploy import load
from cifar_deploy.address import Address
from cifar_deploy.address import read as read_address
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.served import Served
from cifar_deploy.store import ModelFolder, proof_path

grpc = pytest.importorskip("grpc")
service = pytest.importorskip("tritonclient.grpc.service_pb2")
model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
service_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

pytestmark = pytest.mark.xdist_group("triton")
TRITON = Path(sys.prefix) / "triton" / "pytriton" / "tritonserver"
# DLPack: the stub was built for numpy 1, and would send nothing of an array.
RUNS = """
import pathlib
import numpy
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        import onnxruntime
        file = pathlib.Path(__file__).parent / "model.onnx"
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        images = numpy.from_dlpack(triton.get_input_tensor_by_name(request, "images"))
        logits = self.session.run(None, {"images": images})[0]
        return triton.InferenceResponse([triton.Tensor.from_dlpack("logits", logits)])
"""
SAYS_THE_SAME = """
import numpy
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        images = numpy.from_dlpack(triton.get_input_tensor_by_name(request, "images"))
        logits = numpy.zeros((len(images), 10), numpy.float32)
        return triton.InferenceResponse([triton.Tensor.from_dlpack("logits", logits)])
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def add(repository: Path, name: str, code: str, config: str) -> None:
    """A model of the repository: like the packaged one, run by `code`."""
    if name != NAME:
        shutil.copytree(repository / NAME, repository / name)
    (repository / name / "1" / "model.py").write_text(code)
    lines = config.replace('backend: "onnxruntime"', 'backend: "python"').splitlines()
    lines = [line for line in lines if not line.startswith("platform:")]
    text = "\n".join(lines).replace(f'name: "{NAME}"', f'name: "{name}"')
    (repository / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def server(proved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Triton with the packaged model and some that are wrong; its host and port."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = TRITON / "python_backend_stubs" / version / "triton_python_backend_stub"
    need(str(TRITON / "bin" / "tritonserver"), str(stub))
    place = tmp_path_factory.mktemp("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(proved)
        package = ("package", NAME, "--target", "triton", "--out", place / "repository")
        assert call(patch, *package) == 0
    config = (place / "repository" / NAME / "config.pbtxt").read_text()
    add(place / "repository", "constant", SAYS_THE_SAME, config)
    add(place / "repository", "renamed", SAYS_THE_SAME, config)
    labels = place / "repository" / "renamed" / "labels.txt"
    labels.write_text("".join(reversed(labels.read_text().splitlines(keepends=True))))
    # The sum of the file stands for that of its weights.
    old = config.replace('"weights_sha256"', '"other"').replace('"sha256"', '"weights_sha256"')
    add(place / "repository", "stale", SAYS_THE_SAME, old)
    floats = config.replace("TYPE_UINT8", "TYPE_FP32").replace("[32, 32, 3]", "[3, 32, 32]")
    floats = floats[: floats.index("model_warmup")]
    add(place / "repository", "floats", SAYS_THE_SAME, floats)
    add(place / "repository", NAME, RUNS, config)
    shutil.copytree(TRITON / "backends", place / "backends")
    shutil.copy(stub, place / "backends" / "python")
    port = free_port()
    command = [
        str(TRITON / "bin" / "tritonserver"),
        f"--model-repository={place / 'repository'}",
        f"--backend-directory={place / 'backends'}",
        *("--grpc-address=127.0.0.1", f"--grpc-port={port}"),
        *("--allow-http=false", "--allow-metrics=false"),
    ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "LD_LIBRARY_PATH": str(TRITON.parents[1] / "nvidia_pytriton.libs"),
    }
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"127.0.0.1:{port}", process, place / "log")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def wait_for(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server is ready, with the warm-up of its models."""
    stub = service_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(host))
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if stub.ServerReady(service.ServerReadyRequest()).ready:
                return
        except grpc.RpcError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def judged(run: Run, *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit status of `validate`, and its row for what is served."""
    answer = run("validate", *arguments, "--no-latency", "--device", "cpu", "--json", "-")
    return answer.status, json.loads(answer.out)["models"][0]["rows"][1]


def test_what_a_package_answers_is_proved(run: Run, server: str, model: ModelFolder) -> None:
    before = proof_path(model.onnx("fp32")).read_bytes()
    status, row = judged(run, f"grpc://{server}/{NAME}", "--max-drop", "1")
    assert (status, row["verdict"]) == (0, "PASS")
    assert row["file"] == f"grpc://{server}/{NAME}"
    assert row["runtime"].startswith("Triton 2.")
    assert (row["provider"], row["device"], row["precision"]) == ("python", "remote", "fp32")
    assert row["bytes"] is None
    assert row["largest_logit_difference"] < 1e-4
    assert proof_path(model.onnx("fp32")).read_bytes() == before  # it is no proof of a file


def test_a_file_stands_beside_it(run: Run, server: str, model: ModelFolder) -> None:
    both = (model.onnx("fp32"), f"grpc://{server}/{NAME}")
    answer = run("validate", *both, "--max-drop", "1", "--no-latency", "--device", "cpu")
    assert answer.status == 0
    assert answer.out.count("PASS") == 2


def test_other_answers_are_not_proved(run: Run, server: str) -> None:
    status, row = judged(run, f"grpc://{server}/constant", "--reference", NAME)
    assert status == 1
    assert row["verdict"] != "PASS"
    assert row["same_top1"] < 0.9


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("renamed", "class 0 is called "),
        ("stale", "was exported from other weights than those that are there now"),
        ("floats", "takes images FP32 [-1, 3, 32, 32] and gives logits FP32 [-1, 10], and not"),
        ("nothing", "'nothing' is not found"),
        (f"{NAME}/7", "version 7 is not found"),
    ],
)
def test_what_cannot_be_judged_is_told(run: Run, server: str, name: str, said: str) -> None:
    status, row = judged(run, f"grpc://{server}/{name}", "--reference", NAME)
    assert (status, row["verdict"]) == (1, "UNUSABLE")
    assert said in row["reason"]
    assert not row["reason"].startswith("grpc")


def test_no_server(run: Run) -> None:
    status, row = judged(run, f"grpc://127.0.0.1:{free_port()}/{NAME}")
    assert (status, row["verdict"]) == (1, "UNUSABLE")
    assert "is the server up" in row["reason"]


@pytest.mark.parametrize(
    "address",
    ["http://localhost:8000/simple_cnn", "grpc://localhost/simple_cnn", "grpc://localhost:8001"],
)
def test_an_address_of_another_kind(refused: Refused, address: str) -> None:
    for command in (("validate",), ("benchmark",)):
        assert "as grpc://localhost:8001/custom_resnet" in refused(*command, address)


def test_it_needs_a_reference_of_its_name(refused: Refused, model: ModelFolder) -> None:
    assert "no network is called 'other'" in refused("validate", "grpc://localhost:1/other")
    both = ("validate", model.onnx("fp32"), "grpc://localhost:1/other")
    assert "is not called simple_cnn" in refused(*both)


def test_addresses() -> None:
    assert read_address("models/simple_cnn") is None
    assert read_address("C:\\models") is None
    found = read_address("grpcs://host.example:443/a/3")
    assert found == Address("host.example:443", "a", "3", secure=True)
    assert str(found) == "grpcs://host.example:443/a/3"


def test_it_is_timed_beside_pytorch(run: Run, server: str) -> None:
    quick = ("--batch", "1,4", "--seconds", "0.05", "--device", "cpu", "--json", "-")
    answer = run("benchmark", NAME, f"grpc://{server}/{NAME}", *quick)
    assert answer.status == 0, answer.err
    said = json.loads(answer.out)
    rows = [row for row in said["rows"] if row["device"] == "remote"]
    assert [row["batch"] for row in rows] == [1, 4]
    assert all(row["throughput"]["images"] > 0 for row in rows)
    assert len(said["rows"]) > len(rows)
    assert any("as a client sees it" in remark for remark in said["remarks"])
    alone = json.loads(run("benchmark", f"grpc://{server}/{NAME}", *quick).out)
    assert not any("no GPU" in remark for remark in alone["remarks"])


def test_pictures_are_classified(run: Run, server: str, model: ModelFolder, pictures: Path) -> None:
    picture = sorted(pictures.glob("test/*/*.png"))[0]
    there = load(f"grpc://{server}/{NAME}")
    here = load(model.onnx("fp32"), device="cpu")
    assert there.classes == here.classes
    np.testing.assert_allclose(there.logits(picture), here.logits(picture), rtol=0, atol=1e-4)
    assert run("predict", f"grpc://{server}/{NAME}", picture).out.startswith(f"{picture}: ")
    with pytest.raises(UserError, match="runs on its server"):
        load(f"grpc://{server}/{NAME}", runtime="openvino")


class Plain(service_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server of the protocol without Triton's extensions: no configuration, no class names."""

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service.ServerMetadataResponse(name="plain", version="1")

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        tensor = service.ModelMetadataResponse.TensorMetadata
        return service.ModelMetadataResponse(
            name=request.name,
            inputs=[tensor(name="x", datatype="UINT8", shape=[2, 32, 32, 3])],
            outputs=[tensor(name="y", datatype="FP32", shape=[2, 10])],
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        (given,) = request.inputs
        assert list(given.shape) == [2, 32, 32, 3]
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(2, -1)
        logits = np.arange(10, dtype=np.float32) + images[:, :1]
        tensor = service.ModelInferResponse.InferOutputTensor
        answer = tensor(name="y", datatype="FP32", shape=[2, 10])
        return service.ModelInferResponse(outputs=[answer], raw_output_contents=[logits.tobytes()])


class Strange(Plain):
    """It answers what `strange` says: metadata and answers that a Plain would not give."""

    def __init__(self, **strange: Any) -> None:
        self.strange = strange

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.strange.get("metadata") or super().ModelMetadata(request, context)

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = model_config.ModelConfig(max_batch_size=self.strange.get("largest", 0))
        return service.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        datatype, shape, raw = self.strange["answer"]
        tensor = service.ModelInferResponse.InferOutputTensor
        answer = [tensor(name="y", datatype=datatype, shape=shape)] if datatype else []
        return service.ModelInferResponse(outputs=answer, raw_output_contents=[raw] * len(answer))


@contextlib.contextmanager
def serving(servicer: Plain) -> Iterator[str]:
    """The host and port of a server that answers as `servicer`."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    service_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (("", [], b""), "it answers with nothing, and not with float32"),
        (("FP32", [2, 10], bytes(79)), "its answer is damaged"),
        (("FP32", [2, 10], bytes(40)), "its answer is damaged"),
        (("FP32", [20], bytes(80)), r"its answer has the shape \[20\], not \[2, 10\]"),
        (("FP32", [1, 10], bytes(40)), r"its answer has the shape \[1, 10\], not \[2, 10\]"),
        (("FP32", [2, 20], bytes(160)), r"its answer has the shape \[2, 20\], not \[2, 10\]"),
        (("FP64", [2, 10], bytes(160)), "it answers with float64, and not with float32"),
        (("BYTES", [1], b"\x02\x00\x00\x00\xff\xfe"), "it answers with object, and not with"),
    ],
)
def test_an_answer_that_was_not_promised_is_told(
    dataset: Dataset, answer: tuple[str, list[int], bytes], said: str
) -> None:
    images = dataset.test.images[:2]
    with serving(Strange(answer=answer)) as place:
        served = Served(Address(place, "any"))
        assert served.labels() is None
        for asking in (served.logits, served.bind):
            with pytest.raises(UserError, match=f"any: {said}"):
                asking(images)


def test_a_server_that_describes_nothing_sound_is_told() -> None:
    tensor, said = service.ModelMetadataResponse.TensorMetadata, service.ModelMetadataResponse
    takes = tensor(name="x", datatype="UINT8", shape=[-1, 32, 32, 3])
    many = tensor(name="y", datatype="FP32", shape=[-1, 2**31 - 1])
    hostile = tensor(name="\x1b[2J", datatype="FP32", shape=[-1])
    for metadata, told in (
        (said(name="any"), "it takes nothing and gives nothing, and not"),
        (said(name="any", inputs=[tensor(name="x")]), r"it takes x  \[\] and gives nothing"),
        (said(name="any", inputs=[takes], outputs=[many]), r"gives y FP32 \[-1, 2147483647\]"),
        (said(name="any", inputs=[takes], outputs=[hostile]), r"gives \\x1b\[2J FP32 \[-1\]"),
    ):
        with (
            serving(Strange(metadata=metadata)) as place,
            pytest.raises(UserError, match=told),
        ):
            Served(Address(place, "any"))
    with serving(Strange(largest=-5)) as place:
        assert list(Served(Address(place, "any")).batches) == [range(2, 3)]


def test_a_server_without_tritons_extensions(dataset: Dataset) -> None:
    with serving(Plain()) as place:
        served = Served(Address(place, "any"))
        assert served.runtime == "Plain 1"
        assert (served.provider, served.precision) == ("unknown", "unknown")
        assert list(served.batches) == [range(2, 3)]
        assert served.labels() is None
        served.expect(dataset.classes, "0" * 64)
        images = dataset.test.images[:3]
        expected = np.arange(10) + images.reshape(3, -1)[:, :1].astype(np.float32)
        np.testing.assert_array_equal(served.logits(images), expected)
        assert load(f"grpc://{place}/any").classes == tuple(map(str, range(10)))
    with pytest.raises(UserError, match="is the server up"):
        served.logits(dataset.test.images[:2])


def test_a_client_that_came_without_grpc_is_told() -> None:
    script = (
        "import sys; sys.modules['grpc'] = None\n"
        "from cifar_deploy.cli import app, main\n"
        "from cifar_deploy.address import read\n"
        "from cifar_deploy.runtimes.served import Served\n"
        "app.command('ask')(lambda: Served(read('grpc://h:1/m')))\n"
        "sys.argv[1:] = ['ask']; main()"
    )
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (2, "")
    assert "tritonclient does not import (" in done.stderr
    assert "run: pip install 'cifar-deploy[served]'" in done.stderr
