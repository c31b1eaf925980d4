"""The house of DESIGN.md: imports point down only, files are short, and what is public is described."""

import ast

import pytest
from conftest import ROOT

import nslib

PACKAGE = ROOT / "nslib"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(f.relative_to(PACKAGE)) for f in FILES]

# From the ground up. A room may import those on floors below it, and itself.
FLOORS = (
    {"checks", "description", "intervals", "mkl", "palette"},
    {"config"},
    {"studies"},
    {"runtime", "settings"},
    {"profiles", "store"},
    {"machine", "vit"},
    {"models"},
    {"data", "nullspace", "attacks"},
    {"evaluate", "finetune", "analysis", "pretrain"},
    {"study"},
    {"report", "plots"},
    {"notebooks", "explore"},
    {"reproduce"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
ROOF = {"__init__": len(FLOORS)}  # only hands out names, and is importable by all for __version__


def room_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imported_rooms(tree: ast.Module) -> set[str]:
    """Rooms that a file imports, at the top or inside a function."""
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("nslib.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            home, *rest = node.module.split(".")
            if home == "nslib":
                rooms |= {rest[0]} if rest else {a.name for a in node.names} - {"__version__"}
    return rooms


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_down(name):
    room = room_of(name)
    level = (FLOOR | ROOF)[room]
    for other in imported_rooms(ast.parse((PACKAGE / name).read_text())) - {room}:
        assert FLOOR[other] < level, f"{name} on floor {level} imports {other} on floor {FLOOR[other]}"


def test_import_reader_sees_every_kind_of_import():
    code = "import nslib.store\nfrom nslib import cli, __version__\ndef f():\n    from nslib.data.shapes import render"
    assert imported_rooms(ast.parse(code)) == {"store", "cli", "data"}


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short_and_named_after_an_idea(name):
    assert len((PACKAGE / name).read_text().splitlines()) <= 320
    assert not {"utils", "util", "misc", "helpers", "common"} & set(name.removesuffix(".py").split("/"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_is_described(name):
    if name in ("data/geometry.py", "data/textures.py"):
        pytest.skip("functions of one line whose name is the shape or the texture")
    silent = [
        node.name
        for node in ast.parse((PACKAGE / name).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


@pytest.mark.parametrize("name", nslib.__all__)
def test_exported_names_exist(name):
    assert getattr(nslib, name) is not None
    assert name in dir(nslib)


def test_unknown_name_lists_those_that_exist():
    with pytest.raises(AttributeError, match=r"no 'lern_noise'; it exports .*learn_noise"):
        nslib.lern_noise  # noqa: B018
