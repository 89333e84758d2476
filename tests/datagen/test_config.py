"""The sections of the config that belong to no other module."""

import pytest

from tests.datagen.test_tasks import make_config


def test_kinds_to_include_may_stand_apart():
    config = make_config(responses__include="truncated, refused").responses
    assert config.included == ("truncated", "refused")


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match="choose from truncated, refused"):
        make_config(responses__include="empty")
    with pytest.raises(ValueError, match="between 0 and 5"):
        make_config(responses__min_rating=6.0)
    with pytest.raises(ValueError, match=r"tasks\.num_tasks must be at least 1, not 0"):
        make_config(tasks__num_tasks=0)
