"""ViECap: captions learned from text alone, steered by visual entities.

Importing this package costs nothing; transformers is asked for when a model is built.
"""
