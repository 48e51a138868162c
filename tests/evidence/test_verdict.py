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
