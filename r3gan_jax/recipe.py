"""The settings that every recipe has, with their defaults and checks.

Those of a GAN, `config.gan`, are `Settings` in algorithms/NAME.py.
"""

import re
from dataclasses import dataclass
from typing import Any

from r3gan_jax.data.images import FITS
from r3gan_jax.settings import below_one, not_negative, one_of, positive, probability, setting

MAX_IMAGES = 2**31 - 1
"""The largest count of images: `TrainState.images_seen` is an int32."""


def _countable(value: int) -> str:
  return "" if value <= MAX_IMAGES else f"must be at most {MAX_IMAGES:,}"


def _seed(value: int) -> str:
  return "" if 0 <= value < 2**31 else "must be from 0 to 2,147,483,647"


def _wandb_project(value: str) -> str:
  is_one = not value or re.fullmatch(r"([^/\s]+/)?[^/\\#?%:]{1,128}", value)
  return "" if is_one else "must be PROJECT or ENTITY/PROJECT, where PROJECT has none of / \\ # ? % :"


@dataclass(frozen=True)
class Recipe:
  """The settings of a recipe outside its sections `data`, `gan` and `run`."""

  name: str = setting("")  # also names the default work directory, runs/<name>
  seed: int = setting(0, _seed)  # for initialisation, noise, augmentation and data order
  # A work directory whose newest checkpoint initialises all layers with the same name and shapes: for other data,
  # classes or resolutions (training/transfer.py).
  init_from: str = setting("")
  algorithm: str = setting("r3gan")
  batch_size: int = setting(256, positive)  # over all devices


@dataclass(frozen=True)
class Data:
  """config.data: the images and labels."""

  # "tfds": a data set prepared by cli.prepare_data; "folder": a directory or zip of images of the configured size;
  # "images": either, or images of other sizes, which are fitted once; "digits": scikit-learn's, 8x8; "stacked_digits":
  # three of them as R, G and B; "stacked_mnist": so of a prepared data set; "generated";
  # "latents": an autoencoder's latents of images, by cli.prepare_data --encode (data/latents.py)
  source: str = setting("tfds")
  name: str = setting("")  # the prepared data set
  split: str = setting("train")
  label_key: str = setting("label")  # the TFDS feature with the class
  # How prepared images of another size are fitted to the resolution: "crop_resize" or "pad" (data/images.py).
  fit: str = setting("crop_resize", one_of(FITS))
  resolution: int = setting(32, positive)  # the height, in pixels
  width: int = setting(0, not_negative)  # in pixels; 0: square images
  # 1: grey; 3: RGB, also of grey images; 4: RGBA, with colours premultiplied by alpha (data/images.py). Of latents, any
  channels: int = setting(3, positive)
  # Channels of the condition that comes with each image, in data sets by cli.prepare_data --pairs; 0: images alone
  condition_channels: int = setting(0, not_negative)
  bits: int = setting(8, one_of((8, 16)))  # of a channel; 16: grey images in full precision
  background: str = setting("white")  # behind transparent images
  num_classes: int = setting(0, not_negative)  # 0: unconditional
  # Labels in training, the same for every seed; evaluation uses the clean ones (data/relabelled.py).
  labelled_images: int = setting(0, not_negative)  # that keep their label, balanced over the classes; 0: all
  # Labelled images are repeated until they are this share of the training images; 0: as they come.
  labelled_share: float = setting(0.0, below_one)
  label_noise: float = setting(0.0, probability)  # fraction of labels that are redrawn, uniformly from all classes
  # Redraw from class a to class b only: ((9, 1), (2, 0), ...).
  label_noise_pairs: tuple[tuple[int, int], ...] = setting(())
  x_flip: bool = setting(False)  # add mirrored images, which doubles the data
  # Of latents: what they are of, and how samples become images, taken from the data set (data.latents.Numbers)
  latents: dict[str, tuple[float, ...]] = setting({})
  autoencoder_digest: str = setting("")  # of the weights that encoded them
  # Of latents: the images that metrics compare with, a prepared data set by its name, or a directory or zip
  pixels: str = setting("")


def image_size(data: Any) -> tuple[int, int]:
  """Returns (height, width) of the images, in pixels, by `config.data`."""
  return data.resolution, data.get("width", 0) or data.resolution  # a converted snapshot has no width


@dataclass(frozen=True)
class Run:
  """config.run: how a run is carried out. These settings may change when it resumes."""

  # The directory of prepared data sets ("": TFDS's default), or the folder or zip of images.
  data_path: str = setting("")
  # Of latents, what decodes samples: interop/sd_vae.py
  autoencoder: str = setting("hf://stabilityai/sd-vae-ft-mse")
  cache_gib: float = setting(4.0, not_negative)  # smaller data sets are decoded once and kept in memory
  on_corrupt_image: str = setting("stop", one_of(("stop", "skip")))  # save and exit, or use the next image instead
  total_images: int = setting(100_000_000, positive, _countable)
  log_every_images: int = setting(20_000, positive, _countable)
  snapshot_every_images: int = setting(1_000_000, positive, _countable)  # samples, metrics, checkpoint, gan.ema_stds
  keep_checkpoints: int = setting(3, positive)  # the newest
  # Also keep the first checkpoint at or after each multiple of this; 0: none.
  keep_every_images: int = setting(0, not_negative, _countable)
  # Phase -> images per device and micro-batch; 0: the device's whole share of the batch.
  micro_batch: dict[str, int] = setting({}, not_negative)
  # On GPUs and TPUs, halve them until an iteration fits the memory, as its compiler states it: compiles once more.
  fit_memory: bool = setting(False)
  # "rollback" returns to the last checkpoint, and continues with other noise and data.
  on_nonfinite: str = setting("stop", one_of(("stop", "rollback")))
  max_rollbacks: int = setting(3, not_negative)
  peer_timeout_seconds: int = setting(100, positive)  # without a heartbeat before all processes exit
  stall_seconds: float = setting(3600.0, positive)  # a longer iteration (including compilation) ends the process
  # On GPUs, time the algorithms of the grouped convolution for the shapes of the run, once per card, and take the
  # fastest; otherwise XLA's own is taken (training/autotuning.py).
  autotune: bool = setting(True)
  # Also log to this project of Weights & Biases, "PROJECT" or "ENTITY/PROJECT" (training/weights_and_biases.py)
  wandb: str = setting("", _wandb_project)
  profile: tuple[int, ...] = setting(
    (), not_negative
  )  # (first, last) iteration since the start to trace, into profile/
  grid: tuple[int, int] = setting((16, 16), positive)  # columns, rows
  grid_scale: int = setting(1, positive)  # integer upscaling of saved grids
  grid_channels: bool = setting(False)  # show each image's red, green and blue channels beside it
  # Computed at every snapshot: "fid", "fd_dinov2", "kid", "mind", "inception_score", "precision_recall",
  # "density_coverage", "authenticity", "ppl", "modes" (stacked data only), "class_accuracy" and "intra_fid" (of
  # conditional GANs), "cas" (of these, on the test images of prepared data), "classification_error" (of GANs that
  # classify or encode images, on the same), "pairs" (of image_to_image: metrics/pairs.py)
  metrics: tuple[str, ...] = setting(())
  metric_samples: int = setting(50_000, positive)
  # The feature network of most metrics: "inception", "vgg16", "dinov2", "digits" (cli.train_classifier) or "pixels";
  # "": each metric's own
  feature_network: str = setting("")
  best_metric: str = setting("")  # "fid", "modes_kl", ...: its best checkpoint is kept in best/
  resize: str = setting("tensorflow")  # how images are resized for Inception (metrics/features.py)
  # How samples become uint8 in grids and metrics: in "float32", or like the "official" code in bfloat16 if G's last
  # stage computes in it, which makes 41 % of values one level higher (ops/images.py). Published FIDs need "official".
  quantisation: str = setting("float32", one_of(("float32", "official")))
  # The recommended TPU slice, for planning only: the batch fits without micro-batches (benchmarks/tpu.py).
  tpu_topology: str = setting("")
