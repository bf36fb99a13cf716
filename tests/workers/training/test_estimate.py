"""What the estimate makes of a machine that others use as well."""

import pytest

from workers.training.estimate import undisturbed


@pytest.mark.parametrize("slower", [1.0, 2.0, 30.0])
@pytest.mark.parametrize("disturbed", [0, 20, 34])
def test_other_work_on_the_machine_does_not_lengthen_the_probe(slower: float, disturbed: int) -> None:
    taken = [0.01 * slower] * disturbed + [0.01] * (40 - disturbed)
    assert undisturbed(taken) == pytest.approx(0.01)


def test_a_single_burst_of_speed_is_not_what_the_machine_keeps_up() -> None:
    assert undisturbed([0.01] * 39 + [0.004]) == pytest.approx(0.01)
    assert undisturbed([0.02]) == pytest.approx(0.02)
