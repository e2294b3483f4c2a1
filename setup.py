"""Packages of the wheel: pruning, and conf/ inside it; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pruning*"]), "pruning.conf"],
    package_dir={"pruning.conf": "conf"},
)
