"""A prompt to a picture, here and in diffusers: python -m benchmarks.pipeline

One folder, written by diffusers with random weights of a middle size, is loaded
by both; both draw it with the same starting latents, Euler steps, guidance 4,
in turn and with all threads. The first call of ours, which compiles, is timed
apart. On a GPU, which has to be there, the 2B network with the published shapes
of Gemma-2B and SDXL's autoencoder:

  python -m benchmarks.pipeline --device=gpu --dtype=bfloat16 --network=2b \
    --size=1024 --solver=midpoint --compile
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from lumina_jax import LuminaPipeline
from lumina_jax.commands import start as entry_point

PROMPT = "an orange cat sits on a wooden chair"
GUIDANCE = 4.0
TRANSFORMERS = {
  "middle": dict(
    hidden_size=768,
    num_layers=12,
    num_attention_heads=12,
    num_kv_heads=4,
    cross_attention_dim=512,
    sample_size=64,
  ),
  "2b": dict(
    hidden_size=2304,
    num_layers=24,
    num_attention_heads=32,
    num_kv_heads=8,
    cross_attention_dim=2048,
    sample_size=128,
  ),
}
GEMMAS = {
  "middle": dict(
    hidden_size=512,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=64,
    intermediate_size=2048,
  ),
  "2b": dict(
    hidden_size=2048,
    num_hidden_layers=18,
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=256,
    intermediate_size=16384,
  ),
}
VAE = dict(
  block_out_channels=(128, 256, 512, 512),
  layers_per_block=2,
  latent_channels=4,
  scaling_factor=0.13025,
  down_block_types=("DownEncoderBlock2D",) * 4,
  up_block_types=("UpDecoderBlock2D",) * 4,
)
WORDS = 400  # Tokens of the tokenizer that the tests train.


def write_folder(folder: pathlib.Path, network: str) -> None:
  """Random weights under which every part shows in the picture."""
  import diffusers
  import torch
  import transformers

  from tests.support.tokenizer import write_tokenizer

  torch.manual_seed(0)
  gemma = transformers.GemmaConfig(vocab_size=WORDS, **GEMMAS[network])
  net = diffusers.LuminaNextDiT2DModel(
    patch_size=2, in_channels=4, multiple_of=256, **TRANSFORMERS[network]
  )
  with torch.no_grad():
    for name, parameter in net.named_parameters():
      if parameter.ndim > 1 or "gate" in name:
        parameter.normal_(std=0.02)
    for layer in net.layers:
      layer.attn2.to_q.load_state_dict(layer.attn1.to_q.state_dict())
  write_tokenizer(folder / "tokenizer", vocab=WORDS)
  diffusers.LuminaPipeline(
    net,
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.AutoencoderKL(**VAE),
    transformers.GemmaModel(gemma),
    transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
  ).save_pretrained(folder)


def load_theirs(folder: pathlib.Path, args: Any) -> Any:
  import diffusers
  import torch

  pipe = diffusers.LuminaPipeline.from_pretrained(
    folder, torch_dtype=getattr(torch, args.dtype)
  )
  pipe.set_progress_bar_config(disable=True)
  if args.device == "gpu":
    pipe.to("cuda")
  if args.compile:  # As its documentation recommends.
    pipe.transformer = torch.compile(
      pipe.transformer, mode="max-autotune", fullgraph=True
    )
  return pipe


def contestants(folder: pathlib.Path, args: Any) -> dict[str, Callable]:
  """Calls that take a number of steps and return pixels `u8[H, W, 3]`."""
  import torch

  ours = LuminaPipeline.from_pretrained(folder, dtype=args.dtype)
  theirs, side = load_theirs(folder, args), args.size // 8
  noise = np.random.default_rng(0).standard_normal((1, side, side, 4), "f4")
  call = dict(guidance_scale=GUIDANCE, height=args.size, width=args.size)

  def draw_ours(steps):
    pixels = ours(
      PROMPT,
      latents=noise,
      num_inference_steps=steps,
      compatibility="diffusers",
      solver=args.solver,
      output_type="uint8",
      **call,
    ).images[0]
    # Else an encoded prompt would be had for nothing from the second call on.
    ours.text_encoder.clear_memory()
    return pixels

  def draw_theirs(steps):
    latents = torch.tensor(noise.transpose(0, 3, 1, 2)).to(
      theirs.device, theirs.dtype
    )
    # Its solver takes one evaluation a step; a midpoint step of ours two.
    pixels = theirs(
      PROMPT,
      latents=latents,
      num_inference_steps=steps * (2 if args.solver == "midpoint" else 1),
      clean_caption=False,
      output_type="np",
      **call,
    ).images[0]
    return np.round(pixels * 255).astype(np.uint8)

  return {"ours": draw_ours, "diffusers": draw_theirs}


def main(argv: list[str]) -> None:
  del argv
  args = flags.FLAGS
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_folder(folder, args.network)
    who = contestants(folder, args)
    pictures, seconds = {}, {name: [] for name in who}
    for name, draw in who.items():
      start = time.perf_counter()
      pictures[name] = draw(args.steps)
      print(f"{name}: first picture {time.perf_counter() - start:.2f} s")
    if args.solver == "euler":
      apart = np.abs(pictures["ours"].astype(int) - pictures["diffusers"])
      print(f"pixels differ by at most {apart.max()} of 255")
    for _ in range(args.rounds):
      for name, draw in who.items():
        start = time.perf_counter()
        draw(args.steps)
        seconds[name].append(time.perf_counter() - start)
  report(seconds, args)


def report(seconds: dict[str, list[float]], args: Any) -> None:
  """Prints medians of whole pictures, and their ratio."""
  import diffusers
  import torch

  median = {name: float(np.median(each)) for name, each in seconds.items()}
  for name, each in seconds.items():
    rounds = ", ".join(f"{value:.2f}" for value in each)
    print(f"{name}: {median[name]:.2f} s a picture (rounds: {rounds})")
  print(
    f"diffusers over ours: {median['diffusers'] / median['ours']:.2f}\n"
    f"{args.network}, {args.size} x {args.size}, {args.steps} {args.solver} "
    f"steps, {args.dtype}, {jax.devices()[0].device_kind}; JAX "
    f"{jax.__version__}, torch {torch.__version__} with "
    f"{torch.get_num_threads()} threads, diffusers {diffusers.__version__}"
  )


if __name__ == "__main__":
  flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Of both.")
  flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of both.")
  flags.DEFINE_enum("network", "middle", list(TRANSFORMERS), "How large.")
  flags.DEFINE_integer("size", 512, "Pixels along a side.")
  flags.DEFINE_integer("steps", 20, "Integration steps.")
  flags.DEFINE_enum("solver", "euler", ["euler", "midpoint"], "Of ours.")
  flags.DEFINE_integer("rounds", 3, "Pictures of each that are timed.")
  flags.DEFINE_bool("compile", False, "torch.compile their transformer.")
  entry_point.run(main)
