"""cifar-deploy: image classifiers from training to deployment, every exported file proved."""

__version__ = "0.1.0"
