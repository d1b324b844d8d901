"""Captions as tokens: ends, length, and whether a model knows them."""

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


def theirs(folder, **options):
  from transformers import AutoTokenizer

  return AutoTokenizer.from_pretrained(folder, **options)


def test_tokens_are_those_of_transformers(folder):
  tokenizer, expected = Tokenizer(folder, 256), theirs(folder)
  for caption in (*SENTENCES, "", "  two  spaces ", "Grüße, 雪人 🐼!"):
    tokens = tokenizer(caption)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == expected(caption).input_ids, caption


def test_truncation_is_that_of_transformers(folder):
  expected = theirs(folder)(LONG, truncation=True, max_length=7).input_ids
  assert len(expected) == 7
  assert Tokenizer(folder, 7)(LONG).tolist() == expected


def test_begin_is_first_and_end_is_last_if_asked_for(kind, folder):
  plain = Tokenizer(folder, 64)(LONG).tolist()
  ended = Tokenizer(folder, 64, add_eos=True)(LONG).tolist()
  assert plain[0] == BOS[kind] and EOS[kind] not in plain
  assert ended == [*plain, EOS[kind]]


def test_the_empty_caption_has_its_begin(kind, folder):
  assert Tokenizer(folder, 8)("").tolist() == [BOS[kind]]


def test_truncation_drops_the_end(kind, folder):
  whole = Tokenizer(folder, 64, add_eos=True)(LONG).tolist()
  exact = Tokenizer(folder, len(whole), add_eos=True)(LONG).tolist()
  less = Tokenizer(folder, len(whole) - 1, add_eos=True)(LONG).tolist()
  assert exact == whole and less == whole[:-1]


def test_what_is_cut_off_is_said_once(folder, caplog):
  tokenizer = Tokenizer(folder, 6)
  count = len(Tokenizer(folder, 99)(LONG))
  assert not caplog.records
  tokenizer(LONG)
  assert f"a caption of {count} tokens was cut off after 6" in caplog.text
  assert "lazy dog'" in caplog.text and "quick" not in caplog.text
  tokenizer(LONG + LONG)
  assert len(caplog.records) == 1


def test_a_caption_of_max_tokens_is_not_told_of(folder, caplog):
  count = len(Tokenizer(folder, 99)(LONG))
  assert len(Tokenizer(folder, count)(LONG)) == count
  assert not caplog.records


def test_a_model_with_fewer_rows_is_refused(folder):
  tokenizer = Tokenizer(folder, 8)
  tokenizer.check(VOCAB)
  tokenizer.check(VOCAB + 64)  # Rows are often rounded up.
  with pytest.raises(ValueError, match=r"tokens up to 399 .* model 399 rows"):
    tokenizer.check(VOCAB - 1)


def test_a_token_for_padding_alone_needs_no_row(tmp_path):
  """As in LLaMA-2's files, some of which have one beyond the table."""
  tokenizer = theirs(write_tokenizer(tmp_path, "llama", VOCAB))
  tokenizer.add_special_tokens({"pad_token": "<padding>"})
  assert tokenizer.pad_token_id == VOCAB
  tokenizer.save_pretrained(tmp_path)
  Tokenizer(tmp_path, 8).check(VOCAB)


def test_a_pipeline_has_it_in_a_folder(tmp_path):
  write_tokenizer(tmp_path / "tokenizer", "gemma", VOCAB)
  assert Tokenizer(tmp_path, 8)("").tolist() == [BOS["gemma"]]


def test_diffusers_loads_what_the_helper_writes(tmp_path):
  import transformers

  write_tokenizer(tmp_path, "gemma", VOCAB)
  for name in ("GemmaTokenizer", "GemmaTokenizerFast"):
    found = getattr(transformers, name).from_pretrained(tmp_path)
    rows = found(["a fox", "a red fox jumps"], padding=True)
    assert rows.input_ids[0][0] == found.pad_token_id == 0  # At the left.
    assert rows.input_ids[1][0] == BOS["gemma"]
    assert len(found) == VOCAB


def test_identity_tells_options_and_files_apart(tmp_path):
  one = write_tokenizer(tmp_path / "one", "gemma", VOCAB)
  same = write_tokenizer(tmp_path / "same", "gemma", VOCAB)
  other = write_tokenizer(tmp_path / "other", "gemma", VOCAB + 1)
  made = [
    Tokenizer(one, 8),
    Tokenizer(one, 9),
    Tokenizer(one, 8, add_eos=True),
    Tokenizer(other, 8),
  ]
  assert len({tokenizer.identity for tokenizer in made}) == len(made)
  assert Tokenizer(same, 8).identity == made[0].identity


def test_a_folder_without_a_tokenizer(tmp_path):
  (tmp_path / "tokenizer_config.json").write_text("{}")
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json, tokenizer"):
    Tokenizer(tmp_path, 8)


def test_a_broken_file(tmp_path):
  path = write_tokenizer(tmp_path) / "tokenizer.json"
  path.write_text(path.read_text()[:-100])
  with pytest.raises(ValueError, match=f"{tmp_path} cannot be read"):
    Tokenizer(tmp_path, 8)


def test_a_tokenizer_without_a_begin(tmp_path):
  path = write_tokenizer(tmp_path) / "tokenizer_config.json"
  config = json.loads(path.read_text())
  config |= {"bos_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match="no bos_token"):
    Tokenizer(tmp_path, 8)


def test_no_tokens_at_all_are_refused(folder):
  with pytest.raises(ValueError, match="max_tokens = 0"):
    Tokenizer(folder, 0)
