"""Make the folder conf/ the package nsr.conf, so that a wheel has the configurations; pyproject.toml has all else."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["nsr", "nsr.*"]), "nsr.conf"], package_dir={"nsr.conf": "conf"})
