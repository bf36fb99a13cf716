"""Calls to the platform."""

import pytest

from workers.contract import PoolWait
from workers.wire.api import PlatformAPI, Unreachable


def test_a_call_of_a_caller_that_is_done_is_not_tried_again() -> None:
    """As a thread makes it that has still a checkpoint to tell of when its attempt is over."""
    api = PlatformAPI("http://127.0.0.1:9", "token")
    api.close()
    with pytest.raises(Unreachable, match="the caller is done"):
        api.post_for_nothing("/worker/v1/pools/demo/wait", PoolWait(seconds=1), patience=600)
