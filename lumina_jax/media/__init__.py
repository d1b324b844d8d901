"""The media: the only rooms that know what a picture or a sound is."""

from lumina_jax.files.suggest import check_name
from lumina_jax.media.audio import AUDIO
from lumina_jax.media.image import IMAGE
from lumina_jax.media.medium import Medium
from lumina_jax.media.video import VIDEO

MEDIA: dict[str, Medium] = {m.name: m for m in (IMAGE, VIDEO, AUDIO)}


def find(name: str) -> Medium:
  """The medium of a name.

  Raises:
    ValueError: if there is none of that name.
  """
  check_name("medium", name, MEDIA)
  return MEDIA[name]
