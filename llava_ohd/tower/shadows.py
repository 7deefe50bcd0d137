"""Files and settings that some loaders obey and others do not, so that not every LLaVA would have the tower checked.

| what                                      | who reads it                                                    |
|-------------------------------------------|-----------------------------------------------------------------|
| adapter_config.json                       | `from_pretrained`, where peft is installed: applies the adapter |
| shards of safetensors                     | transformers, before pytorch_model.bin                          |
| image processor in processor_config.json  | transformers 5, before preprocessor_config.json                 |
| quantization_config, transformers_weights | `from_pretrained`: other weights than those in the file         |
| auto_map                                  | `Auto...` classes: code that comes with the folder              |

Source: transformers 4.37.2, 4.57.6, 5.23.0: modeling_utils.py `from_pretrained`, `_get_resolved_checkpoint_files`,
integrations/peft.py `maybe_load_adapters`; image_processing_base.py `get_image_processor_dict`.
"""

from pathlib import Path
from typing import Any

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.record import read_object

__all__ = ["check_settings", "check_shadows"]

_FILES = {
    "adapter_config.json": "from_pretrained would put that adapter on the tower; import the adapter itself, which "
    "merges it (`python -m llava_ohd.tower import`), or remove the file",
    "model.safetensors.index.json": "transformers may load those shards in the place of the file checked here; make "
    "one file of them with `python -m llava_ohd.tower import`, or remove the index",
}
_SETTINGS = {
    "quantization_config": "the weights would be used in another type than they are stored in",
    "transformers_weights": "versions of transformers from 4.57 on would load the file that it names",
    "auto_map": "code that comes with the folder would be used in the place of transformers' own",
}


def check_shadows(folder: Path) -> None:
    """Looks for files beside the checked ones that some loader would prefer.

    Raises:
        EncoderFormatError: there is one; the message names it.
    """
    for name, why in _FILES.items():
        if (folder / name).exists():
            raise EncoderFormatError(f"{folder / name} does not belong into an encoder folder: {why}")
    file = folder / "processor_config.json"
    if file.exists() and (inside := read_object(file, "damaged encoder folder").get("image_processor")) is not None:
        other = read_object(folder / "preprocessor_config.json", "incomplete encoder folder")
        if not isinstance(inside, dict):
            raise EncoderFormatError(f"{file}: image_processor is {inside!r}; an object is expected")
        if wrong := sorted(key for key in other.keys() & inside.keys() if other[key] != inside[key]):
            raise EncoderFormatError(
                f"{file} has image_processor.{wrong[0]} {inside[wrong[0]]!r}, preprocessor_config.json has "
                f"{other[wrong[0]]!r}: transformers 5 reads the first, older versions the second. Remove the file"
            )


def check_settings(place: str, part: dict[str, Any]) -> None:
    """Looks for settings that make a loader do something else than to load the weights as they are.

    Args:
        place: File, or part of it, for the message.
        part: The object.

    Raises:
        EncoderFormatError: there is one; the message names it.
    """
    for name, why in _SETTINGS.items():
        if part.get(name):
            raise EncoderFormatError(f"{place}: {name} is {part[name]!r}: {why}; remove it and store plain weights")
