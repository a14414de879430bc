from pathlib import Path

import pytest

from cifar_deploy import disk, store
from cifar_deploy.errors import UserError
from cifar_deploy.kind import Kind, Precision
from cifar_deploy.store import PROOF_NUMBERS, PROOF_TEXTS, ModelFolder


def test_a_manifest_says_what_the_file_is(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"abc")
    assert store.read_manifest(file) is None
    written = store.write_manifest(file, {"format": "onnx"})
    assert written == {
        "file": "a.onnx",
        "bytes": 3,
        "sha256": disk.sha256_of(file),
        "format": "onnx",
    }
    assert store.read_manifest(file) == written
    assert store.manifest_path(file) == tmp_path / "a.onnx.json"
    file.write_bytes(b"by another process since")
    assert store.write_manifest(file, {"format": "onnx"}, b"abc") == written


@pytest.mark.parametrize("raw", [b"ab", b"abd", b"abcd", b""])
def test_a_file_that_its_manifest_does_not_match_is_refused(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"abc")
    store.write_manifest(file, {})
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.onnx does not match its manifest a\.onnx\.json"):
        store.read_manifest(file)


def test_bytes_that_were_read_are_checked_themselves(tmp_path: Path) -> None:
    file = tmp_path / "a.engine"
    file.write_bytes(b"abc")
    written = store.write_manifest(file, {})
    with pytest.raises(UserError, match="sha256 differs"):
        store.read_manifest(file, b"abd")
    file.write_bytes(b"put there since")
    assert store.read_manifest(file, b"abc") == written


def test_a_manifest_without_a_checksum_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"abc")
    disk.write_json(store.manifest_path(file), {"file": "a.onnx"})
    with pytest.raises(UserError, match="does not match its manifest"):
        store.read_manifest(file)


def test_models_are_looked_for_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(store.MODELS_VARIABLE, raising=False)
    assert store.models_root() == Path("models")
    monkeypatch.setenv(store.MODELS_VARIABLE, str(tmp_path))
    for name in ("b", "a"):
        disk.write_bytes(ModelFolder(tmp_path / name).weights, b"weights")
    ModelFolder(tmp_path / "untrained").path.mkdir()
    (tmp_path / "report.html").touch()
    assert [folder.name for folder in store.trained_models()] == ["a", "b"]


def test_exported_files_are_those_with_their_final_name(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "m")
    folder.path.mkdir()
    for name in ("m.fp32.onnx", "m.fp16.onnx", "m.fp16.onnx.json", ".m.fp32.onnx.12.part"):
        (folder.path / name).touch()
    assert folder.exported() == [folder.onnx("fp16"), folder.onnx("fp32")]


def test_a_model_has_the_name_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models" / "mine" / "sub")
    for path, name in ((".", "sub"), ("..", "mine"), ("../../mine", "mine"), ("../x", "x")):
        assert ModelFolder(Path(path)).name == name
    assert ModelFolder(Path("..")).onnx("fp32") == Path("../mine.fp32.onnx")


def test_the_precision_of_a_file_is_not_its_models_name(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "net.int8.v2")
    folder.path.mkdir()
    folder.onnx("fp32").touch()
    assert Kind(precisions=(Precision.int8,)).files(folder) == []
    assert Kind(precisions=(Precision.fp32,)).files(folder) == [folder.onnx("fp32")]


def test_a_proof_of_several_lines_is_none(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    facts = {**dict.fromkeys(PROOF_TEXTS, "x"), **dict.fromkeys(PROOF_NUMBERS, 0.5)}
    facts["data"] = {"images": 10, "name": "x"}
    disk.write_json(store.proof_path(file), {"proofs": [facts]})
    assert store.read_proofs(file, "x") == [facts]
    disk.write_json(store.proof_path(file), {"proofs": [facts | {"verdict": "PASS\nx"}]})
    with pytest.raises(UserError, match="is no whole proof"):
        store.read_proofs(file, "x")
