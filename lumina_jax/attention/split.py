"""How attention over a sequence that lies on C devices is split among them.

Ulysses (Jacobs et al. 2023): U neighbours swap length for heads, so that each
holds all their tokens and H / U of the heads. Ring (Liu et al. 2023): keys and
values wander round R groups. U R = C, any of both (Fang and Zhao 2024, "USP").
In place of both, every device may gather the keys and values of all.
"""

from __future__ import annotations

import dataclasses
import math

# Keys and values of whole rows that a device may well hold beside all else;
# longer ones stay split.
GATHER_BYTES = 2**28

WISHES = ("auto", "ring", "ulysses", "gather")


@dataclasses.dataclass(frozen=True)
class Split:
  """The degrees of one attention.

  Attributes:
    ulysses: U, devices that swap length for heads.
    ring: R, groups of them that keys and values wander round.
    gather: keys and values of all devices instead; then U = R = 1.
  """

  ulysses: int = 1
  ring: int = 1
  gather: bool = False


def check_wish(wish: str) -> None:
  """Checks `ModelConfig.sequence_split`.

  Raises:
    ValueError: if it is neither a word of `WISHES` nor a positive number.
  """
  if wish not in WISHES and not (wish.isdecimal() and int(wish) > 0):
    words = ", ".join(repr(word) for word in WISHES)
    raise ValueError(
      f"sequence_split {wish!r}: use {words}, or the degree of Ulysses, e.g. "
      "'4'; the rest is a ring"
    )


def choose(
  wish: str,
  context: int,
  heads: int,
  kv_heads: int,
  length: int,
  width: int,
  rows: int = 1,
) -> Split:
  """The split of self-attention over `context` devices.

  "auto" takes what sends least, see `traffic`, of all degrees of Ulysses that
  divide the heads, and of gathering where that takes less than `GATHER_BYTES`.

  Args:
    wish: "auto", "ring", "ulysses" (as far as heads allow), "gather", or the
      degree of Ulysses as a number.
    context: C, devices that the length is sharded over.
    heads: H that a device holds (over tensor they are sharded already).
    kv_heads: G likewise.
    length: L of a whole row.
    width: bytes of one head of one key.
    rows: B that a device holds.

  Raises:
    ValueError: if a degree divides the devices or the heads not.
  """
  check_wish(wish)
  if context == 1:
    return Split()
  if wish == "gather":
    return Split(gather=True)
  common = math.gcd(context, heads)
  degrees = [u for u in range(1, common + 1) if common % u == 0]
  if wish.isdecimal() and int(wish) not in degrees:
    raise ValueError(
      f"sequence_split {wish!r}: Ulysses' degree must divide the {context} "
      f"devices of mesh.context and the {heads} heads of each; use one of "
      f"{degrees}"
    )
  degrees = {"auto": degrees, "ring": [1], "ulysses": [common]}.get(
    wish, [int(wish)] if wish.isdecimal() else degrees
  )
  splits = [Split(u, context // u) for u in degrees]
  gathered = 2 * rows * kv_heads * length * width
  if wish == "auto" and gathered <= GATHER_BYTES:
    splits.append(Split(gather=True))
  # Of equals the one with more Ulysses: few large products.
  cost = {s: traffic(s, context, heads, kv_heads) for s in splits}
  return min(splits, key=lambda s: (cost[s], -s.ulysses))


def traffic(split: Split, context: int, heads: int, kv_heads: int) -> float:
  """What a device sends in both passes, in heads of its own L / C tokens.

  Ulysses swaps q, k, v and out; backwards their cotangents. A ring passes k and
  v on R - 1 times, backwards again, and their cotangents in float32, which
  count twice beside bfloat16, R times. Gathering is undone by scattering sums.
  """
  if split.gather:
    return 2 * 2 * kv_heads * (context - 1)
  u, r = split.ulysses, split.ring
  kv = replicated(kv_heads, u)
  swapped = 2 * (2 * heads + 2 * kv) * (u - 1) / u
  if r == 1:
    return swapped
  return swapped + 2 * 2 * kv * (r - 1) + 2 * 2 * kv * r


def replicated(kv_heads: int, ulysses: int) -> int:
  """Kv heads after each is repeated until Ulysses' degree divides them."""
  return math.lcm(kv_heads, ulysses)
