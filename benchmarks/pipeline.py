"""A prompt to an image, here and in diffusers: python -m benchmarks.pipeline

Both load one folder, written by diffusers with random weights of a medium size,
and generate images from the same latents with Euler steps and guidance 4, in
turn and with all threads. The first call, which compiles, is timed separately.
On a GPU, the 2B network with the published shapes of Gemma-2B and SDXL's
autoencoder:

  python -m benchmarks.pipeline --device=gpu --dtype=bfloat16 --network=2b \
    --size=1024 --solver=midpoint --compile
"""

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
  "medium": dict(
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
  "medium": dict(
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
VOCAB = 400  # Tokens of the small tokenizer of the tests.


def write_folder(folder: pathlib.Path, network: str) -> None:
  """Writes a pipeline of random weights, all of which affect the image."""
  import diffusers
  import torch
  import transformers

  from tests.support.tokenizer import write_tokenizer

  torch.manual_seed(0)
  gemma = transformers.GemmaConfig(vocab_size=VOCAB, **GEMMAS[network])
  net = diffusers.LuminaNextDiT2DModel(
    patch_size=2, in_channels=4, multiple_of=256, **TRANSFORMERS[network]
  )
  with torch.no_grad():
    for name, parameter in net.named_parameters():
      if parameter.ndim > 1 or "gate" in name:
        parameter.normal_(std=0.02)
    for layer in net.layers:
      layer.attn2.to_q.load_state_dict(layer.attn1.to_q.state_dict())
  write_tokenizer(folder / "tokenizer", vocab=VOCAB)
  diffusers.LuminaPipeline(
    net,
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.AutoencoderKL(**VAE),
    transformers.GemmaModel(gemma),
    transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
  ).save_pretrained(folder)


def load_diffusers(folder: pathlib.Path, args: Any) -> Any:
  import diffusers
  import torch

  pipe = diffusers.LuminaPipeline.from_pretrained(
    folder, torch_dtype=getattr(torch, args.dtype)
  )
  pipe.set_progress_bar_config(disable=True)
  if args.device == "gpu":
    pipe.to("cuda")
  if args.compile:  # As diffusers' documentation recommends.
    pipe.transformer = torch.compile(
      pipe.transformer, mode="max-autotune", fullgraph=True
    )
  return pipe


def make_candidates(folder: pathlib.Path, args: Any) -> dict[str, Callable]:
  """Functions of a number of steps that return pixels `u8[H, W, 3]`."""
  import torch

  ours = LuminaPipeline.from_pretrained(folder, dtype=args.dtype)
  theirs, side = load_diffusers(folder, args), args.size // 8
  noise = np.random.default_rng(0).standard_normal((1, side, side, 4), "f4")
  call = dict(guidance_scale=GUIDANCE, height=args.size, width=args.size)

  def generate_ours(steps):
    pixels = ours(
      PROMPT,
      latents=noise,
      num_inference_steps=steps,
      compatibility="diffusers",
      solver=args.solver,
      output_type="uint8",
      **call,
    ).images[0]
    # Otherwise later calls would reuse the features of the prompt.
    ours.text_encoder.clear_memory()
    return pixels

  def generate_theirs(steps):
    latents = torch.tensor(noise.transpose(0, 3, 1, 2)).to(
      theirs.device, theirs.dtype
    )
    # A step of its solver is one evaluation, a midpoint step of ours two.
    pixels = theirs(
      PROMPT,
      latents=latents,
      num_inference_steps=steps * (2 if args.solver == "midpoint" else 1),
      clean_caption=False,
      output_type="np",
      **call,
    ).images[0]
    return np.round(pixels * 255).astype(np.uint8)

  return {"ours": generate_ours, "diffusers": generate_theirs}


def main(argv: list[str]) -> None:
  del argv
  args = flags.FLAGS
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_folder(folder, args.network)
    candidates = make_candidates(folder, args)
    images, seconds = {}, {name: [] for name in candidates}
    for name, generate in candidates.items():
      start = time.perf_counter()
      images[name] = generate(args.steps)
      print(f"{name}: first image {time.perf_counter() - start:.2f} s")
    if args.solver == "euler":
      difference = np.abs(images["ours"].astype(int) - images["diffusers"])
      print(f"pixels differ by at most {difference.max()} of 255")
    for _ in range(args.rounds):
      for name, generate in candidates.items():
        start = time.perf_counter()
        generate(args.steps)
        seconds[name].append(time.perf_counter() - start)
  report(seconds, args)


def report(seconds: dict[str, list[float]], args: Any) -> None:
  """Prints median seconds per image, and their ratio."""
  import diffusers
  import torch

  median = {name: float(np.median(each)) for name, each in seconds.items()}
  for name, each in seconds.items():
    rounds = ", ".join(f"{value:.2f}" for value in each)
    print(f"{name}: {median[name]:.2f} s per image (rounds: {rounds})")
  print(
    f"diffusers over ours: {median['diffusers'] / median['ours']:.2f}\n"
    f"{args.network}, {args.size} x {args.size}, {args.steps} {args.solver} "
    f"steps, {args.dtype}, {jax.devices()[0].device_kind}; JAX "
    f"{jax.__version__}, torch {torch.__version__} with "
    f"{torch.get_num_threads()} threads, diffusers {diffusers.__version__}"
  )


if __name__ == "__main__":
  flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Device of both.")
  flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Dtype of both."
  )
  flags.DEFINE_enum("network", "medium", list(TRANSFORMERS), "Size.")
  flags.DEFINE_integer("size", 512, "Pixels along a side.")
  flags.DEFINE_integer("steps", 20, "Integration steps.")
  flags.DEFINE_enum("solver", "euler", ["euler", "midpoint"], "Our solver.")
  flags.DEFINE_integer("rounds", 3, "Timed rounds.")
  flags.DEFINE_bool("compile", False, "Use torch.compile.")
  entry_point.run(main)
