"""`cifar-deploy recipe`."""

import typer

from cifar_deploy import architectures
from cifar_deploy.cli.options import JsonFlag, NetworkArgument, RecipeOption, SetOption, print_json
from cifar_deploy.cli.train import home


def recipe(
    network: NetworkArgument,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a network's recipe: each key, what it can be and means.

    Saved to a file, it is a recipe for --recipe. The last line names the network's other recipes.
    """
    from cifar_deploy import recipe as recipes

    name = architectures.canonical(network)
    folder = home(name, recipe)
    found = recipes.load(recipes.find(recipe, folder, name), set_ or [])
    words = recipes.words(folder, name)
    if as_json:
        print_json({"network": name, "recipes": words, "recipe": found.to_dict()})
        return
    typer.echo(found.to_toml())
    typer.echo(f"# recipes of {name}: {', '.join(words) or 'only its own'}")
