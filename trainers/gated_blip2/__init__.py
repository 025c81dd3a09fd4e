"""GatedBLIP2: a BLIP-2 whose Q-Former looks at a picture through its style."""
