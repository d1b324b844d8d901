"""Real tokenizers with a few hundred tokens, in folders as published ones."""

from __future__ import annotations

import json
import pathlib

SENTENCES = (
  "a red fox in the snow",
  "an orange cat sits on a wooden chair",
  "a photograph of two dogs on the beach at night",
  "the quick brown fox jumps over the lazy dog",
)
# Class, special tokens in the order of their numbers, begin and end.
KINDS = {
  "gemma": (
    "GemmaTokenizer",
    ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
    "<bos>",
    "<eos>",
  ),
  "llama": ("LlamaTokenizer", ("<unk>", "<s>", "</s>"), "<s>", "</s>"),
}


def write_tokenizer(
  folder: str | pathlib.Path, kind: str = "gemma", vocab: int = 400
) -> pathlib.Path:
  """Writes tokenizer.json and tokenizer_config.json, and returns the folder.

  BPE with byte fallback; a text gets its begin token in front, as with the
  published ones, and Gemma's is padded at the left. A folder that is not there
  is made.

  Args:
    folder: for the files.
    kind: "gemma" or "llama".
    vocab: tokens in all; those that the sentences do not need are unused.
  """
  import transformers
  from tokenizers.processors import TemplateProcessing

  name, special, bos, eos = KINDS[kind]
  tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
  learnt, merges = _train(vocab - len(tokens))
  tokens += [token for token in learnt if token not in tokens]
  tokens += [f"<unused{i}>" for i in range(vocab - len(tokens))]
  made = getattr(transformers, name)(
    vocab={token: i for i, token in enumerate(tokens)}, merges=merges
  )
  made.backend_tokenizer.post_processor = TemplateProcessing(
    single=f"{bos} $A",
    pair=f"{bos} $A {bos} $B",
    special_tokens=[(bos, tokens.index(bos))],
  )
  folder = pathlib.Path(folder)
  made.save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {"add_bos_token": True}, indent=2))
  return folder


def _train(size: int) -> tuple[list[str], list[tuple[str, str]]]:
  """Learns at most so many tokens: letters, and pairs that are merged."""
  from tokenizers import Tokenizer, models, normalizers, trainers

  tokenizer = Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.Replace(" ", "▁")
  words = [f" {word}" for text in SENTENCES for word in text.split()]
  trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
  tokenizer.train_from_iterator(words, trainer)
  model = json.loads(tokenizer.to_str())["model"]
  numbers = model["vocab"]
  return sorted(numbers, key=numbers.get), [tuple(m) for m in model["merges"]]
