"""The examples in docstrings."""

import doctest

import pytest

from src.models import likelihoods, objectives, posteriors, priors


@pytest.mark.parametrize("module", [objectives, likelihoods, posteriors, priors], ids=lambda module: module.__name__)
def test_examples_give_what_they_say(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
