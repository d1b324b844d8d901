"""Local folders, and repositories on the Hugging Face hub."""

import os
import pathlib
import re
from collections.abc import Sequence

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# Files that are not read: weights of other programs, and images.
IGNORED = re.compile(
  r".*\.(bin|ckpt|onnx|msgpack|h5|ot|gguf|png|jpe?g|gif|webp|mp4|gitattributes)"
  r"|.*\.(fp16|bf16|non_ema)\.safetensors.*|.*(^|/)\..*"
)
RAW = re.compile(r"consolidated\.\d+-of-\d+\..*")
EMA = re.compile(r"consolidated_ema\.\d+-of-\d+\..*")


def find(
  path: str | os.PathLike,
  token: str | None = None,
  revision: str | None = None,
  ema: bool | None = None,
  within: str = "",
) -> pathlib.Path:
  """A local folder, or a repository downloaded into the hub's cache.

  Args:
    path: path of the folder, or "owner/name" of the repository.
    token: token for gated repositories.
    revision: revision of the repository.
    ema: which weights of the original to download; None prefers EMA weights.
    within: downloads only this folder of the repository, if it has one.

  Raises:
    FileNotFoundError: if there is neither, or the download fails; says what to
      do.
  """
  local = pathlib.Path(path).expanduser()
  if local.exists():
    return local.absolute()  # The working directory may change later.
  name = str(path)
  if not REPOSITORY.fullmatch(name) or name.startswith("."):
    raise FileNotFoundError(
      f"{path} does not exist; pass a folder, or owner/name of a repository on "
      "the Hugging Face hub"
    )
  return _fetch(name, token, revision, ema, within)


def select_files(
  files: Sequence[str], ema: bool | None = None, within: str = ""
) -> list[str]:
  """Selects the files of a repository to download: one format of weights.

  Args:
    files: names of all files.
    ema: as in `find`.
    within: a folder; if it exists, only its files and licences are selected.
  """
  files = [name for name in files if not IGNORED.fullmatch(name)]
  if within and any(name.startswith(f"{within}/") for name in files):
    top = re.compile(r"(LICEN[SC]E|NOTICE|README|USE_POLICY)[^/]*", re.I)
    files = [
      name
      for name in files
      if name.startswith(f"{within}/") or top.fullmatch(name)
    ]
  raw = [name for name in files if RAW.fullmatch(name)]
  averages = [name for name in files if EMA.fullmatch(name)]
  if raw and averages:
    excluded = averages if ema is False else raw
    files = [name for name in files if name not in excluded]
  tensors = [name for name in files if name.endswith(".safetensors")]
  folders = {name.rpartition("/")[0] for name in tensors}
  # Pickles duplicate the safetensors beside them.
  pickle = re.compile(r".*\.(pth|pt)")
  return [
    name
    for name in files
    if not (
      pickle.fullmatch(name)
      and name.rpartition("/")[0] in folders
      and not name.endswith("model_args.pth")
    )
  ]


def _fetch(name, token, revision, ema, within) -> pathlib.Path:
  import huggingface_hub
  from huggingface_hub import errors

  where = dict(repo_id=name, revision=revision, token=token)
  try:
    try:
      api = huggingface_hub.HfApi(token=token)
      # Other calls retry for half a minute without a network.
      info = api.model_info(name, revision=revision, timeout=10)
      files = [file.rfilename for file in info.siblings]
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
      raise
    except Exception:  # Without a network, of many types: try the cache.
      folder = huggingface_hub.snapshot_download(**where, local_files_only=True)
    else:
      folder = huggingface_hub.snapshot_download(
        **where, allow_patterns=select_files(files, ema, within)
      )
  except errors.GatedRepoError as error:
    raise FileNotFoundError(
      f"{name} is gated: accept its terms on its page of the Hugging Face hub, "
      "then log in once (hf auth login) or pass token=; or pass a folder that "
      "you have downloaded"
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
      f"{name} is neither a local folder nor a repository on the Hugging Face "
      "hub; if it is private, log in (hf auth login) or pass token="
    ) from error
  except errors.RevisionNotFoundError as error:
    raise FileNotFoundError(f"{name} has no revision {revision!r}") from error
  except errors.LocalEntryNotFoundError as error:
    raise FileNotFoundError(
      f"{name} is not a local folder, and the Hugging Face hub cannot be "
      "reached; connect once to download it, or pass a folder"
    ) from error
  return pathlib.Path(folder)
