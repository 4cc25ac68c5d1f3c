"""The pytest plug-in: fixtures, a marker and options for tests that gate a release.

>>> def test_release(audit):  # doctest: +SKIP
...     assert_unlearned(audit("audit.toml"))

>>> @pytest.mark.muaudit("audit.toml")  # doctest: +SKIP
... def test_every_attack(muaudit_finding):  # one test for each planned attack, and one for the verdict
...     assert_unlearned(muaudit_finding)

pytest loads this module in every run of every project that has muaudit installed, so nothing heavy is imported before a
test asks for an audit. Under pytest-xdist the workers run an audit once: the first that asks runs it, and the others wait and
read its report from a folder that the controller made for this run alone.
"""

import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from muaudit.errors import MuauditError, UsageError
from muaudit.testing import Judged, Marked, marked, plain

if TYPE_CHECKING:
    from muaudit.config import AuditConfig
    from muaudit.gate import Audited
    from muaudit.results import AuditReport

FIXTURES = ("audit", "muaudit_report", "muaudit_finding")
"""What a test requests to have an audit."""

WHOLE = "verdict"
"""What the test of the audit as a whole is called, beside those of its attacks."""

SKIPPED = "audits are skipped (--muaudit-skip)"

_WRITTEN = {"muaudit_sarif": "SARIF", "muaudit_markdown": "Markdown"}
"""Options that name a file to write."""

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


@dataclass(frozen=True)
class _Asked:
    """The arguments of a test's marker."""

    source: "Path | AuditConfig | None" = None
    attacks: tuple[str, ...] | None = None
    allow_inconclusive: bool = False


_running = pytest.StashKey[pytest.Item]()
_asked = pytest.StashKey[_Asked]()
_entries = pytest.StashKey[dict[str, "Audited"]]()
_shared = pytest.StashKey[Path]()
_notes = pytest.StashKey[list[tuple[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options, each with its key for the configuration file."""
    group = parser.getgroup("muaudit", "muaudit: audits of machine unlearning")
    for option, text in (
        ("config", "audit.toml or plan.json to audit where a test names none"),
        ("sarif", "write what the audits of this run found as SARIF 2.1.0, for a code host"),
        ("markdown", "write what the audits of this run found as Markdown, for a pull request"),
    ):
        group.addoption(f"--muaudit-{option}", metavar="PATH", help=text)
        parser.addini(f"muaudit_{option}", f"{text}; relative to the folder of this file", default="")
    skip = "skip every test that needs an audit; nothing is read and nothing runs"
    group.addoption("--muaudit-skip", action="store_true", default=None, help=skip)
    parser.addini("muaudit_skip", skip, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and refuses a path that cannot be used before any test runs."""
    config.addinivalue_line(
        "markers",
        "muaudit(source=None, *, attacks=None, allow_inconclusive=False): audit this audit.toml or plan.json, relative to the "
        "test's file; judge these attacks alone; accept too little evidence",
    )
    config.stash[_entries], config.stash[_notes] = {}, []
    if (path := _path(config, "muaudit_config")) is not None and not path.is_file() and not _skips(config):
        raise pytest.UsageError(
            f"--muaudit-config: {path}: no such file; give an audit.toml or a plan.json (`muaudit init` writes one)"
        )
    for option in _WRITTEN:
        if (path := _path(config, option)) is not None and path.is_dir():
            raise pytest.UsageError(f"--{option.replace('_', '-')}: {path}: is a folder; name a file to write")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes what the workers shared."""
    if (folder := config.stash.get(_shared, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - pytest-xdist's, which need not be installed
    """Tells one of pytest-xdist's workers where this run's reports are shared."""
    if _shared not in node.config.stash:
        node.config.stash[_shared] = Path(tempfile.mkdtemp(prefix="muaudit-pytest-"))
    node.workerinput["muaudit_shared"] = str(node.config.stash[_shared])


def pytest_report_header(config: pytest.Config) -> str | None:
    """Says what is audited; silent in a project that has the plug-in and does not use it."""
    if _skips(config):
        return f"muaudit: {SKIPPED}"
    if (path := _path(config, "muaudit_config")) is None:
        return None
    from muaudit.gate import named

    return f"muaudit: {plain(named(path))}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a test that requests `muaudit_finding` into one for each planned attack, and one for the verdict.

    The configuration or plan is read for that; no model is opened, and nothing is run.
    """
    if "muaudit_finding" not in metafunc.fixturenames:
        return
    if _skips(metafunc.config):
        metafunc.parametrize("muaudit_finding", [None], ids=["skipped"], indirect=True)
        return
    from muaudit.gate import chosen, planned

    try:
        asked = _of_marker(metafunc.definition)
        source = asked.source if asked.source is not None else _path(metafunc.config, "muaudit_config")
        if source is None:
            raise UsageError(f"muaudit_finding {_NO_SOURCE}")
        attacks = chosen(asked.attacks, planned(source))
    except MuauditError as error:
        raise pytest.Collector.CollectError(f"muaudit: {metafunc.definition.name}: {error}") from error
    metafunc.parametrize("muaudit_finding", attacks, ids=[name or WHOLE for name in attacks], indirect=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks a test that requests an audit, so that `-m "not muaudit"` leaves it out; skips it where audits are."""
    if item.get_closest_marker("muaudit") is None:
        if not _requests_audit(item):
            return
        item.add_marker("muaudit")
    if _skips(item.config):
        item.add_marker(pytest.mark.skip(reason=SKIPPED))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Remembers the running test: the fixture is made once a session, and each test that uses it records its audits."""
    item.config.stash[_running] = item
    try:
        return (yield)
    finally:
        del item.config.stash[_running]
        marked.set(None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Reads the test's marker; one that asks for an audit which the test then does not look at is refused."""
    marker = item.get_closest_marker("muaudit")
    if marker is None or not (marker.args or marker.kwargs):
        return
    try:
        asked = _of_marker(item)
        if not _requests_audit(item):
            raise UsageError(
                "the test is marked to be audited, and looks at no audit: request muaudit_finding or muaudit_report"
            )
    except MuauditError as error:
        pytest.fail(f"muaudit: {error}", pytrace=False)
    item.stash[_asked] = asked
    marked.set(Marked(asked.attacks, asked.allow_inconclusive))


@pytest.fixture(scope="session")
def audit(pytestconfig: pytest.Config, record_testsuite_property: Callable[[str, object], None]) -> "Audits":
    """Runs an audit and returns its report: `audit("audit.toml")`. The same file is audited once a session."""
    return Audits(pytestconfig, record_testsuite_property)


@pytest.fixture
def muaudit_report(audit: "Audits") -> "AuditReport":
    """The report of the audit that the test's muaudit marker names, or else --muaudit-config."""
    return audit()


@pytest.fixture
def muaudit_finding(request: pytest.FixtureRequest, audit: "Audits") -> Judged:
    """One planned attack's findings, or the audit's verdict: the test runs once for each.

    The test of an attack that the audit could not run is skipped with the reason, unless the marker asks for that attack;
    whether the audit may do without it is for the policy to say, and for the test of the verdict.
    """
    judged = Judged(audit.asked(attack=request.param), request.param)
    skipped = [one for one in judged.findings if one.verdict == "skipped"]
    if judged.attack is not None and request.node.stash.get(_asked, _Asked()).attacks is None and skipped == [*judged.findings]:
        pytest.skip(plain(skipped[0].reason) if skipped else f"the audit made no finding of {judged.attack}")
    return judged


class Audits:
    """What the `audit` fixture is: a callable that remembers its reports."""

    def __init__(self, config: pytest.Config, record: Callable[[str, object], None]) -> None:
        self._config, self._record = config, record
        self._known = config.stash[_entries]
        given = getattr(config, "workerinput", {}).get("muaudit_shared")
        self._folder = None if given is None else Path(given)

    def __call__(self, source: "str | Path | AuditConfig | None" = None) -> "AuditReport":
        """Runs an audit.

        Args:
            source: The path of an audit.toml or a plan.json, or a configuration; by default what the running test's marker
                names, or else `--muaudit-config`.

        Returns:
            The report; `muaudit.testing.assert_unlearned` judges it.
        """
        __tracebackhide__ = True
        return self.asked() if source is None else self._recorded(source, None)

    def asked(self, attack: str | None = None) -> "AuditReport":
        """Runs the audit that the running test's marker names, or else `--muaudit-config`.

        Args:
            attack: The attack that the test judges, whose properties alone it then records.

        Returns:
            The report.
        """
        __tracebackhide__ = True
        item = self._config.stash.get(_running, None)
        source = None if item is None else item.stash.get(_asked, _Asked()).source
        if source is None and (source := _path(self._config, "muaudit_config")) is None:
            pytest.fail(f"audit() {_NO_SOURCE}", pytrace=False)
        report = self._recorded(source, attack)
        if (said := marked.get()) is not None:
            said.reports.append(report)
        return report

    def _recorded(self, source: "str | Path | AuditConfig", attack: str | None) -> "AuditReport":
        __tracebackhide__ = True
        if _skips(self._config):
            pytest.skip(SKIPPED)
        from muaudit.gate import key_of, once, properties

        key = key_of(source)
        if key not in self._known:
            self._known[key] = entry = once(source, self._folder)
            for name, value in [] if entry.report is None else properties(entry.report):
                self._record(name, value)
        entry = self._known[key]
        if entry.report is None:
            pytest.fail(f"muaudit: {entry.fault}", pytrace=False)
        if (item := self._config.stash.get(_running, None)) is not None:
            pairs = properties(entry.report, attack)
            item.user_properties.extend(pair for pair in pairs if pair not in item.user_properties)
        return entry.report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the files that were asked for; one that cannot be written makes the run fail."""
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    if not any(_path(config, option) for option in _WRITTEN):
        return
    from muaudit import gate

    reported = [entry for entry in _all(config) if entry.report is not None]
    for option, render in (("muaudit_sarif", gate.sarif), ("muaudit_markdown", gate.markdown)):
        if (path := _path(config, option)) is None:
            continue
        try:
            if reported:
                from muaudit.store import write_atomically

                write_atomically(path, render(reported).encode())
                config.stash[_notes].append((f"wrote {_WRITTEN[option]} to {gate.named(path)}", ""))
            else:
                path.unlink(missing_ok=True)  # one of an earlier run would be taken for this one's
                config.stash[_notes].append(
                    (f"no audit ran to its end: {_WRITTEN[option]} not written to {gate.named(path)}", "yellow")
                )
        except (MuauditError, OSError) as error:
            config.stash[_notes].append((f"{_WRITTEN[option]} not written: {error}", "red"))
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.USAGE_ERROR


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Lists the audits of this run with their verdicts."""
    entries, notes = _all(config), config.stash[_notes]
    if not entries and not notes:
        return
    from muaudit.gate import named

    terminalreporter.section("muaudit")
    for entry in entries:
        report = entry.report
        if report is None:
            terminalreporter.write_line(plain(f"not audited   {entry.name}: {entry.fault}"), red=True)
            continue
        colour = {_COLOURS[report.verdict]: True} if report.verdict in _COLOURS else {}
        word = report.verdict if report.verdict == "inconclusive" else report.verdict.upper()
        terminalreporter.write_line(f"{word:<13} {plain(f'{entry.name}: {report.reason}')}", **colour)
        terminalreporter.write_line("  " + plain(f"target {report.target.path} (sha256 {report.target.digest[:12]})"))
        terminalreporter.write_line("  " + plain(f"report {named(Path(entry.folder) / 'report.json')}"))
    for text, colour_name in notes:
        terminalreporter.write_line(plain(text), **({colour_name: True} if colour_name else {}))


_NO_SOURCE = (
    "was given no configuration: pass the path of an audit.toml or plan.json to audit() or to the muaudit marker, run pytest "
    "with --muaudit-config PATH, or set muaudit_config in pytest's configuration"
)


def _path(config: pytest.Config, option: str) -> Path | None:
    """The file that an option names, from where pytest was called, or its ini key, from the configuration file's folder."""
    if given := config.getoption(option):
        return config.invocation_params.dir / str(given)
    if ini := config.getini(option):
        return (config.inipath.parent if config.inipath else config.rootpath) / str(ini)
    return None


def _skips(config: pytest.Config) -> bool:
    given = config.getoption("muaudit_skip")
    return bool(config.getini("muaudit_skip") if given is None else given)


def _requests_audit(item: pytest.Item) -> bool:
    """Whether a test requests one of our fixtures, itself or through others; not a fixture of the same name elsewhere."""
    info = getattr(item, "_fixtureinfo", None)
    known = {} if info is None else info.name2fixturedefs
    return any(known.get(name) and known[name][-1].func.__module__ == __name__ for name in FIXTURES)


def _of_marker(node: pytest.Item) -> _Asked:
    """What a test's marker asks for.

    Raises:
        UsageError: The marker's arguments cannot be used.
    """
    marker = node.get_closest_marker("muaudit")
    if marker is None:
        return _Asked()

    def read(
        source: "str | Path | AuditConfig | None" = None,
        *,
        attacks: Sequence[str] | None = None,
        allow_inconclusive: bool = False,
    ) -> _Asked:
        if attacks is not None and (isinstance(attacks, str) or not attacks):
            raise UsageError(f"attacks={attacks!r}: give a list of attack names, such as ['memorization'], or leave it out")
        path = node.path.parent / source if isinstance(source, str | Path) else source
        return _Asked(path, None if attacks is None else tuple(attacks), allow_inconclusive)

    try:
        return read(*marker.args, **marker.kwargs)
    except TypeError as error:
        told = str(error).partition("() ")[2] or str(error)
        raise UsageError(
            f"the marker muaudit {told}; write @pytest.mark.muaudit('audit.toml', attacks=[...], allow_inconclusive=...)"
        ) from error


def _all(config: pytest.Config) -> "list[Audited]":
    """The audits of this run, its workers' among them."""
    entries: dict[str, Audited] = config.stash[_entries].copy()
    if (folder := config.stash.get(_shared, None)) is not None:
        from muaudit.gate import made

        entries |= made(folder)
    return sorted(entries.values(), key=lambda entry: entry.name)
