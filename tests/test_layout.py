"""Boundaries that import-linter cannot see."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ticketlab"
WRITES = {"write_text", "write_bytes", "mkdir", "mkdtemp", "mkstemp", "rmtree", "unlink", "replace", "rename", "save"}
# `data` keeps its download cache; the doctor probes folders with a file that is gone at once
MAY_WRITE = {"runs", "data"}
INTO_MEMORY = {"pt2.py"}


def test_only_runs_and_the_download_cache_write_to_disk():
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in MAY_WRITE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                opens = name == "open" and any(
                    isinstance(a, ast.Constant) and set(str(a.value)) & set("wax") for a in node.args[1:]
                )
                writes = name in WRITES and not (name == "save" and path.name in INTO_MEMORY)
                if opens or (writes and not _is_dataclass_replace(node)):
                    found.append(f"{path.name}:{node.lineno} {name}")
    assert found == []


def _is_dataclass_replace(node):
    """`replace` of dataclasses is called by name, `Path.replace` and `str.replace` as methods."""
    if isinstance(node.func, ast.Name):
        return node.func.id == "replace"
    return node.func.attr == "replace" and len(node.args) == 2


def test_no_torch_is_loaded_for_help():
    code = "import sys, ticketlab.cli.app; print([m for m in ('torch', 'pydantic', 'numpy') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    code = (
        "import sys\nfrom ticketlab.cli.app import main\nsys.argv = ['ticketlab', '--help']\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "prune" in ran.stdout and ran.stderr.strip().endswith("False")


def test_every_module_opens_with_a_docstring():
    assert [p.name for p in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(p.read_text()))] == []


def test_what_benchmarks_import_is_there():
    for path in (ROOT / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ticketlab"):
                found = importlib.import_module(node.module)
                missing = [name.name for name in node.names if not hasattr(found, name.name)]
                assert not missing, f"{path.name}: {node.module} has no {missing}"


def test_the_readme_prints_the_tree_as_it_is():
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "tree"], capture_output=True, text=True, check=True
    ).stdout
    assert printed in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_recipe_opens_with_what_it_shows_expects_and_takes():
    for path in (ROOT / "recipes").rglob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()[:3]
        assert [
            bool(re.match(rf"# {word}: \S", line))
            for word, line in zip(("What", "Expect", "Takes"), lines, strict=True)
        ] == [True] * 3, path
