"""Prompts and output folder of a command line."""

from collections.abc import Sequence

from lumina_jax.files import reading

USAGE = 'usage: lumina infer "A snowman" [OUTPUT_DIR] [--flag=value ...]'


def prompts_and_output(
  words: Sequence[str],
  flagged: Sequence[str],
  prompt_file: str | None,
  output: str | None,
) -> tuple[list[str], str | None]:
  """All prompts in order, and the output folder if one is named.

  Args:
    words: positional arguments: a prompt and an output folder.
    flagged: of --prompt.
    prompt_file: of --prompt_file, one prompt a line.
    output: of --output.

  Raises:
    ValueError: if there is no prompt, a word is left over, or the file is not
      UTF-8 text.
    OSError: if the file cannot be read.
  """
  if truth := [word for word in words if word in ("True", "False")]:
    raise ValueError(f"unexpected {truth[0]!r}: write --flag={truth[0]}")
  if len(words) > 2:
    raise ValueError(f"unexpected {words[2:]}; quote the prompt. {USAGE}")
  if not words and not flagged and prompt_file is None:
    raise ValueError(f"no prompt. {USAGE}")
  several = bool(flagged) or prompt_file is not None
  if several and len(words) == 1 and len(words[0].split()) == 1:
    raise ValueError(
      f"{words[0]!r} beside --prompt or --prompt_file: write --output="
      f"{words[0]} for a folder; for one more prompt name the folder too, "
      "PROMPT OUTPUT_DIR"
    )
  prompts = [*words[:1], *flagged, *_read(prompt_file)]
  if len(words) == 2 and output is not None:
    raise ValueError(f"{words[1]!r} and --output={output}: name one folder")
  return prompts, words[1] if len(words) == 2 else output


def _read(prompt_file: str | None) -> list[str]:
  if prompt_file is None:
    return []
  text = reading.read_text(prompt_file, f"--prompt_file={prompt_file}")
  lines = [line.strip() for line in text.splitlines()]
  prompts = [line for line in lines if line and not line.startswith("#")]
  if not prompts:
    raise ValueError(
      f"--prompt_file={prompt_file} holds no prompt; write one on each line"
    )
  return prompts
