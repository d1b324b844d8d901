"""Language models and their tokenizers against transformers and diffusers."""

import dataclasses
import functools
import itertools
import types
import unicodedata

import jax
import numpy as np
import pytest
from support.captions import CLEANED
from support.tokenizer import SENTENCES, write_tokenizer

from lumina_jax.encoders import caption_cleaning
from lumina_jax.encoders.caption_encoder import CaptionEncoder
from lumina_jax.encoders.language import encode_tokens
from lumina_jax.encoders.tokenizer import Tokenizer
from lumina_jax.interop.language import load_language

pytestmark = [pytest.mark.e2e, pytest.mark.parity]

VOCAB, LENGTH = 400, 12
SMALL = dict(
  vocab_size=VOCAB,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
  pad_token_id=0,
  bos_token_id=2,
  eos_token_id=1,
  attn_implementation="eager",
)
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
# Class, and differences from SMALL.
VARIANTS = {
  "llama": ("Llama", dict(num_key_value_heads=4, head_dim=8)),
  "llama gqa linear": ("Llama", dict(rope_parameters=LINEAR)),
  "llama exact gelu": ("Llama", dict(hidden_act="gelu")),
  "gemma mqa": ("Gemma", dict(num_key_value_heads=1)),
  "gemma mha": ("Gemma", dict(num_key_value_heads=4, hidden_act="gelu")),
  "gemma2": (
    "Gemma2",
    dict(
      sliding_window=4, query_pre_attn_scalar=24, attn_logit_softcapping=2.0
    ),
  ),
  "qwen3": ("Qwen3", dict(rms_norm_eps=1e-4)),
}
INDEX = {"last": -1, "penultimate": -2}
# One example of each family; the others are long.
FIRST = (
  ("llama", "last"),
  ("gemma mqa", "penultimate"),
  ("gemma2", "penultimate"),
  ("qwen3", "last"),
)
EXAMPLES = [
  pytest.param(*example, marks=[pytest.mark.long] * (example not in FIRST))
  for example in itertools.product(VARIANTS, INDEX)
]
LENGTHS = (LENGTH, 5, 1, 9)
IDS = np.random.default_rng(0).integers(3, VOCAB, (4, LENGTH), np.int32)


def mask(side) -> np.ndarray:
  """Real tokens of rows of LENGTHS, `bool[4, LENGTH]`."""
  places = np.arange(LENGTH) if side == "right" else np.arange(LENGTH)[::-1]
  return places < np.array(LENGTHS)[:, None]


@pytest.fixture(autouse=True, scope="module")
def oracles():
  """Imports slow packages only if a test of this file runs."""
  global torch, transformers
  torch = pytest.importorskip(
    "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
  )
  transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True, scope="module")
def full_precision():
  with jax.default_matmul_precision("highest"):
    yield


@functools.cache
def model(variant):
  """A model of transformers; its parameters differ from zero and one."""
  name, changes = VARIANTS[variant]
  config = getattr(transformers, f"{name}Config")(**SMALL | changes)
  found = getattr(transformers, f"{name}ForCausalLM")(config).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in found.parameters():
      matrix = parameter.ndim > 1
      parameter.normal_(0 if matrix else 0.7, 0.2 if matrix else 0.4)
  return found


def theirs(found, hidden, ids, real) -> np.ndarray:
  with torch.no_grad():
    out = found(
      torch.tensor(np.where(real, ids, 0)),
      attention_mask=torch.tensor(real.astype(int)),
      output_hidden_states=True,
    )
  return out.hidden_states[INDEX[hidden]].float().numpy()


def ours(cfg, params, ids, segments) -> np.ndarray:
  return np.asarray(encode_tokens(cfg, params, ids, segments.astype(np.int32)))


@pytest.fixture(scope="module")
def save(tmp_path_factory):
  """Saves the model of a variant; returns the folder."""

  @functools.cache
  def saved(variant):
    folder = tmp_path_factory.mktemp("model")
    model(variant).save_pretrained(folder)
    return folder

  return saved


def assert_close(actual, expected):
  assert np.abs(expected).mean() > 0.1  # There is something to compare.
  error = np.abs(actual - expected).max()
  print(f"largest error {error:.1e} of {np.abs(expected).max():.1f}")
  assert error <= 1e-4


@pytest.mark.parametrize(("variant", "hidden"), EXAMPLES)
def test_hidden_states_are_those_of_transformers(save, variant, hidden):
  cfg, params = load_language(save(variant), hidden, "float32")
  for side in ("left", "right"):
    real = mask(side)
    found = ours(cfg, params, IDS, real)
    assert_close(found[real], theirs(model(variant), hidden, IDS, real)[real])
    assert not found[~real].any()


@pytest.mark.parametrize(
  "change",
  [
    dict(window=0),
    pytest.param(dict(score_cap=0.0), marks=pytest.mark.long),
    pytest.param(dict(post_norms=False), marks=pytest.mark.long),
  ],
)
def test_options_of_gemma_2_have_an_effect(save, change):
  cfg, params = load_language(save("gemma2"), "last", "float32")
  real = np.ones_like(IDS, bool)
  expected = theirs(model("gemma2"), "last", IDS, real)
  cfg = dataclasses.replace(cfg, **change)
  if "post_norms" in change:
    names = ("attention_post_norm", "feed_forward_post_norm")
    blocks = {k: x for k, x in params["blocks"].items() if k not in names}
    params = params | {"blocks": blocks}
  assert np.abs(ours(cfg, params, IDS, real) - expected).max() > 1e-2


def test_packed_captions_are_as_alone_in_transformers(save):
  cfg, params = load_language(save("gemma2"), "penultimate", "float32")
  segments = np.repeat([1, 2, 3], [5, 1, 6])[None]
  found = ours(cfg, params, IDS[:1], segments)
  for segment in (1, 2, 3):
    alone = IDS[:1, segments[0] == segment]
    expected = theirs(
      model("gemma2"), "penultimate", alone, np.ones_like(alone, bool)
    )
    assert_close(found[:, segments[0] == segment], expected)


@pytest.mark.parametrize("form", ["shards", "base model"])
def test_other_files_hold_the_same(save, tmp_path, form):
  one = load_language(save("gemma2"), "last", "float32")
  if form == "shards":
    model("gemma2").save_pretrained(tmp_path, max_shard_size="40kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
  else:
    model("gemma2").model.save_pretrained(tmp_path)
  other = load_language(tmp_path, "last", "float32")
  assert other[0] == one[0]
  jax.tree.map(np.testing.assert_array_equal, other[1], one[1])


@pytest.mark.parametrize(
  "variant",
  [
    "llama",
    *(
      pytest.param(variant, marks=pytest.mark.long)
      for variant in ("gemma mqa", "gemma2", "qwen3")
    ),
  ],
)
def test_half_precision_is_as_close_as_in_transformers(save, tmp_path, variant):
  exact = model(variant)
  real = np.ones_like(IDS, bool)
  expected = theirs(exact, "last", IDS, real)
  exact.save_pretrained(tmp_path)
  half = type(exact).from_pretrained(
    tmp_path, dtype=torch.bfloat16, attn_implementation="eager"
  )
  rounded = theirs(half, "last", IDS, real)
  found = ours(*load_language(tmp_path, "last", "bfloat16"), IDS, real)
  size = np.abs(expected).mean()
  # As close to float32 and to transformers as transformers is to float32.
  assert np.abs(found - expected).mean() / size < 0.04
  assert np.abs(found - rounded).mean() / size < 0.04
  assert np.abs(found - expected).mean() > 1e-4 * size


CAPTIONS = [
  *SENTENCES,
  " A Photograph of TWO dogs ",
  "",
  "one that is far too long: " + "; ".join(SENTENCES * 3),
]


def test_captions_are_encoded_as_in_a_diffusers_pipeline(tmp_path):
  lumina = pytest.importorskip("diffusers.pipelines.lumina.pipeline_lumina")
  tokenizer = write_tokenizer(tmp_path / "tokenizer", "gemma", VOCAB)
  model("gemma mqa").model.save_pretrained(tmp_path / "text_encoder")
  pipeline = types.SimpleNamespace(
    tokenizer=transformers.GemmaTokenizer.from_pretrained(tokenizer),
    text_encoder=model("gemma mqa").model,
    max_sequence_length=24,
    _text_preprocessing=functools.partial(
      lumina.LuminaPipeline._text_preprocessing, None
    ),
  )
  with torch.no_grad():
    expected, real = lumina.LuminaPipeline._get_gemma_prompt_embeds(
      pipeline, CAPTIONS, device="cpu"
    )
  real = real.numpy().astype(bool)
  cfg, params = load_language(tmp_path, "penultimate", "float32")
  encoder = CaptionEncoder(
    cfg, Tokenizer(tmp_path, 24), lambda: params, cleaning="strip"
  )
  features = encoder.encode(CAPTIONS)
  lengths = [len(rows) for rows in features]
  assert lengths == real.sum(axis=1).tolist() and max(lengths) == 24
  assert_close(np.concatenate(features), expected.numpy()[real])


def test_captions_are_cleaned_as_in_a_diffusers_pipeline(monkeypatch):
  """With our HTML parser in place of the libraries that diffusers calls."""
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
    *CLEANED,
    " ".join(CLEANED),
    "".join(CLEANED),
    "a\\b/c|d{e}f[g]h(i)~¡¿*",
    "\"'quoted'\" _and_ - so: on",
    "10 : 30 was 12:34 ",
    "x2.5×3 2х4",
    "mail me: a.b@c.org, or c.org/x/",
  ]
  expected = pipeline._text_preprocessing(captions, clean_caption=True)
  assert [
    caption_cleaning.clean_caption(caption) for caption in captions
  ] == expected
  expected = pipeline._text_preprocessing(captions)
  assert [
    caption_cleaning.normalize(caption) for caption in captions
  ] == expected
