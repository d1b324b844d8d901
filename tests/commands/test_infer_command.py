"""lumina infer: what users of the original type, and what they get."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath
from PIL import Image
from support.configs import ROOT
from support.families import FAMILIES, random_like
from support.forks import fork

from lumina_jax import infer, sample
from lumina_jax.commands import provenance
from lumina_jax.commands import settings_yaml as settings
from lumina_jax.commands.settings_yaml import Settings
from lumina_jax.model.network import Network
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained import defaults

# Three points of time are two steps.
FILE = """
- settings:
  model:
    ckpt: "{ckpt}"
  transport:
    path_type: Linear
  infer:
    resolution: "144x112"
    num_sampling_steps: 3
    cfg_scale: 4.
    solver: "euler"
    t_shift: 4
    seed: 5
"""
SAME = (
  *("--resolution=144x112", "--num_sampling_steps=3", "--cfg_scale=4"),
  *("--solver=euler", "--t_shift=4", "--seed=5"),
)


def process(*words) -> subprocess.CompletedProcess:
  """The command as a user runs it."""
  return subprocess.run(
    [sys.executable, "-m", "lumina_jax.cli", *map(str, words)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope="module")
def command():
  """The command without a process of its own: words in, errors out."""
  before = set(flags.FLAGS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(infer.entry_point, "run", lambda main: None)
    infer.run()  # Defines the flags.

  def run(*words):
    with flagsaver.flagsaver():
      infer.main(flags.FLAGS(["infer", *map(str, words)]))

  yield run
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def pipe():
  """Ten classes, 16 values along a side of a patch, weights at random."""
  model = dataclasses.replace(FAMILIES["next_imagenet"], patch=(16, 16))
  network = Network(model, None)
  params = random_like(network.shapes())
  return LuminaPipeline(network, params, defaults.sampling(model, 32))


@pytest.fixture(scope="module")
def ckpt(pipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp("published") / "Ten-Classes"
  pipe.save_pretrained(folder, dtype="float32")
  return folder


def names(folder) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def pixels(path) -> np.ndarray:
  return np.asarray(Image.open(path)).astype(int)


def test_the_command_of_the_original(ckpt, tmp_path):
  """Options in one word and in two; `-c`; flags above the file."""
  (tmp_path / "settings.yaml").write_text(FILE.format(ckpt=ckpt))
  done = process(
    *("infer", "7", tmp_path / "out", "-c", tmp_path / "settings.yaml"),
    *("--seed", "6", "--cfg_scale=3", "--num_gpus", 2, "--precision", "fp32"),
    *("--num_images_per_prompt", 2),
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.startswith("WARNING: --num_gpus=2: JAX chooses")
  assert names(tmp_path / "out") == [
    "7_seed6_0.png",
    "7_seed6_1.png",
    "overview.png",
  ]
  for line in ("device: cpu", f"loading {ckpt}", f"in {tmp_path / 'out'}"):
    assert line in done.stdout
  first = Image.open(tmp_path / "out" / "7_seed6_1.png")
  assert first.size == (144, 112)
  assert first.text["parameters"].splitlines() == [
    "7",
    "Steps: 2, Sampler: euler, CFG scale: 3, Seed: 6, Size: 144x112, Model: "
    "Ten-Classes, Shift: 4, Number: 1, Version: lumina_jax 0.1.0",
  ]
  said = json.loads(first.text["lumina_jax"])
  assert said["model"] == "Ten-Classes" and said["version"] == "0.1.0"
  assert (said["width"], said["height"], said["number"]) == (144, 112, 1)
  assert (said["seed"], said["guidance_scale"]) == (6, 3.0)


def test_the_file_and_the_same_flags_draw_the_same(command, ckpt, tmp_path):
  (tmp_path / "settings.yaml").write_text(FILE.format(ckpt=ckpt))
  config = f"--config={tmp_path / 'settings.yaml'}"
  command("7", tmp_path / "file", config)
  command("7", tmp_path / "flags", f"--ckpt={ckpt}", *SAME)
  expected = pixels(tmp_path / "file" / "7_seed5_0.png")
  found = pixels(tmp_path / "flags" / "7_seed5_0.png")
  np.testing.assert_array_equal(found, expected)
  # One picture needs no overview, a large one nothing enlarged.
  assert names(tmp_path / "flags") == ["7_seed5_0.png"]
  changes = ("--seed=6", "--cfg_scale=2", "--t_shift=1", "--negative_prompt=2")
  for number, change in enumerate(changes):
    command("7", tmp_path / str(number), config, change)
    (path,) = (tmp_path / str(number)).iterdir()
    assert np.abs(pixels(path) - expected).max() > 1, change
  command("7", tmp_path / "tall", config, "--width=16", "--height=32")
  assert Image.open(tmp_path / "tall" / "7_seed5_0.png").size == (16, 32)
  assert "7_seed5_0_x16.png" in names(tmp_path / "tall")


@pytest.mark.slow
def test_steps_and_points(command, ckpt, tmp_path):
  words = ("7", f"--ckpt={ckpt}", "--resolution=144x112")
  command(*words, f"--output={tmp_path / 'a'}", "--num_sampling_steps=3")
  command(*words, f"--output={tmp_path / 'b'}", "--num_inference_steps=2")
  a, b = (pixels(tmp_path / x / "7_seed0_0.png") for x in "ab")
  np.testing.assert_array_equal(a, b)


def test_prompts_of_a_file(command, ckpt, tmp_path):
  listed = tmp_path / "prompts.txt"
  listed.write_text("# classes\n3\n\n  9 \n")
  words = (f"--prompt_file={listed}", f"--ckpt={ckpt}", *SAME)
  command(*words, "--output", tmp_path / "a")
  three = ["3_seed5_0.png", "9_seed5_0.png", "overview.png"]
  assert names(tmp_path / "a") == three
  command("7", tmp_path / "b", *words)
  assert names(tmp_path / "b") == sorted([*three, "7_seed5_0.png"])
  alone, beside = (pixels(tmp_path / x / "9_seed5_0.png") for x in "ab")
  assert np.abs(alone - beside).max() <= 1
  with pytest.raises(ValueError, match="--prompt_file and 'out': write --outp"):
    command("out", *words)
  listed.write_text("# nothing\n\n")
  with pytest.raises(ValueError, match="holds no prompt"):
    command(*words)
  listed.unlink()
  with pytest.raises(OSError, match=r"prompts\.txt cannot be read"):
    command(*words)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ((), "no prompt. usage: lumina infer"),
    (("a", "b", "c"), "unexpected .'c'.; quote the prompt"),
    (("7", "--ema", "False"), "unexpected 'False': write --flag=False"),
    (("7", "--resolution=1024"), "--resolution = 1024: write width and height"),
    (("7", "--resolution="), "--resolution = : write width and height"),
    (("7", "--resolution=8x8", "--width=8"), "beside --height or --width"),
    (("7", "--solver=midpiont"), "did you mean 'midpoint'"),
    (("7", "--solver=dopri8"), "'dopri8' chooses its own steps"),
    (("7", "--num_sampling_steps=1"), "counts points of time"),
    (
      ("7", "--num_sampling_steps=3", "--num_inference_steps=2"),
      "counts points, .* steps: give one",
    ),
    (("7", "out", "--output=in"), "give one folder"),
    (("7", "--precision=fp16"), "float16 overflows .* use bf16"),
    (("7", "--precision=int8"), "use bf16 or fp32"),
    (("7", "--vae=sdxl"), "--vae needs --ckpt"),
    (("7", "--workdir=a", "--ckpt=b"), "--workdir and --ckpt: give one"),
    (("7", "--seed=1", "--seed=2"), "--seed has 2 values for 1 prompts"),
    (("7", "--seed=-1"), "seed = -1"),
    (("7", "--ckpt=/nowhere"), "/nowhere does not exist"),
    (("7", "-c", "nowhere.yaml"), "nowhere.yaml cannot be read"),
  ],
)
def test_mistakes_say_what_and_how(
  command, tmp_path, monkeypatch, words, message
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises((ValueError, OSError), match=message):
    command(*words)


def test_mistakes_that_the_pipeline_finds(command, ckpt, tmp_path):
  words = (f"--ckpt={ckpt}", f"--output={tmp_path}")
  with pytest.raises(ValueError, match=r"height=112, width=150.*patch"):
    command("7", *words, "--resolution=150x112")
  with pytest.raises(ValueError, match=r"'cat': the classes .* 0 to 9"):
    command("cat", *words)
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="cannot write to"):
    command("7", tmp_path / "file" / "out")


@pytest.mark.slow
def test_a_prompt_alone_as_a_process(tmp_path):
  """A first word with a space is a prompt, as every unknown one once was."""
  done = process("3 1", tmp_path, "--seed", 2, "--num_inference_steps=2")
  assert done.returncode == 0, done.stderr
  assert names(tmp_path) == ["3_1_seed2_0.png", "3_1_seed2_0_x16.png"]
  assert Image.open(tmp_path / "3_1_seed2_0.png").size == (16, 8)
  assert "sampling from the digits" in done.stdout


@pytest.mark.slow
def test_a_mistake_as_a_process(tmp_path):
  done = fork("cli", "infer", "7", tmp_path, "--ckpt", tmp_path / "nowhere")
  assert done.returncode == 1
  assert done.stderr.strip().startswith(f"error: {tmp_path / 'nowhere'} does")
  assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_slow_networks_show_steps_and_keep_what_is_done(
  pipe, tmp_path, monkeypatch, capsys
):
  sampling = dataclasses.replace(pipe.sampling, num_inference_steps=3)
  slow = LuminaPipeline(pipe.network, pipe.params, sampling)
  asked = [sample.Wish(p, "", 1, 112, 144, None) for p in ("7", "3", "x")]
  folder = epath.Path(tmp_path)
  for name in ("quick", "slow", "broken"):
    (folder / name).mkdir()
  quick = sample.draw(slow, asked[:2], 1, folder / "quick", {"model": "m"})
  assert "sampling: 2/2 pictures" in capsys.readouterr().out
  monkeypatch.setattr(sample, "SLOW", 1)
  images = sample.draw(slow, asked[:2], 1, folder / "slow", {"model": "m"})
  assert "sampling: 6/6 steps  picture 2/2" in capsys.readouterr().out
  for image, other in zip(images, quick, strict=True):
    difference = np.asarray(image).astype(int) - np.asarray(other)
    assert np.abs(difference).max() <= 1
  with pytest.raises(ValueError, match="'x': the classes"):
    sample.draw(slow, asked, 1, folder / "broken", {"model": "m"})
  assert names(tmp_path / "broken") == ["3_seed1_0.png", "7_seed1_0.png"]


@pytest.mark.parametrize(
  ("family", "off", "ratio"),
  [
    ("next_text", dict(scaling_method=settings.NO_SCALING), 2),
    ("flag_text", dict(ntk_scaling=False), 4),
  ],
)
def test_sizes_beyond_training_with_and_without_scaling(
  family, off, ratio, caplog
):
  own = defaults.sampling(FAMILIES[family], 16)
  large, small = (FAMILIES[family].grid(side, side) for side in (32, 8))
  assert own.beyond.stretch(large) == ratio
  found = infer.sampling(own, Settings(**off)).beyond
  assert found.stretch(large) == found.stretch(small) == 1
  scale = own.beyond.attention_scale(large)
  assert found.attention_scale(large) == scale > 1
  plain = infer.sampling(own, Settings(proportional_attn=False)).beyond
  assert plain.attention_scale(large) == 1 and plain.stretch(large) == ratio
  assert infer.sampling(own, Settings()) == own
  assert not caplog.text


def test_scaling_of_another_network_is_not_used(pipe, caplog):
  next_dit = defaults.sampling(FAMILIES["next_text"], 16)
  changed = infer.sampling(next_dit, Settings(scaling_watershed=0.6))
  assert changed.beyond.watershed == 0.6 and not caplog.text
  assert infer.sampling(next_dit, Settings(ntk_scaling=False)) == next_dit
  assert "ntk_scaling: this network has no such rule" in caplog.text
  caplog.clear()
  flag = defaults.sampling(FAMILIES["flag_text"], 16)
  assert infer.sampling(flag, Settings(scaling_watershed=0.6)) == flag
  assert "scaling_watershed: this network" in caplog.text
  caplog.clear()
  chosen = Settings(proportional_attn=True)
  assert infer.sampling(pipe.sampling, chosen) == pipe.sampling
  assert "proportional_attn: this network" in caplog.text


def test_flags_stand_above_the_settings_file(caplog):
  own = defaults.sampling(FAMILIES["next_text"], 16)
  off = Settings(scaling_method=settings.NO_SCALING)
  assert infer.sampling(own, off).beyond.rule == "none"
  found = infer.sampling(own, off, {"rope_scaling": "yarn"})
  assert found.beyond.rule == "yarn"
  flag = defaults.sampling(FAMILIES["flag_text"], 16)
  caplog.clear()
  chosen = Settings(scaling_watershed=0.6)
  found = infer.sampling(flag, chosen, {"rope_scaling": "watershed"})
  assert found.beyond.rule == "watershed" and found.beyond.watershed == 0.6
  assert not caplog.text


def test_tolerances_are_for_the_solver_in_force(caplog):
  own = defaults.sampling(FAMILIES["next_text"], 16)
  usual = Settings(atol=1e-6, rtol=1e-3)
  assert infer.sampling(own, usual) == own and not caplog.text
  chosen = Settings(rtol=0.1, solver="dopri5")
  assert infer.sampling(own, chosen).rtol == 0.1
  assert infer.sampling(own, chosen, {"rtol": 0.2}).rtol == 0.2
  assert not caplog.text
  chosen = Settings(rtol=0.1)
  assert infer.sampling(own, chosen) == own
  assert "ode.rtol: solvers with fixed steps" in caplog.text


def test_every_argument_of_the_loader_is_passed_on(command, monkeypatch):
  seen = []

  def load(path, **options):
    seen.append((path, options))
    raise ValueError("enough")

  monkeypatch.setattr(infer.LuminaPipeline, "from_pretrained", load)
  monkeypatch.setattr(infer.workdirs, "make_folder", lambda folder: None)
  with pytest.raises(ValueError, match="enough"):
    command(
      *("A snowman of", "out", "--ckpt", "a/b", "--ckpt_lm=c/d"),
      *("--ckpt_vae=sdxl", "--noema", "--token=secret", "--precision=bf16"),
    )
  assert seen == [
    (
      "a/b",
      dict(
        dtype="bfloat16",
        ema=False,
        text_encoder="c/d",
        vae="stabilityai/sdxl-vae",
        token="secret",
        one_at_a_time=True,
        mesh=None,  # The tests have one device.
      ),
    )
  ]


def test_one_that_is_no_picture_does_not_lose_the_others(
  pipe, tmp_path, monkeypatch
):
  call = type(pipe).__call__

  def broken(self, prompt, **options):
    if "3" in prompt:
      raise FloatingPointError("picture 1 ('3', seed 0): not finite")
    return call(self, prompt, **options)

  monkeypatch.setattr(type(pipe), "__call__", broken)
  asked = [sample.Wish(p, "", 0, 32, 32, None) for p in ("7", "3", "5")]
  with pytest.raises(FloatingPointError, match="'3', seed 0"):
    sample.draw(pipe, asked, 1, epath.Path(tmp_path), {"model": "m"})
  assert names(tmp_path) == [
    f"{n}_seed0_0{x}.png" for n in "57" for x in ("", "_x16")
  ]


def test_what_was_drawn_before_stays(pipe, tmp_path):
  folder, wish = epath.Path(tmp_path), sample.Wish("7", "", 0, 32, 32, None)
  sample.draw(pipe, [wish], 1, folder, {"model": "m"})
  first = (tmp_path / "7_seed0_0.png").read_bytes()
  other = dataclasses.replace(wish, guidance_scale=1.0)
  sample.draw(pipe, [other], 1, folder, {"model": "m"})
  assert (tmp_path / "7_seed0_0.png").read_bytes() == first
  assert (tmp_path / "7_seed0_0_2.png").read_bytes() != first


def test_what_a_picture_says_of_itself(pipe, tmp_path):
  wish = sample.Wish('ein "Schnee-\nmann" ☃', "blurry", 3, 32, 48, 2.5)
  said = provenance.texts(
    pipe, {"model": "a/b", "vae": None}, wish, 1, (48, 32)
  )
  image = Image.new("RGB", (48, 32))
  (path, large) = sample.picture.write(
    image, epath.Path(tmp_path) / "a.png", said
  )
  for file in (path, large):
    with Image.open(file) as opened:
      opened.load()
      assert dict(opened.text) == said
  lines = said["parameters"].split("\n")
  assert lines[2] == "Negative prompt: blurry"
  assert "CFG scale: 2.5, Seed: 3, Size: 48x32, Model: b," in lines[3]
  values = json.loads(said["lumina_jax"])
  assert values["prompt"] == wish.prompt and values["dtype"] == "float32"
  assert jax.tree.leaves(values)  # Plain JSON all through.


def test_a_sheet_of_large_pictures_shows_them_small_with_short_captions():
  images = [Image.new("RGB", (1024, 512), "red")] * 2
  long = "a snowman\nwith a carrot " * 20
  sheet = sample.picture.contact_sheet(images, [long, long])
  red = np.all(np.asarray(sheet) == (255, 0, 0), axis=-1).sum()
  assert red == 2 * 320 * 160
  assert sheet.width < 2 * 320 + 100 and sheet.height < 160 + 100
