"""Trainers registered with Dassl. Importing this package makes sure that a `dassl` can be imported, and registers them all."""

from dassl_host import ensure_dassl

ensure_dassl()

from trainers import compat  # noqa: E402  (the engine must be found first)

compat.apply()

from trainers import evaluators  # noqa: E402, F401  (registers them)
from trainers.bgobj_llava.trainer import BgObjLLaVA  # noqa: E402
from trainers.gated_blip2.trainer import GatedBLIP2  # noqa: E402
from trainers.hybrid_cascade_lafter import HybridCascadeLaFTer  # noqa: E402
from trainers.lafter import LaFTer  # noqa: E402
from trainers.multilayer_lafter import MultiLayerLaFTer  # noqa: E402
from trainers.viecap.trainer import ViECap  # noqa: E402
from trainers.zeroshot_clip import ZeroshotCLIP  # noqa: E402

__all__ = ["BgObjLLaVA", "GatedBLIP2", "HybridCascadeLaFTer", "LaFTer", "MultiLayerLaFTer", "ViECap", "ZeroshotCLIP"]
