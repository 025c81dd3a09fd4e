"""The flags of the original ViECap's command lines: their names, what they are without being given, and the keys they set."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

NODE = "TRAINER.VIECAP"


@dataclass(frozen=True)
class Flag:
    """One flag of the original.

    Attributes:
        name: Without dashes.
        kind: Type of its value; bool for a switch.
        default: What it is if it is not given; None: nothing is set.
        key: Configuration key that takes the value as it is; "" where translation needs more, or other flags.
        means: For the help.
    """

    name: str
    kind: type
    default: Any
    key: str = ""
    means: str = ""

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add it to a parser."""
        text = self.means or self.key
        if self.kind is bool:
            parser.add_argument(f"--{self.name}", action="store_true", default=self.default, help=text)
        else:
            shown = "" if self.default in (None, "") else f" (default {self.default})"
            parser.add_argument(f"--{self.name}", type=self.kind, default=self.default, help=f"{text}{shown}")


def _key(name: str) -> str:
    return f"{NODE}.{name.upper()}"


# What the model is: chosen in training, and compared with the run afterwards.
MODEL = (
    Flag("clip_project_length", int, 10, _key("clip_project_length")),
    Flag("continuous_prompt_length", int, 10, _key("continuous_prompt_length")),
    Flag("max_num_of_entities", int, 10, _key("max_num_of_entities")),
    Flag("prompt_template_length", int, 5, _key("prompt_template_length")),
    Flag("num_layers", int, 8, _key("num_layers")),
    Flag("normalize_prefix", int, 1, _key("normalize_prefix"), "0 or 1"),
    Flag("clip_model", str, "ViT-B/32", "MODEL.BACKBONE.NAME"),
    Flag("language_model", str, "gpt2", _key("language_model")),
    Flag("using_hard_prompt", bool, False, _key("using_hard_prompt")),
    Flag("soft_prompt_first", bool, False, _key("soft_prompt_first")),
    Flag("only_hard_prompt", bool, False, _key("only_hard_prompt")),
    Flag("is_rn", bool, False, "", "nothing: the width is read from the CLIP"),
)
TRAIN = (
    Flag("bs", int, 80, "DATALOADER.TRAIN_X.BATCH_SIZE"),
    Flag("lr", float, 2e-5, "OPTIM.LR"),
    Flag("epochs", int, 15, "OPTIM.MAX_EPOCH"),
    Flag("device", str, "cuda:0", "", "cuda:N, N or cpu"),
    Flag("random_mask", bool, False, _key("random_mask")),
    Flag("prob_of_random_mask", float, 0.4, _key("prob_of_random_mask")),
    Flag("noise_variance", float, 0.016, _key("noise_variance")),
    Flag("using_clip_features", bool, False, _key("using_clip_features")),
    Flag("debug", bool, False, "", "1,000 captions, no warm-up"),
    Flag("few_shot_ratio", float, 1.0, _key("few_shot_ratio")),
    Flag("save_every", int, 1, _key("save_every")),
    Flag("prefix", str, "coco_prefix", _key("prefix")),
    Flag("path_of_datasets", str, "./annotations/coco/coco_with_entities.pickle", "", "captions, or a store of them"),
    Flag("out_dir", str, "./checkpoints", "OUTPUT_DIR"),
    Flag("name_of_objects_vocabs", str, "visual_genome_entities", _key("name_of_objects_vocabs")),
    Flag("path_of_objects_vocabs", str, "", "", "its file; default: the original's place below annotations/vocabulary"),
    Flag("frozen_gpt", bool, False, _key("frozen_gpt")),
    Flag("num_workers", int, 0, "DATALOADER.NUM_WORKERS"),
    Flag("use_amp", bool, False, "", f"{_key('prec')}: bf16 where the GPU has it, else amp"),
    Flag("disable_random_seed", bool, False, "", "SEED -1"),
    Flag("random_seed", int, 30, "", "SEED"),
    *MODEL,
)  # fmt: skip
# What eval and infer share. Without a flag of the model the run's own value holds.
USE = (
    Flag("device", str, "cuda:0", "", "cuda:N, N or cpu"),
    Flag("weight_path", str, "./checkpoints/train_coco/coco_prefix-0014.pt", "", "run folder, or a weights file in it"),
    Flag("temperature", float, 0.01, _key("temperature")),
    Flag("top_k", int, 3, _key("top_k")),
    Flag("disable_all_entities", bool, False, _key("single_word_entities")),
    Flag("name_of_entities_text", str, "vinvl_vgoi_entities", _key("name_of_entities_text")),
    Flag("path_of_entities_text", str, "", "", "its file; default: the original's place below annotations/vocabulary"),
    Flag("prompt_ensemble", bool, False, _key("prompt_ensemble")),
    Flag("using_greedy_search", bool, False, "", f"{_key('decode')} greedy"),
    Flag("beam_width", int, 5, _key("beam_width")),
    Flag("text_prompt", str, None, "", "refused: it is for OPT only"),
    *(Flag(each.name, each.kind, None, each.key, each.means) for each in MODEL),
)
EVAL = (
    Flag("threshold", float, 0.4, _key("threshold")),
    Flag("using_image_features", bool, False, _key("using_image_features")),
    Flag("name_of_datasets", str, "coco", "", "coco, flickr30k or nocaps"),
    Flag("path_of_val_datasets", str, "./annotations/coco/val_captions.json", "", "what is captioned and compared with"),
    Flag("image_folder", str, "./annotations/coco/val2014/", "", "DATASET.CAPTION.IMAGES"),
    Flag("out_path", str, None, "", "OUTPUT_DIR; default: the run"),
    Flag("debug", bool, False, "", "nothing, as in the original"),
    *USE,
)
INFER = (
    Flag("threshold", float, 0.2, _key("threshold")),
    Flag("image_path", str, "./images", "", "an image or a folder"),
    Flag("out_path", str, None, "", "file to write; default: predictions.jsonl beside the images"),
    *USE,
)
COMMANDS = {"train": TRAIN, "eval": EVAL, "infer": INFER}
# Files of the original's vocabularies, below annotations/vocabulary; that of coco_entities is shipped. A pickle's converted
# .json stands in for it.
VOCABULARY_FILES = {
    "vinvl_vgoi_entities": "vgcocooiobjects_v1_class2ind.json",
    "vinvl_vg_entities": "VG-SGG-dicts-vgoi6-clipped.json",
    "open_image_entities": "oidv7-class-descriptions-boxable.csv",
    "visual_genome_entities": "all_objects_attributes_relationships.pickle",
}


def build_parser(description: str) -> argparse.ArgumentParser:
    """Return the command line: the original's flags, and a few of ours."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    for name, flags in COMMANDS.items():
        command = commands.add_parser(name, allow_abbrev=False)
        for flag in flags:
            flag.add_to(command)
        add = command.add_argument
        if name != "infer":
            add("--dataset_config_file", metavar="YAML", default="", help="data set instead of the one that paths name")
            add("--config_file", metavar="YAML", default="", help="recipe for all that no flag says")
        add("--log_dir", metavar="DIR", default="", help="also write what is printed there")
        add("--offline", action="store_true", help="never ask a model hub for anything")
        add("--dry_run", action="store_true", help="only print the command")
        add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings, after all flags; they win")
    return parser
