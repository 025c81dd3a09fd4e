"""What is learned from: captions as vectors and tokens in files, and the loader that batches them."""
