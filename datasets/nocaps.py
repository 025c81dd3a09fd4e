"""NoCaps: captions of objects that COCO does not name, for evaluation (H. Agrawal et al., "nocaps", ICCV 2019, CC BY 2.0).

The validation part is public: 4,500 Open Images pictures with ten captions each, in three domains.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY

from datasets.caption_checks import Shown
from datasets.caption_records import CaptionRecord
from datasets.captioning import CaptionDataset

DOMAINS = {"in_domain": 417, "near_domain": 2_670, "out_domain": 1_413}  # pictures


@DATASET_REGISTRY.register()
class NoCaps(CaptionDataset):
    """NoCaps as published or as ViECap's authors prepared it; its `split_name` is the domain.

    `nocaps_val_4500_captions.json` has `domain` per picture, `nocaps_corpus.json` rows of `split`, `image_id` and `caption`.
    Nothing is there to train on: `train_x` is empty.
    """

    usual_folders = ("nocaps", "annotations/nocaps", "NoCaps", "")
    usual_files = ("nocaps_corpus.json", "nocaps_val_4500_captions.json")
    published_sizes = {"test": (4_500, 45_000)}
    evaluation_only = True

    def part_of(self, record: CaptionRecord) -> str | None:
        """Return `test` for the three domains; other words are unknown."""
        return "test" if domain_of(record) in DOMAINS else None

    def complete(self, record: CaptionRecord) -> CaptionRecord:
        """Add the folder of the domain, where ViECap's authors put the pictures."""
        return replace(record, images=(*record.images, *(f"{domain_of(record)}/{name}" for name in record.images)))

    def split_name(self, record: CaptionRecord, part: str) -> str:
        """Return the domain: in_domain, near_domain or out_domain."""
        return domain_of(record)

    def deviations(self, parts: Mapping[str, Sequence[Shown]]) -> list[str]:
        """Return a line per size that is not the published one, the domains' included."""
        counts = Counter(domain_of(record) for _, record in parts.get("test", ()))
        lines = [
            f"{domain} has {counts[domain]:,} pictures; published are {published:,}"
            for domain, published in DOMAINS.items()
            if counts[domain] != published
        ]
        return super().deviations(parts) + lines


def domain_of(record: CaptionRecord) -> str:
    """Return a row's domain in one spelling: published files have `in-domain` and `in_domain`."""
    return record.split.lower().replace("-", "_")
