"""Reads captions in COCO's format: NoCaps with its domains, and COCO's own caption files without their instances.

The paper takes NoCaps' out-of-domain part (images whose objects COCO does not know).

Source: https://nocaps.org/download (nocaps_val_4500_captions.json); arXiv 2410.03176 section 3
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.ohd_caps.coco import CocoImage, read_captions

__all__ = ["ALL", "OUT_OF_DOMAIN", "read_captions_file"]

OUT_OF_DOMAIN = "out-domain"
ALL = "all"


def read_captions_file(path: Path, record: Mapping[str, Any], part: str | None) -> list[CocoImage]:
    """Reads `images` and `annotations` with captions; images that name a domain are those of NoCaps.

    Args:
        path: For messages.
        record: What the file holds.
        part: NoCaps: `in-domain`, `near-domain`, `out-domain` (default) or `all`. COCO: None.

    Raises:
        DataFormatError: another format, no image of that domain, or a part asked of a file without domains.
    """
    try:
        domains = {row["id"]: row.get("domain") for row in record["images"]}
        files = {row["id"]: str(row["file_name"]) for row in record["images"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataFormatError(f"{path}: {error} is missing; images with id and file_name are expected") from None
    known = sorted({str(domain) for domain in domains.values() if domain is not None})
    if part is not None and not known:
        raise DataFormatError(f"{path} has no parts, but {part!r} is asked for; leave --part out")
    wanted = (part or OUT_OF_DOMAIN) if known else ALL
    kept = [key for key, domain in domains.items() if wanted in (ALL, domain)]
    if not kept:
        raise DataFormatError(f"{path} has no image of the part {wanted!r}; its parts are {', '.join(known)} and {ALL}")
    captions = read_captions(path, record)
    return [CocoImage(files[key], (), tuple(captions[key])) for key in kept if key in captions]
