"""Which files are read, which are skipped, and how they are described."""

import os
import pickle
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from helpers.image_files import write_images, zip_directory
from PIL import Image

from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import CorruptImage, Decoder, to_array
from r3gan_jax.data.survey import describe, survey
from r3gan_jax.errors import UserError


@contextmanager
def as_somebody_else():
  """Drops root's right to read everything."""
  user = os.geteuid()
  if user == 0:
    os.seteuid(65534)
  try:
    yield
  finally:
    if user == 0:
      os.seteuid(0)


def line(path):
  files = ImageFiles(path)
  return describe(files, survey(files), "no classes", Decoder(3))


def test_hidden_and_system_files_are_skipped(tmp_path):
  """A zip made on a Mac has `__MACOSX/cat/._1.png`, which is not an image, beside `cat/1.png`."""
  images = tmp_path / "images"
  write_images(images / "cat", 2)
  for name in ("__MACOSX/cat/._00000.png", "cat/._00001.png", ".trash/a.png", "cat/.ipynb_checkpoints/b.png", ".c.png"):
    (images / name).parent.mkdir(parents=True, exist_ok=True)
    (images / name).write_bytes(b"Mac OS X")
  for path in (images, zip_directory(images, tmp_path / "images.zip")):
    files = ImageFiles(path)
    assert files.names == ["cat/00000.png", "cat/00001.png"]
    assert set(files.passed_over) == {"hidden"}


def test_skipped_files_are_counted_by_suffix(tmp_path):
  write_images(tmp_path / "images", 1)
  for name in ("readme.txt", "notes.TXT", "model.pkl", "0001", "archive.tar.gz"):
    (tmp_path / "images" / name).write_bytes(b"x")
  for path in (tmp_path / "images", zip_directory(tmp_path / "images", tmp_path / "images.zip")):
    expected = {"*.txt": 2, "*.pkl": 1, "*.gz": 1, "without suffix": 1}
    assert ImageFiles(path).passed_over == expected
    assert line(path).endswith("passed over: 2 *.txt, 1 without suffix, 1 *.gz, 1 *.pkl")


@pytest.mark.parametrize("suffix", ["jfif", "JPG", "jpe", "bmp", "tif", "TIFF", "gif", "webp", "png", "ppm", "avif"])
def test_all_formats_of_pillow_are_read(tmp_path, suffix):
  images = write_images(tmp_path, 1, suffix=suffix)
  files = ImageFiles(tmp_path)
  image = to_array(Decoder(3)(files.read(0), files.title(0)))
  assert files.names == [f"00000.{suffix}"] and image.shape == (8, 8, 3)
  if suffix.lower() in ("bmp", "tif", "tiff", "webp", "png", "ppm"):
    np.testing.assert_array_equal(image, images[0])


def test_circular_links_are_skipped(tmp_path):
  write_images(tmp_path / "images" / "cat" / "small", 2)
  for index, target in enumerate(("../..", "..", ".", "../../..", "/", "small/back0")):
    (tmp_path / "images" / "cat" / f"back{index}").symlink_to(target)
  (tmp_path / "images" / "cat" / "small" / "back0").symlink_to("../small")
  (tmp_path / "images" / "itself").symlink_to("itself")
  files = ImageFiles(tmp_path / "images")
  assert files.names == ["cat/small/00000.png", "cat/small/00001.png"]
  assert sum(count for kind, count in files.passed_over.items() if "linked" in kind) == 8


def test_links_to_elsewhere_are_followed_once(tmp_path):
  write_images(tmp_path / "elsewhere", 2)
  (tmp_path / "images").mkdir()
  for name in ("a", "b"):
    (tmp_path / "images" / name).symlink_to("../elsewhere")
  (tmp_path / "images" / "one.png").symlink_to("../elsewhere/00000.png")
  (tmp_path / "images" / "none.png").symlink_to("nowhere.png")
  files = ImageFiles(tmp_path / "images")
  assert files.names == ["a/00000.png", "a/00001.png", "one.png"]
  assert files.passed_over == {"linked a second time": 1, "linked to nothing": 1}


def test_a_directory_is_preferred_to_a_link_to_it(tmp_path):
  write_images(tmp_path / "z", 1)
  (tmp_path / "a").symlink_to("z")
  assert ImageFiles(tmp_path).names == ["z/00000.png"]


def test_pipes_do_not_hang(tmp_path):
  write_images(tmp_path / "images", 1)
  os.mkfifo(tmp_path / "images" / "pipe.png")
  assert ImageFiles(tmp_path / "images").passed_over == {"not a regular file": 1}
  with pytest.raises(UserError, match="neither a directory nor a zip"):
    ImageFiles(tmp_path / "images" / "pipe.png")


def test_directories_that_cannot_be_read_are_counted(tmp_path):
  write_images(tmp_path / "a", 1)
  write_images(tmp_path / "b", 1)
  for directory in (tmp_path, *tmp_path.parents[:3]):  # pytest makes them for this user alone
    directory.chmod(directory.stat().st_mode | 0o011)
  tmp_path.chmod(0o755)
  (tmp_path / "b").chmod(0)
  with as_somebody_else():
    files = ImageFiles(tmp_path)
  assert files.names == ["a/00000.png"] and files.passed_over == {"unreadable (directory)": 1}
  tmp_path.chmod(0)
  with as_somebody_else(), pytest.raises(UserError, match="Permission denied"):
    ImageFiles(tmp_path)
  tmp_path.chmod(0o755)
  (tmp_path / "b").chmod(0o755)


def test_special_members_of_a_zip_are_skipped(tmp_path):
  write_images(tmp_path / "images", 1)
  path = zip_directory(tmp_path / "images", tmp_path / "images.zip")
  with zipfile.ZipFile(path, "a") as archive:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(link, "00000.png")
    archive.mkdir("nothing")
  assert ImageFiles(path).passed_over == {"not a regular file": 1, "empty (directory)": 1}


def test_names_as_windows_writes_them(tmp_path):
  images = write_images(tmp_path / "images" / "cat", 2)
  with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
    for index in range(2):
      file = tmp_path / "images" / "cat" / f"{index:05}.png"
      archive.write(file)
      archive.filelist[-1].filename = ("cat\\00000.png", "./cat/00001.png")[index]
      archive.NameToInfo[archive.filelist[-1].filename] = archive.filelist[-1]
  files = ImageFiles(tmp_path / "images.zip")
  assert files.names == ["cat/00000.png", "cat/00001.png"] and not files.passed_over
  np.testing.assert_array_equal([to_array(Decoder(3)(files.read(i), "")) for i in range(2)], images)


def test_the_last_member_of_a_name_is_read(tmp_path):
  first, second = write_images(tmp_path / "a", 1), write_images(tmp_path / "b", 1, first=9)
  with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
    archive.write(tmp_path / "a" / "00000.png", "x.png")
    with pytest.warns(UserWarning, match="Duplicate name"):
      archive.write(tmp_path / "b" / "00009.png", "x.png")
  files = ImageFiles(tmp_path / "images.zip")
  assert files.passed_over == {"older of the same name": 1} and (first != second).any()
  np.testing.assert_array_equal(to_array(Decoder(3)(files.read(0), "")), second[0])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_whose_checksum_is_wrong_is_not_decoded(tmp_path, compression):
  """BMP has no checksum of its own."""
  write_images(tmp_path / "images", 3, suffix="bmp")
  path = zip_directory(tmp_path / "images", tmp_path / "images.zip", compression)
  with zipfile.ZipFile(path) as archive:
    start = archive.getinfo("00001.bmp").header_offset
  data = bytearray(path.read_bytes())
  data[start + 100] ^= 1
  path.write_bytes(data)
  files = ImageFiles(path)
  assert files.read(0) and files.read(2)
  with pytest.raises(CorruptImage, match=r"^00001.bmp in .*images.zip is damaged"):
    files.read(1)
  assert len(survey(files).corrupt) == 1


def test_names_that_are_not_utf8_are_refused(tmp_path):
  write_images(tmp_path, 1)
  os.rename(tmp_path / "00000.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
  with pytest.raises(UserError, match=r"caf\\udce9.png in .* not UTF-8: rename it"):
    ImageFiles(tmp_path)


def test_unsupported_compression_matters_only_for_images(tmp_path):
  write_images(tmp_path, 1)
  for name, message in (("notes.txt", None), ("0.png", "0.png in .* is encrypted, or compressed")):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
      archive.write(tmp_path / "00000.png", "00000.png")
      archive.writestr(name, b"x" * 100, zipfile.ZIP_BZIP2)
    if message is None:
      assert len(ImageFiles(tmp_path / "images.zip")) == 1
    else:
      with pytest.raises(UserError, match=message):
        ImageFiles(tmp_path / "images.zip")


@pytest.mark.parametrize("packed", [False, True])
def test_fingerprints_depend_on_the_contents(tmp_path, packed):
  def fingerprints():
    path = zip_directory(tmp_path / "images", tmp_path / "images.zip") if packed else tmp_path / "images"
    return ImageFiles(path).fingerprints()

  write_images(tmp_path / "images", 3, suffix="bmp")
  before = fingerprints()
  (tmp_path / "images" / "00001.bmp").touch()
  assert fingerprints() == before
  file = tmp_path / "images" / "00001.bmp"
  file.write_bytes(file.read_bytes()[:-1] + b"x")  # of equal size
  after = fingerprints()
  assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_the_description_has_sizes_channels_and_transparency(tmp_path):
  write_images(tmp_path / "images", 2)
  write_images(tmp_path / "images", 1, side=16, channels=1, first=2)
  (tmp_path / "images" / "broken.png").write_bytes(b"no image")
  Image.new("RGBA", (24, 12)).save(tmp_path / "images" / "logo.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by 90 degrees
  Image.new("RGB", (40, 20)).save(tmp_path / "images" / "turned.jpg", exif=exif)
  assert line(tmp_path / "images") == (
    f"6 images in {tmp_path / 'images'}: 8x8 to 20x40, 3 RGB, 1 grey, 1 RGB with alpha, 1 transparent, put over white, "
    "1 damaged; no classes; passed over: nothing"
  )


def test_threads_and_processes_read_a_zip_concurrently(tmp_path):
  images = write_images(tmp_path / "images", 64)
  files = pickle.loads(pickle.dumps(ImageFiles(zip_directory(tmp_path / "images", tmp_path / "images.zip"))))
  expected = [files.read(index) for index in range(64)]
  with ThreadPoolExecutor(8) as threads:
    assert list(threads.map(files.read, [*range(64)] * 20)) == expected * 20
  assert len(images) == len(files)


def test_a_file_that_disappears_is_named(tmp_path):
  write_images(tmp_path, 2)
  files = ImageFiles(tmp_path)
  (tmp_path / "00001.png").unlink()
  with pytest.raises(UserError, match=r"^cannot read 00001.png in .*: No such file or directory$"):
    files.read(1)
