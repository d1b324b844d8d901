"""Small tokenizers in folders like published ones."""

from __future__ import annotations

import json
import pathlib

SENTENCES = (
  "a red fox in the snow",
  "an orange cat sits on a wooden chair",
  "a photograph of two dogs on the beach at night",
  "the quick brown fox jumps over the lazy dog",
)
# Class, special tokens in the order of their ids, bos and eos.
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
  """Writes tokenizer.json and tokenizer_config.json.

  BPE with byte fallback. As with the published tokenizers, a text begins with
  the bos token, and Gemma pads at the left.

  Args:
    folder: folder of the files; created if missing.
    kind: "gemma" or "llama".
    vocab: number of tokens; those that SENTENCES do not need are unused.

  Returns:
    The folder.
  """
  import transformers
  from tokenizers.processors import TemplateProcessing

  name, special, bos, eos = KINDS[kind]
  tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
  trained, merges = _train(vocab - len(tokens))
  tokens += [token for token in trained if token not in tokens]
  tokens += [f"<unused{i}>" for i in range(vocab - len(tokens))]
  tokenizer = getattr(transformers, name)(
    vocab={token: i for i, token in enumerate(tokens)}, merges=merges
  )
  tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
    single=f"{bos} $A",
    pair=f"{bos} $A {bos} $B",
    special_tokens=[(bos, tokens.index(bos))],
  )
  folder = pathlib.Path(folder)
  tokenizer.save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {"add_bos_token": True}, indent=2))
  return folder


def _train(size: int) -> tuple[list[str], list[tuple[str, str]]]:
  """Trains letters and merged pairs, at most `size` tokens."""
  from tokenizers import Tokenizer, models, normalizers, trainers

  tokenizer = Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.Replace(" ", "▁")
  words = [f" {word}" for text in SENTENCES for word in text.split()]
  trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
  tokenizer.train_from_iterator(words, trainer)
  model = json.loads(tokenizer.to_str())["model"]
  ids = model["vocab"]
  return sorted(ids, key=ids.get), [tuple(m) for m in model["merges"]]
