"""Lower layers never import higher ones, rooms and files stay small, and the public names are what they are."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import reuse_algos

PACKAGE = Path(reuse_algos.__file__).parent
# Each entry may import itself and what stands before it.
ORDER = (
    "errors",
    "remote_job",
    "presets",
    "sections",
    "archive",
    "composer_store",
    "data",
    "models",
    "training",
    "priors",
    "predict",
    "pairs",
    "algorithms",
    "functional",
    "callbacks",
    "harvest",
    "recipe",
    "train",
    "compare",
    "sequence",
    "federated",
    "demo",
    "commands",
    "cli",
    "piped",
)
# These know less than the order alone would allow.
FORBIDDEN = {
    "remote_job": {"composer", "torch", "reuse_algos.errors"},
    "archive": {"composer", "reuse_algos.training.ranks"},
    "data": {"reuse_algos.archive"},
    "models": {"reuse_algos.archive", "reuse_algos.data"},
    "compare": {
        "composer",
        "reuse_algos.algorithms",
        "reuse_algos.callbacks",
        "reuse_algos.recipe",
        "reuse_algos.data",
    },
}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_order_of_layers() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        layer = _layer(path)
        if layer == "__init__":
            continue
        for name in _imports(path):
            parts = name.split(".")
            ours = parts[0] == "reuse_algos" and len(parts) > 1 and parts[1] in ORDER
            if ours and ORDER.index(parts[1]) > ORDER.index(layer):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
            if any(name == banned or name.startswith(banned + ".") for banned in FORBIDDEN.get(layer, ())):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def _module(path: Path) -> str:
    return ".".join(("reuse_algos", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_no_modules_import_each_other() -> None:
    paths = {_module(path): path for path in PACKAGE.rglob("*.py")}
    needs: dict[str, set[str]] = {}
    for module, path in paths.items():
        # What runs when the module is imported: neither functions nor what only type checkers read.
        top = ast.parse(path.read_text()).body
        names = {
            f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in paths else str(node.module)
            for node in top if isinstance(node, ast.ImportFrom) for alias in node.names
        }  # fmt: skip
        needs[module] = (names & paths.keys()) - {module}
    assert len(list(TopologicalSorter(needs).static_order())) == len(paths)  # raises where there is a cycle


def test_no_technique_imports_another() -> None:
    rooms = {path.name for path in (PACKAGE / "algorithms").iterdir() if path.is_dir()}
    wrong = []
    # AutoReuse is no technique: it chooses among them.
    for path in (PACKAGE / "algorithms").rglob("*.py"):
        own = path.relative_to(PACKAGE / "algorithms").parts[0]
        for name in _imports(path):
            parts = name.split(".")
            if parts[:2] == ["reuse_algos", "algorithms"] and own in rooms - {"auto_reuse"}:
                wrong += [f"{path} imports {name}" for part in parts[2:3] if part in rooms - {own}]
    assert not wrong


def test_rooms_files_classes_and_constructors_are_small() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    rooms = Counter(path.parent for path in files)
    assert {str(room): count for room, count in rooms.items() if count > 10} == {}
    lines = {str(path): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > 450} == {}
    wide, long = {}, {}
    for path in files:
        for cls in ast.walk(ast.parse(path.read_text())):
            if isinstance(cls, ast.ClassDef):
                long[f"{path}: {cls.name}"] = cls.end_lineno - cls.lineno + 1  # type: ignore[operator]
                for method in cls.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                        given = method.args.posonlyargs + method.args.args + method.args.kwonlyargs
                        wide[f"{path}: {cls.name}"] = len(given) - 1
    assert {name: count for name, count in wide.items() if count > 10} == {}
    assert {name: count for name, count in long.items() if count > 250} == {}


def test_every_module_has_a_layer() -> None:
    assert {_layer(path) for path in PACKAGE.rglob("*.py")} == {*ORDER, "__init__"}


def test_no_pickle_no_eval_no_global_generator() -> None:
    banned = (
        "import pickle",
        "allow_pickle=True",
        "torch.load(",
        "eval(",
        "exec(",
        "np.random.seed(",
        "np.random.rand",
        "random.seed(",
    )
    allowed = {"np.random.seed(": {"data/seeding.py"}, "random.seed(": {"data/seeding.py"}}
    found = []
    for path in PACKAGE.rglob("*.py"):
        code = "\n".join(
            ast.unparse(node) for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Expr)
        )
        name = str(path.relative_to(PACKAGE))
        for word in banned:
            hits = code.count(word) - code.count("." + word) if word in ("eval(", "exec(") else code.count(word)
            if hits and name not in allowed.get(word, ()):
                found.append((name, word))
    assert not found


def test_public_names() -> None:
    assert sorted(reuse_algos.__all__) == [
        "AdversarialReplay",
        "AutoReuse",
        "HistoryCurriculum",
        "PriorRunDistillation",
        "PriorRunWarmStart",
        "RunArchive",
        "RunRecorder",
        "__version__",
    ]
    for name in reuse_algos.__all__:
        assert getattr(reuse_algos, name) is not None
