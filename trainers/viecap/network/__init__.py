"""The captioner itself: language model, mapping from CLIP's vectors, prefix and search."""
