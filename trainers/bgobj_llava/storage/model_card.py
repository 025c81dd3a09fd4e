"""The README.md of an exported model: what it is, how to load it, and whose licences bind it."""

from __future__ import annotations

from pathlib import Path

from trainers.bgobj_llava.storage.composition import Composition

CODE_LICENCE = "Apache-2.0 (this package)"
BASE_LICENCES = {
    "tiny_llava": "trained from scratch by this package on its own drawings; Apache-2.0",
    "llava-hf/llava-1.5-7b-hf": "Llama 2 Community License (https://ai.meta.com/llama/license/)",
    "llava-hf/llava-1.5-13b-hf": "Llama 2 Community License (https://ai.meta.com/llama/license/)",
}
DETECTOR_LICENCES = {
    "precomputed": "boxes came with the data or from a side file: the licence of whatever made them",
    "rtdetr": "RT-DETR in transformers, code Apache-2.0; weights: see their own card",
    "dfine": "D-FINE in transformers, code Apache-2.0; weights: see their own card",
    "ultralytics": "ultralytics, code and published weights AGPL-3.0",
    "bgsub": "background subtraction of this package, Apache-2.0; no weights",
    "random": "none: random rectangles",
    "none": "none",
}
USE = {
    "hf": """This is a plain LLaVA folder: LoRA is merged, and the separators are rows of the embedding.

```python
from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```

Used like that it sees whole images in stock order. The split itself - background and object tokens encoded apart, background
first, between its separators - and the background cache need the package.""",
    "peft": """This is a PEFT adapter (LoRA, projector, separator rows) for the base model.

```python
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

base = LlavaForConditionalGeneration.from_pretrained(BASE)
model = PeftModel.from_pretrained(base, FOLDER)
```

Used like that it sees whole images in stock order; the split and the background cache need the package.""",
    "composition": """This is what was trained, for the base model that `adapter.json` names by its fingerprint.

```python
from trainers.bgobj_llava.model.llava import BgObjLlava

model = BgObjLlava.from_pretrained(FOLDER)  # base="..." if it lies elsewhere now
```""",
}


def write_model_card(folder: Path, composition: Composition, form: str) -> None:
    """Write README.md.

    Args:
        folder: Of the export.
        composition: What was exported.
        form: `hf`, `peft` or `composition`.
    """
    (folder / "README.md").write_text(format_model_card(composition, form), "utf-8")


def format_model_card(composition: Composition, form: str) -> str:
    """Return the text of the card."""
    node, record, base = composition.settings, composition.adapter.record, composition.loaded.base
    scores = ", ".join(f"{name} {value:.4g}" for name, value in record["scores"].items()) or "none were measured"
    detector = DETECTOR_LICENCES[node.DET.BACKEND]
    shape = "padded to a square in the mean colour" if node.IMAGE.ASPECT == "pad" else "cropped to a square"
    return f"""---
license: other
base_model: {base.id}
pipeline_tag: image-text-to-text
---

# BgObjLLaVA on {base.id}

LLaVA whose background and object patches are encoded without seeing one another; the language model reads the background first,
so that a known background need not be read again.

- split `{node.SPLIT}`, separators `{node.SEP.STYLE}`, positions `{node.POSITION}`, projector `{node.PROJECTOR}`
- trained: `{node.TRAIN.SCOPE}`, {record["epoch"]} epoch(s); scores at that time: {scores}
- base model: `{base.id}`, fingerprint `{base.fingerprint}`
- images: {shape}, {composition.loaded.side_px} px

{USE[form]}

## Licences

- code: {CODE_LICENCE}
- base weights: {BASE_LICENCES.get(base.id, "those of the base model; see its own card")}
- detector (`{node.DET.BACKEND}`): {detector}

A merged or adapted model is derived from the base weights and stays under their licence.
"""
