"""Cleaning captions from the web."""

from support.captions import CLEANED

from lumina_jax.encoders.caption_cleaning import clean_caption, normalize


def test_cleaned_captions():
  assert {caption: clean_caption(caption) for caption in CLEANED} == CLEANED


def test_normalize_changes_case_and_ends_only():
  assert (
    normalize("  A <B> Fox;  https://X.org\n") == "a <b> fox;  https://x.org"
  )
