"""The settings that every experiment has, with their defaults; a recipe changes what is its own.

Settings outside `run` say what is trained: a work directory belongs to one choice of them. Those in `run` say how, and
may change when a run is resumed.
"""

from ml_collections import ConfigDict

from r3gan_jax import factory


def get_config(algorithm: str = "r3gan") -> ConfigDict:
  """Returns the default settings; those in `gan` are the algorithm's own."""
  config = ConfigDict()
  config.name = ""  # also names the default work directory, runs/<name>
  config.seed = 0  # of initialisation, noise, augmentation and data order
  # A work directory, own or converted, from whose newest checkpoint a new run takes every layer of equal name and
  # shapes: for other data, other classes, another resolution (training/transfer.py).
  config.init_from = ""

  config.algorithm = algorithm
  config.gan = factory.default_settings(algorithm)  # `Settings` of r3gan_jax/algorithms/NAME.py

  config.data = ConfigDict()
  # "tfds": a data set prepared by cli.prepare_data; "folder": a directory or zip of images, all of the configured size;
  # "stacked_mnist"; "stacked_digits"; "generated"
  config.data.source = "tfds"
  config.data.name = ""  # of the prepared data set
  config.data.split = "train"
  config.data.label_key = "label"  # the TFDS feature with the class
  # How prepared images of another size are brought to the resolution: "crop_resize" or "pad" (data/images.py).
  config.data.fit = "crop_resize"
  config.data.resolution = 32
  config.data.channels = 3  # grey images become RGB
  config.data.background = "white"  # under transparent images
  config.data.num_classes = 0  # 0: unconditional
  # Labels in training, the same for every seed; evaluation uses the clean ones (data/relabelled.py).
  config.data.labelled_images = 0  # how many images keep their label, evenly over the classes; 0: all
  config.data.label_noise = 0.0  # the fraction of labels that are redrawn, uniformly from all classes
  config.data.label_noise_pairs = ()  # or from class a to class b only: ((9, 1), (2, 0), ...)
  config.data.x_flip = False  # add mirror images, which doubles the data

  config.batch_size = 256  # over all devices

  config.run = ConfigDict()
  # The directory of prepared data sets ("": TFDS's default), or the folder or zip of images.
  config.run.data_path = ""
  config.run.cache_gib = 4.0  # smaller data sets are decoded once and kept in memory
  config.run.on_corrupt_image = "stop"  # after a save; or "skip": the next image replaces it
  config.run.total_images = 100_000_000
  config.run.log_every_images = 20_000
  config.run.snapshot_every_images = 1_000_000  # sample grid, metrics, checkpoint
  config.run.keep_checkpoints = 3  # the newest ones
  config.run.keep_every_images = 0  # checkpoints at multiples of this are kept, too; 0: none
  # Phase -> images per device and micro-batch; 0: the device's whole part of the batch.
  config.run.micro_batch = ConfigDict(dict.fromkeys(factory.phase_names(algorithm), 0))
  config.run.on_nonfinite = "stop"  # or "rollback" to the last checkpoint, with other noise and data order
  config.run.max_rollbacks = 3
  config.run.peer_timeout_seconds = 100  # seconds without a heartbeat before all processes exit
  config.run.stall_seconds = 3600.0  # a longer iteration, including compilation, ends the process
  config.run.profile = ()  # (first, last) iteration since the start to trace into profile/
  config.run.grid = (16, 16)  # columns, rows
  config.run.grid_scale = 1  # integer upscaling of saved grids
  config.run.grid_channels = False  # show the red, green and blue of each image beside it
  # Computed at every snapshot: "modes" (stacked data only), "fid", "kid", "inception_score", "precision_recall"
  config.run.metrics = ()
  config.run.metric_samples = 50_000
  # The feature network: "inception", "vgg16", or "digits" (cli.train_classifier makes it); "": as in the literature
  config.run.feature_network = ""
  config.run.best_metric = ""  # "fid", "modes_kl", ...: its best checkpoint is kept in best/
  config.run.resize = "tensorflow"  # how images are resized for Inception: metrics/features.py
  # How samples become uint8 in grids and metrics: in "float32", or as in the "official" code, in bfloat16 if G's last
  # stage computes in it: 41 % of values are then one level higher (ops/images.py). Published FIDs need "official".
  config.run.quantisation = "float32"
  config.run.tpu_topology = ""  # a slice that fits the batch without micro-batches (benchmarks/tpu.py)
  return config


def select(config: ConfigDict, variant: str, **variants: object) -> ConfigDict:
  """Returns `config`, locked, after the changes of `variant` ("" for none); every recipe also has `smoke`."""
  choices = {"": lambda config: None, "smoke": make_smoke} | variants
  if variant not in choices:
    raise ValueError(f"config {config.name!r} has no variant {variant!r}: choose from {sorted(filter(None, choices))}")
  choices[variant](config)  # type: ignore[operator]
  if variant:
    config.name += f"_{variant}"
  return config.lock()


def make_smoke(config: ConfigDict) -> None:
  """Shrinks a recipe to a tiny network and a few iterations on generated images, a minute on a CPU."""
  config.data.source = "generated"
  config.gan.update(factory.smoke_settings(config))
  config.data.labelled_images = min(config.data.labelled_images, config.data.num_classes)
  config.batch_size = 8
  config.run.total_images = 64
  config.run.log_every_images = 16
  config.run.snapshot_every_images = 32
  config.run.grid = (4, 2)
  config.run.grid_channels = False
  config.run.metrics = ()
  config.run.best_metric = ""
