"""The configuration tree."""

from yacs.config import CfgNode

from dassl.config.defaults import cfg_default

__all__ = ["cfg_default", "clean_cfg", "get_cfg_default"]


def get_cfg_default() -> CfgNode:
    """Return a fresh copy of the default configuration."""
    return cfg_default.clone()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop, in place, every child of `cfg.TRAINER` except `NAME` and the node of `trainer` (its name in upper case)."""
    for key in set(cfg.TRAINER) - {"NAME", trainer.upper()}:
        cfg.TRAINER.pop(key)
