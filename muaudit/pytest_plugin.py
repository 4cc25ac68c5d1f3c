"""The pytest plug-in: the `audit` fixture, for tests that gate a release.

>>> def test_release(audit):  # doctest: +SKIP
...     assert_unlearned(audit("audit.toml"))

pytest loads this module in every run of every project that has muaudit installed, so nothing heavy is imported before the
fixture is called.
"""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from muaudit.errors import MuauditError

if TYPE_CHECKING:
    from muaudit.config import AuditConfig
    from muaudit.results import AuditReport

_running = pytest.StashKey[pytest.Item]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--muaudit-config` and the ini option `muaudit_config`."""
    parser.getgroup("muaudit").addoption(
        "--muaudit-config", metavar="PATH", help="audit.toml or plan.json that the `audit` fixture runs when it is given none"
    )
    parser.addini("muaudit_config", "the same, relative to the folder of pytest's configuration file", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a configured path that is not there before any test runs."""
    if (path := _configured(config)) is not None and not path.is_file():
        raise pytest.UsageError(
            f"--muaudit-config: {path}: no such file; give an audit.toml or a plan.json (`muaudit init` writes one)"
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Remembers the running test: the fixture is made once a session, and each test that uses it records its audits."""
    item.config.stash[_running] = item
    try:
        return (yield)
    finally:
        del item.config.stash[_running]


@pytest.fixture(scope="session")
def audit(pytestconfig: pytest.Config, record_testsuite_property: Callable[[str, object], None]) -> "Audits":
    """Runs an audit and returns its report; the same file is audited once a session."""
    return Audits(pytestconfig, record_testsuite_property)


class Audits:
    """What the `audit` fixture is: a callable that remembers its reports."""

    def __init__(self, config: pytest.Config, record: Callable[[str, object], None]) -> None:
        self._config, self._record = config, record
        self._reports: dict[str, AuditReport] = {}

    def __call__(self, source: "str | Path | AuditConfig | None" = None) -> "AuditReport":
        """Runs an audit.

        Args:
            source: The path of an audit.toml or a plan.json, or a configuration; by default what `--muaudit-config` names.

        Returns:
            The report; `muaudit.testing.assert_unlearned` judges it.
        """
        __tracebackhide__ = True
        if source is None and (source := _configured(self._config)) is None:
            pytest.fail(
                "audit() was given no configuration: pass the path of an audit.toml or plan.json, run pytest with "
                "--muaudit-config PATH, or set muaudit_config in pytest's configuration",
                pytrace=False,
            )
        key = str(Path(source).resolve()) if isinstance(source, str | Path) else source.content_digest()
        if key not in self._reports:
            from muaudit.runner import audit as run

            try:
                self._reports[key] = run(source)
            except MuauditError as error:
                pytest.fail(f"muaudit: {error}", pytrace=False)
            for name, value in properties(self._reports[key]):
                self._record(name, value)
        if (item := self._config.stash.get(_running, None)) is not None:
            item.user_properties.extend(pair for pair in properties(self._reports[key]) if pair not in item.user_properties)
        return self._reports[key]


def properties(report: "AuditReport") -> list[tuple[str, object]]:
    """What a JUnit file keeps of an audit.

    Args:
        report: The report.

    Returns:
        Names and plain values, one verdict and one gap a finding among them.
    """
    found: list[tuple[str, object]] = [
        ("muaudit.verdict", str(report.verdict)),
        ("muaudit.target", report.target.path),
        ("muaudit.target_sha256", report.target.digest),
        ("muaudit.plan_sha256", report.plan_sha256),
    ]
    for finding in report.findings:
        name = f"muaudit.{finding.attack}.{finding.measures}"
        found.append((name, str(finding.verdict)))
        if finding.gap is not None and finding.interval is not None:
            found.append((f"{name}.gap", "{:+.4f} [{:+.4f}, {:+.4f}]".format(finding.gap, *finding.interval)))
    return found


def _configured(config: pytest.Config) -> Path | None:
    if given := config.getoption("--muaudit-config"):
        return config.invocation_params.dir / str(given)
    if ini := config.getini("muaudit_config"):
        return (config.inipath.parent if config.inipath else config.rootpath) / str(ini)
    return None
