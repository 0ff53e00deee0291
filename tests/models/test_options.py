"""Options of a family of priors."""

import pytest

from models.options import ConfigError, FlowOptions, read_options


def test_an_option_that_is_no_more_may_be_named_where_it_was_off() -> None:
    """Pipelines and waiting jobs of before name ``cache_interval``, which was 1 unless asked for."""
    assert read_options("flow", {"num_steps": 3, "cache_interval": 1}) == FlowOptions(num_steps=3)
    given = {"num_steps": 3, "cache_interval": 1}
    assert FlowOptions().changed(given) == FlowOptions(num_steps=3)
    with pytest.raises(ConfigError, match=r"cache_interval: there is no such field"):
        read_options("flow", {"cache_interval": 2})
    with pytest.raises(ConfigError, match=r"cache_interval: this pipeline has num_steps, "):
        FlowOptions().changed({"cache_interval": 2})
