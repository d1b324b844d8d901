"""Photographs that scikit-learn and scikit-image ship, and their objects."""

import dataclasses
import importlib.util
import pathlib

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A photograph that a package ships.

  Attributes:
    package: name of the package.
    file: path of the photograph in the package.
    setting: what every crop shows.
    credit: author and licence, as the package states them.
    objects: names of objects, and their boxes as shares of width and height.
  """

  package: str
  file: str
  setting: str
  credit: str
  objects: tuple[tuple[str, Box], ...] = ()

  @property
  def distribution(self) -> str:
    """Name by which pip knows the package."""
    return DISTRIBUTIONS[self.package]


DISTRIBUTIONS = {"sklearn": "scikit-learn", "skimage": "scikit-image"}
BY = "Creative Commons BY 2.0 (creativecommons.org/licenses/by/2.0)"
ZERO = "Creative Commons CC0"

SHIPPED = (
  Photograph(
    "sklearn",
    "datasets/images/china.jpg",
    "trees at a lake",
    f"danielbuechele, flickr.com/photos/danielbuechele/6061409035, {BY}",
    (("a pagoda", (0.1, 0.05, 0.58, 0.92)),),
  ),
  Photograph(
    "sklearn",
    "datasets/images/flower.jpg",
    "dark green leaves",
    f"vultilion, flickr.com/photos/vultilion/6056698931, {BY} (the package "
    "names danielbuechele too)",
    (("an orange flower", (0.26, 0.2, 0.69, 0.84)),),
  ),
  Photograph(
    "skimage",
    "data/astronaut.png",
    "a portrait",
    "Eileen Collins, by NASA, flic.kr/p/r9qvLn, public domain",
    (
      ("an astronaut in orange", (0.04, 0.03, 0.7, 1.0)),
      ("a space shuttle", (0.7, 0.0, 0.92, 0.5)),
      ("a black helmet", (0.55, 0.67, 1.0, 1.0)),
    ),
  ),
  Photograph(
    "skimage", "data/brick.png", "grey bricks", f"CC0Textures, Bricks25, {ZERO}"
  ),
  Photograph(
    "skimage",
    "data/camera.png",
    "a park in black and white",
    f"Lav Varshney, {ZERO}",
    (
      ("a man in a dark coat", (0.0, 0.12, 0.6, 1.0)),
      ("a camera on a tripod", (0.45, 0.27, 0.79, 1.0)),
    ),
  ),
  Photograph(
    "skimage",
    "data/chelsea.png",
    "a blurred background",
    f"Stefan van der Walt, {ZERO}",
    (("a brown cat", (0.0, 0.0, 0.84, 1.0)),),
  ),
  Photograph(
    "skimage",
    "data/coffee.png",
    "a wooden table",
    f"Rachel Michetti, courtesy of Pikolo Espresso Bar, {ZERO}",
    (
      ("a cup of coffee", (0.29, 0.04, 0.69, 0.6)),
      ("a red saucer", (0.13, 0.15, 0.79, 0.96)),
    ),
  ),
  Photograph(
    "skimage",
    "data/coins.png",
    "old coins in black and white",
    "Greek coins from Pompeii, Brooklyn Museum Collection, "
    "brooklynmuseum.org/opencollection/archives/image/51611, no known "
    "copyright restrictions",
  ),
  Photograph(
    "skimage",
    "data/grass.png",
    "grass in black and white",
    f"linolafett, DeviantArt, Grass 01, {ZERO}",
  ),
  Photograph(
    "skimage",
    "data/gravel.png",
    "grey gravel",
    f"CC0Textures, Gravel04, {ZERO}",
  ),
  Photograph(
    "skimage",
    "data/hubble_deep_field.jpg",
    "galaxies in a dark sky",
    "Hubble eXtreme Deep Field, by NASA, hubblesite.org, public domain",
  ),
  Photograph(
    "skimage",
    "data/retina.jpg",
    "the retina of an eye",
    "Mikael Häggström, Wikimedia Commons, "
    f"Fundus_photograph_of_normal_left_eye.jpg, {ZERO} 1.0",
  ),
  Photograph(
    "skimage",
    "data/rocket.jpg",
    "towers under a dark blue sky",
    "Falcon 9 with DSCOVR, by SpaceX, flickr.com/photos/spacexphotos/"
    "16511594820, public domain",
    (("a rocket", (0.47, 0.3, 0.53, 1.0)),),
  ),
)


def installed() -> dict[Photograph, pathlib.Path]:
  """Returns the photographs of installed packages, and their files."""
  photographs = {}
  for photograph in SHIPPED:
    package = importlib.util.find_spec(photograph.package)
    if package is None or package.origin is None:
      continue
    path = pathlib.Path(package.origin).parent / photograph.file
    if path.exists():
      photographs[photograph] = path
  return photographs
