"""--image, --strength and how to sample, as flags of both commands."""

import dataclasses
import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from support.families import FAMILIES, random_like

from lumina_jax import sample
from lumina_jax.model.network import Network
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained import defaults
from lumina_jax.sampling import source_image
from lumina_jax.sampling.extrapolation import Extrapolation
from tests.commands import test_infer_command as infer_command

command, names, pixels = (
  infer_command.command,
  infer_command.names,
  infer_command.pixels,
)
SIDE = 16
SAME = ("--num_inference_steps=4", "--seed=5")


@pytest.fixture(scope="module")
def pipe():
  """Ten classes in colours, four patches along a side, weights at random."""
  family = FAMILIES["next_imagenet"]
  model = dataclasses.replace(family, patch=(4, 4), channels=3)
  network = Network(model, None)
  sampling = dataclasses.replace(
    defaults.sampling(model, SIDE),
    solver="euler",
    beyond=Extrapolation("none", SIDE, (SIDE // 4) ** 2),
  )
  return LuminaPipeline(network, random_like(network.shapes()), sampling)


@pytest.fixture(scope="module")
def ckpt(pipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp("published") / "Ten-Classes"
  pipe.save_pretrained(folder, dtype="float32")
  return folder


@pytest.fixture(scope="module")
def infer(command, ckpt):
  """lumina infer with the small network: prompt, folder and flags in."""

  def run(prompt, folder, *words):
    command(prompt, folder, f"--ckpt={ckpt}", *SAME, *words)

  return run


@pytest.fixture(scope="module")
def samples(command, ckpt):
  """python -m lumina_jax.sample, likewise; prompts may be several."""
  flags.DEFINE_multi_string("prompt", [], "")  # The others are there.
  load = LuminaPipeline.from_pretrained

  def run(prompts, folder, *words):
    words = [*(f"--prompt={p}" for p in prompts), *SAME, *words]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
      patch.setattr(
        sample.LuminaPipeline, "from_pretrained", lambda **kw: load(ckpt, **kw)
      )
      sample.main(flags.FLAGS(["sample", f"--output={folder}", *words]))

  yield run
  delattr(flags.FLAGS, "prompt")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Pictures in a folder: a cat and a dog, and a wide one."""
  folder = tmp_path_factory.mktemp("private")
  rng = np.random.default_rng(0)
  for name, sides in (("cat", (16, 16)), ("dog", (16, 16)), ("wide", (16, 32))):
    values = rng.integers(256, size=(*sides, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / f"{name}.png")
  return folder


def away(a, b):
  return np.sqrt(np.mean((a - b) ** 2))


def told(path) -> dict:
  """What a PNG says of how it was made."""
  with Image.open(path) as image:
    return json.loads(image.text["lumina_jax"])


def test_a_picture_to_begin_with(infer, files, tmp_path):
  cat, image = pixels(files / "cat.png"), f"--image={files / 'cat.png'}"
  found = []
  for strength in ("0.02", "0.5", "1"):
    infer("7", tmp_path / strength, image, f"--strength={strength}")
    found.append(pixels(tmp_path / strength / "7_seed5_0.png"))
  distances = [away(x, cat) for x in found]
  assert distances == sorted(distances) and distances[0] < 0.3 * distances[-1]
  infer("7", tmp_path / "free", f"--resolution={SIDE}x{SIDE}")
  free = pixels(tmp_path / "free" / "7_seed5_0.png")
  assert np.abs(found[-1] - free).max() <= 1


def test_the_record_names_file_and_strength(infer, files, tmp_path):
  infer("7", tmp_path, f"--image={files / 'cat.png'}", "--strength=0.25")
  path = tmp_path / "7_seed5_0.png"
  said = told(path)
  assert (said["image"], said["strength"]) == ("cat.png", 0.25)
  # Not where it lies: pictures are shown to others.
  with Image.open(path) as image:
    assert not any(str(files) in text for text in image.text.values())
  infer("7", tmp_path / "default", f"--image={files / 'cat.png'}")
  found = told(tmp_path / "default" / path.name)["strength"]
  assert found == source_image.STRENGTH


def test_its_size_is_the_picture_s(infer, files, tmp_path):
  infer("7", tmp_path, f"--image={files / 'wide.png'}", "--strength=0.25")
  with Image.open(tmp_path / "7_seed5_0.png") as image:
    assert image.size == (32, 16)
  assert (told(tmp_path / "7_seed5_0.png")["width"]) == 32


def test_one_picture_for_several_prompts(samples, files, tmp_path):
  cat, dog = (f"--image={files / f'{name}.png'}" for name in ("cat", "dog"))
  weak = "--strength=0.25"
  samples(["7", "3"], tmp_path / "one", cat, weak)
  samples(["7", "3"], tmp_path / "two", cat, dog, weak)
  one, two = (
    [pixels(tmp_path / x / f"{n}_seed5_0.png") for n in "73"]
    for x in ("one", "two")
  )
  np.testing.assert_array_equal(one[0], two[0])
  cat, dog = (pixels(files / f"{name}.png") for name in ("cat", "dog"))
  assert away(one[1], cat) < away(one[1], dog)
  assert away(two[1], dog) < away(two[1], cat)
  said = [told(tmp_path / "two" / f"{n}_seed5_0.png")["image"] for n in "73"]
  assert said == ["cat.png", "dog.png"]


def test_both_commands_draw_the_same(infer, samples, files, tmp_path):
  words = f"--image={files / 'cat.png'}", "--strength=0.5", "--solver=ab2"
  infer("7", tmp_path / "infer", *words)
  samples(["7"], tmp_path / "sample", *words)
  a, b = (pixels(tmp_path / x / "7_seed5_0.png") for x in ("infer", "sample"))
  np.testing.assert_array_equal(a, b)


HOW = {
  "--solver=ab2": ("solver", "ab2"),
  "--schedule=sigmoid": ("schedule", "sigmoid"),
  "--guidance_interval=0,0.5": ("guidance_interval", [0.0, 0.5]),
  "--guidance_renorm=0.5": ("guidance_renorm", 0.5),
  "--rope_scaling=linear": ("beyond", {"rule": "linear"}),
}


@pytest.mark.parametrize("who", ["infer", "samples"])
def test_how_to_sample(who, request, tmp_path):
  """Every flag changes the picture, and the picture says so."""
  run = request.getfixturevalue(who)
  prompt = "7" if who == "infer" else ["7"]
  large = f"--height={2 * SIDE}", f"--width={2 * SIDE}"
  run(prompt, tmp_path / "plain", *large)
  plain = pixels(tmp_path / "plain" / "7_seed5_0.png")
  for number, (word, (name, value)) in enumerate(HOW.items()):
    run(prompt, tmp_path / str(number), *large, word)
    path = tmp_path / str(number) / "7_seed5_0.png"
    assert np.abs(pixels(path) - plain).max() > 1, word
    found = told(path)[name]
    if isinstance(value, dict):
      found = {key: found[key] for key in value}
    assert found == value, word


def mistakes(files, folder):
  """Words, and what is said of them."""
  (folder / "text.png").write_text("a snowman")
  cat = f"--image={files / 'cat.png'}"
  return [
    ([f"--image={folder / 'none.png'}"], r"--image=.*none\.png cannot be read"),
    ([f"--image={folder}"], "--image=.* cannot be read: Is a directory"),
    ([f"--image={folder / 'text.png'}"], r"--image=.*text\.png is no picture"),
    ([cat, "--height=32"], "height=32, but image has 16: resize it"),
    ([cat, "--strength=2"], "strength = 2.0: .* at most 1"),
    ([cat, "--strength=0"], "strength = 0.0: above 0"),
    (["--strength=0.5"], "strength = 0.5 without image"),
    ([cat, cat, cat], "--image has 3 values for"),
    (["--solver=midpiont"], "did you mean 'midpoint'"),
    (["--schedule=sigmoyd"], "did you mean 'sigmoid'"),
    (["--guidance_interval=0.5"], "guidance_interval = .*: two numbers"),
    (["--guidance_interval=0.5,0.2"], "the first below the second"),
    (["--guidance_renorm=-1"], "guidance_renorm = -1"),
    (["--rope_scaling=yarm"], "did you mean 'yarn'"),
  ]


@pytest.mark.parametrize("who", ["infer", "samples"])
def test_mistakes(who, request, files, tmp_path):
  run = request.getfixturevalue(who)
  prompt = "7" if who == "infer" else ["7", "3"]
  for number, (words, message) in enumerate(mistakes(files, tmp_path)):
    out = tmp_path / str(number)
    with pytest.raises((ValueError, OSError), match=message):
      run(prompt, out, *words)
    assert not out.exists() or not names(out), words  # Nothing half done.


@pytest.mark.slow
@pytest.mark.long
def test_as_a_process(ckpt, files, tmp_path):
  words = ("infer", "7", tmp_path / "out", f"--ckpt={ckpt}", *SAME)
  image = f"--image={files / 'cat.png'}"
  done = infer_command.process(*words, image, "--strength=0.25")
  assert done.returncode == 0, done.stderr
  assert told(tmp_path / "out" / "7_seed5_0.png")["strength"] == 0.25
  wrong = infer_command.process(*words, f"--image={tmp_path / 'none.png'}")
  assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
  assert "none.png cannot be read: No such file" in wrong.stderr
