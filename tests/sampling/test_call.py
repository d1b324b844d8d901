"""The arguments of a call: declared once, documented, sorted by kind."""

import dataclasses
import inspect

import pytest

from lumina_jax import LuminaPipeline
from lumina_jax.media import AUDIO, IMAGE, MEDIA, VIDEO
from lumina_jax.sampling import overrides
from lumina_jax.sampling.call import Call, parse
from lumina_jax.sampling.options import SamplingOptions


def test_the_pipeline_documents_every_argument():
  signature = inspect.signature(LuminaPipeline.__call__)
  docs = inspect.getdoc(LuminaPipeline.__call__)
  names = {f.name for cls in (Call, SamplingOptions) for f in _fields(cls)}
  names |= {axis.argument for m in MEDIA.values() for axis in m.axes}
  names |= {medium.per_prompt for medium in MEDIA.values()}
  assert names <= signature.parameters.keys()
  for name in names - {"prompt"}:
    assert signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert f"\n  {name}: " in docs, name
  for field in dataclasses.fields(SamplingOptions):
    assert " ".join(field.metadata["help"].split()) in " ".join(docs.split())
  assert docs.index("Args:") < docs.index("Returns:") < docs.index("Raises:")


def _fields(cls):
  return dataclasses.fields(cls)


def test_arguments_are_sorted_by_what_they_concern():
  keywords = dict(
    prompt="7", seed=3, num_frames=4, shift=2.0, proportional_attn=1
  )
  found = parse(VIDEO, keywords | {"num_videos_per_prompt": 2})
  assert (found.call.prompt, found.call.seed, found.each) == ("7", 3, 2)
  assert found.sizes == {"num_frames": 4}
  assert found.options == {"shift": 2.0, "proportional_attn": 1}
  assert parse(IMAGE, {}).each == 1


@pytest.mark.parametrize(
  ("medium", "name", "message"),
  [
    (IMAGE, "sheduler", r"'sheduler'; did you mean 'schedule'\?"),
    (IMAGE, "num_image_per_prompt", "did you mean 'num_images_per_prompt'"),
    (IMAGE, "xyz", "unexpected argument 'xyz'; help"),
    (
      IMAGE,
      "num_frames",
      "'num_frames': this pipeline generates images, with height, width, num_",
    ),
    (AUDIO, "height", "generates audio, with audio_length_in_s, num_wavef"),
    (AUDIO, "num_images_per_prompt", "generates audio"),
  ],
)
def test_unexpected_arguments_are_named(medium, name, message):
  with pytest.raises(TypeError, match=message):
    parse(medium, {name: 1})


def test_every_option_is_a_keyword():
  keywords = dict.fromkeys(overrides.names())
  assert parse(IMAGE, keywords).options == keywords
