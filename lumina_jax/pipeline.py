"""LuminaPipeline: prompts in, pictures out.

pipe = LuminaPipeline.from_pretrained("Lumina-Next-SFT-diffusers")
out = pipe("a snowman", height=1024, width=1024, seed=0)
out.images[0].save("snowman.png")
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import jax
import numpy as np

from lumina_jax.model.network import Network, Params
from lumina_jax.model.offload import Part
from lumina_jax.model.transformer import Transformer
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling import asked, output, presets, source_image
from lumina_jax.sampling import prompts as spelling
from lumina_jax.sampling import run as drawing
from lumina_jax.sampling import times as time_grid
from lumina_jax.sampling.batch import Picture
from lumina_jax.sampling.output import Output
from lumina_jax.sampling.presets import How
from lumina_jax.sampling.program import SamplingConfig


class LuminaPipeline:
  """A network with its parameters, ready to sample.

  Attributes:
    network: the backbone and how prompts reach it.
    sampling: how to sample unless a call says otherwise.
    text_encoder: turns captions into features; None if the network needs none.
    vae: from latents to pixels; None if the network draws pixels.
    vae_tile: side of the tiles, in pixels, that large pictures are decoded in;
      0 = whole.
    scheduler: what a diffusers folder says of its times.
    mesh: devices to sample on, of one process or of several, which then all
      make the same calls; None = where the parameters are.
    one_at_a_time: whether the text encoder leaves the devices before the
      network enters them, and the other way round.
    part: parameters of the network, or how to get them.
    files: folders that parts come from: "text_encoder", "tokenizer", and
      "licence" for the whole.
  """

  def __init__(
    self,
    network: Network,
    params: Params | Part,
    sampling: SamplingConfig,
    *,
    text_encoder: Any = None,
    vae: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    one_at_a_time: bool = False,
    scheduler: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
  ):
    """Puts a pipeline together of its attributes.

    Args:
      params: of the network, or how to load them.
    """
    self.network, self.sampling = network, sampling
    self.text_encoder, self.vae, self.vae_tile = text_encoder, vae, 0
    self.mesh, self.one_at_a_time = mesh, one_at_a_time
    self.scheduler, self.files = dict(scheduler or {}), dict(files or {})
    self.part = params if isinstance(params, Part) else Part.of(params)

  @classmethod
  def from_workdir(
    cls, workdir: str, mesh: jax.sharding.Mesh | None = None
  ) -> LuminaPipeline:
    """Loads the averaged parameters of a run's newest readable checkpoint.

    Args:
      workdir: of the run.
      mesh: devices to load them onto; None = all that there are, of all
        processes, which then share pictures out.

    Raises:
      FileNotFoundError: if the folder is no workdir or has no checkpoint.
    """
    from lumina_jax.runs import workdir as workdirs

    return workdirs.load_pipeline(workdir, mesh)

  @classmethod
  def from_pretrained(
    cls, path: str | os.PathLike | None = None, **options: Any
  ) -> LuminaPipeline:
    """Loads a folder, or a repository of the Hugging Face hub.

    A diffusers folder (model_index.json), a folder of the original code, or our
    own export; without a path, the digits that ship with us.

    Args:
      path: of the folder, or "owner/name".
      **options: those of `pretrained.load`: dtype, mesh, vae, text_encoder,
        tokenizer, ema, one_at_a_time, cache, token, revision.

    Raises:
      FileNotFoundError: if something is missing; says what to do.
      ValueError: if a file is broken, or parts do not fit each other.
    """
    from lumina_jax import pretrained

    return pretrained.load(path, **options)

  def save_pretrained(
    self,
    path: str | os.PathLike,
    layout: str = "lumina_jax",
    *,
    dtype: str = "bfloat16",
    overwrite: bool = False,
  ) -> None:
    """Saves everything that `from_pretrained` needs.

    Args:
      path: of the folder.
      layout: "lumina_jax", or "diffusers" for its LuminaPipeline.
      dtype: of the network's weights.
      overwrite: whether a pipeline may be there already.

    Raises:
      ValueError: for a network that the layout has no place for.
      FileExistsError: if something else is there.
    """
    from lumina_jax import pretrained

    pretrained.save(self, path, layout, dtype, overwrite)

  @property
  def params(self) -> Params:
    """Of the network, on the devices; loaded first if they are not there."""
    return self.part.get()

  @property
  def transformer(self) -> Transformer:
    """The backbone alone, to call.

    Raises:
      ValueError: if it predicts something else than a velocity.
    """
    if self.network.objective.prediction != "velocity":
      raise ValueError(
        f"this network predicts {self.network.objective.prediction}, no "
        "velocity; call pipe.network.velocity, which converts it"
      )
    return Transformer(self.network.model, self.params["backbone"])

  @property
  def tokenizer(self) -> Any:
    return getattr(self.text_encoder, "tokenizer", None)

  @property
  def components(self) -> dict[str, Any]:
    """The parts by the names that they have in diffusers."""
    names = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    return {name: getattr(self, name) for name in names}

  def __call__(
    self,
    prompt: str | Sequence[str] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = "",
    image: Any = None,
    strength: float | None = None,
    height: int | Sequence[int] | None = None,
    width: int | Sequence[int] | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] | None = None,
    generator: Any = None,
    latents: Any = None,
    prompt_embeds: Any = None,
    prompt_attention_mask: Any = None,
    negative_prompt_embeds: Any = None,
    negative_prompt_attention_mask: Any = None,
    clean_caption: bool | None = None,
    max_sequence_length: int | None = None,
    compatibility: str | None = None,
    output_type: str = "pil",
    return_dict: bool = True,
    callback: Callable[..., Any] | None = None,
    callback_on_step_end: Callable[..., Any] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    progress: Callable[[int, int], None] | None = None,
    **how: Unpack[How],
  ) -> Output | tuple[list[Any]]:
    """Makes pictures of prompts.

    The same seed, prompt and number within num_images_per_prompt give the same
    picture, whatever else is in the call; give `seed` one value per prompt to
    vary equal prompts.

    Args:
      prompt: one or several, text or the number of a class, as the network
        takes; "" is unconditional.
      negative_prompt: what guidance steers away from, one or one per prompt.
      image: a picture to begin with in place of pure noise, or one for each
        prompt: of PIL, `u8[H, W, C]`, or `f32[H, W, C]` in [0, 1].
      strength: how much of it is drawn anew, above 0 and at most 1, and so the
        share of the steps that is run; None = 0.6.
      height: in pixels, or latents if there is no vae; one or one per prompt;
        None: that of the image, or the size rule.
      width: likewise.
      guidance_scale: one or one per prompt; 1 is plain sampling, and if all
        are 1 it costs half.
      num_images_per_prompt: pictures of each prompt.
      seed: one or one per prompt; None = 0.
      generator: in place of a seed, as in diffusers; see `inputs.seeds`.
      latents: to begin with in place of noise, `f32[N, H, W, C]` or a list.
      prompt_embeds: features in place of prompts, `f32[N, S, E]` or a list.
      prompt_attention_mask: `[N, S]`, which of them count; None = all.
      negative_prompt_embeds: likewise.
      negative_prompt_attention_mask: likewise.
      clean_caption: True removes from prompts what web pages leave in them,
        False only blanks and capitals; None: as the network was trained.
      max_sequence_length: tokens of a prompt that count.
      compatibility: "diffusers" samples as its LuminaPipeline does.
      output_type: "pil"; "np" for `f32[H, W, C]` in [0, 1]; "uint8"; "latent"
        for what the network drew, `f32[H, W, C]`, neither decoded nor clipped.
      return_dict: False returns `(images,)`.
      callback: called with (step, t, x) after each step of each batch: the time
        from 0 (noise) to 1 (data) of its first picture, and a list of latents
        `f32[H, W, C]`; may return such a list to go on with. The host then
        waits for each step.
      callback_on_step_end: likewise as in diffusers, with (pipeline, step, t,
        {"latents": x}), and may return such a dict.
      callback_on_step_end_tensor_inputs: what that is given: "latents".
      progress: called with (pictures done, pictures in all) after each batch.
      **how: solver, steps, times, guidance and positions: see `presets.How`.

    Returns:
      `Output` with images in the order of the prompts.

    Raises:
      ValueError: for a size that the patch does not divide or that no rung
        holds, a class that is none, lists of unlike lengths, unknown names, no
        prompt at all, an image of another size.
      FloatingPointError: if a picture holds values that are not finite, or an
        adaptive solver gave up.
    """
    finish = output.kind(output_type)
    on_step = drawing.watcher(
      self, callback, callback_on_step_end, callback_on_step_end_tensor_inputs
    )
    sampling = presets.choose(self.sampling, compatibility, self.scheduler, how)
    strength = source_image.strength(strength, image)
    times = time_grid.choose(
      sampling, how.get("schedule"), how.get("sigmas"), strength
    )
    spell = spelling.speller(
      self, compatibility, clean_caption, max_sequence_length
    )
    prompt, spell = spelling.choose(
      spell,
      prompt,
      negative_prompt,
      (prompt_embeds, prompt_attention_mask),
      (negative_prompt_embeds, negative_prompt_attention_mask),
    )
    pictures = self.pictures(
      prompt,
      negative_prompt,
      height,
      width,
      sampling.guidance_scale if guidance_scale is None else guidance_scale,
      num_images_per_prompt,
      inputs.Start(seed, generator, latents, image),
      spell,
    )
    decode = self.vae is not None and output_type != output.LATENT
    drawn = drawing.images(
      self, pictures, sampling, times, on_step, progress, decode
    )
    found = [finish(picture.image) for picture in drawn]
    if not return_dict:
      return (found,)
    return Output(found, [picture.evaluations for picture in drawn])

  def pictures(
    self,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = "",
    height: int | Sequence[int] | None = None,
    width: int | Sequence[int] | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    num_images_per_prompt: int = 1,
    start: inputs.Start = inputs.Start(),  # noqa: B008
    spell: spelling.Spell | None = None,
  ) -> list[Picture]:
    """What a call would draw: every input checked, nothing drawn yet."""
    if guidance_scale is None:
      guidance_scale = self.sampling.guidance_scale
    return asked.pictures(
      self._of,
      prompt,
      negative_prompt,
      (height, width),
      guidance_scale,
      num_images_per_prompt,
      start,
      spell or spelling.speller(self),
    )

  def check_sizes(
    self,
    prompt: str | Sequence[str],
    height: int | Sequence[int] | None = None,
    width: int | Sequence[int] | None = None,
    image: Any = None,
  ) -> None:
    """Raises ValueError if a call could not draw these sizes."""
    prompts = inputs.prompts(prompt)
    images = source_image.images(image, len(prompts), self._of.channels)
    asked.grids(self._of, prompts, (height, width), images)

  def encode_prompt(
    self,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = "",
    *,
    compatibility: str | None = None,
    clean_caption: bool | None = None,
    max_sequence_length: int | None = None,
  ) -> tuple[np.ndarray, ...]:
    """Features of prompts, to pass to calls.

    Args:
      prompt: one or several.
      negative_prompt: one or one per prompt.
      compatibility: as in a call, like those below.
      clean_caption: likewise.
      max_sequence_length: likewise.

    Returns:
      prompt_embeds `f32[N, S, E]`, their mask `bool[N, S]`, and the two of the
      negative prompts, of the same shapes.
    """
    prompts = inputs.prompts(prompt)
    negatives = inputs.prompts(negative_prompt or "", "negative_prompt")
    if len(negatives) == 1:
      negatives *= len(prompts)
    negatives = inputs.one_each(negatives, len(prompts), "negative_prompt")
    spell = spelling.speller(
      self, compatibility, clean_caption, max_sequence_length
    )
    spelled = spell(prompts, negatives)
    return spelling.side_by_side(spelled)

  @property
  def dtype(self) -> str:
    """What the network computes in."""
    return self.network.model.dtype

  @property
  def _of(self) -> asked.Of:
    return asked.Of(self.network.model, self.sampling, self.vae)

  def devices(self) -> contextlib.AbstractContextManager:
    """Within it, programs run on the mesh."""
    return jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()
