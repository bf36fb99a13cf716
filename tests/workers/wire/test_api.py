"""Calls to the platform."""

import pytest

from tests.proxy import SORRY, STARTING, Proxy
from tests.workers.standin import PlatformStandIn
from workers.contract import PoolWait, PoolWanted, Refusal
from workers.wire.api import PlatformAPI, Refused, Unreachable

WISH = PoolWait(seconds=1)


def test_a_call_of_a_caller_that_is_done_is_not_tried_again() -> None:
    """As a thread makes it that has still a checkpoint to tell of when its attempt is over."""
    api = PlatformAPI("http://127.0.0.1:9", "token")
    api.close()
    with pytest.raises(Unreachable, match="the caller is done"):
        api.post_for_nothing("/worker/v1/pools/demo/wait", WISH, patience=600)


@pytest.mark.parametrize("page", [STARTING, SORRY])
def test_what_a_proxy_says_is_no_word_of_the_platform(front: Proxy, page: bytes) -> None:
    """Neither a refusal, which would end a run, nor a receipt, after which its folder would be removed."""
    api = PlatformAPI(front.url, "token")
    with front.answering(page):
        for ask in (
            lambda: api.post_for_nothing("/worker/v1/jobs/job-1/finish", WISH),
            lambda: api.post("/worker/v1/pools/demo/sync", WISH, PoolWanted),
        ):
            with pytest.raises(Unreachable, match="in front of the platform"):
                ask()
    api.post_for_nothing("/worker/v1/jobs/job-1/finish", WISH)
    api.close()


def test_what_the_platform_refuses_is_refused(platform: PlatformStandIn, front: Proxy) -> None:
    platform.sync = lambda report: (404, Refusal(code="bad_request", message="There is no such pool."))
    api = PlatformAPI(front.url, "token")
    with pytest.raises(Refused, match="no such pool") as refused:
        api.post("/worker/v1/pools/demo/sync", WISH, PoolWanted)
    assert (refused.value.status, refused.value.code) == (404, "bad_request")
    api.close()
