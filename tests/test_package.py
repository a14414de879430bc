"""What is installed from a wheel: the program, and all that it reads."""

import subprocess
import sys
import zipfile
from pathlib import Path

from cifar_deploy.architectures import NETWORKS

ROOT = Path(__file__).parents[1]


def needed_to_package() -> set[str]:
    """What `package` reads, as it lies in the wheel's cifar_deploy/."""
    found = {"LICENSE", "py.typed", "cpp/cmake/CifarDeploy.cmake", "cpp/examples/classify.cpp"}
    headers = (ROOT / "cpp" / "include").rglob("*")
    found |= {str(path.relative_to(ROOT)) for path in headers if path.is_file()}
    templates = ROOT / "cifar_deploy" / "package" / "templates"
    return found | {f"package/templates/{path.name}" for path in templates.iterdir()}


def test_a_wheel_carries_recipes_and_template_and_works(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {f"cifar_deploy/recipes/{name}/recipe.toml" for name in NETWORKS} <= names
    assert "cifar_deploy/validate/report.html.j2" in names
    assert {f"cifar_deploy/{path}" for path in needed_to_package()} <= names
    roots = ("cifar_deploy/", "cifar_deploy-")
    assert all(name.startswith(roots) for name in names)
    assert not [name for name in names if name.endswith((".safetensors", ".onnx", ".png"))]
    script = (
        "from cifar_deploy.store import packaged_recipe as p, shipped as s; "
        "print(p('cnn9'), s('LICENSE'), s('cpp/include'), sep='\\n')"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "site",
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    site = tmp_path / "site" / "cifar_deploy"
    inside = ("recipes/cnn9/recipe.toml", "LICENSE", "cpp/include")
    assert found == [str(site / path) for path in inside]
