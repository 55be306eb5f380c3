"""docs/noise.md lists what every random draw is for, and lists nothing else."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("src/leansplit", "strategies", "clients", "server_app", "experiments")


def purposes_in_code():
    """Return purpose -> files that draw for it."""
    found = {}
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "derive_seed":
                continue
            given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "purpose")]
            assert given, f"{name}:{node.lineno} names no purpose"
            purpose = given[0]
            is_literal = isinstance(purpose, ast.Constant) and isinstance(purpose.value, str)
            assert is_literal, f"{name}:{node.lineno}: write the purpose where the seed is derived"
            found.setdefault(purpose.value, set()).add(name)
    return found


def purposes_in_page():
    """Return the purposes in the first column of the table."""
    page = (ROOT / "docs" / "noise.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("| purpose | indices | what it decides |\n")
    table = rest.partition("\n\n")[0]
    return re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)


def test_the_page_lists_every_purpose_once():
    listed = purposes_in_page()
    assert len(listed) == len(set(listed))
    assert set(listed) == purposes_in_code().keys()


def test_a_purpose_belongs_to_one_module():
    """Two modules that draw for one purpose may draw the same numbers twice."""
    shared = {purpose: names for purpose, names in purposes_in_code().items() if len(names) > 1}
    assert not shared
