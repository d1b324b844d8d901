"""Components: parts that fit each other, and their units."""

import dataclasses
import types

import pytest
from support.configs import small_config, tiny_config

from lumina_jax.media import AUDIO, IMAGE, VIDEO
from lumina_jax.model.offload import Offloadable
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.sizes import SizeConfig

CONFIG = small_config()
CODEC = types.SimpleNamespace(factors=(8, 8), channels=3, latent_channels=1)


def components(**changes):
  values = dict(
    medium=IMAGE,
    network=CONFIG.network,
    weights=Offloadable.pinned({}),
    options=CONFIG.sampling,
    sizes=CONFIG.sizes,
  )
  return Components(**values | changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      dict(medium=VIDEO),
      r"'video' has 3 axes \(num_frames, height, width\), but the network's "
      r"patch \(\d, \d\) has 2",
    ),
    (dict(medium=AUDIO), r"'audio' has 1 axes \(audio_length_in_s\)"),
    (
      dict(codec=types.SimpleNamespace(factors=(1, 8, 8))),
      r"'image' has 2 axes, but the codec's factors \(1, 8, 8\) have 3",
    ),
    (
      dict(sizes=SizeConfig((8,))),
      r"sizes\.default has 1 extents; medium 'image' has 2 axes",
    ),
    (
      dict(
        medium=AUDIO,
        network=tiny_config("text_to_audio").network,
        sizes=SizeConfig((8,), rule="digits"),
      ),
      r"sizes\.rule 'digits' has 2 extents; medium 'audio' has 1 axes",
    ),
  ],
)
def test_parts_that_do_not_fit_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    components(**changes)


def test_a_codec_says_the_units_and_channels_of_samples():
  plain, coded = components(), components(codec=CODEC)
  assert (plain.factors, plain.channels) == ((1, 1), CONFIG.model.channels)
  assert (coded.factors, coded.channels) == ((8, 8), 3)


def test_parameters_load_when_they_are_needed():
  loads = []

  def load():
    loads.append("load")
    return {"backbone": len(loads)}

  weights = Offloadable(load)
  lazy = dataclasses.replace(components(), weights=weights)
  assert not weights.loaded and not loads
  assert lazy.params == lazy.params == {"backbone": 1}
  weights.free()
  assert not weights.loaded
  assert lazy.params == {"backbone": 2}
  pinned = Offloadable.pinned({"backbone": 3})
  pinned.free()
  assert pinned.loaded and pinned.get() == {"backbone": 3}
