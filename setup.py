"""Packages of the wheel: pruning, with conf/ and docs/reproduction/ inside; see pyproject.toml."""

from setuptools import find_packages, setup

DATA = {"pruning.conf": "conf", "pruning.reproduction.published": "docs/reproduction"}

setup(packages=[*find_packages(include=["pruning*"]), *DATA], package_dir=DATA)
