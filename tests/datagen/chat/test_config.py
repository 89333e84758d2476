"""Settings that are wrong are reported at once."""

import pytest

from tests.support.chat_runs import make_config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"provider": "opnai"}, "choose from openai, anthropic"),
        ({"concurrency": 0}, "concurrency must be above 0"),
        ({"base_url": "http://me:pass@host"}, "no password"),
        ({"base_url": "http://host/v1?key=secret"}, "no password"),
        ({"base_url": "localhost:8000"}, "not http://"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be above 0"),
        ({"price_input": -1.0}, "at least 0"),
        ({"extra_body": "[1]"}, "not a JSON object"),
        ({"price_output": None}, "or neither"),
        ({"batch_requests": 0}, "batch_requests must be above 0"),
        ({"poll_seconds": 0}, "poll_seconds must be above 0"),
    ],
)
def test_a_bad_config_is_told(change, says):
    with pytest.raises(ValueError, match=says):
        make_config(None, **change)
