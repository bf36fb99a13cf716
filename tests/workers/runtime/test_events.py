"""Events on their way to reports."""

import math

from workers.contract import TrainProgress
from workers.runtime.events import ChildEvent, Tracker, event_of_training


def test_points_stay_until_the_platform_has_them() -> None:
    tracker = Tracker("t")
    for step in range(1, 1501):
        tracker.add(ChildEvent(phase="training", step=step, values={"loss": 1.0}))
    first, sent = tracker.report()
    assert (sent, first.metrics[0].step, first.step) == (1000, 1, 1500)
    again, _ = tracker.report()
    assert again.metrics == first.metrics, "a report that failed is sent again"
    tracker.reported(sent)
    rest, _ = tracker.report()
    assert [rest.metrics[0].step, rest.metrics[-1].step] == [1001, 1500]


def test_numbers_that_are_none_are_left_out() -> None:
    event = event_of_training(
        TrainProgress(phase="training", step=1, loss=math.nan, learning_rate=math.inf, grad_norm=2)
    )
    assert event.values == {"grad_norm": 2}
    tracker = Tracker("t")
    tracker.add(ChildEvent(phase="training", eta_seconds=math.inf))
    assert tracker.report()[0].eta_seconds is None


def test_long_words_are_cut_to_the_contract() -> None:
    tracker = Tracker("t")
    for number in range(300):
        tracker.add(ChildEvent(phase="p" * 100, message=f"{number} " + "m" * 1000))
    report, _ = tracker.report()
    assert (len(report.phase), len(report.message)) == (40, 500)
    assert len(report.log_tail) <= 20_000


def test_the_log_says_each_thing_once() -> None:
    tracker = Tracker("t")
    for step in range(5):
        tracker.add(ChildEvent(phase="training", message="Training.", step=step))
    tracker.phase("uploading", "Storing manifest.json.")
    report, _ = tracker.report()
    assert len(report.log_tail.splitlines()) == 2
    assert report.step == 4
