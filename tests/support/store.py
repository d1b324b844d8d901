"""An object store in memory, under gs://, that dies or fails when told to.

As in the real ones there are no folders, nothing is appended, a rename copies
and then deletes, and an object appears whole when its file is closed, also
after an error. What can fail is a request; a process between two of them
changes nothing. `exists` takes a fault for an absence, as some clients do. The
way from epath to here is the one that gs:// takes.
"""

import contextlib
import io
from collections.abc import Callable, Iterator

from etils.epath import backend, gpath
from fsspec.spec import AbstractFileSystem

BUCKET = "gs://bucket"
WAYS = "death before", "death after", "refusal", "lost answer"


class Death(BaseException):
  """The process is gone; nothing it does afterwards reaches the store."""


class StoreError(Exception):
  """What a client raises; like the real ones, it is no OSError."""


class FakeStore(AbstractFileSystem):
  """The store and its client.

  Attributes:
    objects: bytes by name, the bucket's first.
    requests: how many were made.
    fails: at which request, from 0; None = at none.
    way: how it fails, one of `WAYS`; a refusal or a lost answer is passing.
  """

  protocol = ("gs", "gcs")
  cachable = False

  def __init__(self):
    super().__init__()
    self.objects: dict[str, bytes] = {}
    self.revive()

  def revive(self, fails: int | None = None, way: str = WAYS[0]) -> None:
    """A new process, with nothing but what is stored."""
    self.requests, self.fails, self.way, self.dead = 0, fails, way, False

  def request(self, effect: Callable[[], None] = lambda: None) -> None:
    """All of a request happens, or nothing does."""
    if self.dead:
      raise Death
    number, way = self.requests, self.way
    self.requests += 1
    if number != self.fails:
      effect()
      return
    if way in ("death after", "lost answer"):
      effect()
    if way.startswith("death"):
      self.dead = True
      raise Death
    raise StoreError("503, come again")

  def ls(self, path, detail=True, **_):
    self.request()
    path = self._strip_protocol(path)
    found = {}
    if path in self.objects:
      found[path] = self._info(path)
    for name in self.objects:
      if not name.startswith(f"{path}/"):
        continue
      first = name.removeprefix(f"{path}/").split("/")[0]
      at = f"{path}/{first}"
      found[at] = self._info(at)
    if not found:
      raise FileNotFoundError(path)
    return list(found.values()) if detail else list(found)

  def info(self, path, **_):
    self.request()
    return self._info(self._strip_protocol(path))

  def _info(self, path):
    if path in self.objects:
      size = len(self.objects[path])
      return {"name": path, "size": size, "type": "file"}
    if any(name.startswith(f"{path}/") for name in self.objects):
      return {"name": path, "size": 0, "type": "directory"}
    raise FileNotFoundError(path)

  def _open(self, path, mode="rb", **_):
    if mode == "wb":
      return _Upload(self, path)
    if mode != "rb":
      raise ValueError(f"a store cannot open {path} to {mode!r}")
    self.request()
    if path not in self.objects:
      raise FileNotFoundError(path)
    return io.BytesIO(self.objects[path])

  def cp_file(self, path1, path2, **_):
    old, new = self._strip_protocol(path1), self._strip_protocol(path2)

    def copy():
      if old in self.objects:  # Else it is a folder, and there are none.
        self.objects[new] = self.objects[old]

    self.request(copy)

  def rm_file(self, path):
    name = self._strip_protocol(path)
    self.request(lambda: self.objects.pop(name, None))

  def mkdir(self, path, create_parents=True, **_):
    """There are no folders to make."""


class _Upload(io.BytesIO):
  def __init__(self, store: FakeStore, name: str):
    super().__init__()
    self._store, self._name = store, name

  def close(self):
    if self.closed:
      return
    data = self.getvalue()
    super().close()
    self._store.request(
      lambda: self._store.objects.__setitem__(self._name, data)
    )


@contextlib.contextmanager
def mounted(monkeypatch) -> Iterator[FakeStore]:
  """The store that lies under gs:// meanwhile."""
  store = FakeStore()
  with monkeypatch.context() as patch:
    # With tensorflow in the environment epath goes another way.
    patch.setattr(gpath, "_is_tf_installed", lambda: False)
    patch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: store)
    yield store


def accidents(
  store: FakeStore, act: Callable[[], object], ways=WAYS
) -> Iterator[str]:
  """Does `act` with every one of its requests failing in every way.

  Yields:
    The way, when it has failed and a new process may look; what is stored is
    as at first before each.
  """
  before = dict(store.objects)
  store.revive()
  act()
  number = store.requests
  assert number, "nothing was asked of the store"
  for way in ways:
    for request in range(number):
      store.objects = dict(before)
      store.revive(request, way)
      with contextlib.suppress(Death, OSError, StoreError):
        act()
      store.revive()
      yield f"{way}, request {request}"
