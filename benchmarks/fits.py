"""The smallest slice each published size trains on: python -m benchmarks.fits

Compiles the training step, one row of one sample on each data x fsdp shard, for
ever larger slices of each chip until one fits, and writes docs/fits.md. Results
are kept in docs/fits.json, and a restart continues there. The whole table takes
hours; flags select cells:

  python -m benchmarks.fits --sizes=flag_dit_t2i_5b --chips=v5e --tokens=4096

Needs libtpu: pip install -e ".[tpu]".
"""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
from typing import Any

import jax
from absl import app, flags

from configs import text_to_image
from lumina_jax.backbone import PUBLISHED, ModelConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.files.progress import Progress
from lumina_jax.parallel import topology
from lumina_jax.parallel.chips import CHIPS, Chip
from lumina_jax.planning import report
from lumina_jax.planning.compiled_job import compile_job
from lumina_jax.planning.job import Job, make_job
from lumina_jax.planning.memory import expected_bytes
from lumina_jax.training import run_config
from lumina_jax.training.run_config import RunConfig

DOCS = pathlib.Path(__file__).parents[1] / "docs"
RESULTS, TABLE = DOCS / "fits.json", DOCS / "fits.md"
TOKENS = (4096, 16_384, 65_536, 131_072)
TPUS = ("v5e", "v5p", "v6e", "v7x")
GIB = 2**30
# The network of Lumina-T2X's "7B" that reads text.
SIZES = PUBLISHED | {"flag_7b": text_to_image.MODELS["flag_7b"]}
NOT_TRIED = "·"
HEAD = """# The smallest slice for each size

The smallest slice of each chip on which the real training step compiles and
fits. Parameters, their EMA and AdamW's moments are float32, products bfloat16;
each data x fsdp shard has one row of one sample; remat is "{remat}"; the mesh
is the default of `lumina plan` (context grows while each device keeps 8192
tokens, the rest is fsdp). In parentheses: peak GiB of a device. "none": nothing
fits up to {largest};
"·": not tried; "?": the compiler failed.

Nothing was run: libtpu {libtpu} and JAX {jax} compiled for chips that were not
there, {date}. Other policies and meshes may need less: `lumina plan --search`.

Names are keys of `lumina_jax.backbone.PUBLISHED`; `flag_7b` is a variant of
`configs/text_to_image.py`. `python -m benchmarks.fits` continues where
`fits.json` ends.
"""


def make_config(model: ModelConfig) -> RunConfig:
  """A run of any network; its data does not matter."""
  base = run_config.parse(text_to_image.get_config())
  text = model.text_width and Utf8Config(model.text_width, max_words=128)
  return dataclasses.replace(base, model=model, text_encoder=text or None)


def smallest(
  name: str, tokens: int, chip: Chip, remat: str, known: dict[str, Any]
) -> None:
  """Compiles for slices, smallest first, until one fits; adds to `known`.

  Starts at the first slice that fits by the estimate, which is the right one or
  slightly too small. A bisection would compile more.
  """
  config = make_config(SIZES[name])
  for shape in chip.slices:
    key = key_of(name, tokens, chip, remat, shape)
    if key not in known:
      machine = topology.find(f"{chip.name}:{shape}")
      job = make_job(config, machine, tokens=tokens, remat=remat)
      if expected_bytes(job) > chip.usable:
        continue
      known[key] = result(job)
      RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    if known[key].get("fits"):
      return


def result(job: Job) -> dict[str, Any]:
  """The outcome of a job, or the first line of the compiler's error."""
  try:
    return report.to_json(compile_job(job))
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    print(f"{job.topology.name}, {job.budget}: {error}", flush=True)
    return {"fits": False, "error": str(error).splitlines()[0]}
  finally:
    jax.clear_caches()  # Programs are large and none runs.


def key_of(name: str, tokens: int, chip: Chip, remat: str, shape: str) -> str:
  return f"{name}/{tokens}/{remat}/{chip.name}:{shape}"


def cell(
  name: str, tokens: int, chip: Chip, remat: str, known: dict[str, Any]
) -> str:
  """The cell of the table: the smallest slice, if it is known."""
  tried = False
  for shape in chip.slices:
    found = known.get(key_of(name, tokens, chip, remat, shape))
    tried = tried or bool(found)
    if found and "error" in found:
      return "?"
    if found and found["fits"]:
      return f"{shape} ({found['memory']['peak'] / GIB:.1f})"
  return "none" if tried else NOT_TRIED


def table(known: dict[str, Any], remat: str) -> str:
  """The text of docs/fits.md."""
  largest = ", ".join(f"{n}:{CHIPS[n].slices[-1]}" for n in TPUS)
  lines = [
    HEAD.format(
      remat=remat,
      largest=largest,
      libtpu=importlib.metadata.version("libtpu"),
      jax=jax.__version__,
      date=datetime.date.today().isoformat(),
    )
  ]
  for chip in (CHIPS[name] for name in TPUS):
    columns = "".join(f" {n // 1024}K tokens |" for n in TOKENS)
    usable = f"{chip.usable / GIB:.2f} GiB a device"
    lines += [f"## {chip.name}, {usable}\n", f"| size |{columns}"]
    lines.append("| --- |" + " --- |" * len(TOKENS))
    missing = []
    for name in SIZES:
      cells = [cell(name, n, chip, remat, known) for n in TOKENS]
      if set(cells) == {NOT_TRIED}:
        missing.append(name)
      else:
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"\nNot tried: {', '.join(missing)}."] if missing else []
    lines.append("")
  return "\n".join(lines)


def main(_) -> None:
  args = flags.FLAGS
  known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  cells = [
    (name, int(tokens), CHIPS[chip])
    for tokens in args.tokens
    for chip in args.chips
    for name in args.sizes
  ]
  with Progress("cells", len(cells), unit="cells") as bar:
    for done, (name, tokens, chip) in enumerate(cells):
      bar.show(done, f"{name} at {tokens} tokens on {chip.name}")
      smallest(name, tokens, chip, args.remat, known)
      TABLE.write_text(table(known, args.remat))
    bar.show(len(cells))
  print(f"written: {TABLE}")


if __name__ == "__main__":
  flags.DEFINE_multi_enum("sizes", list(SIZES), list(SIZES), "Networks.")
  flags.DEFINE_multi_enum("chips", list(TPUS), list(TPUS), "Chips.")
  flags.DEFINE_multi_integer("tokens", list(TOKENS), "Tokens of a row.")
  flags.DEFINE_string("remat", "full", "A policy of backbone/remat.py.")
  app.run(main)
