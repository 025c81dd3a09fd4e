"""Words: nouns of captions, entities, vocabularies, the prompts that name them, and which a picture retrieves."""
