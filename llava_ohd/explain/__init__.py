"""Which word of a caption does not fit its image: CLIP4DM attributions, and scores made of them."""
