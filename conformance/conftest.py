"""Options of the suite, its subjects, expected failures, and the report.

pytest conformance --backend torch [--backend jax ...] [--device cuda] [--mode compile] [--deep] [--report FILE]
"""

from __future__ import annotations

import json
import random
import tomllib
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from conformance import fingerprint, laws
from conformance.bits import Tally
from smh.errors import SmhError

XFAIL = Path(__file__).with_name("xfail")
DEEP_PLANS, PLANS = 400, 6
TALLY = "tally"


class Report:
    """Adds up the tallies of all tests: rows by backend, device and mode."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, ...], dict[str, Any]] = defaultdict(
            lambda: {"passed": 0, "failed": 0, "xfailed": 0, "checks": 0, "bits": 0, "different": 0, "skipped": ""}
        )
        self.failures: list[dict[str, str]] = []

    def row(self, label: str) -> dict[str, Any]:
        """Return the row of a label, `backend-device-mode`."""
        backend, device, mode = label.split("-", 2)
        return self.rows[backend, device, mode]

    def add(self, label: str, report: pytest.TestReport) -> None:
        """Add a test."""
        row = self.row(label)
        if report.when == "call":
            row["xfailed" if hasattr(report, "wasxfail") else report.outcome] += 1
        elif report.failed:
            row["failed"] += 1
        if report.failed:
            self.failures.append({"id": report.nodeid, "error": str(report.longreprtext)})
        if report.when == "teardown":
            for name, count in dict(report.user_properties).get(TALLY, {}).items():
                row[name] += count


_REPORT = pytest.StashKey[Report]()
_SUBJECTS = pytest.StashKey[list[tuple[str, laws.Subject | None, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--backend", action="append", help="backend to check, may be repeated; default: numpy")
    group.addoption("--device", help="device to check on, such as cuda; default: the backend's first")
    group.addoption("--mode", action="append", help="mode to check, may be repeated; default: all of the backend's")
    group.addoption("--deep", action="store_true", help="draw many plans from a new seed, and build at real sizes")
    group.addoption("--plans", type=int, help=f"plans to draw, each with 7 cases; default: {PLANS}, deep {DEEP_PLANS}")
    group.addoption("--seed", type=int, help="seed of the drawn plans; default: 0, deep a new one")
    group.addoption("--xfail", type=Path, default=XFAIL, help="folder of the files <backend>.toml of expected failures")
    group.addoption("--report", type=Path, help="write what was checked and compared to this file, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("plans") is None:
        config.option.plans = DEEP_PLANS if config.getoption("deep") else PLANS
    if config.getoption("seed") is None:
        config.option.seed = random.SystemRandom().randrange(2**32) if config.getoption("deep") else 0
    config.stash[_SUBJECTS] = _subjects(config)
    config.stash[_REPORT] = Report()
    for label, _, missing in config.stash[_SUBJECTS]:
        config.stash[_REPORT].row(label)["skipped"] = missing


def pytest_report_header(config: pytest.Config) -> str:
    return f"conformance: {config.getoption('plans')} plans, --seed {config.getoption('seed')}"


def _subjects(config: pytest.Config) -> list[tuple[str, laws.Subject | None, str]]:
    """Return (label, subject, reason for which there is none) for all modes; what was asked for must be there."""
    found: list[tuple[str, laws.Subject | None, str]] = []
    wanted = config.getoption("mode")
    for source in config.getoption("backend") or ["numpy"]:
        try:
            backend = fingerprint.find(source)
            device = config.getoption("device") or backend.devices()[0]
            backend.asarray(0.0, device)
            modes = {mode.name: mode for mode in backend.modes()}
            for name in wanted or modes:
                missing = modes[name].missing if name in modes and not wanted else ""
                subject = None if missing else laws.Subject(backend.in_mode(name), device, source)
                found.append((f"{source}-{device}-{name}", subject, missing))
        except SmhError as error:
            raise pytest.UsageError(str(error)) from error
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    argument = "case_law" if "case_law" in metafunc.fixturenames else "own_law"
    deep = metafunc.config.getoption("deep")
    parameters = []
    for label, subject, missing in metafunc.config.stash[_SUBJECTS]:
        skip = [pytest.mark.skip(reason=f"{label}: {missing}")] if missing else []
        for law in laws.CASE_LAWS if argument == "case_law" else laws.own_laws(subject, deep):
            parameters.append(pytest.param(subject, law, marks=skip, id=f"{label}-{law.__name__}"))
    metafunc.parametrize(("subject", argument), parameters)


@pytest.hookimpl(tryfirst=True)  # before any are deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark expected failures; one that fits no test is stale, unless only a part of the tests was asked for."""
    names = {item.name: item for item in items}
    part = config.getoption("mode") or config.getoption("device") or any("::" in arg for arg in config.args)
    for backend in config.getoption("backend") or ["numpy"]:
        for entry in expected_failures(config.getoption("xfail") / f"{backend}.toml"):
            if entry["id"] in names:
                reason = f"{entry['reason']} ({entry['link']})"
                names[entry["id"]].add_marker(pytest.mark.xfail(reason=reason, strict=True))
            elif not part:
                raise pytest.UsageError(f"xfail/{backend}.toml names {entry['id']!r}, which is no test: remove it")


def expected_failures(path: Path) -> list[dict[str, str]]:
    """Return the entries of a file of expected failures, or none where there is no file."""
    if not path.exists():
        return []
    entries: list[dict[str, str]] = tomllib.loads(path.read_text(encoding="utf-8")).get("xfail", [])
    for entry in entries:
        if set(entry) != {"id", "reason", "link"} or not all(entry.values()):
            raise pytest.UsageError(f"{path.name}: every entry needs an id, a reason and a link; got {entry}")
    return entries


@pytest.fixture
def tally(subject: laws.Subject | None, record_property: Any, request: pytest.FixtureRequest) -> Any:
    """Count what a test compares."""
    count = Tally()
    yield count
    record_property(TALLY, asdict(count))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if hasattr(item, "callspec"):
        label, _, _ = item.callspec.id.rpartition("-")
        item.config.stash[_REPORT].add(label, report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if config.getoption("report"):
        report = config.stash[_REPORT]
        content = {
            "seed": config.getoption("seed"),
            "plans": config.getoption("plans"),
            "rows": [
                dict(zip(("backend", "device", "mode"), label, strict=True)) | row for label, row in report.rows.items()
            ],
            "failures": report.failures,
        }
        config.getoption("report").write_text(json.dumps(content, indent=1), encoding="utf-8")
