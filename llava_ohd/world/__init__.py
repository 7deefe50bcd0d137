"""The embedded world: rendered multi-object scenes in COCO format, and two mini models that live in them."""
