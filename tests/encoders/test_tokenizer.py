"""Captions to tokens: bos and eos, truncation, fit with a model."""

import json

import numpy as np
import pytest
from support.tokenizer import KINDS, SENTENCES, write_tokenizer

from lumina_jax.encoders.tokenizer import Tokenizer

VOCAB = 400
BOS = {"gemma": 2, "llama": 1}
EOS = {"gemma": 1, "llama": 2}
LONG = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
  return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
  return write_tokenizer(tmp_path_factory.mktemp(kind), kind, VOCAB)


def reference(folder, **options):
  from transformers import AutoTokenizer

  return AutoTokenizer.from_pretrained(folder, **options)


def test_tokens_are_those_of_transformers(folder):
  tokenizer, expected = Tokenizer(folder, 256), reference(folder)
  for caption in (*SENTENCES, "", "  two  spaces ", "Grüße, 雪人 🐼!"):
    tokens = tokenizer(caption)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == expected(caption).input_ids, caption


def test_truncation_is_that_of_transformers(folder):
  expected = reference(folder)(LONG, truncation=True, max_length=7).input_ids
  assert len(expected) == 7
  assert Tokenizer(folder, 7)(LONG).tolist() == expected


def test_bos_is_first_and_eos_is_optional(kind, folder):
  plain = Tokenizer(folder, 64)(LONG).tolist()
  ended = Tokenizer(folder, 64, add_eos=True)(LONG).tolist()
  assert plain[0] == BOS[kind] and EOS[kind] not in plain
  assert ended == [*plain, EOS[kind]]


def test_the_empty_caption_has_bos(kind, folder):
  assert Tokenizer(folder, 8)("").tolist() == [BOS[kind]]


def test_truncation_drops_eos(kind, folder):
  whole = Tokenizer(folder, 64, add_eos=True)(LONG).tolist()
  exact = Tokenizer(folder, len(whole), add_eos=True)(LONG).tolist()
  less = Tokenizer(folder, len(whole) - 1, add_eos=True)(LONG).tolist()
  assert exact == whole and less == whole[:-1]


def test_the_first_truncation_logs_the_lost_text(folder, caplog):
  tokenizer = Tokenizer(folder, 6)
  count = len(Tokenizer(folder, 99)(LONG))
  assert not caplog.records
  tokenizer(LONG)
  assert f"a caption of {count} tokens was cut off after 6" in caplog.text
  assert "lazy dog'" in caplog.text and "quick" not in caplog.text
  tokenizer(LONG + LONG)
  assert len(caplog.records) == 1


def test_a_caption_of_max_tokens_logs_nothing(folder, caplog):
  count = len(Tokenizer(folder, 99)(LONG))
  assert len(Tokenizer(folder, count)(LONG)) == count
  assert not caplog.records


def test_a_model_with_fewer_rows_is_refused(folder):
  tokenizer = Tokenizer(folder, 8)
  tokenizer.check(VOCAB)
  tokenizer.check(VOCAB + 64)  # Rows are often rounded up.
  with pytest.raises(ValueError, match=r"up to 399 .* model has 399 rows;"):
    tokenizer.check(VOCAB - 1)


def test_a_padding_token_needs_no_row(tmp_path):
  """Some files of LLaMA-2 have one beyond the table."""
  tokenizer = reference(write_tokenizer(tmp_path, "llama", VOCAB))
  tokenizer.add_special_tokens({"pad_token": "<padding>"})
  assert tokenizer.pad_token_id == VOCAB
  tokenizer.save_pretrained(tmp_path)
  Tokenizer(tmp_path, 8).check(VOCAB)


def test_a_pipeline_has_a_folder_of_its_tokenizer(tmp_path):
  write_tokenizer(tmp_path / "tokenizer", "gemma", VOCAB)
  assert Tokenizer(tmp_path, 8)("").tolist() == [BOS["gemma"]]


def test_transformers_loads_the_folders_of_these_tests(tmp_path):
  import transformers

  write_tokenizer(tmp_path, "gemma", VOCAB)
  for name in ("GemmaTokenizer", "GemmaTokenizerFast"):
    tokenizer = getattr(transformers, name).from_pretrained(tmp_path)
    rows = tokenizer(["a fox", "a red fox jumps"], padding=True)
    assert rows.input_ids[0][0] == tokenizer.pad_token_id == 0  # At the left.
    assert rows.input_ids[1][0] == BOS["gemma"]
    assert len(tokenizer) == VOCAB


def test_identity_depends_on_options_and_files(tmp_path):
  one = write_tokenizer(tmp_path / "one", "gemma", VOCAB)
  same = write_tokenizer(tmp_path / "same", "gemma", VOCAB)
  other = write_tokenizer(tmp_path / "other", "gemma", VOCAB + 1)
  tokenizers = [
    Tokenizer(one, 8),
    Tokenizer(one, 9),
    Tokenizer(one, 8, add_eos=True),
    Tokenizer(other, 8),
  ]
  identities = [tokenizer.identity for tokenizer in tokenizers]
  assert len(set(identities)) == len(identities)
  assert Tokenizer(same, 8).identity == identities[0]


def test_a_folder_without_a_tokenizer(tmp_path):
  (tmp_path / "tokenizer_config.json").write_text("{}")
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json, tokenizer"):
    Tokenizer(tmp_path, 8)


def test_a_broken_file(tmp_path):
  path = write_tokenizer(tmp_path) / "tokenizer.json"
  path.write_text(path.read_text()[:-100])
  with pytest.raises(ValueError, match=f"{tmp_path} cannot be read"):
    Tokenizer(tmp_path, 8)


def test_a_tokenizer_without_bos(tmp_path):
  path = write_tokenizer(tmp_path) / "tokenizer_config.json"
  config = json.loads(path.read_text())
  config |= {"bos_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match="no bos_token"):
    Tokenizer(tmp_path, 8)


def test_max_tokens_must_be_positive(folder):
  with pytest.raises(ValueError, match="max_tokens = 0"):
    Tokenizer(folder, 0)
