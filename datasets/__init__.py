"""Data sets registered with Dassl. Import this package from entry points only: its name is Hugging Face's elsewhere."""
from dassl_host import ensure_dassl

ensure_dassl()

from datasets import handwritten_digits  # noqa: E402  (the engine must be found first)

__all__ = ["handwritten_digits"]
