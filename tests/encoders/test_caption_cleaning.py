"""Captions from the web: cleaned as in diffusers."""

import types
import unicodedata

import pytest

from lumina_jax.encoders import caption_cleaning
from lumina_jax.encoders.caption_cleaning import clean_caption, normalize

CASES = {
  "A Red FOX ": "a red fox",
  "see https://example.org/a/b-c for a fox": "see for a fox",
  "a fox, www.foxes.com/red": "a fox",
  "<p>a <b>red</b> fox</p>": "a red fox",
  "a fox<script>run('now')</script> at night": "a fox at night",
  "salt &amp; pepper": "salt pepper",
  "fish &lt;b&gt; chips": "fish chips",
  "caf&eacute; terrace": "café terrace",
  "a portrait @some_body": "a portrait",
  "雪の中の fox 漢字": "のの fox",
  "the «fox» — “red” one": 'the "fox" - "red" one',
  "the fox‘s tail": "the fox's tail",
  "a fox 192.168.10.1 here": "a fox here",
  "a fox #12 and #123456": "a fox and",
  "order 1234567 foxes": "order foxes",
  "photo.jpg of a fox": "of a fox",
  "a fox jpg image": "a fox",
  "a fox...in   snow": "a fox in snow",
  "***SALE*** a fox": "sale a fox",
  "this-is-my-cute-cat": "this is my cute cat",
  "a well-fed cat": "a well-fed cat",
  "a fox jc6640": "a fox",
  "a fox jc6640vc": "a fox",
  "a fox 6640vc231": "a fox",
  "a fox j2d1a2a": "a fox",
  "a fox free shipping": "a fox",
  "free download a fox": "a fox",
  "a fox click for more": "a fox",
  "a fox page 12": "a fox",
  "a fox 640x480": "a fox",
  "fox,snow,night": "fox, snow, night",
  '"a fox"': "a fox",
  "- a fox -": "a fox",
  "a%20red+fox": "a red fox",
  "a <person> with a fox": "a person with a fox",
  "cafe\u0301": "café",
  "a fox at 3 < 4": "a fox at 3 < 4",
  "": "",
}


@pytest.mark.parametrize("caption", CASES)
def test_cleaned_captions(caption):
  assert clean_caption(caption) == CASES[caption]


def test_a_plain_caption_is_left_alone():
  caption = "a photograph of two dogs, one of them brown, on a beach"
  assert clean_caption(caption) == caption


def test_normalize_changes_case_and_ends_only():
  assert (
    normalize("  A <B> Fox;  https://X.org\n") == "a <b> fox;  https://x.org"
  )


@pytest.mark.e2e
@pytest.mark.parity
def test_rules_are_those_of_diffusers(monkeypatch):
  """With our HTML parser in place of the libraries that diffusers calls."""
  pytest.importorskip("torch")
  lumina = pytest.importorskip("diffusers.pipelines.lumina.pipeline_lumina")

  def soup(text, features):
    return types.SimpleNamespace(text=caption_cleaning._without_tags(text))

  fix = types.SimpleNamespace(
    fix_text=lambda text: unicodedata.normalize("NFC", text)
  )
  monkeypatch.setattr(lumina, "BeautifulSoup", soup, raising=False)
  monkeypatch.setattr(lumina, "ftfy", fix, raising=False)
  monkeypatch.setattr(lumina, "is_bs4_available", lambda: True)
  monkeypatch.setattr(lumina, "is_ftfy_available", lambda: True)
  pipeline = object.__new__(lumina.LuminaPipeline)
  captions = [
    *CASES,
    " ".join(CASES),
    "".join(CASES),
    "a\\b/c|d{e}f[g]h(i)~¡¿*",
    "\"'quoted'\" _and_ - so: on",
    "10 : 30 was 12:34 ",
    "x2.5×3 2х4",
    "mail me: a.b@c.org, or c.org/x/",
  ]
  expected = pipeline._text_preprocessing(captions, clean_caption=True)
  assert [clean_caption(caption) for caption in captions] == expected
  expected = pipeline._text_preprocessing(captions)
  assert [normalize(caption) for caption in captions] == expected
