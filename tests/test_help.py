"""What `--help` shows: every command in its group, every option, and nothing cut short."""

import re

import pytest
import typer
from processes import Run, command_line
from typer.core import TyperGroup

from cifar_deploy.cli import COMMANDS, app

# In the order of work.
GROUPS = {
    "Train": ["train", "recipe", "find-lr", "import"],
    "Deploy and prove": ["export", "validate", "package"],
    "Measure": ["benchmark", "profile", "layers"],
    "Use": ["predict"],
    "Look": ["models", "data", "doctor", "demo"],
}
SHORT = {name: short for group in COMMANDS.values() for name, (_, short) in group.items()}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return command_line(monkeypatch, capsys)


def sections(page: str) -> dict[str, list[str]]:
    """The lines under each heading of a page."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in page.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            lines = found.setdefault(line[:-1], [])
        elif line.strip():
            lines.append(line)
    return found


def test_commands_stand_in_groups_each_with_a_whole_line(run: Run) -> None:
    answer = run("--help")
    assert answer.status == 0
    shown = sections(answer.out)
    assert list(shown) == ["Options", *GROUPS]
    for heading, names in GROUPS.items():
        assert [line.split(maxsplit=1) for line in shown[heading]] == [
            [name, SHORT[name]] for name in names
        ]
    columns = {line.index(SHORT[line.split()[0]]) for name in GROUPS for line in shown[name]}
    assert len(columns) == 1


@pytest.mark.parametrize("name", SHORT)
def test_what_is_said_of_a_command_in_the_list_is_a_short_sentence(name: str) -> None:
    assert len(SHORT[name]) <= 55
    assert SHORT[name].endswith(".")


@pytest.mark.parametrize("name", SHORT)
def test_a_commands_own_page_has_its_whole_text(name: str, run: Run) -> None:
    answer = run(name, "--help")
    assert answer.status == 0
    (function,) = (group[name][0] for group in COMMANDS.values() if name in group)
    assert " ".join((function.__doc__ or "").split()) in " ".join(answer.out.split())
    assert max(map(len, answer.out.splitlines())) <= 80


@pytest.mark.parametrize("name", SHORT)
def test_every_option_says_what_it_does(name: str) -> None:
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    for one in program.commands[name].params:
        said = getattr(one, "help", None) or ""
        # A word before a colon tells where the option counts.
        assert re.fullmatch(r"((--)?[a-z]\S+: \S|[A-Z])\S*( \S+)+[.\]]", said), (one.name, said)
        assert not re.match(r"(Of|As|So|By) ", said), (one.name, said)


def test_an_architecture_is_called_a_network_and_what_is_trained_a_model(run: Run) -> None:
    for name in ("train", "recipe", "find-lr", "import"):
        assert "{NETWORK}" in run(name, "--help").out.split("\n\n")[0]  # the usage
        assert "Missing argument 'NETWORK'" in run(name).err
    for name in ("export", "validate", "benchmark", "package", "predict"):
        assert "MODEL" in run(name, "--help").out.split("\n\n")[0]


def test_exports_options_stand_in_groups(run: Run) -> None:
    shown = sections(run("export", "--help").out)
    names = {
        heading: [line.split()[0] for line in lines if line.startswith("  --")]
        for heading, lines in shown.items()
    }
    assert names.pop("Arguments") == []
    assert names.pop("Options") == ["--format", "--precision", "--json", "--help"]
    assert names.pop("Options of ONNX files") == ["--batch"]
    fewer_bits = names.pop("Options of int8 and fp16")
    assert fewer_bits == ["--calibration-images", "--keep-fp32", "--max-drop", "--data-dir"]
    ((heading, engines),) = names.items()
    assert heading == "Options of engines (--format trt)"
    assert {"--flavour", "--batch-profile", "--timing-cache-file", "--tf32"} < set(engines)
