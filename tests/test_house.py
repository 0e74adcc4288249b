"""The house rules that a machine can check: who imports whom, sizes, names, the tables that must agree."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.core.events import EVENTS
from mesh.core.ops import CATALOGUE
from mesh.errors import CODES, MeshError

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mesh"
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 450

#: layer -> the layers it may import. A layer may always import itself.
LAYERS: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "core": frozenset({"errors"}),
    "config": frozenset({"errors", "core"}),
    "log": frozenset({"errors", "core"}),
    "proc": frozenset(),
    "launch_view": frozenset(),
    "net": frozenset({"errors", "core", "config", "log"}),
    "store": frozenset({"errors", "core", "config", "log"}),
    "launch": frozenset({"errors", "core", "config", "log", "proc", "launch_view", "root"}),
    "providers": frozenset({"errors", "core", "config", "log", "proc"}),
    "rendering": frozenset({"errors", "core", "net"}),
    "workspaces": frozenset({"errors", "core", "proc"}),
    "node": frozenset(
        {"errors", "core", "config", "log", "proc", "launch", "launch_view", "net", "store", "providers",
         "workspaces"}
    ),
    "client": frozenset({"errors", "core", "config", "log", "proc", "net"}),
    "streams": frozenset({"errors", "core", "client"}),
    "workflow": frozenset({"errors", "core", "client"}),
    "root": frozenset({"errors", "core", "config", "client", "providers"}),
    "cli": frozenset(
        {"errors", "core", "config", "log", "proc", "launch", "launch_view", "net", "store", "client",
         "rendering", "root"}
    ),
    "__main__": frozenset({"cli"}),
}
#: (file, layer) -> why that one import against the arrows is right.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("cli/doctor_programs.py", "providers"): "how a program is installed stands where it is started",
    ("cli/settings.py", "providers"): "an agent's table is checked by who takes it",
    ("client/_link.py", "launch"): "Client(None) finds the local node by its address file",
    ("workspaces/exec.py", "providers"): "one runner of processes: the shell agent's",
    ("cli/measure_guards.py", "workspaces"): "the bench measures what scripts import",
    ("client/local_node.py", "launch"): "LocalNode starts a supervisor: it knows how, but nothing of node/",
}
#: Outside libraries that one layer alone may import.
OWNED = {"zmq": "net", "apsw": "store", "click": "cli", "rich": "cli"}
IMPURE = frozenset(
    (
        "apsw",
        "asyncio",
        "click",
        "datetime",
        "multiprocessing",
        "os",
        "pathlib",
        "random",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "uuid",
        "zmq",
    )
)
#: file of core -> what it takes of an impure module: types to recognise, no clock and no chance.
TYPES_ALONE = {"core/plain.py": {"datetime", "uuid"}}
CLOCK_AND_CHANCE = frozenset(("now", "today", "utcnow", "uuid1", "uuid4"))
FILES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "root" if parts == ("__init__",) else parts[0]


def _imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(full module name, whether only for type checkers) of each import of a file."""
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "mesh":
                yield from ((f"mesh.{alias.name}", id(node) in typing_only) for alias in node.names)
            elif node.module:
                yield node.module, id(node) in typing_only


def _target_layer(module: str) -> str:
    parts = module.split(".")
    known = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
    return parts[1] if known else "root"


def _functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_go_one_way(path: Path) -> None:
    """If a file imports a layer that does not stand left of its own, then the architecture is broken."""
    layer, allowed = _layer(path), LAYERS[_layer(path)]
    for module, typing_only in _imports(_tree(path)):
        if module.split(".")[0] != "mesh" or typing_only:
            continue
        target = _target_layer(module)
        ok = target == layer or target in allowed or (_name(path), target) in EXCEPTIONS
        assert ok, f"{_name(path)} ({layer}) imports {module} ({target})"


def test_each_exception_is_still_needed() -> None:
    """If an exception of the import rule is used no more, then it is removed from the list."""
    for name, target in EXCEPTIONS:
        assert target in {
            _target_layer(m) for m, _ in _imports(_tree(PACKAGE / name)) if m.startswith("mesh")
        }


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_each_library_has_one_owner(path: Path) -> None:
    """If zmq, apsw, click or rich is imported outside its layer, then its rules are in two places."""
    for module, _ in _imports(_tree(path)):
        owner = OWNED.get(module.split(".")[0])
        assert owner in (None, _layer(path)), f"{_name(path)} imports {module}"


@pytest.mark.parametrize("path", [p for p in FILES if _layer(p) in ("core", "errors")], ids=_name)
def test_the_core_is_pure(path: Path) -> None:
    """If core imports a clock, chance, files, sockets or threads, then its tests need more than values."""
    forbidden = IMPURE - TYPES_ALONE.get(_name(path), set())
    for module, typing_only in _imports(_tree(path)):
        assert typing_only or module.split(".")[0] not in forbidden, f"{_name(path)} imports {module}"
    used = {node.attr for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute)}
    assert _name(path) not in TYPES_ALONE or not used & CLOCK_AND_CHANCE


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_functions_and_files_are_short(path: Path) -> None:
    """If a function or a file is longer than the limit, then it holds a second thought."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES_MAX, f"{_name(path)}: {lines} lines"
    for name, length in _functions(_tree(path)):
        assert length <= FUNCTION_LINES_MAX, f"{_name(path)}: {name} has {length} lines"


def test_most_functions_are_very_short(capsys: pytest.CaptureFixture[str]) -> None:
    """If the typical function outgrows the house's aim, then the limit has become a habit."""
    lengths = sorted(length for path in FILES for _, length in _functions(_tree(path)))
    median, p90 = statistics.median(lengths), lengths[int(len(lengths) * 0.9)]
    with capsys.disabled():
        print(f"\n{len(lengths)} functions: median {median:g} lines, 90 % within {p90}")
    assert median <= 12 and p90 <= 36


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_exports_are_sorted_and_exist(path: Path) -> None:
    """If __all__ is unsorted or names what is not there, then a reader cannot trust it."""
    tree = _tree(path)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            assert names == sorted(names, key=_export_order), _name(path)
            assert len(names) == len(set(names)), _name(path)


def _export_order(name: str) -> tuple[int, str]:
    """SCREAMING_CASE, then CamelCase, then the rest: the order ruff keeps."""
    if name.isupper():
        return 0, name
    return (1, name) if name[:1].isupper() else (2, name)


def test_each_code_gives_its_class() -> None:
    """If a code of the table builds another class than it names, then clients catch the wrong error."""
    for code, (cls, category, _) in CODES.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code) and issubclass(cls, MeshError) and category


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_each_error_code_in_use_is_in_the_table(path: Path) -> None:
    """If code="..." names a code that is not listed, then no client can know it."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    value = keyword.value.value
                    assert not isinstance(value, str) or value in CODES, f"{_name(path)}: code={value!r}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_each_module_says_what_it_is_for(path: Path) -> None:
    """If a module has no docstring, then its reader must guess its promise."""
    assert ast.get_docstring(_tree(path)), _name(path)


def test_the_readme_lists_each_operation() -> None:
    """If an op of the catalogue is missing in the README's table, then another language cannot speak it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [op.name for op in CATALOGUE if f"`{op.name}`" not in readme]
    assert not missing, f"not in README.md: {', '.join(missing)}"


def test_the_readme_lists_each_event_type() -> None:
    """If an event type is missing in the README's table, then nobody waits for it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [row.name for row in EVENTS if f"`{row.name}`" not in readme]
    assert not missing, f"not in README.md: {', '.join(missing)}"


def test_the_readme_lists_each_error_code() -> None:
    """If an error code is missing in the README's table, then nobody knows what to do about it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [code for code in CODES if f"`{code}`" not in readme]
    assert not missing, f"not in README.md: {', '.join(missing)}"


def test_test_files_have_names_of_their_own() -> None:
    """If two test files share a name, then pytest cannot import both (the folders are no packages)."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not {name for name in names if names.count(name) > 1}


def test_each_test_says_its_promise() -> None:
    """If a test has no docstring, then a failure does not say what was promised."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
