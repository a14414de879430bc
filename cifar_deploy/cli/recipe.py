"""`cifar-deploy recipe`."""

from typing import Annotated

import typer

from cifar_deploy import architectures
from cifar_deploy.cli.options import JsonFlag, RecipeOption, SetOption, print_json
from cifar_deploy.cli.train import home


def recipe(
    model: Annotated[str, typer.Argument(help="The network; `cifar-deploy models` lists them.")],
    recipe: RecipeOption = None,
    set_: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a network's recipe: each key, what it can be and means.

    In a file it is one for --recipe. The last line has the words of the other recipes.
    """
    from cifar_deploy import recipe as recipes

    name = architectures.canonical(model)
    folder = home(name, recipe)
    found = recipes.load(recipes.find(recipe, folder, name), set_ or [])
    words = recipes.words(folder, name)
    if as_json:
        print_json({"network": name, "recipes": words, "recipe": found.to_dict()})
        return
    typer.echo(found.to_toml())
    typer.echo(f"# recipes of {name}: {', '.join(words) or 'only its own'}")
