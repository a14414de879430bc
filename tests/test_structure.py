import ast
from pathlib import Path

import pytest
from processes import python

import cifar_deploy

PACKAGE = Path(cifar_deploy.__file__).parent
# Rooms from the bottom to the top: a room imports from those below it, never from its own row.
ROWS = [
    {"errors", "signals", "terminal"},
    {"disk"},
    {"store", "device", "address"},
    {"cards"},
    {"recipe", "kind"},
    {"data"},
    {"architectures", "engines"},
    {"runtimes"},
    {"timing", "watch"},
    {"train", "export", "validate", "benchmark", "package", "models"},
    {"doctor", "classifier", "tuning"},
    {"exporting", "measuring", "proving"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


KNOWN = {dotted(file).removesuffix(".__init__") for file in MODULES}


def imports(source: str) -> set[str]:
    """The package's modules that `source` imports, wherever in it, also for type checking only."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in KNOWN else str(node.module))
    return {name for name in found if name.split(".")[0] == PACKAGE.name}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("file", MODULES, ids=dotted)
def test_imports_run_one_way(file: Path) -> None:
    room = room_of(dotted(file).removesuffix(".__init__"))
    there = imports(file.read_text())
    if not room:  # the package itself: names of its public face, for type checkers alone
        assert there == {
            "cifar_deploy.classifier",
            "cifar_deploy.errors",
            "cifar_deploy.exporting",
            "cifar_deploy.measuring",
            "cifar_deploy.proving",
        }
        return
    for module in there:
        other = room_of(module)
        if other in ("", room):
            continue
        assert HEIGHT[other] < HEIGHT[room], f"{room} imports {module}"


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in KNOWN} == {"", *HEIGHT}


def test_architectures_need_only_the_datas_constants() -> None:
    used = set()
    for file in (PACKAGE / "architectures").glob("*.py"):
        used |= {m for m in imports(file.read_text()) if room_of(m) == "data"}
    assert used <= {"cifar_deploy.data.dataset"}


def test_a_module_that_looks_up_is_found_out() -> None:
    assert imports("def f():\n    from cifar_deploy import store as s, __version__") == {
        "cifar_deploy",
        "cifar_deploy.store",
    }
    assert imports("import torch, cifar_deploy.cli") == {"cifar_deploy.cli"}
    assert imports("from cifar_deploy.train.loop import Job") == {"cifar_deploy.train.loop"}


HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "PIL",
    "matplotlib",
    "rich",
)


def test_the_package_imports_nothing_before_it_is_asked() -> None:
    done = python("-c", "import cifar_deploy, sys; dir(cifar_deploy); print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    mine = {name for name in done.stdout.split() if name.startswith("cifar_deploy")}
    assert mine == {"cifar_deploy"}


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["export"], ["validate"], ["benchmark"], ["package"], ["demo"]],
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    script = (
        "import atexit, sys; atexit.register(lambda: print('|', *sys.modules))\n"
        f"sys.argv = ['cifar-deploy', *{command}, '--help']\n"
        "from cifar_deploy.cli import main; main()"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    text, _, modules = done.stdout.rpartition("|")
    assert "Usage: cifar-deploy" in text
    assert set(modules.split()).isdisjoint(HEAVY)


def test_the_package_runs_as_a_module() -> None:
    done = python("-m", "cifar_deploy", "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for command in (
        "train",
        "recipe",
        "export",
        "validate",
        "benchmark",
        "package",
        "models",
        "data",
        "predict",
        "doctor",
        "demo",
    ):
        assert f"\n  {command} " in done.stdout


def test_the_version_is_printed() -> None:
    done = python("-m", "cifar_deploy", "--version")
    assert done.stdout == f"{cifar_deploy.__version__}\n"
