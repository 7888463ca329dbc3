"""Lower layers never import higher ones, and the public names are what they are."""

from __future__ import annotations

import ast
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
