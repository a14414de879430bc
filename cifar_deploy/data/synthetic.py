"""The generated data set."""

from cifar_deploy.data.dataset import Dataset


def generate(seed: int = 0, train: int = 20_000, test: int = 10_000) -> Dataset:
    """Generate."""
    raise NotImplementedError
