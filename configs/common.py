"""The settings of all experiments, with their defaults; a recipe changes some of them.

Settings outside `run` define what is trained and are fixed for a work directory. Those in `run` define how, and may
change when a run resumes.
"""

from ml_collections import ConfigDict

from r3gan_jax import factory


def get_config(algorithm: str = "r3gan") -> ConfigDict:
  """Returns the default settings; those in `gan` are the algorithm's own."""
  config = ConfigDict()
  config.name = ""  # also names the default work directory, runs/<name>
  config.seed = 0  # for initialisation, noise, augmentation and data order
  # A work directory whose newest checkpoint initialises all layers with the same name and shapes: for other data,
  # classes or resolutions (training/transfer.py).
  config.init_from = ""

  config.algorithm = algorithm
  config.gan = factory.default_settings(algorithm)  # `Settings` of r3gan_jax/algorithms/NAME.py

  config.data = ConfigDict()
  # "tfds": a data set prepared by cli.prepare_data; "folder": a directory or zip of images of the configured size;
  # "stacked_mnist"; "stacked_digits"; "generated"
  config.data.source = "tfds"
  config.data.name = ""  # the prepared data set
  config.data.split = "train"
  config.data.label_key = "label"  # the TFDS feature with the class
  # How prepared images of another size are fitted to the resolution: "crop_resize" or "pad" (data/images.py).
  config.data.fit = "crop_resize"
  config.data.resolution = 32
  config.data.channels = 3  # grey images become RGB
  config.data.background = "white"  # behind transparent images
  config.data.num_classes = 0  # 0: unconditional
  # Labels in training, the same for every seed; evaluation uses the clean ones (data/relabelled.py).
  config.data.labelled_images = 0  # number of images that keep their label, balanced over the classes; 0: all
  config.data.label_noise = 0.0  # fraction of labels that are redrawn, uniformly from all classes
  config.data.label_noise_pairs = ()  # redraw from class a to class b only: ((9, 1), (2, 0), ...)
  config.data.x_flip = False  # add mirrored images, which doubles the data

  config.batch_size = 256  # over all devices

  config.run = ConfigDict()
  # The directory of prepared data sets ("": TFDS's default), or the folder or zip of images.
  config.run.data_path = ""
  config.run.cache_gib = 4.0  # smaller data sets are decoded once and kept in memory
  config.run.on_corrupt_image = "stop"  # save and exit; or "skip": use the next image instead
  config.run.total_images = 100_000_000
  config.run.log_every_images = 20_000
  config.run.snapshot_every_images = 1_000_000  # sample grid, metrics, checkpoint
  config.run.keep_checkpoints = 3  # the newest
  config.run.keep_every_images = 0  # also keep checkpoints at multiples of this; 0: none
  # Phase -> images per device and micro-batch; 0: the device's whole share of the batch.
  config.run.micro_batch = ConfigDict(dict.fromkeys(factory.phase_names(algorithm), 0))
  config.run.on_nonfinite = "stop"  # or "rollback" to the last checkpoint, and continue with other noise and data
  config.run.max_rollbacks = 3
  config.run.peer_timeout_seconds = 100  # seconds without a heartbeat before all processes exit
  config.run.stall_seconds = 3600.0  # a longer iteration (including compilation) ends the process
  config.run.profile = ()  # (first, last) iteration since the start to trace, into profile/
  config.run.grid = (16, 16)  # columns, rows
  config.run.grid_scale = 1  # integer upscaling of saved grids
  config.run.grid_channels = False  # show each image's red, green and blue channels beside it
  # Computed at every snapshot: "modes" (stacked data only), "fid", "kid", "inception_score", "precision_recall"
  config.run.metrics = ()
  config.run.metric_samples = 50_000
  # The feature network: "inception", "vgg16" or "digits" (cli.train_classifier); "": each metric's own
  config.run.feature_network = ""
  config.run.best_metric = ""  # "fid", "modes_kl", ...: its best checkpoint is kept in best/
  config.run.resize = "tensorflow"  # how images are resized for Inception (metrics/features.py)
  # How samples become uint8 in grids and metrics: in "float32", or like the "official" code in bfloat16 if G's last
  # stage computes in it, which makes 41 % of values one level higher (ops/images.py). Published FIDs need "official".
  config.run.quantisation = "float32"
  # The recommended TPU slice, for planning only: the batch fits without micro-batches (benchmarks/tpu.py).
  config.run.tpu_topology = ""
  return config


def select(config: ConfigDict, variant: str, **variants: object) -> ConfigDict:
  """Returns `config`, locked, with the changes of `variant` ("" for none); every recipe also has "smoke"."""
  choices = {"": lambda config: None, "smoke": make_smoke} | variants
  if variant not in choices:
    raise ValueError(f"config {config.name!r} has no variant {variant!r}: choose from {sorted(filter(None, choices))}")
  choices[variant](config)  # type: ignore[operator]
  if variant:
    config.name += f"_{variant}"
  return config.lock()


def make_smoke(config: ConfigDict) -> None:
  """Shrinks a recipe to a tiny network and a few iterations on generated images: a minute on a CPU."""
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
