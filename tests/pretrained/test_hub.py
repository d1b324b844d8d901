"""Local folders, and repositories: downloaded, or found in the cache."""

import pathlib
import types

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from lumina_jax.pretrained import hub

DIFFUSERS = [
  ".gitattributes",
  "README.md",
  "LICENSE",
  "model_index.json",
  "sample.png",
  "transformer/config.json",
  "transformer/diffusion_pytorch_model.safetensors",
  "transformer/diffusion_pytorch_model.fp16.safetensors",
  "transformer/diffusion_pytorch_model.bin",
  "vae/config.json",
  "vae/diffusion_pytorch_model.safetensors",
  "text_encoder/model-00001-of-00002.safetensors",
  "text_encoder/model.safetensors.index.json",
  "tokenizer/tokenizer.model",
]
ORIGINAL = [
  "README.md",
  "consolidated.00-of-01.safetensors",
  "consolidated.00-of-01.pth",
  "consolidated_ema.00-of-01.safetensors",
  "model_args.pth",
]


def test_weights_are_downloaded_in_one_format():
  assert hub.select_files(DIFFUSERS) == [
    "README.md",
    "LICENSE",
    "model_index.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/tokenizer.model",
  ]


@pytest.mark.parametrize(
  ("ema", "weights"),
  [
    (None, "consolidated_ema.00-of-01.safetensors"),
    (True, "consolidated_ema.00-of-01.safetensors"),
    (False, "consolidated.00-of-01.safetensors"),
  ],
)
def test_one_set_of_the_originals_weights_is_downloaded(ema, weights):
  found = hub.select_files(ORIGINAL, ema)
  assert sorted(found) == sorted(["README.md", weights, "model_args.pth"])


def test_pickles_are_downloaded_where_there_is_nothing_else():
  files = ["consolidated.00-of-01.pth", "model_args.pth"]
  assert hub.select_files(files, None) == files


def test_a_folder_of_a_repository_comes_with_its_licence():
  assert hub.select_files(DIFFUSERS, within="vae") == [
    "README.md",
    "LICENSE",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
  ]


def test_a_repository_may_be_the_folder_itself():
  files = ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
  assert hub.select_files(files, within="vae") == files


def test_a_local_folder_is_used_as_it_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("owner/name").mkdir(parents=True)
  assert hub.find("owner/name") == tmp_path / "owner" / "name"


@pytest.mark.parametrize("path", ["nowhere", "./a/b", "/a/b/c", "a b/c", ""])
def test_neither_a_folder_nor_a_repository(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  if not path:
    path = tmp_path / "nowhere"
  with pytest.raises(FileNotFoundError, match=r"does not exist; pass a folder"):
    hub.find(path)


def raises(error):
  def listing(self, name, revision=None, timeout=None):
    raise error

  return listing


def answer(kind):
  import httpx2

  request = httpx2.Request("GET", "https://hub.invalid/owner/name")
  return kind("no", response=httpx2.Response(403, request=request))


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    (errors.GatedRepoError, "owner/name is gated: accept its terms"),
    (errors.RepositoryNotFoundError, "neither a local folder nor a repository"),
    (errors.RevisionNotFoundError, "has no revision 'first'"),
  ],
)
def test_answers_of_the_hub_name_a_way_out(monkeypatch, kind, message):
  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", raises(answer(kind)))
  with pytest.raises(FileNotFoundError, match=message):
    hub.find("owner/name", revision="first")


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The hub's cache, as an earlier download has left it; no network."""
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(
    huggingface_hub.HfApi, "model_info", raises(ConnectionError("no"))
  )
  return tmp_path


def test_the_cache_serves_without_a_network(cache):
  commit = "0123456789abcdef0123456789abcdef01234567"
  repository = cache / "models--owner--name"
  (repository / "refs").mkdir(parents=True)
  (repository / "refs" / "main").write_text(commit)
  snapshot = repository / "snapshots" / commit
  snapshot.mkdir(parents=True)
  (snapshot / "model_index.json").write_text("{}")
  assert (hub.find("owner/name") / "model_index.json").read_text() == "{}"


def test_no_network_and_no_cache_is_an_error(cache):
  with pytest.raises(FileNotFoundError, match="hub cannot be reached"):
    hub.find("owner/name")


def test_only_selected_files_are_downloaded(tmp_path, monkeypatch):
  arguments = {}

  def download(**keywords):
    arguments.update(keywords)
    return str(tmp_path)

  monkeypatch.setattr(
    huggingface_hub.HfApi,
    "model_info",
    lambda self, name, revision, timeout: types.SimpleNamespace(
      siblings=[types.SimpleNamespace(rfilename=file) for file in DIFFUSERS]
    ),
  )
  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert hub.find("owner/name", token="t", revision="r") == tmp_path
  assert arguments == dict(
    repo_id="owner/name",
    revision="r",
    token="t",
    allow_patterns=hub.select_files(DIFFUSERS),
  )
