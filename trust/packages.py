"""The library as it is shipped: built, installed into fresh environments, and used there, away from the checkout.

The source distribution is built from the checkout and the wheel from the source distribution, so that what the first
lacks, the second lacks. Each environment has the wheel with one extra and nothing else of ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from trust.record import ROOT, Findings

EXTRAS = ("none", "torch", "jax", "keras", "conformance")
BACKENDS = {"torch": "torch", "jax": "jax", "keras": "tensorflow"}
"""The backend of an extra; NumPy for all others."""
NAME = "structured-multi-hashing"
SOURCE = ("smh/", "conformance/", "tests/", "docs/", "examples/", "benchmarks/", "experiments/", "trust/")
"""What of the checkout the source distribution holds, besides single files."""
PLANS = 2
"""How many plans the conformance suite draws: enough to see that it runs as installed."""

TYPED = """
import smh

plan: smh.Plan = smh.Plan.build({"fc": (20, 5)}, ratio=0.4)
names: list[str] = [tensor.name for tensor in plan.tensors]
reveal_type(plan.num_weights)
"""
MISTYPED = """
import smh

smh.Plan.build({"fc": (20, 5)}, ratio="a tenth")
"""
USED = """
import importlib, json, pathlib, sys
import smh
from smh.errors import BackendError

extra = sys.argv[1]
plan = smh.Plan.build({"fc1": (30, 40), "fc2": (40, 5)}, ratio=0.2)
digest = smh.save("model.safetensors", plan, smh.initialize(plan))
found = {"file": smh.__file__, "typed": (pathlib.Path(smh.__file__).parent / "py.typed").exists(), "missing": {}}
extras = {"torch": "torch", "jax": "jax", "tensorflow": "keras"}
own = next((name for name in extras if extras[name] == extra), "numpy")
module = importlib.import_module(f"smh.backends.{own}")
found["digest"] = smh.get_backend(own).name == own and smh.Plan is module.Plan
loaded = smh.load("model.safetensors")
backend = smh.get_backend(own)
weights = backend.materialize(plan, {name: backend.asarray(x, None) for name, x in loaded.variables.items()})
expected = smh.materialize(plan, loaded.variables)
found["same"] = all(backend.to_numpy(weights[name]).tobytes() == x.tobytes() for name, x in expected.items())
for other in extras.keys() - {own}:
    try:
        smh.get_backend(other)
    except BackendError as error:
        found["missing"][other] = f'pip install "structured-multi-hashing[{extras[other]}]"' in str(error)
print(json.dumps(found))
"""


class Environment:
    """A virtual environment, and a folder of its own in which its commands run.

    Parameters
    ----------
    folder : Path
        Where it is made.
    pip : sequence of str
        More options of ``pip install``, such as an index.
    """

    def __init__(self, folder: Path, pip: Iterable[str] = ()) -> None:
        self._pip = list(pip)
        self._folder = folder
        self.work = folder / "work"
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.work.mkdir()

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, away from the checkout."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "SMH_BACKEND")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"PATH": os.pathsep.join([str(self.bin), os.environ["PATH"]]), "TF_CPP_MIN_LOG_LEVEL": "3"}
        program, *rest = map(str, command)
        return subprocess.run(
            [str(self.bin / program), *rest],
            cwd=self.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, *what: str) -> subprocess.CompletedProcess[str]:
        """Install packages, in the versions of ``constraints.txt``."""
        options = ["--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt"), *self._pip]
        return self.run("python", "-m", "pip", "install", *options, *what)


def run(extras: Iterable[str], pip: Iterable[str] = ()) -> Iterator[Findings]:
    """Build, try each extra in an environment of its own, and iterate over what is found.

    Parameters
    ----------
    extras : iterable of str
        Some of ``EXTRAS``.
    pip : iterable of str
        More options of ``pip install``.
    """
    with tempfile.TemporaryDirectory(prefix="smh-packages-") as name:
        folder = Path(name)
        built, wheel = build(folder, pip)
        yield built
        if wheel is not None:
            for extra in extras:
                yield use(folder, wheel, extra, pip)


def build(folder: Path, pip: Iterable[str] = ()) -> tuple[Findings, Path | None]:
    """Build both distributions and look into them; return what was found, and the wheel if there is one."""
    findings = Findings("packages", labels={"environment": "wheel and source distribution"})
    builder = Environment(folder / "builder", pip)
    _succeeds(findings, "the installation of the builder", builder.install("build"))
    dist = folder / "dist"
    _succeeds(findings, "the build", builder.run("python", "-m", "build", "--outdir", dist, ROOT))
    wheels, sources = list(dist.glob("*.whl")), list(dist.glob("*.tar.gz"))
    findings.expect(len(wheels) == len(sources) == 1, f"one wheel and one source distribution; got {wheels + sources}")
    if findings.failures:
        return findings, None
    look_into_wheel(findings, wheels[0])
    _look_into_source(findings, sources[0])
    return findings, wheels[0]


def look_into_wheel(findings: Findings, wheel: Path) -> None:
    """Note what a wheel has that it should not have, and what it lacks."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    findings.count("files in the wheel", len(names))
    findings.measure("MiB of the wheel", round(wheel.stat().st_size / 2**20, 2), 4)
    tops = {name.partition("/")[0] for name in names}
    strange = {top for top in tops if top not in ("smh", "conformance") and not top.endswith(".dist-info")}
    findings.expect(not strange, f"the wheel holds {sorted(strange)}")
    findings.expect("smh/py.typed" in names, "the wheel lacks smh/py.typed, so that nobody sees its types")
    missing = [name for name in tracked() if name.startswith(("smh/", "conformance/")) and name not in names]
    findings.expect(not missing, f"the wheel lacks {missing[:5]}")
    findings.expect(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks the licence")


def _look_into_source(findings: Findings, source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    findings.count("files in the source distribution", len(names))
    findings.measure("MiB of the source distribution", round(source.stat().st_size / 2**20, 2), 8)
    missing = [name for name in tracked() if name.startswith(SOURCE) and name not in names]
    findings.expect(not missing, f"the source distribution lacks {missing[:5]}")
    findings.expect("LICENSE" in names, "the source distribution lacks the licence")


def use(folder: Path, wheel: Path, extra: str, pip: Iterable[str] = ()) -> Findings:
    """Install the wheel with one extra, and use it as somebody who has nothing else."""
    findings = Findings("packages", labels={"environment": NAME if extra == "none" else f"{NAME}[{extra}]"})
    environment = Environment(folder / extra, pip)
    target = str(wheel) if extra == "none" else f"{wheel}[{extra}]"
    if not _succeeds(findings, f"the installation of {findings.labels['environment']}", environment.install(target)):
        return findings
    packages = json.loads(environment.run("python", "-m", "pip", "list", "--format", "json").stdout)
    findings.count("packages installed", len(packages))
    _succeeds(findings, "pip check", environment.run("python", "-m", "pip", "check"))
    done = environment.run("python", "-c", USED, extra)
    if _succeeds(findings, "import and use", done):
        found = json.loads(done.stdout.splitlines()[-1])
        findings.expect(str(folder) in found["file"], f"smh is imported from {found['file']}")
        findings.expect(found["typed"], "py.typed is not installed")
        findings.expect(found["digest"], "the backend is not the one that was asked for")
        findings.expect(found["same"], "the weights have other bits than those of NumPy")
        for name, told in found["missing"].items():
            findings.expect(told, f"the error for the missing {name} does not say how to install it")
            findings.count("errors for missing frameworks that say what to install")
    if extra == "none":
        done = environment.run("smh", "info")
        findings.expect(f"{NAME}[cli]" in done.stderr, f"without the extra cli, smh says {done.stderr[-300:]!r}")
        findings.expect(done.returncode == 2, f"without the extra cli, smh exits with {done.returncode}")
    if extra != "conformance":
        _succeeds(findings, "the installation of the extra cli", environment.install(f"{wheel}[cli]"))
        done = environment.run("smh", "conformance", "--backend", "numpy")
        findings.expect(f"{NAME}[conformance]" in done.stderr, f"without pytest, it says {done.stderr[-300:]!r}")
        _succeeds(findings, "the installation of the extra", environment.install(f"{wheel}[conformance]"))
    done = environment.run("smh", "info", "--json")
    if _succeeds(findings, "smh info", done):
        findings.expect("specification" in done.stdout, f"smh info says {done.stdout[:200]!r}")
    _conformance(findings, environment, BACKENDS.get(extra, "numpy"))
    if extra == "none":
        _types(findings, environment)
    return findings


def _conformance(findings: Findings, environment: Environment, backend: str) -> None:
    """Run the suite that the wheel brings, with few plans, in the first mode of a backend."""
    options = ("--mode", "eager", "--plans", str(PLANS), "--json")
    done = environment.run("smh", "conformance", "--backend", backend, *options)
    if _succeeds(findings, "smh conformance", done):
        for row in json.loads(done.stdout)["rows"]:
            findings.count("laws passed", row["passed"])
            findings.count("laws failed", row["failed"])
            findings.count("bits compared", row["bits"])
            findings.count("bits different", row["different"])


def _types(findings: Findings, environment: Environment) -> None:
    """Let mypy see the types of the installed library: it accepts what is right, and finds what is wrong."""
    if not _succeeds(findings, "the installation of mypy", environment.install("mypy")):
        return
    (environment.work / "right.py").write_text(textwrap.dedent(TYPED))
    (environment.work / "wrong.py").write_text(textwrap.dedent(MISTYPED))
    done = environment.run("python", "-m", "mypy", "--strict", "right.py")
    if _succeeds(findings, "mypy --strict on a program that uses smh", done):
        seen = re.search(r'Revealed type is "(builtins\.)?int"', done.stdout)
        findings.expect(seen is not None, f"mypy does not see types: {done.stdout[-300:]!r}")
    done = environment.run("python", "-m", "mypy", "--strict", "wrong.py")
    findings.expect("arg-type" in done.stdout, f"mypy does not see a wrong argument: {done.stdout[-300:]!r}")
    findings.count("programs checked by mypy", 2)


def _succeeds(findings: Findings, what: str, done: subprocess.CompletedProcess[str]) -> bool:
    findings.expect(done.returncode == 0, f"{what} fails with {done.returncode}: {(done.stdout + done.stderr)[-700:]}")
    findings.count("commands run")
    return done.returncode == 0


def tracked() -> list[str]:
    """Return the files that git knows and that are there."""
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]
