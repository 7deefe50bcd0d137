"""Makes encoder names known inside other code, by one line; each is undone by its counterpart.

    from llava_ohd import tower; tower.register_with_llava()      # before anything of llava is imported

`register_with_llava` gives the original LLaVA our tower, and mends its silent resets (`llava_checkpoints`).

transformers has no register of names for `from_pretrained`, only of model types, so there is nothing to be entered
into. `CLIPVisionModel.from_pretrained(tower.resolve("ours"))` and `tower.vision_model("ours")` need no registration and
are the better way. `register_with_transformers` is for code that cannot be changed: it puts one step before
`from_pretrained` of the CLIP and Auto classes, which replaces a known name by its folder and leaves all else alone.

Source: LLaVA model/builder.py, model/multimodal_encoder/builder.py, model/llava_arch.py @ c121f04.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

from llava_ohd.errors import EncoderNotFound, ModelFormatError, ModelNotFound
from llava_ohd.files import read_json
from llava_ohd.tower import hub
from llava_ohd.tower.encoder_dir import check
from llava_ohd.tower.llava_checkpoints import check_llava_checkpoint, find_encoder
from llava_ohd.tower.names import choices, resolve
from llava_ohd.tower.same_tower import check_geometry
from llava_ohd.tower.vision_tower import OHDVisionTower

__all__ = ["register_with_llava", "register_with_transformers", "unregister_from_llava", "unregister_from_transformers"]

_NAMED_IN_TRANSFORMERS = (
    "AutoConfig",
    "AutoImageProcessor",
    "AutoModel",
    "AutoProcessor",
    "AutoTokenizer",
    "CLIPConfig",
    "CLIPImageProcessor",
    "CLIPImageProcessorPil",
    "CLIPModel",
    "CLIPProcessor",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "CLIPVisionConfig",
    "CLIPVisionModel",
)
_loading: ContextVar[Path | None] = ContextVar("_loading", default=None)
"""The checkpoint that `load_pretrained_model` is loading; the model's config names only the base of a LoRA."""
_undo_llava: list[Callable[[], None]] = []
_undo_transformers: list[Callable[[], None]] = []


def register_with_llava() -> None:
    """Lets the original LLaVA take any encoder name, and never another tower than the one asked for.

    From now on in this process, its `build_vision_tower` returns an `OHDVisionTower` for `ours`, registered names, Hub
    ids, and paths relative to the working directory or to the checkpoint; `load_pretrained_model` raises for a
    checkpoint, also a LoRA or projector on its base, that would not get the tower it means (`check_llava_checkpoint`);
    and `initialize_vision_modules` drops the tower of a base that names another one. Configs then get the encoder's
    full path, so that LLaVA loads the result without this line too. A second call does nothing.

    A Hub id given to `load_pretrained_model` is downloaded whole first, with the encoder that lies in it.

    Raises:
        ModelNotFound: the original code cannot be imported.
    """
    if _undo_llava:
        return
    try:
        from llava.model import builder as models
        from llava.model import llava_arch
        from llava.model.multimodal_encoder import builder
    except ImportError as error:
        raise ModelNotFound(
            f"the original LLaVA cannot be imported ({error}); run inside its environment, with PYTHONPATH=CHECKOUT"
        ) from error
    for module in (builder, llava_arch):
        _replace(module, "build_vision_tower", _build_vision_tower, _undo_llava)
    load = models.load_pretrained_model
    checked = _checked(load)
    for module in list(sys.modules.values()):  # also where it was imported before
        if getattr(module, "__dict__", {}).get("load_pretrained_model") is load:
            _replace(module, "load_pretrained_model", checked, _undo_llava)
    meta = llava_arch.LlavaMetaModel
    _replace(meta, "initialize_vision_modules", _without_stale_tower(meta.initialize_vision_modules), _undo_llava)


def unregister_from_llava() -> None:
    """Gives the original LLaVA its own functions back; models built meanwhile keep their tower."""
    while _undo_llava:
        _undo_llava.pop()()


def register_with_transformers() -> None:
    """Lets `from_pretrained` of the CLIP and Auto classes take `ours`, `openai` and registered names, on any version.

    A name of an existing folder still means that folder. The encoder is checked before it is loaded. A second call does
    nothing.
    """
    import transformers

    if _undo_transformers:
        return
    for name in _NAMED_IN_TRANSFORMERS:
        kind = getattr(transformers, name, None)
        # Two names may be one class (CLIPTokenizerFast since 5.0), which is to be wrapped once.
        if kind is not None and "from_pretrained" in dir(kind) and not hasattr(kind.from_pretrained, "_llava_ohd"):
            _replace(kind, "from_pretrained", classmethod(_by_name(kind)), _undo_transformers)


def unregister_from_transformers() -> None:
    """Gives transformers its own `from_pretrained` back."""
    while _undo_transformers:
        _undo_transformers.pop()()


def _replace(owner: Any, name: str, value: Any, undo: list[Callable[[], None]]) -> None:
    inherited = name not in vars(owner)
    old = None if inherited else vars(owner)[name]
    undo.append((lambda: delattr(owner, name)) if inherited else (lambda: setattr(owner, name, old)))
    setattr(owner, name, value)


def _checked(load: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(load)
    def load_pretrained_model(*arguments: Any, **named: Any) -> Any:
        given = signature(load).bind(*arguments, **named)
        place, base = given.arguments["model_path"], given.arguments["model_base"]
        if "llava" not in given.arguments["model_name"].lower():
            return load(*arguments, **named)
        folder = _on_this_machine(place)
        check_llava_checkpoint(folder, None if base is None else _on_this_machine(base))
        given.arguments["model_path"] = str(folder)
        before = _loading.set(folder)
        try:
            return load(*given.args, **given.kwargs)
        finally:
            _loading.reset(before)

    return load_pretrained_model


def _on_this_machine(checkpoint: str) -> Path:
    """Returns the folder of a checkpoint; one on the Hub is downloaded whole, with the encoder that may lie in it."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    try:
        return hub.whole_snapshot(checkpoint)
    except EncoderNotFound as error:
        raise ModelNotFound(f"{checkpoint} is not a folder, and {error}; download it and give its folder") from error


def _build_vision_tower(vision_tower_cfg: Any, **arguments: Any) -> OHDVisionTower:
    name = getattr(vision_tower_cfg, "mm_vision_tower", getattr(vision_tower_cfg, "vision_tower", None))
    checkpoint = _loading.get() or Path(getattr(vision_tower_cfg, "_name_or_path", "") or ".")
    if _loading.get() is None and arguments.get("delay_load") and (checkpoint / "config.json").is_file():
        _check_config(vision_tower_cfg, checkpoint)
        check_llava_checkpoint(checkpoint)
    return OHDVisionTower(find_encoder(str(name), checkpoint), vision_tower_cfg, **arguments)


def _check_config(config: Any, checkpoint: Path) -> None:
    """Finds a LoRA or projector on its base that was not loaded by our `load_pretrained_model`."""
    stored = read_json(checkpoint / "config.json")
    for key in ("mm_vision_tower", "unfreeze_mm_vision_tower"):
        if (getattr(config, key, None) or None) != (stored.get(key) or None):
            raise ModelFormatError(
                f"{key} is {getattr(config, key, None)!r}, but {stored.get(key)!r} in {checkpoint}/config.json: "
                "another checkpoint is being loaded on this one, by a load_pretrained_model that was imported before "
                "register_with_llava(). Register first, so that the checkpoint can be looked at"
            )


def _without_stale_tower(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def initialize_vision_modules(self: Any, model_args: Any, *arguments: Any, **named: Any) -> None:
        wanted = find_encoder(model_args.vision_tower)
        present = self.get_vision_tower()
        if present is not None and (
            not isinstance(present, OHDVisionTower) or Path(present.vision_tower_name) != wanted.resolve()
        ):
            from llava_ohd.tower.checks import read_config

            check_geometry(present.config, read_config(wanted).vision_config, str(wanted))
            self.vision_tower = None
        original(self, model_args, *arguments, **named)
        self.config.mm_vision_tower = self.get_vision_tower().vision_tower_name

    return initialize_vision_modules


def _by_name(kind: Any) -> Callable[..., Any]:
    original = kind.from_pretrained.__func__

    @wraps(original)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *arguments: Any, **named: Any) -> Any:
        name = pretrained_model_name_or_path
        if isinstance(name, str) and not Path(name).is_dir() and name in choices():
            pretrained_model_name_or_path = str(check(resolve(name)).path)
        return original(cls, pretrained_model_name_or_path, *arguments, **named)

    from_pretrained._llava_ohd = True  # type: ignore[attr-defined]
    return from_pretrained
