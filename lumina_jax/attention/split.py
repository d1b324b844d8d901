"""Selects how C devices share the attention over one sequence.

Ulysses (Jacobs et al. 2023): U neighbours exchange length for heads, so that
each holds all their tokens and H / U heads. Ring (Liu et al. 2023): keys and
values travel around R groups. U R = C in any combination (Fang and Zhao 2024,
"USP"). Alternatively, every device gathers all keys and values.
"""

import dataclasses
import math

from lumina_jax.files.suggest import did_you_mean

# Largest keys and values of whole rows that "auto" gathers on each device.
GATHER_BYTES = 2**28

NAMES = ("auto", "ring", "ulysses", "gather")


@dataclasses.dataclass(frozen=True)
class Split:
  """The degrees of sequence parallelism.

  Attributes:
    ulysses: U, devices that exchange length for heads.
    ring: R, groups that keys and values travel around.
    gather: all devices gather keys and values instead; then U = R = 1.
  """

  ulysses: int = 1
  ring: int = 1
  gather: bool = False


def check_name(name: str) -> None:
  """Checks `ModelConfig.sequence_split`.

  Raises:
    ValueError: if it is neither one of `NAMES` nor a positive number.
  """
  if name not in NAMES and not (name.isdecimal() and int(name) > 0):
    hint = did_you_mean(name, NAMES) or ";"
    raise ValueError(
      f"unknown sequence_split {name!r}{hint} use one of: {', '.join(NAMES)}, "
      "or the degree of Ulysses, such as 4; the rest is a ring"
    )


def choose(
  name: str,
  context: int,
  heads: int,
  kv_heads: int,
  length: int,
  width: int,
  rows: int = 1,
) -> Split:
  """The split of self-attention over `context` devices.

  "auto" minimises `traffic` over all degrees of Ulysses that divide the heads,
  and over gathering where that needs less than `GATHER_BYTES`.

  Args:
    name: "auto", "ring", "ulysses" (the largest degree that divides the heads),
      "gather", or the degree of Ulysses as a number.
    context: C, devices that the length is sharded over.
    heads: H on each device (tensor parallelism shards them first).
    kv_heads: G on each device.
    length: L of a whole row.
    width: bytes of one head of one key.
    rows: B on each device.

  Raises:
    ValueError: if the degree does not divide the devices and the heads.
  """
  check_name(name)
  if context == 1:
    return Split()
  if name == "gather":
    return Split(gather=True)
  common = math.gcd(context, heads)
  degrees = [u for u in range(1, common + 1) if common % u == 0]
  if name.isdecimal() and int(name) not in degrees:
    raise ValueError(
      f"sequence_split {name!r}: Ulysses' degree must divide the {context} "
      f"devices of mesh.context and the {heads} heads of each; use one of "
      f"{degrees}"
    )
  degrees = {"auto": degrees, "ring": [1], "ulysses": [common]}.get(
    name, [int(name)] if name.isdecimal() else degrees
  )
  splits = [Split(u, context // u) for u in degrees]
  gathered = 2 * rows * kv_heads * length * width
  if name == "auto" and gathered <= GATHER_BYTES:
    splits.append(Split(gather=True))
  # On a tie, the larger degree of Ulysses: few, large products.
  cost = {s: traffic(s, context, heads, kv_heads) for s in splits}
  return min(splits, key=lambda s: (cost[s], -s.ulysses))


def traffic(split: Split, context: int, heads: int, kv_heads: int) -> float:
  """What a device sends in both passes, in heads of its L / C tokens.

  Ulysses exchanges q, k, v and out, and their cotangents in the backward pass.
  A ring sends k and v R - 1 times in each pass, and their float32 cotangents,
  which count twice beside bfloat16, R times. Gathering is reversed by a
  reduce-scatter.
  """
  if split.gather:
    return 2 * 2 * kv_heads * (context - 1)
  u, r = split.ulysses, split.ring
  kv = repeated_kv_heads(kv_heads, u)
  exchanged = 2 * (2 * heads + 2 * kv) * (u - 1) / u
  if r == 1:
    return exchanged
  return exchanged + 2 * 2 * kv * (r - 1) + 2 * 2 * kv * r


def repeated_kv_heads(kv_heads: int, ulysses: int) -> int:
  """Kv heads after repetition, so that Ulysses' degree divides them."""
  return math.lcm(kv_heads, ulysses)
