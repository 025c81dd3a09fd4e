"""The model: a LLaVA that reads background, objects and text, and what trains in it. Nothing here reads a config."""
