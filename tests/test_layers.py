"""Who may import whom: the table of layers, read from the source of every module without running it.

| layer | what                                                                          | beside its own and lower    |
|-------|-------------------------------------------------------------------------------|-----------------------------|
| 0     | modules directly in llava_ohd/, evals/                                        | standard library            |
| 1     | tower/                                                                        | torch, transformers, Pillow |
| 2     | ohd_caps/ clip/ llava15/ training/ answering/ explain/ probes/ world/ report/ | libraries of train and eval |
| 3     | scripts/ eval/ benchmarks/                                                    | anything; none imports them |
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {"evals": 0, "tower": 1}
LAYERS |= dict.fromkeys(("ohd_caps", "clip", "llava15", "training"), 2)
LAYERS |= dict.fromkeys(("answering", "explain", "probes", "world", "report"), 2)
COMMANDS = ("scripts", "eval", "benchmarks")

CORE = {"torch", "transformers", "safetensors", "PIL", "numpy", "huggingface_hub"}  # the last two come with the others
TRAIN = {"accelerate", "datasets", "httpx2", "inflect", "peft", "sentencepiece", "tokenizers", "yaml"}
EVAL = {"jinja2", "matplotlib", "scipy", "threadpoolctl"}
LIBRARIES: dict[int, set[str]] = {0: set(), 1: CORE, 2: CORE | TRAIN | EVAL}
INSIDE_FUNCTIONS = {0: {"nltk", "pooch", "sentencepiece", "spacy"}, 1: {"llava"}, 2: {"deepspeed", "bitsandbytes"}}


class Import(NamedTuple):
    """One imported module, by its full name, and whether importing the file already imports it."""

    name: str
    at_once: bool


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(source: str, package: str) -> Iterator[Import]:
    """Yields every import in a file of `package` (dotted), also inside functions; `from a import b` yields a.b."""

    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(f"{base}.{alias.name}", at_once) for alias in node.names)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once and not lazy)

    yield from visit(ast.parse(source), True)


def layer(module: str) -> int:
    """Layer of a module of the package, by its dotted name; a new folder must be given a layer here."""
    parts = module.split(".")
    if len(parts) > 1 and (ROOT / "llava_ohd" / parts[1]).is_dir():
        return LAYERS[parts[1]]
    return 0


def part(module: str) -> str:
    return ".".join(module.split(".")[:2])


def faults(module: str, source: str) -> list[str]:
    """Returns what a module of the package imports against the table or against rules 1, 2 and 4."""
    own, package = layer(module), module.rpartition(".")[0]
    found = []
    for name, at_once in imports(source, package):
        top = name.split(".")[0]
        if top == "llava_ohd":
            if layer(name) > own:
                found.append(f"{module} (layer {own}) imports {name} (layer {layer(name)})")
            if {part(module), part(name)} == {"llava_ohd.clip", "llava_ohd.llava15"}:
                found.append(f"{module} imports {name}: the encoder folder is their only link")
        elif top in COMMANDS and (ROOT / top).is_dir():
            found.append(f"{module} imports {name}, a command")
        elif top not in sys.stdlib_module_names | LIBRARIES[own]:
            if top not in INSIDE_FUNCTIONS[own]:
                found.append(f"{module} (layer {own}) imports {name}")
            elif at_once:
                found.append(f"{module} imports {name} at module level; inside a function only")
    return found


@cache
def modules() -> dict[str, Path]:
    """Every module of the package: dotted name (a folder's `__init__` keeps that word) to file."""
    files = sorted((ROOT / "llava_ohd").rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def reached(module: str) -> set[str]:
    """Every module of the package that `module` can import, directly or through others."""
    seen, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for name, _ in imports(modules()[current].read_text(encoding="utf-8"), current.rpartition(".")[0]):
            for candidate in (name, f"{name}.__init__", name.rpartition(".")[0], name.rpartition(".")[0] + ".__init__"):
                if candidate in modules() and candidate != "llava_ohd.__init__":
                    waiting.append(candidate)
                    break
    return seen


# --- the table and rules 1, 2 and 4


@pytest.mark.parametrize("module", modules())
def test_module_keeps_to_its_layer(module: str) -> None:
    assert faults(module, modules()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("llava_ohd.files", "import numpy"),
        ("llava_ohd.files", "def f():\n    from llava_ohd.tower import check"),
        ("llava_ohd.files", "from llava_ohd import tower"),
        ("llava_ohd.evals.pope", "def f():\n    import torch"),
        ("llava_ohd.evals.chair", "import nltk"),
        ("llava_ohd.tower.names", "from llava_ohd.clip import train"),
        ("llava_ohd.tower.names", "from ..clip.train import run"),
        ("llava_ohd.tower.names", "import peft"),
        ("llava_ohd.tower.swap", "import llava"),
        ("llava_ohd.tower.swap", "class A:\n    from llava.model import builder"),
        ("llava_ohd.llava15.train", "def f():\n    import llava.train"),
        ("llava_ohd.llava15.train", "import deepspeed"),
        ("llava_ohd.llava15.train", "from llava_ohd.clip.loss import loss"),
        ("llava_ohd.clip.train", "def f():\n    from llava_ohd import llava15"),
        ("llava_ohd.clip.train", "import wandb"),
        ("llava_ohd.world.build", "from scripts import build_world"),
    ],
)
def test_the_table_is_enforced(module: str, source: str) -> None:
    assert len(faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("llava_ohd.files", "import os.path\nfrom llava_ohd.errors import DataFormatError"),
        ("llava_ohd.evals.chair", "def f():\n    import nltk"),
        ("llava_ohd.tower.swap", "def f():\n    from llava.model import llava_arch"),
        ("llava_ohd.tower.names", "import torch\nfrom . import weights\nfrom ..errors import LlavaOhdError"),
        ("llava_ohd.llava15.train", "import peft\ndef f():\n    import deepspeed"),
        ("llava_ohd.clip.train", "from llava_ohd import __version__, tower"),
    ],
)
def test_what_the_table_allows(module: str, source: str) -> None:
    assert faults(module, source) == []


@pytest.mark.parametrize(("start", "never"), [("clip", "llava15"), ("llava15", "clip")])
def test_encoder_and_llava_training_do_not_meet_through_others(start: str, never: str) -> None:
    names = [name for name in modules() if part(name) == f"llava_ohd.{start}"]
    assert not [name for name in names for other in reached(name) if part(other) == f"llava_ohd.{never}"]


def test_the_light_core_is_written_for_python_3_10() -> None:
    for name, file in modules().items():
        if layer(name) <= 1:
            ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))


# --- rule 3


def test_scoring_imports_no_torch() -> None:
    names = [name.removesuffix(".__init__") for name in modules() if layer(name) == 0]
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
    code += "print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n"


# --- rule 5


@pytest.mark.parametrize("folder", COMMANDS)
def test_commands_do_not_import_each_other(folder: str) -> None:
    for file in sorted((ROOT / folder).rglob("*.py")):
        names = {other.stem for other in file.parent.glob("*.py")} | set(COMMANDS)
        taken = {name.split(".")[0] for name, _ in imports(file.read_text(encoding="utf-8"), folder)}
        assert not taken & (names - sys.stdlib_module_names), f"{file.relative_to(ROOT)} imports another command"
