"""The extended CLIP: towers, stages, texts, heads and losses in pure torch.

Nothing here knows a config node, a registry or a data set; every function takes plain typed arguments.
Shape letters used in comments and docstrings: B batch, C classes, T texts, L tokens with CLS, P prompt tokens,
N patch tokens, S stages, K taps, D width, E joint embedding size. Transformer blocks are numbered from 1.
"""
