"""Placeholder that tells what to do: the domain-generalisation operators are upstream's."""

raise ImportError(
    "dassl.modeling.ops is not part of the bundled engine; install upstream Dassl "
    "(https://github.com/KaiyangZhou/Dassl.pytorch: `pip install -e . --no-build-isolation` in its checkout) "
    "and set DASSL_HOST=upstream",
    name="dassl.modeling.ops",
)
