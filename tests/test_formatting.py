"""How numbers are said: nothing that is neither all nor none reads as if it were."""

import pytest

from selfplay.formatting import bounds_text, hundredths, interval_text, points_text
from selfplay.report.svg import percent


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (199 / 200, "99.5"),  # was 100
        (1 / 200, "0.5"),
        (9999 / 10_000, "99.99"),
        (1.0, "100"),
        (0.0, "0"),
        (1 - 1e-9, ">99.99"),
        (1e-9, "<0.01"),
        (0.994, "99"),
        (0.814, "81"),
        (0.0051, "1"),
        (1.34, "134"),
    ],
)
def test_a_share_reads_100_only_if_it_is(share, text):
    assert hundredths(share) == text


def test_an_interval_keeps_away_from_the_ends_too():
    assert interval_text(199 / 200, 0.972, 0.9999) == "99.5% [97, 99.99]"
    assert hundredths(0.9996, 1) == "99.96" and hundredths(0.5, 1) == "50.0"


def test_ticks_and_tooltips_do_as_well():
    assert percent(0.9997) == "99.97%" and percent(1.0) == "100%" and percent(0.125) == "12.5%"


def test_a_side_without_a_bound_is_open():
    assert bounds_text(-7.6, None) == "[-8, \N{INFINITY})" and bounds_text(None, 3.2) == "(-\N{INFINITY}, 3]"


def test_what_rounds_to_nothing_has_no_sign():
    assert points_text(-0.004, -0.02, -0.0) == "0 points [-2, 0]"
    assert bounds_text(-0.3, -0.1) == "[0, 0]"
