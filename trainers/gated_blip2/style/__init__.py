"""The style of a picture: a frozen EfficientNet, the files it comes from, and the names of what it tells apart."""
