"""BgObjLLaVA: LLaVA with a background/object token split and a background cache.

Importing this package costs nothing; transformers and peft are asked for when a model is built.
"""
