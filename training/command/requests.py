"""Options on top of a recipe, or of nothing -> the parts of a request; knows nothing of parsing or jobs.

What was given explicitly wins over the recipe; what neither says keeps the job's default.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar

from phosphene.encoder import Site, Tokens
from phosphene.errors import SettingError
from training.execution import Execution
from training.harvest_settings import HarvestSettings
from training.plan import Sources
from training.reading import ReadingSettings
from training.recipes import Recipe
from training.requests import SaeRequest, TrainingRequest

T = TypeVar("T")


def sources_of(options: argparse.Namespace, recipe: Recipe | None) -> Sources:
    """What the autoencoder is made from; another encoder than the recipe's drops the recipe's revision.

    Raises:
        SettingError: no encoder is named.
    """
    encoder, revision = options.encoder, options.revision
    if encoder is None and recipe is not None:
        encoder, revision = recipe.encoder, revision or recipe.revision
    if encoder is None:
        left_open = "" if recipe is None else f"; the recipe {recipe.name} leaves it open"
        raise SettingError(
            f"--encoder is missing{left_open}: give a folder in the Hugging Face layout, or a hub id", field="encoder"
        )
    return Sources(
        corpus=options.corpus,
        encoder=encoder,
        revision=revision,
        vocabulary=options.vocabulary,
        initial=options.initial,
        reading=ReadingSettings(is_streamed=options.stream, leaves_out_artefacts=options.leave_out_artefacts),
    )


def site_of(block: int | None, tokens: Tokens | None, recipe: Recipe | None) -> Site:
    """Where to listen: what was given, then the recipe's, then the class token.

    Raises:
        SettingError: a block for the embedding, or none for other tokens.
    """
    site = None if recipe is None else recipe.site
    if site is not None and tokens is None and not (block is not None and site.tokens is Tokens.EMBEDDING):
        tokens = site.tokens
    tokens = tokens or Tokens.CLS
    if site is not None and block is None and tokens is not Tokens.EMBEDDING:
        block = site.block
    if block is None and tokens is not Tokens.EMBEDDING:
        left_open = "" if recipe is None else f"; the recipe {recipe.name} leaves it open"
        raise SettingError(
            f"--block is missing{left_open}: --tokens {tokens} reads what one of the encoder's blocks gives. Give its "
            "number, from 0 to one less than the encoder has blocks, or --tokens embedding, which is of no block",
            field="block",
        )
    if block is not None and tokens is Tokens.EMBEDDING:
        others = ", ".join(each for each in Tokens if each is not Tokens.EMBEDDING)
        raise SettingError(
            f"--block is {block}, and --tokens embedding is of no block: leave --block out, or give other --tokens "
            f"({others})",
            field="block",
        )
    return Site(block=block, tokens=tokens)


def sae_of(options: argparse.Namespace, recipe: Recipe | None, **more: Any) -> SaeRequest:
    """The autoencoder; a variant other than the recipe's drops what only the recipe's variant takes.

    Args:
        options: what it is beside its variant, size and sparsity.
        recipe: what holds where an option is not given.
        more: variant, size and sparsity, where given.
    """
    base = SaeRequest() if recipe is None else recipe.sae
    given = given_of(
        **more,
        prefixes=options.prefixes,
        inputs=options.inputs,
        is_error_normalised=options.normalise_error,
        has_ghost_gradients=options.ghost_gradients,
        selection_precision=options.selection_precision,
    )
    if given.get("variant", base.variant) is not base.variant:
        base = SaeRequest(neuron_count=base.neuron_count, expansion=base.expansion, inputs=base.inputs)
    return override(base, given, ("neuron_count", "expansion"))


def harvest_of(options: argparse.Namespace, *, seed: int) -> HarvestSettings:
    """How residuals are read."""
    return override(
        HarvestSettings(seed=seed),
        given_of(
            batch_images=options.images_per_batch,
            tokens_per_image=options.tokens_per_image,
            storage=options.storage,
            image_limit=options.limit,
        ),
    )


def training_of(options: argparse.Namespace, recipe: Recipe | None, **more: Any) -> TrainingRequest:
    """The optimisation.

    Args:
        options: length and schedule.
        recipe: what holds where an option is not given.
        more: learning rate and seed, where given.
    """
    base = TrainingRequest() if recipe is None else recipe.training
    given = given_of(
        step_count=options.steps,
        epochs=options.epochs,
        batch_rows=options.batch,
        warmup_steps=options.warmup,
        decay_share=options.decay,
        gradient_clip=options.gradient_clip,
        bias_init=options.bias_init,
        **more,
    )
    return override(base, given, ("step_count", "epochs"))


def execution_of(options: argparse.Namespace) -> Execution:
    """Where to compute."""
    return Execution(device=options.device, thread_count=options.threads)


def given_of(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not None}


def override(base: T, given: dict[str, Any], exclusive: tuple[str, ...] = ()) -> T:
    """The base with the given fields; one of the exclusive fields drops the base's others."""
    dropped = dict.fromkeys(exclusive) if given.keys() & set(exclusive) else {}
    changed: T = dataclasses.replace(base, **(dropped | given))  # type: ignore[type-var]
    return changed
