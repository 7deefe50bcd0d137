"""The doctor on a folder of broken files, killed and resumed; and training by its verdicts."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_ohd.errors import DataFormatError
from llava_ohd.llava15 import diagnosis
from llava_ohd.llava15.data_policy import left_out
from llava_ohd.llava15.diagnosis import diagnose, summary
from llava_ohd.llava15.doctor import main
from llava_ohd.llava15.examination import Checks


def row(
    number: Any, image: Any = "fine.png", question: str = "<image>\nA ball?", answer: str = "Yes"
) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": number} | ({"image": image} if image else {}) | {"conversations": said}


ROWS = [
    row("a"),
    row("b", "missing.jpg"),
    row("c", "cut.png"),
    row("d", "noise.jpg"),
    row("e", "really_a_gif.jpg"),
    row("f", "empty.png"),
    row("g", question="A ball?"),
    row("h", None),
    row("i", answer=""),
    {
        "id": "j",
        "image": "fine.png",
        "conversations": [{"from": "bot", "value": "<image>"}, {"from": "gpt", "value": "A"}],
    },
    row("k", None, "Tell a story.", "one two three " * 40),
    row("l", question="<image>\n" + "what is it " * 40),
    row("m", None, "What is </s>?", "An end."),
    row("a", "ocr/1.jpg", "<image>\nRead it."),
    row("n", None, "Write ASSISTANT: and wait", "ASSISTANT: "),
    "no object",
    row("o", ["fine.png", "cut.png"], "<image><image>"),
    row("p", None, "Hello", "Hello"),
    row("q", None, "Hello", "Hello"),
]
EXPECTED = {
    2: {"missing_image"},
    3: {"truncated_image"},
    4: {"corrupt_image"},
    5: {"mislabelled_image"},
    6: {"corrupt_image"},
    7: {"unmatched_image"},
    8: {"unmatched_image"},
    9: {"empty_answer"},
    10: {"speakers"},
    11: {"over_long"},
    12: {"nothing_trained"},
    13: {"control_token"},
    14: {"missing_image", "duplicate_id"},
    15: {"template_words"},
    16: {"format"},
    17: {"truncated_image"},
    19: {"duplicate_row"},
}
FAULTY = {2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 16, 17}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Images of every kind of damage, and rows.json."""
    images = tmp_path / "images"
    (images / "ocr").mkdir(parents=True)
    Image.new("RGB", (16, 12), (200, 80, 10)).save(images / "fine.png")
    Image.effect_noise((64, 64), 50).save(images / "whole.png")
    whole = (images / "whole.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "noise.jpg").write_bytes(bytes(range(256)) * 4)
    (images / "empty.png").write_bytes(b"")
    Image.new("P", (16, 12)).save(images / "really_a_gif.jpg", "GIF")
    Image.new("RGB", (8, 8)).save(images / "ocr/1.png")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    return tmp_path


def checks(folder: Path, language: Path) -> Checks:
    return Checks(folder / "rows.json", folder / "images", "v1", language, image_tokens=16, longest=128)


def kinds(record: dict[str, Any]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for finding in record["findings"]:
        found.setdefault(finding["row"], set()).add(finding["kind"])
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_every_damage_is_found_and_named(broken: Path, tiny_llama_dir: Path, processes: int) -> None:
    record = diagnose(checks(broken, tiny_llama_dir), broken / "manifest.json", processes)
    assert kinds(record) == EXPECTED
    assert record["faulty_rows"] == len(FAULTY)
    assert record["rows"] == len(ROWS)
    assert record["images"]["count"] == 7
    assert record["counts"]["truncated_image"] == 2
    assert json.loads((broken / "manifest.json").read_text()) == record
    assert not (broken / "manifest.json.journal").exists()
    assert any(
        "fault  truncated_image           2  first: row 3: image cut.png is truncated" in x for x in summary(record)
    )


def test_an_archive_has_the_same_findings(broken: Path, tiny_llama_dir: Path) -> None:
    import shutil

    shutil.make_archive(str(broken / "images"), "zip", broken / "images")
    looked = Checks(broken / "rows.json", broken / "images.zip", "v1", tiny_llama_dir, 16, 128)
    assert kinds(diagnose(looked, broken / "manifest.json", 1)) == EXPECTED


def test_the_command_ends_by_policy(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data_path", str(broken / "rows.json"), "--image_folder", str(broken / "images"), "--processes", "1"]
    assert main(flags) == 2
    assert "not looked at: lengths in tokens" in capsys.readouterr().out
    assert main([*flags, "--policy", "report"]) == 0
    assert main([*flags, "--policy", "skip", "--fix", str(broken / "fixed.json")]) == 0
    assert "training skips 12 rows" in capsys.readouterr().out  # all but row 12, whose length was not looked at
    fixed = json.loads((broken / "fixed.json").read_text())
    assert [one["id"] for one in fixed] == ["a", "e", "k", "l", "a", "n", "p", "q"]
    assert fixed[4]["image"] == "ocr/1.png"  # the twin
    again = ["--data_path", str(broken / "fixed.json"), *flags[2:]]
    assert main(again) == 0
    assert main([*again, "--strict", "True"]) == 2
    with pytest.raises(DataFormatError, match="--policy is one of"):
        main([*flags, "--policy", "nothing"])


def test_repaired_images_are_looked_at_again(broken: Path, tiny_llama_dir: Path) -> None:
    looked = checks(broken, tiny_llama_dir)
    first = diagnose(looked, broken / "manifest.json", 1)
    (broken / "images/whole.png").rename(broken / "images/cut.png")
    assert diagnose(looked, broken / "manifest.json", 1, keep=True) == first
    after = kinds(diagnose(looked, broken / "manifest.json", 1))
    assert after == {number: found for number, found in EXPECTED.items() if number not in (3, 17)}


def test_a_killed_run_goes_on(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(number, f"{number}.png", "<image>\nWhat?") for number in range(40)]
    for number in range(40):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(broken / f"images/{number}.png")
    rows[7]["image"] = "gone.png"
    (broken / "rows.json").write_text(json.dumps(rows))
    looked = Checks(broken / "rows.json", broken / "images", "v1")
    monkeypatch.setattr(diagnosis, "_PIECE", 4)
    whole = diagnose(looked, broken / "whole.json", 1)
    assert kinds(whole) == {8: {"missing_image"}}

    real: Callable[..., dict[str, Any]] = diagnosis.look
    seen: list[int] = []

    def dies(checks: Checks, number: int, *rest: Any) -> dict[str, Any]:
        if number == 6:
            raise KeyboardInterrupt
        return real(checks, number, *rest)

    monkeypatch.setattr(diagnosis, "look", dies)
    with pytest.raises(KeyboardInterrupt):
        diagnose(looked, broken / "manifest.json", 1)
    journal = broken / "manifest.json.journal"
    assert journal.read_bytes().count(b"\n") == 7
    journal.write_bytes(journal.read_bytes()[:-10])  # the last line was cut by the kill

    def counts(checks: Checks, number: int, *rest: Any) -> dict[str, Any]:
        seen.append(number)
        return real(checks, number, *rest)

    monkeypatch.setattr(diagnosis, "look", counts)
    resumed = diagnose(looked, broken / "manifest.json", 1)
    assert resumed == whole
    assert seen == [1, 5, 6, 7, 8, 9]  # 1 has the missing image, 5 the torn line


def test_a_killed_command_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(300):
        Image.effect_noise((300, 300), 60).save(tmp_path / f"images/{number}.png", compress_level=1)
    (tmp_path / "rows.json").write_text(json.dumps([row(n, f"{n}.png", "<image>\nWhat?") for n in range(300)]))
    command = [sys.executable, "-m", "llava_ohd.llava15.doctor", "--data_path", str(tmp_path / "rows.json")]
    command += ["--image_folder", str(tmp_path / "images"), "--processes", "2", "--manifest", str(tmp_path / "m.json")]
    journal = tmp_path / "m.json.journal"
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while running.poll() is None and not (journal.is_file() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.02)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    running.wait()
    deadline = time.monotonic() + 20
    while [child for child in children if _alive(int(child))]:
        assert time.monotonic() < deadline, "a worker outlived the command"
        time.sleep(0.05)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "300 rows, 300 images: 0 faulty rows" in done.stdout


def _alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_training_takes_the_verdicts(broken: Path, tiny_llama_dir: Path) -> None:
    looked, said = checks(broken, tiny_llama_dir), []
    manifest = broken / "manifest.json"
    assert left_out(looked, "error", None, broken / "run", said.append) == frozenset()
    diagnose(looked, manifest, 1)
    with pytest.raises(DataFormatError, match=r"13 faulty rows, first row 2: image missing\.jpg does not exist"):
        left_out(looked, "error", manifest, broken / "run", said.append)
    assert left_out(looked, "skip", manifest, broken / "other", said.append) == FAULTY
    assert json.loads((broken / "other/data_manifest.json").read_text()) == json.loads(manifest.read_text())
    assert "19 rows, 7 images: 13 faulty rows" in said[0]
    other = Checks(looked.data_path, looked.image_folder, "v1", tiny_llama_dir, 16, longest=64)
    with pytest.raises(DataFormatError, match="model_max_length differ"):
        left_out(other, "skip", manifest, broken / "run", said.append)
    (broken / "elsewhere").mkdir()
    moved = Checks(looked.data_path, broken / "elsewhere", "v1", tiny_llama_dir, 16, longest=looked.longest)
    with pytest.raises(DataFormatError, match=r"\(images differ\)"):
        left_out(moved, "skip", manifest, broken / "run", said.append)
    (broken / "run").mkdir()
    own = broken / "run/data_manifest.json"
    assert left_out(looked, "skip", None, broken / "run", said.append) == FAULTY
    assert json.loads(own.read_text())["faulty_rows"] == 13
    (broken / "images/whole.png").rename(broken / "images/cut.png")
    assert left_out(looked, "skip", None, broken / "run", said.append) == FAULTY  # a run that goes on keeps its rows
    diagnose(looked, manifest, 1)
    with pytest.raises(DataFormatError, match=r"has 11 faulty rows, this run began with .*, which has 13"):
        left_out(looked, "skip", manifest, broken / "run", said.append)
    (broken / "rows.json").write_text(json.dumps(ROWS[:3]))
    with pytest.raises(DataFormatError, match="data_sha256 differ"):
        left_out(looked, "skip", manifest, broken / "run", said.append)


def test_the_mended_file_never_takes_the_place_of_the_input(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row("a", None)]))
    before = rows.read_bytes()
    with pytest.raises(DataFormatError, match="is --data_path, which would be lost"):
        main(["--data_path", str(rows), "--image_folder", str(tmp_path), "--fix", str(tmp_path / "." / "rows.json")])
    assert rows.read_bytes() == before
