"""The settings of every experiment, with defaults; each recipe changes what is its own.

Settings outside `run` say what is trained: a work directory belongs to one choice of them. Those in `run` say how it
is carried out and may change when a run is resumed.
"""

from ml_collections import ConfigDict

from r3gan_jax import factory


def get_config(algorithm: str = "r3gan") -> ConfigDict:
  """All settings, of no experiment in particular; those in `gan` are the algorithm's own."""
  config = ConfigDict()
  config.name = ""  # also names the default work directory, runs/<name>
  config.seed = 0  # of initialisation, noise, augmentation and data order
  # A work directory, own or converted, whose newest parameters a new run begins with, wherever layers agree in name and
  # shapes: on other data, of other classes, at another resolution (training/transfer.py).
  config.init_from = ""

  config.algorithm = algorithm
  config.gan = factory.default_settings(algorithm)  # its own settings: `Settings` of r3gan_jax/algorithms/NAME.py

  config.data = ConfigDict()
  # "tfds": a prepared data set (cli/prepare_data.py makes them); "folder": a directory or zip of images, all of the
  # configured size; "stacked_mnist", "stacked_digits"; "generated"
  config.data.source = "tfds"
  config.data.name = ""  # of a prepared data set
  config.data.split = "train"
  config.data.label_key = "label"  # the feature that holds the class
  # How a prepared data set's images of another size come to the resolution: "crop_resize" or "pad" (data/images.py).
  config.data.fit = "crop_resize"
  config.data.resolution = 32
  config.data.channels = 3  # grey images become RGB
  config.data.background = "white"  # under transparent images
  config.data.num_classes = 0  # 0: unconditional
  # Labels to train on, the same for every seed; evaluation has the clean ones (data/relabelled.py).
  config.data.labelled_images = 0  # so many keep their label, evenly over the classes; 0: all
  config.data.label_noise = 0.0  # the share of labels that are redrawn, evenly from all classes
  config.data.label_noise_pairs = ()  # or only those of a first class, as its second: ((9, 1), (2, 0), ...)
  config.data.x_flip = False  # double the data by mirror images

  config.batch_size = 256  # over all devices

  config.run = ConfigDict()
  # Where the data are: the directory of prepared data sets ("": TFDS's default), or the folder or zip of images.
  config.run.data_path = ""
  config.run.cache_gib = 4.0  # a data set that takes no more memory than this is decoded once and kept
  config.run.on_corrupt_image = "stop"  # save, and stop; or "skip": the next image takes its place
  config.run.total_images = 100_000_000
  config.run.log_every_images = 20_000
  config.run.snapshot_every_images = 1_000_000  # grid, metrics, checkpoint
  config.run.keep_checkpoints = 3  # newest
  config.run.keep_every_images = 0  # also keep checkpoints at multiples of this; 0: none
  # Phase -> images a device handles at a time; 0: all of its part of the batch.
  config.run.micro_batch = ConfigDict(dict.fromkeys(factory.phase_names(algorithm), 0))
  config.run.on_nonfinite = "stop"  # or "rollback": to the last checkpoint, with other noise and another data order
  config.run.max_rollbacks = 3
  config.run.peer_timeout_seconds = 100  # a process that has not been heard of for so long ends all
  config.run.stall_seconds = 3600.0  # an iteration that takes longer, its compilation included, ends the process
  config.run.profile = ()  # first and last iteration, counted from the start, to trace into profile/
  config.run.grid = (16, 16)  # columns, rows
  config.run.grid_scale = 1  # pixels a pixel
  config.run.grid_channels = False  # show each image's red, green and blue beside it, in grey
  # At every snapshot: "modes" (of stacked data), "fid", "kid", "inception_score", "precision_recall"
  config.run.metrics = ()
  config.run.metric_samples = 50_000
  # What sees the images for these: "inception", "vgg16", or "digits", of cli.train_classifier; "": the literature's.
  config.run.feature_network = ""
  config.run.best_metric = ""  # "fid", "modes_kl", ...: keep the checkpoint with the best one, in best/
  config.run.resize = "tensorflow"  # how images come to Inception's size: metrics/features.py
  # How samples become uint8, for grids and metrics: in "float32", or as the "official" code does, whose arithmetic is
  # bfloat16 where G's last stage is: 41 % of values are then one level higher (ops/images.py). For published FIDs.
  config.run.quantisation = "float32"
  return config


def select(config: ConfigDict, variant: str, **variants: object) -> ConfigDict:
  """`config`, changed by the function named `variant` ("" for none); every recipe also has `smoke`."""
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
