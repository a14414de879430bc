"""What is installed from a wheel: the program, and all that it reads."""

import subprocess
import sys
import zipfile
from pathlib import Path

from cifar_deploy.architectures import NETWORKS

ROOT = Path(__file__).parents[1]


def test_a_wheel_carries_recipes_and_template_and_works(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {f"cifar_deploy/recipes/{name}/recipe.toml" for name in NETWORKS} <= names
    assert "cifar_deploy/validate/report.html.j2" in names
    inside = ("cifar_deploy/", "cifar_deploy-")
    assert all(name.startswith(inside) for name in names)
    assert not [name for name in names if name.endswith((".safetensors", ".onnx", ".png"))]
    script = "from cifar_deploy.store import packaged_recipe as p; print(p('cnn9'))"
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "site",
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found == str(tmp_path / "site" / "cifar_deploy" / "recipes" / "cnn9" / "recipe.toml")
