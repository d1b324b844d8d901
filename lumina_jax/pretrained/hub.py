"""A folder on this machine, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# Weights that other programs of a repository want, and its pictures.
UNWANTED = re.compile(
  r".*\.(bin|ckpt|onnx|msgpack|h5|ot|gguf|png|jpe?g|gif|webp|mp4|gitattributes)"
  r"|.*\.(fp16|bf16|non_ema)\.safetensors.*|.*(^|/)\..*"
)
RAW = re.compile(r"consolidated\.\d+-of-\d+\..*")
AVERAGED = re.compile(r"consolidated_ema\.\d+-of-\d+\..*")


def find(
  path: str | os.PathLike,
  token: str | None = None,
  revision: str | None = None,
  ema: bool | None = None,
  within: str = "",
) -> pathlib.Path:
  """A folder that is here, or is fetched into the hub's cache.

  Args:
    path: of the folder, or the repository's "owner/name".
    token: for gated repositories.
    revision: of the repository.
    ema: which of the original's two sets of weights to fetch; None = averaged
      if there are both.
    within: fetch this folder of the repository alone, if it has one.

  Raises:
    FileNotFoundError: if there is neither, or it cannot be fetched; says what
      to do.
  """
  local = pathlib.Path(path).expanduser()
  if local.exists():
    return local.absolute()  # Parts are loaded later, from wherever one is.
  name = str(path)
  if not REPOSITORY.fullmatch(name) or name.startswith("."):
    raise FileNotFoundError(
      f"{path} does not exist; name a folder, or a repository of the Hugging "
      "Face hub as owner/name"
    )
  return _fetch(name, token, revision, ema, within)


def wanted(
  files: Sequence[str], ema: bool | None = None, within: str = ""
) -> list[str]:
  """The files of a repository that we read: weights once, not in each format.

  Args:
    files: all of them.
    ema: as in `find`.
    within: a folder; if there is such a one, what lies elsewhere is left, but
      for licences.
  """
  files = [name for name in files if not UNWANTED.fullmatch(name)]
  if within and any(name.startswith(f"{within}/") for name in files):
    top = re.compile(r"(LICEN[SC]E|NOTICE|README|USE_POLICY)[^/]*", re.I)
    files = [
      name
      for name in files
      if name.startswith(f"{within}/") or top.fullmatch(name)
    ]
  raw = [name for name in files if RAW.fullmatch(name)]
  averaged = [name for name in files if AVERAGED.fullmatch(name)]
  if raw and averaged:
    left = averaged if ema is False else raw
    files = [name for name in files if name not in left]
  tensors = [name for name in files if name.endswith(".safetensors")]
  folders = {name.rpartition("/")[0] for name in tensors}
  # A checkpoint of the same weights beside their safetensors.
  twin = re.compile(r".*\.(pth|pt)")
  return [
    name
    for name in files
    if not (
      twin.fullmatch(name)
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
      # Asks once; other calls would try for half a minute without a network.
      info = api.model_info(name, revision=revision, timeout=10)
      files = [file.rfilename for file in info.siblings]
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
      raise
    except Exception:  # No network raises many kinds; it may be all here.
      folder = huggingface_hub.snapshot_download(**where, local_files_only=True)
    else:
      folder = huggingface_hub.snapshot_download(
        **where, allow_patterns=wanted(files, ema, within)
      )
  except errors.GatedRepoError as error:
    raise FileNotFoundError(
      f"{name} is gated: accept its terms on its page of the Hugging Face hub, "
      "then log in once (hf auth login) or pass token=; a folder that is "
      "already here can be named in its place"
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
      f"{name} is neither a folder here nor a repository of the Hugging Face "
      "hub; if it is private, log in (hf auth login) or pass token="
    ) from error
  except errors.RevisionNotFoundError as error:
    raise FileNotFoundError(f"{name} has no revision {revision!r}") from error
  except errors.LocalEntryNotFoundError as error:
    raise FileNotFoundError(
      f"{name} is no folder here, and the Hugging Face hub cannot be reached "
      "to fetch it; connect once, or name a folder that holds it"
    ) from error
  return pathlib.Path(folder)
