"""DESIGN.md's rules, read from the source: who may import whom, where imports stand, which names are not used."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lit_tfm"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "errors": -1,  # below everything
    "annotations": -1,
    "nn": 0,
    "models": 1,
    "data": 1,
    "optim": 1,
    "tasks": 2,
    "generation": 2,
    "hf": 2,
    "callbacks": 3,
    # one floor together: the wiring and what it stands on
    "console": 1,
    "foreign": 4,
    "targets": 4,
    "config": 4,
    "hardware": 4,
    "holding": 4,
    "runs": 4,
    "launch": 4,
    "last_word": 4,
    "memory": 4,
    "storage": 4,
    "build": 4,
    "trained": 4,
    "screens": 4,
    "session": 4,
    "resuming": 4,
    "command_line": 4,
    "search": 4,
    "terminal": 0,  # nothing but the standard library
    "late_imports": 0,  # likewise
    "leaving": 0,  # likewise
    "evaluation": 4,
    "prediction": 4,
    "reports": 4,
}
VERBS = 5
NEIGHBOURS = {("hf", "models")}  # DESIGN.md section 2: hf reads models
SHARED_FLOORS = {3, 4}  # where neighbours may import each other
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "core"}
HEAVY = ("torch", "lightning", "datasets", "transformers")


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(part: str) -> int:
    return FLOORS.get(part, VERBS)


def module_name(path: Path) -> str:
    return ".".join(["lit_tfm", *path.relative_to(PACKAGE).with_suffix("").parts])


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "lit_tfm":
            found += [(node, f"lit_tfm.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node, node.module))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    own = part_of(module_name(path))
    for _, target in imports(ast.parse(path.read_text())):
        if not target.startswith("lit_tfm."):
            continue
        part = part_of(target)
        if part == own or (own, part) in NEIGHBOURS:
            continue
        assert floor(part) < floor(own) or (floor(part) == floor(own) and floor(own) in SHARED_FLOORS), (
            f"{module_name(path)} (floor {floor(own)}) imports {target} (floor {floor(part)})"
        )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_import_hides_in_a_function(path: Path) -> None:
    """Except an optional heavy package, marked `# optional`, and a verb's own imports (so that --help is quick)."""
    source = path.read_text()
    lines = source.splitlines()
    if floor(part_of(module_name(path))) == VERBS:
        return
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node, target in imports(function):
                assert "# optional" in lines[node.lineno - 1], (
                    f"{path.name}:{node.lineno} imports {target} in a function"
                )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_names_say_what_lives_there(path: Path) -> None:
    assert not FORBIDDEN_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)
    if path.name == "__init__.py":
        assert path.read_text() == ""


@pytest.mark.parametrize("path", [p for p in FILES if floor(part_of(module_name(p))) == VERBS], ids=module_name)
def test_verbs_import_nothing_heavy_at_the_top(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        for _, target in imports(node) if isinstance(node, (ast.Import, ast.ImportFrom)) else []:
            assert not target.startswith(HEAVY), f"{path.name} imports {target} at the top"


def test_every_file_opens_with_what_lives_there() -> None:
    bare = [
        module_name(p) for p in FILES if p.name != "__init__.py" and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not bare
