"""Cleans captions from the web, as the training of published networks did.

The rules are those of DeepFloyd IF; Lumina's and diffusers' pipelines have the
same. Networks were trained with them, so odd rules stay.
"""

import html
import re
import unicodedata
import urllib.parse
from collections.abc import Callable
from html.parser import HTMLParser

DOMAIN = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
DASHES = (
  r"[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
  r"\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+"
)
# Any run of these signs becomes a space.
SIGNS = r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+"
FILES = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
Rules = tuple[tuple[str, str], ...]

ADDRESSES: Rules = (
  (r"<person>", "person"),
  # A protocol, then a domain with a common ending.
  (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{DOMAIN})", ""),
  (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{DOMAIN})", ""),
)
NUMBERS: Rules = (
  (r"@\w+\b", ""),  # Account names.
  # CJK strokes, phonetic extensions, enclosed letters and months,
  # compatibility, extension A, hexagrams, unified ideographs.
  (r"[\u31c0-\u31ef\u31f0-\u4dbf\u4dc0-\u9fff]+", ""),
  (DASHES, "-"),
  (r"[`´«»“”¨]", '"'),
  (r"[‘’]", "'"),
  (r"&quot;?", ""),
  (r"&amp", ""),
  (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses.
  (r"\d:\d\d\s+$", ""),  # Times of articles.
  (r"\\n", " "),
  (r"#\d{1,3}\b", ""),
  (r"#\d{5,}\b", ""),
  (r"\b\d{6,}\b", ""),
  (rf"\S+\.{FILES}", ""),
  (r"[\"']{2,}", '"'),
  (r"\.{2,}", " "),
  (SIGNS, " "),
  (r"\s+\.\s+", " "),
)
SHOPS: Rules = (
  (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
  (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
  (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
  (r"(worldwide\s+)?(free\s+)?shipping", ""),
  (r"(free\s)?download(\sfree)?", ""),
  (r"\bclick\b\s(?:for|on)\s\w+", ""),
  (rf"\b{FILES}(\simages?)?", ""),
  (r"\bpage\s+\d+\b", ""),
  (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
  (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 640x480, with a Cyrillic x too.
  (r"\b\s+:\s+", ": "),
  (r"(\D[,./])\b", r"\1 "),
  (r"\s+", " "),
  (r"^[\"']([\w\W]+)[\"']$", r"\1"),
  (r"^['_,\-:;]", ""),
  (r"['_,\-:+]$", ""),
  (r"^\.\S+$", ""),
)


def normalize(caption: str) -> str:
  """Strips outer blanks and converts to lower case."""
  return caption.lower().strip()


def clean_caption(caption: str) -> str:
  """Removes text that does not describe the sample, as diffusers does.

  Removes URLs, HTML tags, account and file names, Chinese characters, long
  numbers, article numbers and words of shops; unifies quotes and dashes;
  converts to lower case. A second pass applies the rules to the first result.

  diffusers also calls ftfy, which repairs text that was decoded wrongly. Of its
  repairs, this function resolves HTML entities and composes letters (NFC). It
  leaves wrong encodings, full-width letters and ligatures.
  """
  return _clean(_clean(caption))


CLEANERS: dict[str, Callable[[str], str]] = {
  "": str,
  "strip": normalize,
  "clean": clean_caption,
}


def _clean(caption: str) -> str:
  caption = urllib.parse.unquote_plus(caption).strip().lower()
  caption = _without_tags(_apply(ADDRESSES, caption))
  caption = _apply(NUMBERS, caption)
  if len(re.findall(r"[-_]", caption)) > 3:  # this-is-my-cute-cat
    caption = re.sub(r"[-_]", " ", caption)
  caption = unicodedata.normalize("NFC", caption)
  caption = html.unescape(html.unescape(caption))
  return _apply(SHOPS, caption).strip()


def _apply(rules: Rules, text: str) -> str:
  for pattern, replacement in rules:
    text = re.sub(pattern, replacement, text)
  return text


class _Text(HTMLParser):
  """Collects the visible text of a page."""

  HIDDEN = ("script", "style", "template", "rt", "rp")

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.texts: list[str] = []
    self._hidden = 0

  def handle_starttag(self, tag, attrs) -> None:
    self._hidden += tag in self.HIDDEN

  def handle_endtag(self, tag) -> None:
    self._hidden -= tag in self.HIDDEN and self._hidden > 0

  def handle_data(self, data) -> None:
    if not self._hidden:
      self.texts.append(data)


def _without_tags(text: str) -> str:
  parser = _Text()
  try:
    parser.feed(text)
    parser.close()
  except AssertionError:  # The parser fails on text that resembles a tag.
    return text
  return "".join(parser.texts)
