"""OHD-Caps: one caption per image and the captions that are wrong about it; readers, builder, controls."""
