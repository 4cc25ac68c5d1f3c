"""The numbers behind the pictures of units: checked against scikit-learn, SciPy and by hand."""

import numpy as np
import pytest
from sample import memorization
from scipy import stats
from sklearn.metrics import roc_auc_score
from unit_leakages import leakages, with_leakages

from muaudit.estimators.membership import clopper_pearson, tpr_at_fpr
from muaudit.reports import distributions
from muaudit.results import Finding, UnitLeakage


def finding(*units: UnitLeakage, **changes: object) -> Finding:
    return with_leakages(memorization(), units).model_copy(update=changes)


def unit(name: str, target: float, *references: float, cluster: str = "", original: float | None = None) -> UnitLeakage:
    return UnitLeakage(id=name, cluster=cluster or name, target=target, references=references, original=original)


def test_nothing_kept_nothing_shown() -> None:
    bare = memorization()
    assert distributions.histogram(bare) is None
    assert distributions.roc(bare) is None
    assert distributions.clusters(bare) == distributions.units(bare) == ()


def test_each_histogram_holds_every_unit_once() -> None:
    made = leakages(200, 20, lift=0.2)
    shown = distributions.histogram(finding(*made))
    assert shown is not None
    assert shown.edges is not None
    assert len(shown.bins) == 20
    assert {role: round(sum(shares), 9) for role, shares in shown.shares.items()} == dict.fromkeys(shown.shares, 1.0)
    counts, _ = np.histogram([one.target for one in made], bins=np.linspace(0, 1, 21))
    assert shown.shares["target"] == pytest.approx(counts / 200)


def test_few_values_become_bars_and_no_curve() -> None:
    made = leakages(60, 12, kind="binary")
    shown = distributions.histogram(finding(*made))
    assert shown is not None
    assert shown.bins == ("0", "1")
    assert shown.edges is None
    assert shown.shares["target"][1] == sum(one.target for one in made) / 60
    assert distributions.roc(finding(*made)) is None


def test_leakages_outside_the_unit_interval_have_a_bin() -> None:
    made = [unit(str(number), -0.5 + number / 5, 0.1 * number) for number in range(12)]
    shown = distributions.histogram(finding(*made))
    assert shown is not None
    assert shown.edges is not None
    assert (shown.edges[0], shown.edges[-1]) == pytest.approx((-0.5, 1.7))
    assert sum(shown.shares["target"]) == pytest.approx(1)


def test_the_roc_curve_is_that_of_the_pooled_references() -> None:
    made = leakages(150, 150, lift=0.15)
    roc = distributions.roc(finding(*made))
    assert roc is not None
    target, pooled = [one.target for one in made], [value for one in made for value in one.references]
    labels = [1] * len(target) + [0] * len(pooled)
    assert roc.auc == pytest.approx(roc_auc_score(labels, target + pooled))
    assert (roc.units, roc.references) == (150, 450)
    assert roc.points[0].fpr == pytest.approx(1 / 450)
    assert (roc.points[-1].fpr, roc.points[-1].target, roc.points[-1].interval) == (1.0, 1.0, (1.0, 1.0))
    rates = [point.target for point in roc.points]
    assert rates == sorted(rates)
    for point in roc.points[:-1]:
        threshold = np.sort(pooled)[::-1][round(point.fpr * 450)]
        assert point.target == np.mean(np.array(target) > threshold) == tpr_at_fpr(target, pooled, point.fpr).value
        assert point.interval[0] <= point.target <= point.interval[1]


@pytest.mark.parametrize("changes", [{"measures": "retention"}, {"leakages": leakages(19, 19)}])
def test_no_roc_of_the_retain_set_or_of_a_handful(changes: dict[str, object]) -> None:
    assert distributions.roc(finding(*leakages(100, 10), **changes)) is None


@pytest.mark.parametrize("hits", [0, 1, 13, 39, 40])
def test_one_unit_a_cluster_gives_the_exact_interval(hits: int) -> None:
    found = distributions.share_interval([number < hits for number in range(40)], [str(number) for number in range(40)])
    assert found == pytest.approx(clopper_pearson(hits, 40))


def test_units_that_stand_and_fall_together_are_worth_their_clusters() -> None:
    hits = [cluster < 3 for cluster in range(10) for _ in range(20)]
    clusters = [str(cluster) for cluster in range(10) for _ in range(20)]
    low, high = distributions.share_interval(hits, clusters)
    naive, honest = clopper_pearson(60, 200), clopper_pearson(3, 10)
    assert low < honest[0] < naive[0]
    assert high > honest[1] > naive[1]
    worth = 9 * (stats.t.ppf(0.025, 199) / stats.t.ppf(0.025, 9)) ** 2  # survey::svyciprop, method "beta"
    expected = stats.beta.ppf([0.025, 0.975], [0.3 * worth, 0.3 * worth + 1], [0.7 * worth + 1, 0.7 * worth])
    assert (low, high) == pytest.approx(tuple(expected))
    assert distributions.share_interval([False] * 200, clusters) == pytest.approx(clopper_pearson(0, 10))


def test_the_interval_covers_with_clusters() -> None:
    """Clusters of 10 with shares from a beta distribution of mean 0.2: 95 % intervals hold 0.2 at least about as often."""
    rng, held = np.random.default_rng(0), 0
    clusters = [str(cluster) for cluster in range(25) for _ in range(10)]
    for _ in range(400):
        shares = stats.beta.rvs(1, 4, size=25, random_state=rng)
        low, high = distributions.share_interval(list(rng.random(250) < np.repeat(shares, 10)), clusters)
        held += low <= 0.2 <= high
    assert held / 400 > 0.93


def test_clusters_are_means_worst_first() -> None:
    made = (
        unit("a1", 0.9, 0.1, 0.3, cluster="a", original=1.0),
        unit("b1", 0.4, 0.2, 0.2, cluster="b", original=0.8),
        unit("a2", 0.7, 0.1, 0.1, cluster="a", original=0.9),
        unit("c1", 0.0, 0.5, 0.7, cluster="c"),
    )
    rows = distributions.clusters(finding(*made))
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert rows[0] == distributions.Compared("a", 2, 0.8, (0.1, 0.2), 0.95)
    assert rows[0].mean == pytest.approx(0.15)
    assert rows[0].gap == pytest.approx(0.65)
    assert rows[2].original is None
    assert [row.name for row in distributions.clusters(finding(*made, sided="two"))] == ["a", "c", "b"]
    assert [row.name for row in distributions.clusters(finding(*made, measures="retention"))] == ["c", "b", "a"]


def test_equal_means_have_no_gap_below_zero() -> None:
    (row,) = distributions.units(finding(unit("a", 0.3, 0.1, 0.2, 0.6)))
    assert str(row.gap) == "0.0"


def test_units_at_one_place_are_counted() -> None:
    rows = distributions.units(finding(unit("a", 1, 0, 1), unit("b", 1, 1, 0), unit("c", 0, 0, 0)))
    assert distributions.together(rows) == ((0.0, 0.0, 1), (0.5, 1.0, 2))
    many = distributions.together(distributions.units(finding(*leakages(900, 90))))
    assert sum(count for _, _, count in many) == 900
    assert len(many) < 600


def test_a_unit_without_references_is_not_compared() -> None:
    assert distributions.units(finding(unit("a", 0.5))) == ()
    assert distributions.histogram(finding(unit("a", 0.5))) is None
