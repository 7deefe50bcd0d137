"""The digest of the code that a command runs: what changes it, and what does not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llava_ohd import code_digest as module
from llava_ohd.code_digest import code_digest

FILES = {
    "llava_ohd/__init__.py": "",
    "llava_ohd/a.py": "from llava_ohd.sub import b\n",
    "llava_ohd/sub/__init__.py": "from llava_ohd.sub.b import X\n",
    "llava_ohd/sub/b.py": "X = 1\n",
    "llava_ohd/other.py": "Y = 1\n",
    "scripts/run.py": "def main():\n    import llava_ohd.a\n",
}


@pytest.fixture
def digest_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], str]:
    """Returns what digests the script of a small package after some of its files were written anew."""
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "llava_ohd")

    def digest(changed: dict[str, str]) -> str:
        for name, text in (FILES | changed).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        module._parsed.cache_clear()
        return code_digest(tmp_path / "scripts/run.py")

    return digest


@pytest.mark.parametrize(
    "changed",
    [
        {"scripts/run.py": "def main():\n    import llava_ohd.a\n    print()\n"},
        {"llava_ohd/sub/b.py": "X = 2\n"},
        {"llava_ohd/sub/__init__.py": "from llava_ohd.sub.b import X\nZ = 3\n"},
    ],
)
def test_code_that_runs_counts(digest_with: Callable[[dict[str, str]], str], changed: dict[str, str]) -> None:
    assert digest_with(changed) != digest_with({})


@pytest.mark.parametrize(
    "changed",
    [
        {"llava_ohd/other.py": "Y = 2\n"},
        {"llava_ohd/sub/b.py": "# why\nX  =  1\n"},
    ],
)
def test_other_code_and_comments_do_not(digest_with: Callable[[dict[str, str]], str], changed: dict[str, str]) -> None:
    assert digest_with(changed) == digest_with({})
