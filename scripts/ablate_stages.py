"""What each part of HybridCascadeLaFTer is worth: the full model, without each stage, with simpler aggregation, and so on.

    python scripts/ablate_stages.py --seeds 1 2 3 4 5 --output output/ablation

Runs on HandwrittenDigits with a preset of the trainer, one change per row. An interrupted table goes on where it stopped.
"""
from __future__ import annotations

import sys

from row_runs import ROOT, Row, build_parser, make_table

sys.path.insert(0, str(ROOT))

from clip_ext.loader import load_clip  # noqa: E402
from clip_ext.stages import resolve_stages  # noqa: E402
from trainers.config_merge import read_yaml  # noqa: E402

TRAINER = ("HybridCascadeLaFTer", "hybrid_cascade_lafter")


def build_rows(config: str) -> list[Row]:
    """Return the rows for a preset of the trainer, the full model first; stages follow from its backbone's depth."""
    settings = {s.key: s.value for s in read_yaml(str(ROOT / "configs" / "trainers" / TRAINER[1] / f"{config}.yaml"))[0]}
    node = f"TRAINER.{TRAINER[0].upper()}"
    depth = load_clip(settings["MODEL.BACKBONE.NAME"]).info.depth
    scheme, given = settings.get(f"{node}.STAGE_SCHEME", "auto"), settings.get(f"{node}.STAGES", ())
    stages = [list(stage) for stage in resolve_stages("hybrid", depth, scheme=scheme, stages=given)]
    changes = {
        "full": (),
        **{f"without blocks {_name(stage)}": (".STAGES", str([s for s in stages if s is not stage])) for stage in stages[:-1]},
        # No tower may end before its last block, so that one stays.
        f"last stage is block {depth} alone": (".STAGES", str([*stages[:-1], [depth]])),
        f"only blocks {_name(stages[-1])}": (".STAGES", str(stages[-1:])),
        "last block of each stage": (".NGA_MODE", "last"),
        "mean of each stage": (".NGA_MODE", "mean"),
        "free weights in each stage": (".NGA_MODE", "free"),
        "no consistency": (".CONS_WEIGHT", "0.0"),
        "deep supervision": (".DEEP_SUPERVISION", "1.0"),
        "fusion starts uniform": (".FUSION_INIT", "uniform"),
        "deepest stage decides alone": (".FUSION", "last"),
    }
    return [Row(title, *TRAINER, pairs, config) for title, pairs in changes.items() if pairs != (".STAGES", str(stages))]


def _name(stage: list[int]) -> str:
    return f"{stage[0]}-{stage[-1]}" if len(stage) > 1 else str(stage[0])


def main() -> None:
    parser = build_parser(__doc__, "output/ablation")
    parser.add_argument("--config", default="tiny12", help="preset in configs/trainers/hybrid_cascade_lafter")
    args = parser.parse_args()
    make_table(build_rows(args.config), args)


if __name__ == "__main__":
    main()
