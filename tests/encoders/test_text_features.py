"""The config of text features."""

import pytest

from lumina_jax.encoders.text_features import GEMMA, LLAMA, TextFeaturesConfig


def test_published_networks():
  assert TextFeaturesConfig(2048, **GEMMA) == TextFeaturesConfig(2048)
  llama = TextFeaturesConfig(4096, **LLAMA)
  assert (llama.hidden, llama.max_tokens, llama.add_eos) == ("last", 128, True)
  assert llama.code_width == 4096


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(hidden="first"), "hidden = 'first': use one of .*'penultimate'"),
    (dict(cleaning="wash"), "cleaning = 'wash': use one of .*'strip'"),
    (dict(width=0), "width = 0"),
    (dict(max_tokens=0), "max_tokens = 0"),
  ],
)
def test_invalid_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    TextFeaturesConfig(**{"width": 8} | options)
