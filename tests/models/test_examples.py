"""The examples in docstrings."""

import doctest

import pytest

from src.models import discretized, gaussians, likelihoods, objectives, posteriors, priors

MODULES = [objectives, likelihoods, gaussians, discretized, posteriors, priors]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_give_what_they_say(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
