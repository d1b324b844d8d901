"""lumina infer: what users type, and the files that they get."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath
from PIL import Image
from support.configs import ROOT
from support.families import FAMILIES, random_like
from support.zygote import fork

from lumina_jax import infer
from lumina_jax.commands import sample_files
from lumina_jax.commands.sample_files import Job
from lumina_jax.media import IMAGE
from lumina_jax.model.network import Network
from lumina_jax.model.offload import Offloadable
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig, TrainedSize

SIDE = 16
# Three points of time are two steps.
FILE = """
- settings:
  model:
    ckpt: "{ckpt}"
  transport:
    path_type: Linear
  infer:
    resolution: "24x16"
    num_sampling_steps: 3
    cfg_scale: 3.
    solver: "euler"
    t_shift: 4
    seed: 5
"""
SAME = (
  *("--resolution=24x16", "--num_sampling_steps=3", "--cfg_scale=3"),
  *("--solver=euler", "--t_shift=4", "--seed=5"),
)


@pytest.fixture(scope="module")
def pipe():
  """Ten classes in colours, patches of 4, random weights."""
  model = dataclasses.replace(
    FAMILIES["next_imagenet"], patch=(4, 4), channels=3
  )
  network = Network(model, None)
  components = Components(
    IMAGE,
    network,
    Offloadable.pinned(random_like(network.shapes())),
    SamplingOptions("euler", 2, 4.0, 1.0),
    SizeConfig((SIDE, SIDE), trained=TrainedSize(SIDE, (SIDE // 4) ** 2)),
  )
  return LuminaPipeline(components)


@pytest.fixture(scope="module")
def ckpt(pipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp("published") / "Ten-Classes"
  pipe.save_pretrained(folder, dtype="float32")
  return folder


@pytest.fixture(scope="module")
def command():
  """The command in this process: words in, exceptions out."""
  before = set(flags.FLAGS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(infer.start, "run", lambda main: None)
    infer.run()  # Defines the flags.

  def run(*words):
    with flagsaver.flagsaver():
      infer.main(flags.FLAGS(["infer", *map(str, words)]))

  yield run
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Images in a folder: a cat and a dog, and a wide one."""
  folder = tmp_path_factory.mktemp("private")
  rng = np.random.default_rng(0)
  for name, sides in (("cat", (16, 16)), ("dog", (16, 16)), ("wide", (16, 32))):
    values = rng.integers(256, size=(*sides, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / f"{name}.png")
  return folder


def names(folder) -> list[str]:
  """Files of a folder, without the enlarged twins."""
  files = sorted(path.name for path in folder.iterdir())
  return [name for name in files if "_x16" not in name]


def pixels(path) -> np.ndarray:
  return np.asarray(Image.open(path)).astype(int)


def metadata(path) -> dict:
  with Image.open(path) as image:
    return json.loads(image.text["lumina_jax"])


def distance(a, b) -> float:
  return np.sqrt(np.mean((a - b) ** 2))


def process(*words) -> subprocess.CompletedProcess:
  """The command as a user runs it."""
  return subprocess.run(
    [sys.executable, "-m", *map(str, words)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_settings_file_and_flags_agree(command, ckpt, tmp_path):
  (tmp_path / "settings.yaml").write_text(FILE.format(ckpt=ckpt))
  config = f"--config={tmp_path / 'settings.yaml'}"
  command("7", tmp_path / "file", config)
  command("7", tmp_path / "flags", f"--ckpt={ckpt}", *SAME)
  expected = pixels(tmp_path / "file" / "7_seed5_0.png")
  assert expected.shape[:2] == (16, 24)
  found = pixels(tmp_path / "flags" / "7_seed5_0.png")
  np.testing.assert_array_equal(found, expected)
  assert names(tmp_path / "flags") == ["7_seed5_0.png"]  # No overview of one.
  # Flags override the file.
  changes = ("--seed=6", "--cfg_scale=2", "--t_shift=1", "--negative_prompt=2")
  for number, change in enumerate(changes):
    command("7", tmp_path / str(number), config, change)
    (name,) = names(tmp_path / str(number))
    changed = pixels(tmp_path / str(number) / name)
    assert np.abs(changed - expected).max() > 1, change


def test_points_of_time_are_one_more_than_steps(command, ckpt, tmp_path):
  words = ("7", f"--ckpt={ckpt}", "--resolution=24x16", "--seed=5")
  command(*words, f"--output={tmp_path / 'a'}", "--num_sampling_steps=3")
  command(*words, f"--output={tmp_path / 'b'}", "--num_inference_steps=2")
  a, b = (pixels(tmp_path / x / "7_seed5_0.png") for x in "ab")
  np.testing.assert_array_equal(a, b)


def test_prompts_come_from_words_flags_and_a_file(command, ckpt, tmp_path):
  listed = tmp_path / "prompts.txt"
  listed.write_text("# classes\n3\n\n  9 \n")
  words = (f"--prompt_file={listed}", f"--ckpt={ckpt}", *SAME)
  command(*words, "--output", tmp_path / "a")
  three = ["3_seed5_0.png", "9_seed5_0.png", "overview.png"]
  assert names(tmp_path / "a") == three
  command("7", tmp_path / "b", "--prompt=1", *words)
  five = [*three, "1_seed5_0.png", "7_seed5_0.png"]
  assert names(tmp_path / "b") == sorted(five)
  alone, beside = (pixels(tmp_path / x / "9_seed5_0.png") for x in "ab")
  assert np.abs(alone - beside).max() <= 1
  listed.write_bytes(b"\xef\xbb\xbf3\r\n")  # As editors write.
  command(*words, "--output", tmp_path / "c")
  assert metadata(tmp_path / "c" / "3_seed5_0.png")["prompt"] == "3"
  for content, error in (
    (b"# nothing\n\n", "holds no prompt"),
    ("3".encode("utf-16"), r"prompts\.txt is not UTF-8 text"),
    (None, r"prompts\.txt cannot be read"),
  ):
    listed.write_bytes(content) if content else listed.unlink()
    with pytest.raises((ValueError, OSError), match=error):
      command(*words)


def test_a_file_says_how_it_was_made(command, ckpt, images, tmp_path):
  cat = f"--image={images / 'cat.png'}"
  words = ("7", tmp_path, f"--ckpt={ckpt}", "--seed=5", cat, "--strength=0.25")
  command(*words, "--negative_prompt=2", "--solver=ab2")
  path = tmp_path / "7_seed5_0.png"
  with (
    Image.open(path) as image,
    Image.open(tmp_path / "7_seed5_0_x16.png") as large,
  ):
    assert dict(image.text) == dict(large.text)
    # Not where files lie: images are shown to others.
    assert not any(str(images) in text for text in image.text.values())
    lines = image.text["parameters"].splitlines()
  assert lines == [
    "7",
    "Negative prompt: 2",
    "Steps: 2, Sampler: ab2, CFG scale: 4, Shift: 1, Seed: 5, Size: 16x16, "
    "Model: Ten-Classes, Number: 0, Version: lumina_jax 0.1.0",
  ]
  values = metadata(path)
  assert values["image"] == "cat.png" and values["strength"] == 0.25
  assert values["medium"] == "image" and values["solver"] == "ab2"
  assert (values["width"], values["height"]) == (16, 16)
  command("7", tmp_path / "free", *words[2:4])
  assert "strength" not in metadata(tmp_path / "free" / path.name)


def test_initial_images(command, ckpt, images, tmp_path):
  """One for all prompts or one for each; strength moves away from them."""
  cat, dog = (f"--image={images / f'{n}.png'}" for n in ("cat", "dog"))
  words = (f"--ckpt={ckpt}", "--prompt=7", "--prompt=3", "--seed=5")
  found = {}
  for name, given in (
    ("weak", (cat, "--strength=0.25")),
    ("strong", (cat, "--strength=0.75")),
    ("each", (cat, dog, "--strength=0.25")),
    ("wide", (f"--image={images / 'wide.png'}", "--strength=0.25")),
  ):
    steps = "--num_inference_steps=4"
    command(*words, steps, *given, f"--output={tmp_path / name}")
    found[name] = [pixels(tmp_path / name / f"{n}_seed5_0.png") for n in "73"]
  np.testing.assert_array_equal(found["weak"][0], found["each"][0])
  cat, dog = (pixels(images / f"{n}.png") for n in ("cat", "dog"))
  assert distance(found["weak"][0], cat) < distance(found["strong"][0], cat)
  assert distance(found["weak"][1], cat) < distance(found["weak"][1], dog)
  assert distance(found["each"][1], dog) < distance(found["each"][1], cat)
  assert found["wide"][0].shape == (16, 32, 3)


CHANGES = {
  "--solver=ab2": ("solver", "ab2"),
  "--schedule=sigmoid": ("schedule", "sigmoid"),
  "--schedule=0,0.2,1": ("schedule", [0.0, 0.2, 1.0]),
  "--sigmas=1,0.3": ("sigmas", [1.0, 0.3]),
  "--guidance_interval=0,0.5": ("guidance_interval", [0.0, 0.5]),
  "--guidance_renorm=0.5": ("guidance_renorm", 0.5),
  "--guidance_channels=1": ("guidance_channels", 1),
  "--guidance_scale=0": ("guidance_scale", 0.0),
  "--rope_scaling=linear": ("rope_scaling", "linear"),
  "--proportional_attn": ("proportional_attention", True),
}


def test_every_option_changes_the_sample_and_its_metadata(
  command, ckpt, tmp_path
):
  words = ("7", f"--ckpt={ckpt}", "--height=32", "--width=32", "--seed=5")
  command(*words, f"--output={tmp_path / 'plain'}")
  plain = pixels(tmp_path / "plain" / "7_seed5_0.png")
  for number, (word, (name, value)) in enumerate(CHANGES.items()):
    command(*words, word, f"--output={tmp_path / str(number)}")
    path = tmp_path / str(number) / "7_seed5_0.png"
    assert np.abs(pixels(path) - plain).max() > 1, word
    assert metadata(path)[name] == value, word


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ((), "no prompt. usage: lumina infer"),
    (("a", "b", "c"), "unexpected .'c'.; quote the prompt"),
    (("7", "--ema", "False"), "unexpected 'False': write --flag=False"),
    (("out", "--prompt=7"), "'out' beside --prompt or --prompt_file: write"),
    (("7", "out", "--output=in"), "name one folder"),
    (("7", "--resolution=1024"), "--resolution = 1024: write width and height"),
    (("7", "--resolution="), "--resolution = : write width and height"),
    (("7", "--resolution=8x8", "--width=8"), "beside --height or --width"),
    (
      ("7", "--num_frames=3"),
      "num_frames: .* generates images; use --hei",
    ),
    (("7", "--solver=midpiont"), "did you mean 'midpoint'"),
    (("7", "--solver=dopri8"), "'dopri8' is not available; use dopri5"),
    (("7", "--schedule=sigmoyd"), "did you mean 'sigmoid'"),
    (("7", "--guidance_interval=0.5"), "guidance_interval = .* have 2 items"),
    (("7", "--guidance_interval=0.5,0.2"), "the first below the second"),
    (("7", "--guidance_renorm=-1"), "guidance_renorm = -1"),
    (("7", "--rope_scaling=yarm"), "did you mean 'yarn'"),
    (("7", "--rtol=0.1"), "rtol = 0.1 has no effect .* needs solver"),
    (("7", "--strength=0.5"), "strength = 0.5 has no effect without image"),
    (("7", "--strength=2", "--image={cat}"), r"strength = 2\.0: .* at most 1"),
    (("7", "--image={cat}", "--height=32"), "height=32, but image has 16"),
    (("7", "--image={cat}", "--image={cat}"), "--image has 2 values for 1"),
    (("7", "--image=none.png"), r"--image=none\.png: No such file"),
    (("7", "--image=."), "--image=.: Is a directory"),
    (("7", "--image=text.png"), r"--image=text\.png: not an image"),
    (("7", "--num_sampling_steps=1"), "N points of time are N - 1 steps"),
    (
      ("7", "--num_sampling_steps=3", "--num_inference_steps=2"),
      "counts points of time, .* steps: pass one",
    ),
    (("7", "--precision=fp16"), "float16 overflows .* use bf16"),
    (("7", "--precision=int8"), "use bf16 or fp32"),
    (("7", "--vae=sdxl", "--ckpt="), "--vae needs --ckpt"),
    (("7", "--workdir=a"), "--workdir and --ckpt: pass one"),
    (("7", "--workdir="), "--workdir is empty: name the folder of a run"),
    (("7", "--config="), "--config= cannot be read"),
    (("7", "--text_encoder=a"), "reads prompts itself; leave text_encoder"),
    (("7", "--noema"), "holds one set of weights .*; leave ema out"),
    (("7", "--seed=1", "--seed=2"), "--seed has 2 values for 1 prompts"),
    (("7", "--seed=-1"), "seed = -1"),
    (("7", "--ckpt=/nowhere"), "/nowhere does not exist"),
    (("7", "-c", "nowhere.yaml"), "nowhere.yaml cannot be read"),
    (("7", "--resolution=30x16"), "width = 30 is not a positive multiple of 4"),
    (("cat",), "'cat': the classes .* 0 to 9"),
    (("7", "file/out"), "cannot write to"),
  ],
)
def test_mistakes_name_the_value_and_the_way_out(
  command, ckpt, images, tmp_path, monkeypatch, words, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").write_text("")
  (tmp_path / "text.png").write_text("a snowman")
  words = [word.format(cat=images / "cat.png") for word in words]
  if not any(word.startswith("--ckpt") for word in words):
    words.append(f"--ckpt={ckpt}")
  with pytest.raises((ValueError, OSError, flags.Error), match=message):
    command(*words)
  files = {p.name for p in tmp_path.rglob("*") if p.is_file()}
  assert files == {"file", "text.png"}  # Nothing is half done.


def test_every_argument_of_the_loader_is_passed_on(
  command, monkeypatch, tmp_path
):
  calls = []

  def load(path, **options):
    calls.append((path, options))
    raise ValueError("enough")

  monkeypatch.setattr(infer.LuminaPipeline, "from_pretrained", load)
  with pytest.raises(ValueError, match="enough"):
    command(
      *("A snowman of", tmp_path, "--ckpt", "a/b", "--ckpt_lm=c/d"),
      *("--ckpt_vae=sdxl", "--noema", "--token=secret", "--precision=bf16"),
    )
  expected = dict(
    dtype="bfloat16",
    ema=False,
    text_encoder="c/d",
    vae="stabilityai/sdxl-vae",
    token="secret",
    one_at_a_time=True,
    mesh=None,  # The tests have one device.
  )
  assert calls == [("a/b", expected)]


def job(pipe, folder, prompts, **changes) -> Job:
  item = {"negative_prompt": "", "seed": 0, "guidance_scale": None}
  items = [{"prompt": prompt, **item, **changes} for prompt in prompts]
  return Job(pipe, items, {}, 1, epath.Path(folder), {"model": "m"})


def test_large_networks_show_every_step(pipe, tmp_path, monkeypatch, capsys):
  for name in ("quick", "slow"):
    (tmp_path / name).mkdir()
  quick = sample_files.write_samples(job(pipe, tmp_path / "quick", "73"))
  assert "sampling: 2/2 samples" in capsys.readouterr().out
  monkeypatch.setattr(sample_files, "SLOW", 1)
  slow = sample_files.write_samples(job(pipe, tmp_path / "slow", "73"))
  assert "sampling: 4/4 steps  sample 2/2" in capsys.readouterr().out
  for sample, other in zip(slow, quick, strict=True):
    np.testing.assert_allclose(sample, other, atol=1e-2)


def test_a_failed_sample_does_not_lose_the_others(pipe, tmp_path, monkeypatch):
  call = type(pipe).__call__

  def broken(self, prompt, **options):
    if "3" in prompt:
      raise FloatingPointError("sample 1 ('3', seed 0): not finite")
    return call(self, prompt, **options)

  monkeypatch.setattr(type(pipe), "__call__", broken)
  with pytest.raises(FloatingPointError, match="'3', seed 0"):
    sample_files.write_samples(job(pipe, tmp_path, "735"))
  assert names(tmp_path) == ["5_seed0_0.png", "7_seed0_0.png"]


def test_files_are_never_overwritten(pipe, tmp_path):
  sample_files.write_samples(job(pipe, tmp_path, "7"))
  first = (tmp_path / "7_seed0_0.png").read_bytes()
  sample_files.write_samples(job(pipe, tmp_path, "7", guidance_scale=1.0))
  assert (tmp_path / "7_seed0_0.png").read_bytes() == first
  assert (tmp_path / "7_seed0_0_2.png").read_bytes() != first
  # Previews of other media count too.
  assert sample_files._free(tmp_path, "7_seed0_0", ".npy").name == (
    "7_seed0_0_3.npy"
  )


@pytest.mark.parametrize(
  ("prompts", "expected"),
  [
    (["3 1 / 4"], ["3_1_over_4_seed0"]),
    (["a", "A", "a!"], ["a_seed0", "A_seed0_2", "a_seed0_3"]),
    (["", "?"], ["unconditional_seed0", "unconditional_seed0_2"]),
    (["x" * 99], ["x" * 60 + "_seed0"]),
    (["𝒜" * 99], ["𝒜" * 45 + "_seed0"]),  # Of four bytes each.
  ],
)
def test_names_of_files_differ(prompts, expected):
  assert sample_files.stems(prompts, [0] * len(prompts)) == expected


@pytest.mark.e2e
def test_as_a_process(ckpt, tmp_path):
  """Options in one word and in two; `-c`; flags above the file."""
  (tmp_path / "settings.yaml").write_text(FILE.format(ckpt=ckpt))
  done = process(
    *("lumina_jax.cli", "infer", "7", tmp_path / "out"),
    *("-c", tmp_path / "settings.yaml", "--seed", "6", "--num_gpus", 2),
    *("--precision", "fp32", "--num_images_per_prompt", 2),
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.startswith("WARNING: --num_gpus=2 has no effect")
  files = ["7_seed6_0.png", "7_seed6_1.png", "overview.png"]
  assert names(tmp_path / "out") == files
  for line in ("device: cpu", f"loading {ckpt}", f"in {tmp_path / 'out'}"):
    assert line in done.stdout


@pytest.mark.e2e
def test_a_prompt_alone_and_the_other_name(tmp_path):
  """A first word with a space is a prompt; `sample` is the same program."""
  words = ("--seed", 2, "--num_inference_steps=2")
  done = process("lumina_jax.cli", "3 1", tmp_path / "a", *words)
  assert done.returncode == 0, done.stderr
  assert "the digits that ship with the package" in done.stdout
  words = ("--prompt=3 1", f"--output={tmp_path / 'b'}", *words)
  done = process("lumina_jax.sample", *words)
  assert done.returncode == 0, done.stderr
  a, b = (tmp_path / x / "3_1_seed2_0.png" for x in "ab")
  assert pixels(a).shape == (8, 16)
  np.testing.assert_array_equal(pixels(a), pixels(b))


@pytest.mark.e2e
def test_mistakes_print_one_message(tmp_path):
  for words, message in (
    (("infer", "7", tmp_path, "--ckpt", tmp_path / "x"), "does not exist"),
    (("infre", "7"), "did you mean 'infer'"),
    (("infer", "7", "--solvr=euler"), "Did you mean: solver"),
  ):
    done = fork("cli", *words)
    assert done.returncode in (1, 2)
    assert done.stderr.strip().startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr
