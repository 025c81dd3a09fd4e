"""ViECap: captions learned from text alone, steered by visual entities.

Paper: https://arxiv.org/abs/2307.16525. A caption's CLIP text vector with noise stands in for an image in training; in use the
image's own vector takes its place, and the entities of the hard prompt are retrieved. The published language model keeps its
own licence. Here captions come in batches of similar length, and scores are computed where there are labels only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from dassl.data.datasets import Datum
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from clip_ext.loader import LoadedClip
from trainers import precision
from trainers.accumulation import WeightedLosses
from trainers.adapters import prune_epochs
from trainers.run_identity import check_identity
from trainers.schedules import build_linear_warmup
from trainers.tuned import TunedTrainer
from trainers.viecap import checks, identity, prepare, settings
from trainers.viecap.caption_store.loader import CaptionBatch, CaptionLoader, LazyCaptionLoader
from trainers.viecap.caption_store.training_captions import captions_of, problems_with_items
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.corpus import Corpus
from trainers.viecap.data import CaptionData, Pictures, distinct_images, target_of
from trainers.viecap.network.mapping import soft_input
from trainers.viecap.progress import ProgressMeter, peak_memory
from trainers.viecap.storage.artifact import ArtifactFacts, find_artifact, write_artifact
from trainers.viecap.storage.export import Exporter
from trainers.viecap.storage.vocabulary_file import Vocabulary
from trainers.viecap.storage.weights import load_weights

if TYPE_CHECKING:
    from trainers.viecap.caption_store.store import CaptionStore
    from trainers.viecap.network.captioner import Captioner
    from trainers.viecap.storage.loading import LoadedCaptioner

logger = logging.getLogger(__name__)

BEST_MODEL = "model-best.pth.tar"  # Dassl's name
METRIC = "CIDEr"  # selects the best epoch
OUT_OF_MEMORY = (
    "the GPU's memory is full. Remedies, in this order: TRAINER.VIECAP.PREC bf16 (or amp); TRAINER.VIECAP.USING_CLIP_FEATURES "
    "True; DATALOADER.TRAIN_X.BATCH_SIZE 40 with TRAINER.VIECAP.GRAD_ACCUM 2; TRAINER.VIECAP.LOADER.PLACEMENT host"
)


@TRAINER_REGISTRY.register()
class ViECap(TunedTrainer):
    """Learns to caption from sentences, and captions the pictures of the val and test splits."""

    registered_name = "viecap"
    resumes_mid_epoch = True
    lazy_guard = True
    zero_window = 20
    constant_window = 20
    waits_for_scaler = True
    schedule_per_update = True

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        return super().config_problems(cfg) + checks.find_problems(cfg)

    # Data

    def build_data_loader(self) -> None:
        """Build Dassl's loaders of pictures, and a loader of training text that opens its store when it is first used."""
        cfg, node = self.cfg, self.settings
        self.prec = precision.resolve_precision(node.PREC, self.device)
        self.clip_source = ClipSource(cfg.MODEL.BACKBONE.NAME, self.device)
        self.dm = CaptionData(cfg, node.EVAL.VAL_LIMIT)
        data = self.dm.dataset
        problems = problems_with_items([*data.train_x, *(data.val or []), *(data.test or [])], cfg.DATASET.NAME)
        if problems:
            raise ValueError("\n".join(problems))
        self.val_loader, self.test_loader = self.dm.val_loader, self.dm.test_loader
        self.num_classes, self.lab2cname = self.dm.num_classes, self.dm.lab2cname
        self.num_source_domains, self.train_loader_u = self.dm.num_source_domains, None
        batch_size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.corpus = Corpus(data.train_x, node, seed=cfg.SEED, batch_size=batch_size, clip=self.clip_source)
        enough = len(self.corpus) >= batch_size
        self.train_loader_x = LazyCaptionLoader(len(self.corpus), batch_size, self._open_loader) if enough else ()
        for line in getattr(data, "caption_report", ()):
            logger.info("%s", line)
        n_val, n_test = len(data.val or []), len(data.test or [])
        logger.info("Captions to learn: %d; pictures: %d val, %d test", len(self.corpus), n_val, n_test)

    def order_batches(self, loader: Any) -> Any:
        """Return the loader as it is: its order is a function of seed, epoch and batch already."""
        return loader

    def _open_loader(self) -> CaptionLoader:
        return self.corpus.build_loader(self.store, self._text, position=self.mid_epoch.position, device=self.device)

    def has_target(self, item: Datum) -> bool:
        """Whether an item has a reference caption."""
        return any(caption.strip() for caption in captions_of(item))

    def data_problems(self) -> list[str]:
        """See `TunedTrainer`."""
        return super().data_problems() + checks.find_data_problems(self.cfg, len(self.corpus), self._total_steps)

    @property
    def clip(self) -> LoadedClip:
        """The CLIP, loaded when it is first asked for."""
        return self.clip_source.loaded

    # Model

    def build_model(self) -> None:
        """Build the model, register what trains, and say what was built."""
        from trainers.viecap import building

        node, d_clip = self.settings, self.clip_source.identity.embed_dim
        self.system = building.build_system(node, d_clip, self.device)
        self.model = self.system.model
        logger.info("%s", building.describe_system(self.system, node, d_clip))
        self.register_trainables(self.system.trainables, self.system.groups)
        for group in self.optim.param_groups:
            group["eps"], group["fused"] = node.ADAM_EPS, True
        self.progress = ProgressMeter(node.LOG_PER_EPOCH)
        self.store: CaptionStore | None = None
        self.vocabulary: Vocabulary | None = None
        self.exporter: Exporter | None = None

    @property
    def _total_steps(self) -> int:
        return -(-len(self.train_loader_x) // self.settings.GRAD_ACCUM) * self.cfg.OPTIM.MAX_EPOCH

    def build_scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the linear warm-up and decay; see `WARMUP_STEPS`. Too few steps are refused before training."""
        warmup = self.settings.WARMUP_STEPS
        return build_linear_warmup(self.optim, warmup_steps=warmup, total_steps=max(self._total_steps, warmup + 1))

    def set_model_mode(self, mode: str = "train", names: Any = None) -> None:
        """Switch the model as well: the registered module holds its parameters only."""
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")

    # Training

    def before_train(self) -> None:
        """Open the store, go on where an interrupted run was, and write everything of the artefact but weights."""
        self.check_data()
        self._open_store()
        eos_id = self.system.eos_id if self.settings.STOP == "eos" else None
        self._text = self.corpus.build_text(self.store, self.system.prompts, eos_id)
        longest = self._text.max_hard + int(self._text.captions.lengths.max())
        self.model.check_length(settings.soft_tokens(self.settings) + longest)
        self.vocabulary = self._build_vocabulary()
        super().before_train()
        self._start_artifact()

    def _open_store(self) -> CaptionStore:
        if self.store is None:
            self.store = self.corpus.open_store(self.system.tokenizer)
        return self.store

    def _build_vocabulary(self) -> Vocabulary | None:
        node = self.settings
        if not node.USING_HARD_PROMPT:
            return None
        nouns = self.corpus.count_nouns(self._open_store()) if node.NAME_OF_ENTITIES_TEXT == "corpus" else None
        return prepare.prepare_vocabulary(
            node.NAME_OF_ENTITIES_TEXT, node.PATH_OF_ENTITIES_TEXT, clip=self.clip_source, ensemble=node.PROMPT_ENSEMBLE,
            single_word=node.SINGLE_WORD_ENTITIES, corpus_nouns=nouns, cache_dir=prepare.CACHE_DIR,
        )  # fmt: skip

    def _start_artifact(self) -> None:
        node, run = self.settings, Path(self.output_dir)
        facts = ArtifactFacts(
            settings.all_settings(node), self.system.language_model,
            *prepare.prepare_clip_facts(self.clip_source, cache_dir=prepare.CACHE_DIR), stop_ids=sorted(self.system.stop_ids),
        )  # fmt: skip
        write_artifact(
            run, facts, save_tokenizer=self.system.tokenizer.save_pretrained, vocabulary=self.vocabulary,
            keeps_epochs=self.start_epoch > 0,
        )  # fmt: skip
        self.exporter = Exporter(run, settings.export_plan(node, self.max_epoch))

    def before_epoch(self) -> None:
        """Start the epoch's sums, unless the epoch goes on where an interrupted run was."""
        super().before_epoch()
        if not self.mid_epoch.position().batches_done:
            self.progress.restart()

    def parse_batch_train(self, batch: CaptionBatch) -> CaptionBatch:
        """Return the batch: it is on the device already."""
        return batch

    def compute_losses(self, batch: CaptionBatch) -> WeightedLosses:
        """See `TunedTrainer`; summed over caption tokens."""
        vectors = None if batch.features is None else self._disturb(batch.features, batch.noise_seed)
        with self.autocast():
            loss = self.model.loss(vectors, batch.ids, batch.n_hard, batch.n_caption)
        n_captions, soft = len(batch.ids), settings.soft_tokens(self.settings)
        real = int((batch.n_hard + batch.n_caption).sum()) + n_captions * soft
        self.progress.add(
            loss.total, n_tokens=loss.n_tokens, n_captions=n_captions, n_real=real,
            n_positions=n_captions * (soft + batch.ids.shape[1]),
        )  # fmt: skip
        return WeightedLosses({"caption_loss": loss.total}, loss.n_tokens)

    def _disturb(self, features: Tensor, seed: int) -> Tensor:
        """Return what the mapping network learns from, with this batch's noise."""
        node, noise = self.settings, torch.Generator(self.device).manual_seed(seed)
        return soft_input(
            features, variance=node.NOISE_VARIANCE, normalise=node.NORMALIZE_PREFIX, rescale=node.NOISE_RESCALE, generator=noise
        )

    def forward_backward(self, batch: CaptionBatch | None) -> dict[str, float] | None:
        """See `TunedTrainer`; also logs the mean loss `LOG_PER_EPOCH` times."""
        try:
            summary = super().forward_backward(batch)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(f"{error}\n{OUT_OF_MEMORY}") from error
        if batch is not None and self.progress.is_due(self.batch_idx, self.num_batches):
            self._log_progress()
        return summary

    def summarise(self, total: Tensor, losses: Any) -> dict[str, float] | None:
        """See `SteppingTrainer`; the loss also has its name."""
        summary = super().summarise(total, losses)
        return None if summary is None else summary | {"caption_loss": summary["loss"]}

    def _log_progress(self) -> None:
        self.check_losses()
        stretch, skipped, memory = self.progress.close(), self.skipped_updates, peak_memory(self.device)
        logger.info(
            "epoch %d, batch %d of %d: mean loss %.4f, %.0f captions/s, %.0f tokens/s, padding %.1f %%, %d skipped updates, "
            "peak memory %.2f GB", self.epoch + 1, self.batch_idx + 1, self.num_batches, stretch.loss,
            stretch.captions_per_second, stretch.tokens_per_second, 100 * stretch.padding_share, skipped, memory,
        )  # fmt: skip
        step = self.epoch * self.num_batches + self.batch_idx
        for tag, value in (stretch.scalars() | {"train/skipped_updates": skipped, "train/peak_memory_gb": memory}).items():
            self.write_scalar(tag, value, step)

    def after_epoch(self) -> None:
        """Export and validate, then Dassl's part, which validates for `best_val` and saves the resume file."""
        test, finished = self.cfg.TEST, self.epoch + 1
        self.exporter.export(finished, self.model)
        is_due = finished % self.settings.EVAL.VAL_EVERY == 0 and self.can_be_tested(self.dm.dataset.val or [])
        if test.FINAL_MODEL != "best_val" and not test.NO_TEST and is_due:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.exporter.export(finished, self.model, is_best=True)
        super().after_epoch()

    # State

    def extra_state(self) -> dict[str, Any]:
        """See `TunedTrainer`."""
        return super().extra_state() | {"identity": self._identity(), "progress": self.progress.state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `TunedTrainer`.

        Raises:
            ValueError: If the run was another one: store, language model, CLIP, seed, batch size, epochs or prompts (all).
        """
        check_identity(state["identity"], self._identity())
        super().load_extra_state(state)
        self.progress.load_state(state["progress"], self.device)

    def _identity(self) -> dict[str, Any]:
        return identity.describe(self.cfg, self.clip_source.identity, self.system, self.store)

    def save_model(self, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        """Write Dassl's resume file, of the newest epoch only; the best epoch is exported instead."""
        if kwargs.get("model_name") == BEST_MODEL and self.exporter is not None:
            self.exporter.export(epoch + 1, self.model, is_best=True)
            return
        super().save_model(epoch, directory, *args, **kwargs)
        prune_epochs(Path(directory, self.registered_name), "last", f"model.pth.tar-{epoch + 1}")

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load exported weights, strictly.

        Args:
            directory: Run folder, or a weights file in it.
            epoch: Finished epochs; None: the best on validation, else the last.
        Raises:
            FileNotFoundError: If there is no trained run, or no such epoch.
            ValueError: If keys of the model or the CLIP are not the run's: every difference.
        """
        from trainers.viecap.storage.loading import choose_vocabulary

        artifact = find_artifact(directory)
        identity.check_artifact(artifact, self.settings, self.clip_source)
        load_weights(self.model, artifact.find_weights(epoch))
        self.vocabulary = choose_vocabulary(artifact, self.settings, self.clip_source, cache_dir=prepare.CACHE_DIR)

    @classmethod
    def load_captioner(cls, cfg: CfgNode, place: Path, epoch: int | None = None) -> LoadedCaptioner:
        """Load what captions images from a run's artefact, without a trainer; see `trainers/prediction/captions.py`."""
        from trainers.viecap.storage.loading import load_captioner

        device = torch.device("cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu")
        node, clip_name = cfg.TRAINER[cls.node_name()], cfg.MODEL.BACKBONE.NAME
        return load_captioner(
            place, epoch=epoch, node=node, clip_name=clip_name, device=device, seed=cfg.SEED, cache_dir=prepare.CACHE_DIR
        )

    # Test

    def test(self, split: str | None = None) -> float | None:
        """Caption a split and score it; a validation (`split="val"`) is greedy and stops at `EVAL.VAL_LIMIT` pictures.

        Without pictures nothing is tested, and None is returned.
        """
        is_validation, data = split == "val", self.dm.dataset
        uses_val = (split or self.cfg.TEST.SPLIT) == "val" and self.val_loader is not None
        loader = (self.dm.validation_loader if is_validation else self.val_loader) if uses_val else self.test_loader
        if loader is None:
            logger.info("Test skipped: %s has no pictures. Captions come from\npython predict.py --model-dir %s --input IMAGES "
                        "--output captions.jsonl", self.cfg.DATASET.NAME, self.cfg.OUTPUT_DIR)  # fmt: skip
            return None
        self.start_captions(loader, "val" if uses_val else "test", greedy=is_validation)
        full, self.val_loader = self.val_loader, loader if uses_val else self.val_loader
        try:
            result = super().test(split)
        finally:
            self.val_loader, self._captioner = full, None
        if is_validation and self.exporter is not None and data.val and result is not None:
            self.exporter.export(self.epoch + 1, self.model, scores={METRIC: result})
        return result

    def start_captions(self, loader: DataLoader, split: str, *, greedy: bool) -> None:
        """Get ready for the pictures of a loader.

        Args:
            loader: Of the val or test split.
            split: val or test.
            greedy: Whether `DECODE` is set aside.
        """
        self._ready_images(loader, split)
        self.set_model_mode("eval")
        self._captioner = self._build_captioner(greedy=greedy)
        self._tested_items: Sequence[Datum] = loader.dataset.data_source
        self._tested_split = split

    def _ready_images(self, loader: DataLoader, split: str) -> None:
        """Give a loader the stored features of its pictures, or CLIP's preprocessing to open them."""
        rows = loader.dataset
        if not self.settings.USING_IMAGE_FEATURES:
            rows.transform = self.clip.preprocess
        elif rows.features is None:
            files = distinct_images(rows.data_source)
            table = prepare.prepare_images(
                list(files.values()), list(files), split, clip=self.clip_source, cache_dir=prepare.CACHE_DIR,
                batch=self.cfg.DATALOADER.TEST.BATCH_SIZE, workers=self.cfg.DATALOADER.NUM_WORKERS,
            )  # fmt: skip
            rows.features = table.find([target_of(item)["image_id"] for item in rows.data_source])

    def _build_captioner(self, *, greedy: bool) -> Captioner:
        from trainers.viecap.storage.loading import build_captioner

        if self.vocabulary is None and self.settings.USING_HARD_PROMPT:
            self.vocabulary = self._build_vocabulary()
        options = settings.decode_options(self.settings, self.system.stop_ids, self.cfg.SEED)
        return build_captioner(
            self.model, self.system.tokenizer, self.settings, options=settings.greedy(options) if greedy else options,
            vocabulary=self.vocabulary, encode_images=self.clip_source.encode_images,
        )  # fmt: skip

    def parse_batch_test(self, batch: dict) -> tuple[Pictures, dict[str, list[Any]]]:
        """Return what is captioned, on the device, and what the evaluator compares captions with."""
        rows = batch["index"].tolist()
        targets = [target_of(self._tested_items[index]) for index in rows]
        inputs = batch["features"] if "features" in batch else batch["img"]
        columns = {name: [target[name] for target in targets] for name in targets[0]}
        return Pictures(inputs.to(self.device), rows), columns | {"split": [self._tested_split] * len(targets)}

    def model_inference(self, input: Pictures) -> list[str]:
        """Return one caption per picture."""
        return [row.caption for row in self._captioner.caption(input.inputs, input.rows)]
