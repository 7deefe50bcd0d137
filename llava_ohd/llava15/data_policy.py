"""What training does with a faulty row: stop, or leave it out, by the doctor's verdicts."""

from collections.abc import Callable
from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.files import locked, read_json, sha256_file, write_json
from llava_ohd.llava15.diagnosis import diagnose, summary
from llava_ohd.llava15.examination import Checks
from llava_ohd.llava15.rows import FAULTS

__all__ = ["left_out"]


def left_out(
    checks: Checks, policy: str, manifest: Path | None, folder: Path, say: Callable[[str], None]
) -> frozenset[int]:
    """Returns the rows that training leaves out.

    Args:
        checks: What training reads.
        policy: `error`: a faulty row ends the run. `skip`: it is left out, and its number is in the manifest.
        manifest: Made by the doctor; None: policy `skip` makes one in `folder`, policy `error` needs none.
        folder: Output folder of the training; it keeps the manifest: a run that goes on leaves out the same rows.
        say: Gets the lines to print.

    Raises:
        DataFormatError: policy `error` and a faulty row, or the manifest is of another file or other settings, or names
            other rows than when the run began.
    """
    if manifest is None and policy == "error":
        return frozenset()  # the rows are read anyway, and an image that cannot be read ends the run
    own = folder / "data_manifest.json"
    if manifest is None:
        with locked(own):  # one of the ranks that share the disk makes it
            record = diagnose(checks, own, keep=True)
    else:
        record = read_json(manifest)
        looked_at = {"data_sha256": sha256_file(checks.data_path), "images": str(checks.image_folder.resolve())}
        expected = looked_at | checks.settings()
        found = record.get("made_from", {})
        if found.get("tokenizer_sha256") is None:
            expected |= {"tokenizer_sha256": None, "image_tokens": found.get("image_tokens")}
        if other := [key for key, value in expected.items() if found.get(key) != value]:
            raise DataFormatError(
                f"{manifest} was made for other data or settings ({', '.join(other)} differ); run python -m "
                "llava_ohd.llava15.doctor again"
            )
    faults = {finding["row"]: finding for finding in reversed(record["findings"]) if finding["kind"] in FAULTS}
    if faults and policy == "error":
        first = faults[min(faults)]
        raise DataFormatError(
            f"{checks.data_path}: {len(faults)} faulty rows, first row {first['row']}: {first['text']}. Mend them (the "
            "doctor's --fix writes a file without them), or give --data_policy skip"
        )
    with locked(own):
        if not own.is_file():
            write_json(own, record)
    began = {finding["row"] for finding in read_json(own)["findings"] if finding["kind"] in FAULTS}
    if began != faults.keys():
        raise DataFormatError(
            f"{manifest} has {len(faults)} faulty rows, this run began with {own}, which has {len(began)}; give that "
            "manifest to go on, or another --output_dir"
        )
    for line in summary(record):
        say(line)
    return frozenset(faults)
