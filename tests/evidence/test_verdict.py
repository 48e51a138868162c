"""What is concluded from counts and p-values."""

import pytest

from emojax.evidence import verdict


def test_verdict_on_the_papers_counts():
    found = verdict.Evidence(48, 33, 7178, selected_on_test=True)
    assert found.p_value == pytest.approx(0.119, abs=5e-4)
    assert found.finding == "no effect shown"
    assert (
        "+15 of 7,178 is not distinguishable from no effect (McNemar's exact p = 0.12"
        in found.verdict
    )
    assert "which this p-value does not count" in found.verdict
    assert found.summary()["change"] == 15


@pytest.mark.parametrize(
    ("gained", "lost", "p_scores", "on_test", "finding"),
    [
        (80, 20, 0.01, False, "helps"),
        (80, 20, 0.3, False, "no effect of the scores shown"),
        (80, 20, None, False, "no effect of the scores shown"),
        (80, 20, 0.01, True, "helps"),
        (80, 20, 0.3, True, "no effect shown"),
        (80, 20, None, True, "no effect shown"),
        (20, 80, 0.01, False, "harms"),
        (50, 48, 0.01, False, "no effect shown"),
        (0, 0, None, False, "no effect shown"),
    ],
)
def test_findings(gained, lost, p_scores, on_test, finding):
    found = verdict.Evidence(gained, lost, 1000, p_scores=p_scores, selected_on_test=on_test)
    assert found.finding == finding
    assert found.verdict.startswith(verdict._HEADLINES[finding])
    assert ("not distinguishable" in found.verdict) == (found.p_value > 0.05)


@pytest.mark.parametrize("p_scores", [0.3, None])
def test_a_change_that_random_scores_make_too_is_no_support(p_scores):
    found = verdict.Evidence(80, 20, 1000, p_scores=p_scores)
    assert "helps" not in found.finding + found.verdict
    said = "was not tested" if p_scores is None else "does not speak for the scores"
    assert said in found.verdict


def test_harm_to_other_measures_is_said_first():
    """Correct predictions stay, the NLL's interval lies on the bad side: no harmless edit."""
    interval = {"accuracy": [-0.01, 0.004], "macro_recall": [-0.01, 0.004], "nll": [0.002, 0.02]}
    evidence = verdict.Evidence(
        gained=15,
        lost=21,
        total=1500,
        intervals={name: {"difference": 0.01, "interval": ends} for name, ends in interval.items()},
    )
    assert evidence.by_measure == {
        "accuracy": "no difference shown",
        "macro_recall": "no difference shown",
        "nll": "worse",
    }
    assert evidence.summary()["by_measure"] == evidence.by_measure
    assert evidence.verdict.startswith("No effect is shown. But NLL is worse. The edit changes")
    assert "NLL +0.010 [+0.002, +0.020], worse" in evidence.verdict


def measured(**ends):
    """Evidence of 15 gained and 21 lost, whose measures have these intervals."""
    intervals = {name: {"difference": sum(e) / 2, "interval": list(e)} for name, e in ends.items()}
    sides = {"accuracy": 0.5, "macro_recall": 0.4, "nll": 1.25, "ece": 0.125}
    networks = [{"before": sides, "after": sides}]
    return verdict.Evidence(15, 21, 1500, intervals=intervals, networks=networks)


def test_a_line_of_each_measure_and_a_sentence():
    evidence = measured(accuracy=(-0.01, 0.002), nll=(0.25, 0.75), ece=(-0.03, -0.01))
    same = "no difference shown"
    assert evidence.measured == [
        ("accuracy", "50.00 %", "50.00 %", "−0.400 points", "−1.000 to +0.200", same),
        ("NLL", "1.2500", "1.2500", "+0.500", "+0.250 to +0.750", "worse"),
        ("calibration error", "12.50 %", "12.50 %", "−2.000 points", "−3.000 to −1.000", "better"),
    ]
    assert evidence.sentence == (
        "No effect is shown. But NLL is worse and calibration error is better. 15 images gained "
        "and 21 lost of 1,500 (McNemar's exact p = 0.41)."
    )


@pytest.mark.parametrize(
    ("ends", "tone"),
    [
        ({}, "neutral"),
        ({"accuracy": (0.1, 0.2)}, "neutral"),  # no help of the scores is shown
        ({"nll": (0.1, 0.2)}, "bad"),
        ({"ece": (-0.2, -0.1)}, "good"),
        ({"nll": (0.1, 0.2), "ece": (-0.2, -0.1)}, "mixed"),
    ],
)
def test_the_tone_follows_all_measures(ends, tone):
    assert measured(**ends).tone == tone


def test_the_tone_of_predictions():
    assert verdict.Evidence(80, 20, 1000, p_scores=0.01).tone == "good"
    assert verdict.Evidence(80, 20, 1000, p_scores=0.3).tone == "neutral"
    assert verdict.Evidence(20, 80, 1000).tone == "bad"
