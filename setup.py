"""Packaging: what is installed, what it needs. Tool settings live in pyproject.toml.

`datasets/` is left out on purpose: in site-packages that name is Hugging Face's, ours is used from the checkout.
"""
import re
from pathlib import Path

from setuptools import find_packages, setup

# The newest changelog entry is the version, so that the two can never disagree.
VERSION = re.search(r"^## (\d+\.\d+\.\d+)", Path(__file__).with_name("CHANGELOG.md").read_text("utf-8"), re.M).group(1)

EXTRAS = {
    # Language models; textblob and nltk find the nouns of captions.
    "vlm": ["transformers>=5.10", "accelerate", "peft>=0.18", "textblob>=0.18", "nltk>=3.9.1"],
    "data": ["gdown", "h5py"],  # fetching and reading published data sets
    "dev": ["pytest", "pytest-xdist", "onnx", "onnxscript", "onnxruntime"],
    # Not in `all`: another licence (AGPL), a 100 MB download, or a GPU.
    "yolo": ["ultralytics-opencv-headless"],
    "java": ["pycocoevalcap"],
    "quant": ["bitsandbytes"],
    "gpu": ["kornia"],
}
EXTRAS["all"] = EXTRAS["vlm"] + EXTRAS["data"] + EXTRAS["dev"]

setup(
    name="dassl-vlm",
    version=VERSION,
    description="Vision-language trainers for Dassl: label-free CLIP tuning that runs from a fresh clone",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    packages=find_packages(
        include=["clip_ext", "clip_ext.*", "trainers", "trainers.*", "dassl_host", "dassl_host.*"]
    ),
    package_data={
        "clip_ext": ["model_configs/*.json", "assets/*", "texts/**/*.json"],
        "trainers.bgobj_llava": ["assets/*.json", "assets/*/*"],
        "trainers.viecap": ["assets/*/*"],
        "trainers.gated_blip2": ["assets/*.json", "assets/*/*"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "open_clip_torch>=3.3",
        "pillow",
        "yacs",
        "PyYAML",
        "tqdm",
        "tabulate",
        "scikit-learn",
        "safetensors",
        "tensorboard",
        "matplotlib",
    ],
    extras_require=EXTRAS,
)
