"""pyproject.toml, environment.yml, constraints.txt and what the package imports agree with one another."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

CARD = [
    "jupyterlab",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "unsloth",
    "matplotlib",
    "pandas",
    "seaborn",
]


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def requirements(project: dict) -> dict[str, list[Requirement]]:
    """Requirements by extra; those of the package itself under "core"."""
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {group: [Requirement(line) for line in lines] for group, lines in groups.items()}


@pytest.fixture(scope="module")
def constraints(repository: Path) -> list[Requirement]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


@pytest.fixture(scope="module")
def conda(repository: Path) -> dict:
    return yaml.safe_load((repository / "environment.yml").read_text())


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pip_lines(conda: dict) -> list[str]:
    (section,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    return section


def test_every_card_package_is_declared_in_both_files(requirements, repository):
    declared = set().union(*(names(group) for group in requirements.values()))
    listed = re.findall(r"^ +(?:# )?- ([a-z]+)$", (repository / "environment.yml").read_text(), re.MULTILINE)
    assert set(CARD) <= declared
    assert set(CARD) <= set(listed)


def test_conda_installs_the_extras_of_pyproject_with_the_tested_versions(project, requirements, conda):
    lines = pip_lines(conda)
    (extras,) = [match[1].split(",") for line in lines if (match := re.fullmatch(r"-e \.\[(.*)\]", line))]
    assert sorted(extras) == sorted(set(project["optional-dependencies"]) - {"gpu"})
    assert "-c constraints.txt" in lines
    listed = {line for line in lines if not line.startswith("-")}
    assert listed <= set().union(*(names(requirements[extra]) for extra in ["core", *extras]))
    assert f"python{project['requires-python']}" in conda["dependencies"]


def test_a_cpu_environment_never_gets_unsloth(requirements, conda):
    assert "unsloth" not in pip_lines(conda)
    assert [extra for extra, group in requirements.items() if "unsloth" in names(group)] == ["gpu"]


def test_transformers_range_admits_what_unsloth_resolves_with(requirements):
    (transformers,) = [r for r in requirements["core"] if r.name == "transformers"]
    assert transformers.specifier.contains("5.17.0")


def test_constraints_lie_inside_the_ranges(requirements, constraints):
    tested = {r.name: next(iter(r.specifier)).version for r in constraints}
    for group in requirements.values():
        for requirement in group:
            if requirement.name in tested:
                assert requirement.specifier.contains(tested[requirement.name]), requirement.name


def test_every_package_that_ci_installs_directly_has_a_tested_version(requirements, constraints):
    assert all([s.operator for s in r.specifier] == ["=="] for r in constraints)
    direct = [r for extra in ("core", "lab", "demo", "test") for r in requirements[extra] if not r.marker]
    assert names(direct) <= names(constraints)
    assert "torch==2.13.0" in map(str, constraints)


def reached(requirements: list[Requirement]) -> dict[str, str]:
    """Installed distributions that requirements reach, their extras and markers considered: version by name."""
    found, seen, ahead = {}, set(), [(requirement, "") for requirement in requirements]
    while ahead:
        requirement, extra = ahead.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras), extra)
        if key in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add(key)
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        found[key[0]] = distribution.version
        for further in map(Requirement, distribution.requires or []):
            ahead += [(further, name) for name in ("", *requirement.extras)]
    return found


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 resolves from the ranges")
def test_every_installed_package_that_the_requirements_reach_is_pinned(requirements, constraints):
    tested = reached([line for extra in ("core", "lab", "demo", "test") for line in requirements[extra]])
    assert len(tested) > 100 and {"torch", "gradio", "starlette", "certifi"} <= tested.keys()
    assert sorted(tested.keys() - names(constraints)) == []


def test_makefile_upgrades_pip_before_it_resolves(repository):
    recipe = (repository / "Makefile").read_text()
    upgrade = recipe.index("pip install --quiet --upgrade pip")
    assert upgrade < recipe.index("--editable '.[lab,test]' --constraint constraints.txt")
    assert "make test" in (repository / ".ci" / "run").read_text()


def imported_modules(source: Path) -> set[str]:
    """Top-level names that a file imports absolutely, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("audiolm_utils", ["core", "lab", "cluster", "demo", "export", "gpu"]),
        ("tests", ["core", "test"]),
        ("tools", ["core", "lab", "test"]),
    ],
)
def test_everything_imported_is_declared(repository, requirements, folder, extras):
    declared = set().union(*(names(requirements[extra]) for extra in extras))
    distributions = metadata.packages_distributions()
    undeclared = set()
    for source in sorted((repository / folder).rglob("*.py")):
        for module in imported_modules(source) - sys.stdlib_module_names - {"audiolm_utils", "tests", "tomllib"}:
            owners = {canonicalize_name(name) for name in distributions.get(module, [module])}
            if not owners & declared:
                undeclared.add(f"{source.relative_to(repository)} imports {module}")
    assert undeclared == set()
