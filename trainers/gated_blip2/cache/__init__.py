"""What the frozen towers say about each picture, computed once and kept on disk."""
