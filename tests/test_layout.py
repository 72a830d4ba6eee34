"""The tree, the configuration and the rules of import that a tool does not check."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("autotune", "codegen", "dsl")
MAX_LINES = 600

# The only file, or folder, that may import a package. No other may, not even inside a function.
SINGLE_IMPORTERS = {
    "islpy": "codegen/presburger",
    "lark": "dsl/parser.py",
    "optuna": "autotune/study.py",
    "triton": "codegen/gpu/launch.py",
}


# Caches without a bound: what they are asked of is few by nature (names in the library, ready
# terms, devices, numbers of threads), or is kept anyway (loaded kernels).
UNBOUNDED = {
    "autotune/device.py": {"_gpu", "_processor"},
    "codegen/gpu/launch.py": {"direct_launcher"},
    "dsl/library.py": {"source"},
    "dsl/modules.py": {"library_module"},
    "dsl/score/ready.py": {"ready_program"},
}


def config() -> dict[str, Any]:
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return parsed


def front_packages() -> list[Path]:
    """The folders of the package itself, not the links."""
    inits = (ROOT / "patterncc").glob("*/__init__.py")
    return sorted(init.parent for init in inits if not init.parent.is_symlink())


def package_files() -> Iterator[Path]:
    """The Python files of the package, each once."""
    yield from sorted((ROOT / "patterncc").glob("*.py"))
    for folder in front_packages():
        yield from sorted(folder.glob("*.py"))
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def all_files() -> Iterator[Path]:
    yield from package_files()
    for folder in ("tests", "benchmarks", "examples"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level names of the packages that a file imports anywhere, TYPE_CHECKING included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_packages_are_the_folders() -> None:
    found = {"patterncc", *(f"patterncc.{folder.name}" for folder in front_packages())}
    for package in PACKAGES:
        for init in (ROOT / package).rglob("__init__.py"):
            found.add(".".join(["patterncc", *init.parent.relative_to(ROOT).parts]))
    setuptools = config()["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(found)
    assert setuptools["package-dir"] == {f"patterncc.{package}": package for package in PACKAGES}


def test_every_module_is_in_a_package() -> None:
    for path in package_files():
        assert (path.parent / "__init__.py").exists(), path


@pytest.mark.parametrize("package", PACKAGES)
def test_link(package: str) -> None:
    link = ROOT / "patterncc" / package
    assert link.is_symlink()
    assert link.readlink() == Path("..", package)
    assert link.resolve() == ROOT / package


@pytest.mark.parametrize("package", PACKAGES)
def test_top_level_import_is_refused(package: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import {package}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert f"ImportError: import this package as patterncc.{package}" in run.stderr


def test_no_module_is_named_like_the_standard_library() -> None:
    # `python` run inside the folder would import ours.
    names = {
        path: path.stem if path.stem != "__init__" else path.parent.name for path in all_files()
    }
    assert [path for path, name in names.items() if name in sys.stdlib_module_names] == []


def test_front_modules_are_layers() -> None:
    contract = next(
        contract
        for contract in config()["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    layers = {
        name.strip(" ()")
        for layer in contract["layers"]
        for name in layer.replace(":", "|").split("|")
    }
    front = {f"patterncc.{path.stem}" for path in (ROOT / "patterncc").glob("*.py")}
    for init in (ROOT / "patterncc").glob("*/__init__.py"):
        front.add(f"patterncc.{init.parent.name}")
    assert front - {"patterncc.__init__"} <= layers


@pytest.mark.parametrize("package", SINGLE_IMPORTERS)
def test_only_one_file_imports(package: str) -> None:
    files = {str(path.relative_to(ROOT)) for path in package_files() if package in imported(path)}
    allowed = SINGLE_IMPORTERS[package]
    assert all(name == allowed or name.startswith(f"{allowed}/") for name in files)


def test_only_the_settings_read_the_environment() -> None:
    for path in package_files():
        if path == ROOT / "patterncc" / "settings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv"):
                    pytest.fail(f"{path}:{node.lineno} reads the environment")
                case ast.ImportFrom(module="os", names=names):
                    assert not {"environ", "getenv"} & {alias.name for alias in names}, path


def unbounded_caches(path: Path) -> set[str]:
    """The functions of a file that take arguments and whose results are kept without a bound."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or node.args.args == []:
            continue
        for decorator in map(ast.unparse, node.decorator_list):
            if re.fullmatch(r"(functools\.)?(cache|lru_cache\(.*None.*\))", decorator):
                found.add(node.name)
    return found


def test_caches_are_bounded() -> None:
    found = {str(path.relative_to(ROOT)): unbounded_caches(path) for path in package_files()}
    assert {path: names for path, names in found.items() if names} == UNBOUNDED


def test_file_sizes() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in all_files()
    }
    assert {path: size for path, size in sizes.items() if size > MAX_LINES} == {}
