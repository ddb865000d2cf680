"""The architecture's rules, checked on the sources: the drawn imports, sizes of files and functions, names, words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.repository import tracked

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "ultragen_core"
OUTSIDE = ("nodes", "training", "tools")  # the other folders with Python; the picture may draw them, too
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 250, 40
NAMES = set("kit joint shelf drain sum place cut kind known room".split())
PHRASES = ("what it is" + " of", "lies" + " in", "made" + " anew", "goes" + " on")
TEXTS = (".css", ".html", ".js", ".json", ".md", ".py", ".toml", ".txt", ".yml")
NODE = re.compile(r"^\s*(\w+)\[", re.MULTILINE)
LISTED = re.compile(r"^(\w+(?:, \w+)*)  +\S", re.MULTILINE)  # modules in the docstring of a package, with what they do
NAMED = r"(\w+(?:\s*&\s*\w+)*)"
EDGE = re.compile(rf"^\s*{NAMED}\s*-->(?:\|[^|]*\|)?\s*{NAMED}\s*$", re.MULTILINE)


def paths(*folders: str) -> list[Path]:
    return [ROOT / name for name in tracked(*folders)]


def python(*folders: str) -> list[Path]:
    return [path for path in paths(*folders) if path.suffix == ".py"]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(module: str) -> str | None:
    """Return the room of a module by its full name: a folder of the library, or one of OUTSIDE."""
    first, _, rest = module.partition(".")
    if first in OUTSIDE:
        return first
    if first == LIBRARY and (ROOT / LIBRARY / rest.split(".")[0]).is_dir() and rest:
        return rest.split(".")[0]
    return None


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, at its top or in a function."""
    package = short(path).removesuffix(".py").removesuffix("/__init__").split("/")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports() -> set[tuple[str, str]]:
    edges = set()
    for path in python(LIBRARY, *OUTSIDE):
        own = room_of(short(path).removesuffix(".py").replace("/", "."))
        edges |= {(own, other) for module in imported(path) if own and (other := room_of(module)) not in (None, own)}
    return edges


def picture() -> str:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.search(r"```mermaid\n(.*?)```", text, re.DOTALL)[1]


def drawn() -> set[tuple[str, str]]:
    """Return the solid arrows of the picture; dotted ones are not imports."""
    edges = set()
    for sources, targets in EDGE.findall(picture()):
        edges |= {(a.strip(), b.strip()) for a in sources.split("&") for b in targets.split("&")}
    return edges


def test_the_picture_has_exactly_the_imports():
    rooms = set(NODE.findall(picture()))
    actual = {edge for edge in imports() if rooms.issuperset(edge)}
    missing, surplus = sorted(actual - drawn()), sorted(drawn() - actual)
    report = [f"not drawn: {a} --> {b}" for a, b in missing]
    report += [f"drawn, but not imported: {a} --> {b}" for a, b in surplus]
    assert not report, "\n".join(report)


def test_the_picture_has_every_room():
    rooms = {path.parent.name for path in python(LIBRARY) if path.parent.parent.name == LIBRARY}
    missing = {*rooms, "nodes"} - set(NODE.findall(picture()))
    assert not missing


def test_what_is_shipped_imports_nothing_that_is_not():
    found = [(a, b) for a, b in imports() if a not in ("training", "tools") and b in ("training", "tools")]
    assert not found


def test_files_directly_in_the_library_import_no_room():
    """They are used by all rooms and not drawn."""
    files = [path for path in python(LIBRARY) if path.parent.name == LIBRARY and path.name != "__init__.py"]
    found = [f"{short(path)} imports {module}" for path in files for module in imported(path) if room_of(module)]
    assert not found, "\n".join(found)


def test_packages_that_list_their_modules_list_all():
    found, files = [], python()
    for package in (path for path in files if path.name == "__init__.py"):
        text = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
        listed = {name for names in LISTED.findall(text) for name in names.split(", ")}
        modules = {path.stem for path in files if path.parent == package.parent and path.stem[:2] != "__"}
        if listed and listed != modules:
            found.append(f"{short(package)}: {sorted(listed ^ modules)}")
    assert not found, "\n".join(found)


def test_files_are_short():
    code = [path for path in paths(LIBRARY, "web", "__init__.py", *OUTSIDE) if path.suffix in (".py", ".js")]
    lengths = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    found = [f"{name}: {length} lines" for name, length in lengths.items() if length > MOST_LINES]
    assert not found, "\n".join(found)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    yield from (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds))


def may_be_long(node: ast.FunctionDef) -> bool:
    """Schemas are lists of inputs, and Triton's kernels cannot be divided freely."""
    kernel = any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)
    return node.name == "define_schema" or kernel


def test_functions_are_short():
    found = []
    for path in python(LIBRARY, "__init__.py", *OUTSIDE):
        for node in functions(path):
            length = node.end_lineno - node.lineno + 1
            if not isinstance(node, ast.ClassDef) and length > MOST_LINES_OF_A_FUNCTION and not may_be_long(node):
                found.append(f"{short(path)}:{node.lineno} {node.name}: {length} lines")
    assert not found, "\n".join(found)


def test_names_are_those_of_the_field():
    found = []
    for path in python():
        names = [(1, path.stem), *((node.lineno, node.name) for node in functions(path))]
        found += [f"{short(path)}:{line} {name}" for line, name in names if name.strip("_").lower() in NAMES]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("phrase", PHRASES)
def test_texts_are_plain(phrase):
    sought, found = re.compile(rf"\b{phrase}\b".replace(" ", r"[\s_#*]+"), re.IGNORECASE), []
    for path in paths():
        if path.suffix in TEXTS:
            text = path.read_text(encoding="utf-8")
            found += [f"{short(path)}:{text.count(chr(10), 0, hit.start()) + 1}" for hit in sought.finditer(text)]
    assert not found, "\n".join(found)
