"""The examples in the docstrings of evaluation and of common.reports."""

import doctest
import importlib
import pkgutil

import pytest

import common.reports
import evaluation

MODULES = [
    module.name
    for package in (evaluation, common.reports)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
