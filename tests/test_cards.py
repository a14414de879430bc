import re
from pathlib import Path

import pytest

from cifar_deploy import cards, disk, store
from cifar_deploy.errors import UserError
from cifar_deploy.store import ModelFolder


def trained(path: Path) -> ModelFolder:
    folder = ModelFolder(path)
    disk.write_bytes(folder.weights, b"weights")
    facts = {"weights": {"sha256": disk.sha256_of(folder.weights)}, "network": "x"}
    disk.write_json(folder.card, facts)
    return folder


def test_a_card_of_other_weights_is_refused(tmp_path: Path) -> None:
    folder = trained(tmp_path / "x")
    assert cards.read_card(folder)["network"] == "x"
    folder.weights.write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"model\.safetensors does not match card\.json"):
        cards.read_card(folder)


@pytest.mark.parametrize("named", [None, 3, [], {}, {"sha256": None}])
def test_a_card_that_names_no_weights_is_refused(tmp_path: Path, named: object) -> None:
    folder = trained(tmp_path / "x")
    disk.write_json(folder.card, {"weights": named})
    with pytest.raises(UserError, match=r"does not match card\.json"):
        cards.read_card(folder)


def test_weights_or_card_alone_are_told(tmp_path: Path) -> None:
    folder = trained(tmp_path / "vgg19")
    folder.card.unlink()
    with pytest.raises(UserError, match=r"no card\.json beside it; train again"):
        cards.read_card(folder)
    folder.weights.unlink()
    with pytest.raises(UserError, match="no trained weights; run: cifar-deploy train vgg19"):
        cards.read_card(folder)


def test_a_card_alone_says_how_to_train(tmp_path: Path) -> None:
    folder = trained(tmp_path / "vgg19")
    command = "cifar-deploy train vgg19 --recipe short"
    disk.write_json(folder.card, {"command": command})
    folder.weights.unlink()
    with pytest.raises(UserError, match=f"its card says how to train it: {command}$"):
        cards.read_card(folder)


def test_where_the_models_were_sought_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(store.MODELS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    place = re.escape(f"models/ (not there, seen from {tmp_path}; $CIFAR_DEPLOY_MODELS can")
    with pytest.raises(UserError, match=f"no trained weights; .* train vgg19\n.*{place}"):
        cards.read_card(ModelFolder(store.models_root() / "vgg19"))
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError, match=r"no trained weights; run: cifar-deploy train vgg19$"):
        cards.read_card(ModelFolder(store.models_root() / "vgg19"))
    with pytest.raises(UserError, match=f"train vgg19 --out {re.escape(str(tmp_path))}/vgg19$"):
        cards.read_card(ModelFolder(tmp_path / "vgg19"))
