"""`cifar-deploy doctor`."""

import typer

from cifar_deploy.cli.options import JsonFlag, print_json


def doctor(as_json: JsonFlag = False) -> None:
    """Versions, GPU and driver, and which formats and runtimes work here, and why not."""
    from cifar_deploy.doctor import examine

    facts = examine()
    if as_json:
        print_json(facts)
        return
    for name, version in facts["versions"].items():
        typer.echo(f"{name:<28}{version}")
    for key in ("platform", "cpu", "gpu", "driver"):
        typer.echo(f"{key:<28}{facts[key]}")
    for check in facts["checks"]:
        mark = "works" if check["works"] else "does not work"
        typer.echo(f"{check['name']:<28}{mark}: {check['detail']}")
