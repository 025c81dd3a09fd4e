"""The tests of BgObjLLaVA's ladder: as `train.py` does them, but groups may be hidden, questions fewer, or the code stock."""
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from in_process_runs import trained
from ladder_figures import read_predictions
from torch.utils.data import DataLoader, Subset


def spread(total: int, limit: int) -> list[int]:
    """Return `limit` indices as whole runs of neighbours, since questions about one image are neighbours; all if it is 0."""
    if not limit or limit >= total:
        return list(range(total))
    block = 20
    starts = range(0, total - block + 1, max(block, total * block // limit))
    return [index for start in starts for index in range(start, start + block)][:limit]


class StockAnswers:
    """Hugging Face's LLaVA as it is: `generate` on token ids and pixels, greedy.

    Args:
        trainer: Says which model, and holds the loader.
        timed: One question at a time, with the time to the first token; otherwise whole batches.
    """

    def __init__(self, trainer: Any, *, timed: bool) -> None:
        from transformers import AutoTokenizer, LlavaForConditionalGeneration

        from trainers.bgobj_llava.model.prompt import PromptTemplate
        from trainers.bgobj_llava.storage.loading import find_folder

        folder = find_folder(trainer.cfg.MODEL.BACKBONE.NAME, trainer.settings.REVISION)
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval().to(trainer.device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.template, self.timed = PromptTemplate(), timed
        self.n_patches = (trainer.loaded.side_px // trainer.loaded.patch_px) ** 2
        self.limit = trainer.settings.GEN.MAX_NEW_TOKENS

    @torch.no_grad()
    def __call__(self, batch: Any) -> list[dict[str, Any]]:
        """Answer a parsed test batch."""
        size = 1 if self.timed else len(batch.questions)
        rows: list[dict[str, Any]] = []
        for first in range(0, len(batch.questions), size):
            rows += self._answer(batch.images[first : first + size], batch.questions[first : first + size])
        return rows

    def _answer(self, images: torch.Tensor, questions: list[str]) -> list[dict[str, Any]]:
        texts = [self.template.write([(question, None)])[0] for question in questions]
        texts = [text.replace(self.template.image, self.template.image * self.n_patches) for text in texts]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True).to(images.device)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"pixel_values": images}
        length, facts = inputs["input_ids"].shape[1], [{} for _ in texts]
        if self.timed:
            started = time.perf_counter()
            self.model.generate(**inputs, max_new_tokens=1, do_sample=False)
            facts[0]["seconds_to_first"] = time.perf_counter() - started
        ids = self.model.generate(**inputs, max_new_tokens=self.limit, do_sample=False)[:, length:]
        rows = [{"answer": self._decode(row), "truncated": self._is_cut(row)} for row in ids]
        return [row | fact for row, fact in zip(rows, facts, strict=True)]

    def _decode(self, ids: torch.Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _is_cut(self, ids: torch.Tensor) -> bool:
        return self.tokenizer.eos_token_id not in ids.tolist()


def run_test(words: Sequence[str], *, visible: Sequence[str], limit: int = 0, stock: bool = False) -> None:
    """Test as `train.py --eval-only` does with these arguments, with changes.

    Args:
        words: Arguments of `train.py`.
        visible: Groups of image tokens that the language model sees, of bg and obj.
        limit: Ask this many questions, one at a time; 0 = all, in batches.
        stock: transformers' own model and `generate` answer, with nothing of this package but the square canvas and the
            prompt's words.
    """
    with trained(words) as trainer:
        trainer.model.visible = frozenset(visible)
        loader, settings = trainer.test_loader, trainer.cfg.DATALOADER.TEST
        chosen = Subset(loader.dataset, spread(len(loader.dataset), limit))
        trainer.test_loader = DataLoader(
            chosen, batch_size=1 if limit else settings.BATCH_SIZE, collate_fn=loader.collate_fn
        )  # fmt: skip
        if stock:
            trainer.model_inference = StockAnswers(trainer, timed=bool(limit))
        trainer.test()
        if limit and not stock:
            write_costs(trainer, Path(trainer.cfg.OUTPUT_DIR))


def write_costs(trainer: Any, folder: Path) -> None:
    """Write costs.json: mean operations of questions with a hit, over those of the stock model (None without hits)."""
    from trainers.bgobj_llava.cost import CostModel, Request

    costs, encoder, ratios = CostModel(trainer.loaded.model.config, trainer.options), trainer.system.encoder, []
    for row in read_predictions(folder / "predictions.jsonl"):
        if row["hit"]:
            text = encoder.encode([(row["question"], None)])
            request = Request(row["n_bg"], row["n_obj"], len(text.prefix), len(text.rest))
            ratios.append(costs.request(row["hit"], request).total / costs.request("stock", request).total)
    mean = sum(ratios) / len(ratios) if ratios else None
    (folder / "costs.json").write_text(json.dumps({"hits": len(ratios), "warm_over_stock": mean}) + "\n", encoding="utf-8")
