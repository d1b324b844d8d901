"""Maps a function over items in threads, a bounded number of items ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

AHEAD = 4  # Items per thread that are in progress, so that memory stays small.

In, Out = TypeVar("In"), TypeVar("Out")


def map_ahead(
  function: Callable[[In], Out], items: Iterable[In], threads: int
) -> Iterator[Out]:
  """Yields function(item) for each item, in order."""
  with ThreadPoolExecutor(threads) as pool:
    queue = deque()
    try:
      for item in items:
        queue.append(pool.submit(function, item))
        if len(queue) > AHEAD * threads:
          yield queue.popleft().result()
      while queue:
        yield queue.popleft().result()
    finally:
      for future in queue:
        future.cancel()
