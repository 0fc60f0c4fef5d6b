"""The rooms: each imports only rooms below it, describes itself, and stays small."""

from __future__ import annotations

import ast
import sys

import pytest

from chestx_cli import commands
from chestx_cli.command_table import SUMMARIES
from tools.rooms import MODULES, PICTURE, ROOMS, SOURCE, imports_of, own_imports, picture, room_of, sentence_of

# Rooms that do not know each other, though one lies above the other.
STRANGERS = (
    {"data", "evaluation"},
    {"data", "compression"},
    {"networks", "reporting"},
    {"compression", "reporting"},
)
# Folders inside a room whose boundary is narrower than the room's: what else of the package they may import.
NARROW = {
    "data/images": ("core", "records", "store"),
    "data/images/formats": ("core", "records"),
    "data/synthetic": ("core",),
    "data/sources": ("core", "records", "store", "data/images"),
    "evaluation/statistics": ("core",),
    "inference/device": (),
    "networks/parallel": ("core",),
}
MOST_FILES = 14
# What lies above all rooms: the list of commands, which is generated, and the public names. Only `cli` imports it.
PACKAGE = {"", "__main__", "command_table", "registries"}
# Folders that may have more: in `commands` one file is one command, so that `chestx --help` is the list of its files.
MORE_FILES = {"commands": 24}
# Names of mappings whose keys are data; nothing else may be a mapping from names to anything.
NAMED_MAPPINGS = {"core/record": {"Document", "Options"}}
FOLDERS = sorted(path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*/__init__.py"))


def folder_of(module: str) -> str:
    return module.rpartition("/")[0]


def test_every_module_lives_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} == {*PACKAGE, *ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    for module in (name for name in MODULES if room_of(name) == room):
        for other in own_imports(module):
            if other in PACKAGE:
                assert room == "cli", f"{module} imports {other}"
            elif room_of(other) != room:
                assert ROOMS.index(room_of(other)) < ROOMS.index(room), f"{module} imports {other}"
                assert {room, room_of(other)} not in STRANGERS, f"{module} imports {other}"


@pytest.mark.parametrize("folder", NARROW)
def test_a_folder_keeps_its_narrower_boundary(folder: str) -> None:
    for module in (name for name in MODULES if name.startswith(f"{folder}/")):
        for other in own_imports(module):
            assert other.startswith((f"{folder}/", *(f"{room}/" for room in NARROW[folder]))), (
                f"{module} imports {other}"
            )


def test_neither_modules_nor_folders_import_themselves_in_a_circle() -> None:
    modules = {name: own_imports(name) for name in MODULES if name}
    folders: dict[str, set[str]] = {}
    for name, needs in modules.items():
        # The package's own folder holds what lies below all rooms, its version, and what lies above them.
        if name in PACKAGE:
            continue
        folders.setdefault(folder_of(name), set()).update(map(folder_of, needs - PACKAGE))
    for graph in (modules, {name: needs - {name} for name, needs in folders.items()}):
        finished: set[str] = set()

        def visit(node: str, above: tuple[str, ...], graph: dict[str, set[str]], finished: set[str]) -> None:
            assert node not in above, f"circle: {' -> '.join([*above, node])}"
            if node not in finished:
                for needed in graph.get(node, ()):
                    visit(needed, (*above, node), graph, finished)
                finished.add(node)

        for node in graph:
            visit(node, (), graph, finished)
        assert finished >= graph.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) == "core"])
def test_core_needs_the_standard_library_only(module: str) -> None:
    foreign = {name.partition(".")[0] for name in imports_of(module) if name not in MODULES}
    assert foreign <= sys.stdlib_module_names


def test_the_version_is_all_that_rooms_take_from_the_package_itself() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "chestx_cli":
                assert node.attr == "__version__" or room_of(module) == "cli", f"{module} uses chestx_cli.{node.attr}"


def test_only_the_command_line_prints() -> None:
    for module, path in MODULES.items():
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls, module
        if room_of(module) != "cli":
            assert not {"rich", "typer"} & {name.partition(".")[0] for name in imports_of(module)}, module


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_it_is_and_what_others_may_import(folder: str) -> None:
    tree = ast.parse((SOURCE / folder / "__init__.py").read_text(encoding="utf-8"))
    assert sentence_of(folder).endswith(".")
    assert "Imports" in (ast.get_docstring(tree) or "").partition("\n\n")[2], "the docstring names its boundary"
    taken = {
        other.removeprefix(f"{folder}/")
        for module in MODULES
        if not f"{module}/".startswith(f"{folder}/")
        for other in own_imports(module)
        if folder_of(other) == folder
    }
    stated = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    # The commands, the package's public interface, are taken by the generated table of them.
    assert stated == [sorted(taken)], "__all__ lists the modules that other folders import"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_is_too_large_to_know(folder: str) -> None:
    files = [path.name for path in (SOURCE / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MORE_FILES.get(folder, MOST_FILES), f"{folder} has {len(files)} files"


def test_every_file_of_the_commands_is_one_command() -> None:
    files = {path.stem for path in (SOURCE / "commands").glob("*.py")} - {"__init__"}
    assert files == set(SUMMARIES) == set(commands.__all__)
    for name in files:
        tree = ast.parse((SOURCE / "commands" / f"{name}.py").read_text(encoding="utf-8"))
        stages = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            and any(ast.unparse(mark).startswith("stage") for mark in node.decorator_list)
        ]
        assert stages == [name]


def bare_mappings(tree: ast.AST) -> set[str]:
    """Return the functions, classes and names that are annotated with a mapping from names to anything."""

    def is_bare(node: ast.AST | None) -> bool:
        return node is not None and any(
            ast.unparse(part).replace("typing.", "").lower() in {"dict[str, any]", "mapping[str, any]"}
            for part in ast.walk(node)
            if isinstance(part, ast.Subscript)
        )

    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            if any(map(is_bare, (node.returns, *(argument.annotation for argument in arguments)))):
                found.add(node.name)
        elif isinstance(node, (ast.Module, ast.ClassDef)):
            # Not the variables of a function, which no other function sees.
            found |= {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign) and is_bare(one)}
            found |= {ast.unparse(one.targets[0]) for one in node.body if isinstance(one, ast.Assign) and is_bare(one)}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_what_passes_between_functions_has_named_fields_or_is_named_data(module: str) -> None:
    assert bare_mappings(ast.parse(MODULES[module].read_text(encoding="utf-8"))) == NAMED_MAPPINGS.get(module, set())


def test_a_mapping_from_names_to_anything_is_found_wherever_it_is_annotated() -> None:
    source = (
        "def a(x: dict[str, Any]): y: dict[str, Any] = {}\n"
        "def b(*, x: list[Mapping[str, Any]]): ...\n"
        "def c() -> Mapping[str, Any] | None: ...\n"
        "def d(x: Mapping[str, int]): y: dict[str, Any] = {}\n"
        "class E:\n    f: dict[str, Any]\n"
        "G = Mapping[str, Any]\n"
    )
    assert bare_mappings(ast.parse(source)) == {"a", "b", "c", "f", "G"}


def test_the_picture_of_the_rooms_is_up_to_date() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run make docs"
