"""Where the objects of a picture are: detectors, files of boxes, and what the config counts of them."""
