"""What a run leaves: weights, vocabulary and tokenizer; how they are found and read, also those of the public code."""
