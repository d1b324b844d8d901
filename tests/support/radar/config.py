"""Text to radar: the Flag-DiT of text_to_audio on blocks of a signal."""

from ml_collections import ConfigDict

from configs import text_to_audio


def get_config(folder: str) -> ConfigDict:
  """A run that takes seconds; `folder` holds the codec."""
  config = text_to_audio.get_config("tiny")
  config.medium = "radar"
  config.encoders = ConfigDict(dict(vae=folder))
  config.model.update(channels=8, width=32, cond_width=32, text_width=32)
  config.text_encoder.width = 32
  config.data = ConfigDict(
    dict(
      echoes=512,
      samples=64,
      noise=0.1,
      row_tokens=64,
      row_words=16,
      row_samples=8,
    )
  )
  config.optimizer.learning_rate = 1e-2
  config.training.update(
    steps=150,
    checkpoint_every=150,
    sample_every=150,
    sample_prompts=("target 0", "target 3"),
  )
  config.sampling.update(num_inference_steps=10, guidance_scale=1.0)
  config.sizes.update(default=(8,), rate=8.0, ladder=((32, 16, 4),))
  return config
