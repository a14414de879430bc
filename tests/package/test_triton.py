"""The Triton repository, read with the server's own definition of its configuration."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from google.protobuf import text_format
from processes import Refused, Run
from test_package_command import fix_batch
from workshop import NAME

from cifar_deploy.data.dataset import Dataset
from cifar_deploy.package import triton
from cifar_deploy.runtimes.protocol import BATCH
from cifar_deploy.store import ModelFolder

# A machine with a GPU and no network may lack it; CI has it.
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
REPOSITORY = Path("simple_cnn-triton")


def config() -> Any:
    """The configuration of the packaged model; a field the server does not know is an error."""
    text = (REPOSITORY / NAME / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def program_of(readme: str) -> str:
    """The only Python in it."""
    (python,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    return str(python)


def test_an_onnx_file(run: Run, model: ModelFolder, dataset: Dataset) -> None:
    assert run("package", NAME, "--target", "triton").status == 0
    found = sorted(p.relative_to(REPOSITORY).as_posix() for p in REPOSITORY.rglob("*"))
    assert found == sorted(
        [
            *(NAME, f"{NAME}/config.pbtxt", f"{NAME}/labels.txt"),
            *(f"{NAME}/1", f"{NAME}/1/model.onnx"),
            *("LICENSE", "NOTICE", "README.md", "manifest.json", "proof.json"),
        ]
    )
    file = REPOSITORY / NAME / "1" / "model.onnx"
    assert file.read_bytes() == model.onnx("fp32").read_bytes()
    said = config()
    assert said.name == NAME
    assert (said.platform, said.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert said.max_batch_size == BATCH
    assert said.version_policy.latest.num_versions == 1
    assert said.HasField("dynamic_batching")
    (group,) = said.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_AUTO)
    (cuda,) = said.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    assert "docker run --rm --gpus all -p" in (REPOSITORY / "README.md").read_text()
    # Names, types and shapes are those of the file, whose batch the server adds in front.
    session = onnxruntime.InferenceSession(file)
    types = {
        "tensor(uint8)": model_config_pb2.TYPE_UINT8,
        "tensor(float)": model_config_pb2.TYPE_FP32,
    }
    for ours, theirs in (
        (said.input, session.get_inputs()),
        (said.output, session.get_outputs()),
    ):
        assert [(t.name, t.data_type, list(t.dims)) for t in ours] == [
            (t.name, types[t.type], t.shape[1:]) for t in theirs
        ]
    labels = REPOSITORY / NAME / said.output[0].label_filename
    assert labels.read_text().splitlines() == list(dataset.classes)
    (warmup,) = said.model_warmup
    assert warmup.batch_size == 1
    assert list(warmup.inputs) == ["images"]
    given = warmup.inputs["images"]
    assert (given.data_type, list(given.dims)) == (model_config_pb2.TYPE_UINT8, [32, 32, 3])
    assert given.random_data


def test_the_server_runs_it_as_asked(run: Run, refused: Refused, model: ModelFolder) -> None:
    options = ("--instances", "3", "--max-batch", "64", "--queue-delay", "2500")
    assert run("package", NAME, "--target", "triton", *options).status == 0
    said = config()
    assert said.instance_group[0].count == 3
    assert said.max_batch_size == 64
    assert said.dynamic_batching.max_queue_delay_microseconds == 2500
    text = (REPOSITORY / NAME / "config.pbtxt").read_text()
    assert "within 2.5 ms of each other" in text
    assert "n up to 64" in (REPOSITORY / "README.md").read_text()
    assert "--max-batch is the server's" in refused("package", NAME, "--max-batch", "8")
    fix_batch(model, 4)
    fixed = ("package", NAME, "--target", "triton", "--unproved", "--force", "--max-batch", "8")
    assert "takes batches of 4 only" in refused(*fixed)
    assert "--queue-delay" in refused(*fixed[:-2], "--queue-delay", "0")
    assert "--instances" in refused(*fixed[:-2], "--instances", str(10**10))


def test_a_request_may_wait_for_no_other(run: Run) -> None:
    assert run("package", NAME, "--target", "triton", "--queue-delay", "0").status == 0
    assert config().dynamic_batching.max_queue_delay_microseconds == 0


def test_a_gpu_runs_an_fp16_file_as_it_was_validated(run: Run) -> None:
    assert run("export", NAME, "--precision", "fp16").status == 0
    command = ("package", NAME, "--target", "triton", "--precision", "fp16", "--unproved")
    assert run(*command).status == 0
    said = config()
    assert not said.HasField("optimization")  # without TF32 fp16 has no tensor cores either
    assert said.parameters["cudnn_conv_algo_search"].string_value == "1"  # HEURISTIC


def test_an_int8_file_runs_on_the_cpu(run: Run, model: ModelFolder) -> None:
    assert run("export", NAME, "--precision", "int8").status == 0
    command = ("package", NAME, "--target", "triton", "--precision", "int8", "--unproved")
    assert run(*command).status == 0
    said = config()
    (group,) = said.instance_group
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert not said.HasField("optimization")
    readme = (REPOSITORY / "README.md").read_text()
    assert "docker run --rm -p" in readme
    assert "gpu" not in readme


def test_an_engine(run: Run, refused: Refused, engine: Callable[..., Path]) -> None:
    sizes = [{"min": 1, "opt": 1, "max": 8}, {"min": 1, "opt": 128, "max": 256}]
    path = engine(profiles=sizes)
    command = ("package", NAME, "--target", "triton", "--format", "trt", "--precision", "fp16")
    assert run(*command, "--unproved").status == 0
    assert (REPOSITORY / NAME / "1" / "model.plan").read_bytes() == path.read_bytes()
    said = config()
    assert (said.platform, said.backend) == ("tensorrt_plan", "tensorrt")
    assert said.max_batch_size == 256
    (group,) = said.instance_group
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == ["0", "1"]
    large = (*command, "--unproved", "--force", "--max-batch")
    assert "takes at most 256 images; lower --max-batch" in refused(*large, "257")
    assert run(*large, "255").status == 0
    assert config().max_batch_size == 255
    assert run(*large, "256").status == 0
    readme = (REPOSITORY / "README.md").read_text()
    assert "10.13.3.9" in readme
    assert "**This file is not proved.**" in readme
    assert triton.COMPATIBLE not in readme


def test_a_version_compatible_engine_needs_a_server_that_lets_it(
    run: Run, engine: Callable[..., Path]
) -> None:
    engine(version_compatible=True)
    command = ("package", NAME, "--target", "triton", "--format", "trt", "--precision", "fp16")
    assert run(*command, "--unproved").status == 0
    readme = (REPOSITORY / "README.md").read_text()
    assert f"tritonserver --model-repository=/models {triton.COMPATIBLE}\n" in readme
    assert f"      args:\n        - {triton.COMPATIBLE}\n" in readme
    assert "10.13.3.9, and in\nlater ones" in readme


def test_an_engine_that_leaves_batches_out_is_refused(
    run: Run, refused: Refused, engine: Callable[..., Path]
) -> None:
    engine(profiles=[{"min": 8, "opt": 8, "max": 8}, {"min": 1, "opt": 2, "max": 4}])
    command = ("package", NAME, "--target", "triton", "--format", "trt", "--precision", "fp16")
    assert "takes no batch of 5, which Triton may put" in refused(*command, "--unproved")
    assert run(*command, "--unproved", "--max-batch", "4").status == 0
    assert list(config().instance_group[0].profile) == ["1"]  # the other begins at 8


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("simple_cnn", "simple-cnn"), ("ResNet18-v2.1", "resnet18-v2-1"), ("18_", "model-18")],
)
def test_kserve_gets_a_name_that_it_takes(name: str, allowed: str) -> None:
    assert triton._kserve_name(name) == allowed


def test_a_fixed_batch_is_a_plain_shape(run: Run, model: ModelFolder) -> None:
    fix_batch(model, 4)
    assert run("package", NAME, "--target", "triton", "--unproved").status == 0
    said = config()
    # The server batches only files whose first dimension is open.
    assert said.max_batch_size == 0
    assert not said.HasField("dynamic_batching")
    assert list(said.input[0].dims) == [4, 32, 32, 3]
    assert list(said.output[0].dims) == [4, 10]
    assert list(said.model_warmup[0].inputs["images"].dims) == [4, 32, 32, 3]
    # Of a plain shape the server would rank the logits of all images together.
    python = program_of((REPOSITORY / "README.md").read_text())
    assert "class_count" not in python
    compile(python, "README.md", "exec")


def test_the_readme_names_the_repository(run: Run) -> None:
    assert run("package", NAME, "--target", "triton").status == 0
    readme = (REPOSITORY / "README.md").read_text()
    assert re.search(r'-v "\$PWD:/models:ro" \S+/tritonserver:\d\d\.\d\d-py3', readme)
    assert "tritonserver --model-repository=/models" in readme
    assert f"localhost:8000/v2/models/{NAME}/ready" in readme
    python = program_of(readme)
    assert "class_count=3" in python
    compile(python, "README.md", "exec")
    names = re.search(r"(?m)^  name: (.+)$", readme)
    assert names
    assert names[1] == "simple-cnn"  # Kubernetes takes no underscore
