"""Pixels -> residuals at a site of a frozen vision model, and on from a changed residual.

`Encoder.hidden` stops after a block, `Encoder.resume` goes on behind it; both run the model's own modules. Knows
nothing of SAEs or scores. Where the files lie is `encoder_source.py`'s matter, how a family names its parts that of
`encoder_families.py`, an encoder in numbers that of `encoder_spec.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from phosphene.encoder_families import EncoderOutput, Family, Head, Tower, load_tower
from phosphene.encoder_source import (
    EncoderSource,
    encoder_files,
    find_encoder,
    read_config,
    read_preprocessor_config,
    weights_sha256,
)
from phosphene.encoder_spec import EncoderSpec
from phosphene.errors import EncoderUnsupported, SiteError
from phosphene.preprocessing import Preprocessing
from phosphene.site import Site, Tokens

__all__ = [
    "Encoder",
    "EncoderOutput",
    "EncoderSpec",
    "Family",
    "Site",
    "Tokens",
    "encoder_files",
    "load_encoder",
]


class Encoder:
    """A frozen vision model; made by `load_encoder`."""

    def __init__(
        self, tower: Tower, *, spec: EncoderSpec, preprocessing: Preprocessing, folder: Path, device: torch.device
    ) -> None:
        """Take the parts of a loaded model."""
        self.spec = spec
        self.preprocessing = preprocessing
        self.folder = folder
        self.device = device
        self._tower = tower
        mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._pixel_scale = preprocessing.rescale_factor / std
        self._pixel_shift = mean / std

    @property
    def head(self) -> Head | None:
        """The classifier that came with the weights."""
        return self._tower.head

    def hidden(self, pixels: UInt8[Tensor, "images 3 h w"], block: int) -> Float[Tensor, "images tokens width"]:
        """Run embeddings and blocks 0 to `block`, and no further.

        Args:
            pixels: What `images.prepare` made with this encoder's preprocessing; on any device.
            block: The last block to run.

        Returns:
            `hidden_states[block + 1]` of the Hugging Face model; an inference tensor: clone it to take gradients.

        Raises:
            SiteError: No such block.
            ValueError: Pixels of another size.
        """
        self._check_block(block)
        with torch.inference_mode():
            return self._run_blocks(self._tower.embed(self._normalise(pixels)), first=0, last=block)

    def advance(
        self, hidden: Float[Tensor, "images tokens width"], *, after: int, to: int
    ) -> Float[Tensor, "images tokens width"]:
        """Run the blocks behind `after` up to `to`; with `after == to` there are none.

        Args:
            hidden: The output of block `after`.
            after: The block that `hidden` is the output of.
            to: The last block to run, not before `after`.

        Returns:
            The output of block `to`, an inference tensor.

        Raises:
            SiteError: No such block.
        """
        self._check_block(after)
        self._check_block(to)
        with torch.inference_mode():
            return self._run_blocks(hidden, first=after + 1, last=to)

    def resume(self, hidden: Float[Tensor, "images tokens width"], block: int) -> EncoderOutput:
        """Run what follows `block`: the remaining blocks, final norm, pooling, projection.

        Args:
            hidden: The output of `block`, as it was or changed; where it requires gradients they flow through.
            block: The block that `hidden` is the output of.

        Raises:
            SiteError: No such block.
        """
        self._check_block(block)
        with torch.inference_mode(mode=not hidden.requires_grad):
            return self._tower.finish(self._run_blocks(hidden, first=block + 1, last=self.spec.block_count - 1))

    def output(self, pixels: UInt8[Tensor, "images 3 h w"]) -> EncoderOutput:
        """Run the whole encoder."""
        last = self.spec.block_count - 1
        return self.resume(self.hidden(pixels, last), last)

    def residuals(
        self, pixels: UInt8[Tensor, "images 3 h w"], site: Site
    ) -> Float[Tensor, "images site_tokens site_width"]:
        """Read the residuals at a site; runs no block behind it.

        Raises:
            SiteError: The encoder has no such site.
        """
        return self.residuals_at(pixels, [site])[0]

    def residuals_at(
        self, pixels: UInt8[Tensor, "images 3 h w"], sites: Sequence[Site]
    ) -> tuple[Float[Tensor, "images _ _"], ...]:
        """Read the residuals at several sites in one pass, each as `residuals` gives it; runs no block behind the last.

        Raises:
            SiteError: The encoder has no such site.
        """
        for site in sites:
            self.check_site(site)
        found: dict[Site, Tensor] = {}
        hidden, due = pixels, 0
        for block in sorted({self._last_block(site) for site in sites}):
            hidden = self.advance(hidden, after=due - 1, to=block) if due else self.hidden(pixels, block)
            due = block + 1
            found |= {site: self._pick(hidden, site) for site in sites if self._last_block(site) == block}
        return tuple(found[site] for site in sites)

    def select(
        self, hidden: Float[Tensor, "images tokens width"], tokens: Tokens
    ) -> Float[Tensor, "images site_tokens width"]:
        """Pick a site's tokens out of a block's output; a view where that is possible.

        Raises:
            SiteError: The family has no such tokens.
        """
        self._check_tokens(tokens)
        patches = hidden[:, self.spec.prefix_token_count :]
        match tokens:
            case Tokens.CLS:
                return hidden[:, :1]
            case Tokens.PATCHES:
                return patches
            case Tokens.ALL:
                return hidden
            case Tokens.MEAN:
                return patches.mean(dim=1, keepdim=True)
            case Tokens.EMBEDDING:
                raise SiteError("the embedding is no token of a block; read it from resume", field="site.tokens")
            case _:
                assert_never(tokens)

    def replace(
        self,
        hidden: Float[Tensor, "images tokens width"],
        tokens: Tokens,
        residuals: Float[Tensor, "images site_tokens width"],
    ) -> Float[Tensor, "images tokens width"]:
        """Write changed residuals of a site into a copy of a block's output; the inverse of `select`.

        Raises:
            SiteError: The tokens are no tokens of a block that could be written to (mean, embedding).
        """
        self._check_tokens(tokens)
        match tokens:
            case Tokens.CLS:
                return torch.cat([residuals, hidden[:, 1:]], dim=1)
            case Tokens.PATCHES:
                return torch.cat([hidden[:, : self.spec.prefix_token_count], residuals], dim=1)
            case Tokens.ALL:
                return residuals
            case Tokens.MEAN | Tokens.EMBEDDING:
                raise SiteError(
                    f"a changed {tokens.value} cannot be written back: it is made of many tokens; "
                    "intervene at cls, patches or all",
                    field="site.tokens",
                )
            case _:
                assert_never(tokens)

    def units(self, pixels: UInt8[Tensor, "images 3 h w"], block: int) -> Float[Tensor, "images tokens units"]:
        """Read the activations of the hidden units of a block's MLP, after their activation function (and gate).

        Not for several threads at once: it listens at the block while it runs.

        Raises:
            SiteError: No such block.
        """
        self._check_block(block)
        heard: list[Tensor] = []
        listener = self._tower.unit_readers[block].register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
        try:
            self.hidden(pixels, block)
        finally:
            listener.remove()
        return heard[0]

    def check_site(self, site: Site) -> None:
        """Refuse a site that this encoder does not have.

        Raises:
            SiteError: Unknown block, tokens that the family lacks, or a prompt.
        """
        if site.prompt is not None:
            raise SiteError(
                f"the site has the prompt {site.prompt!r}; {self.spec.model} is a vision encoder and takes none",
                field="site.prompt",
            )
        if site.block is not None:
            self._check_block(site.block)
        self._check_tokens(site.tokens)

    def site_token_count(self, site: Site) -> int:
        """Count the tokens that a site has for one image."""
        match site.tokens:
            case Tokens.CLS | Tokens.MEAN | Tokens.EMBEDDING:
                return 1
            case Tokens.PATCHES:
                return self.spec.grid[0] * self.spec.grid[1]
            case Tokens.ALL:
                return self.spec.token_count
            case _:
                assert_never(site.tokens)

    def site_width(self, site: Site) -> int:
        """Give the length of a residual at a site.

        Raises:
            SiteError: The encoder has no such site.
        """
        self.check_site(site)
        if site.tokens is Tokens.EMBEDDING and self.spec.embedding_width is not None:
            return self.spec.embedding_width
        return self.spec.width

    def _last_block(self, site: Site) -> int:
        return self.spec.block_count - 1 if site.block is None else site.block

    def _pick(self, hidden: Tensor, site: Site) -> Tensor:
        if site.block is not None:
            return self.select(hidden, site.tokens)
        embedding = self.resume(hidden, self.spec.block_count - 1).embedding
        assert embedding is not None, "check_site lets no encoder without an embedding through"
        return embedding[:, None]

    def _run_blocks(self, hidden: Tensor, *, first: int, last: int) -> Tensor:
        for layer in self._tower.blocks[first : last + 1]:
            hidden = layer(hidden, attention_mask=None)
        return hidden

    def _normalise(self, pixels: Tensor) -> Tensor:
        due = (3, self.preprocessing.size.height, self.preprocessing.size.width)
        if tuple(pixels.shape[1:]) != due:
            raise ValueError(f"pixels have the shape {tuple(pixels.shape)}; {self.spec.model} reads [images, {due}]")
        return pixels.to(self.device).to(torch.float32).mul_(self._pixel_scale).sub_(self._pixel_shift)

    def _check_block(self, block: int) -> None:
        if not 0 <= block < self.spec.block_count:
            raise SiteError(
                f"block {block} does not exist; {self.spec.model} has {self.spec.block_count} blocks, "
                f"0 to {self.spec.block_count - 1}",
                field="site.block",
            )

    def _check_tokens(self, tokens: Tokens) -> None:
        absent = set()
        if not self.spec.has_cls:
            absent.add(Tokens.CLS)
        if self.spec.embedding_width is None:
            absent.add(Tokens.EMBEDDING)
        if tokens in absent:
            existing = ", ".join(kind.value for kind in Tokens if kind not in absent)
            raise SiteError(
                f"{self.spec.model} ({self.spec.family.value}) has no {tokens.value}; it has {existing}",
                field="site.tokens",
            )


def load_encoder(source: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu") -> Encoder:
    """Load a frozen vision encoder in float32.

    On a CUDA device TF32 is turned off for the process: codes would otherwise differ between devices.

    Args:
        source: Folder in the Hugging Face layout, or a hub id.
        revision: Branch, tag or commit on the hub.
        device: Where it runs.

    Raises:
        EncoderMissing: No such folder, no weights or preprocessor in it, or the hub cannot give it.
        EncoderUnsupported: A family, or a size of pixels, that is not read.
        ArtefactRefused: The weights are pickles.
        ArtefactDamaged: The files do not belong together or do not parse.
    """
    found = find_encoder(source, revision=revision)
    digest = weights_sha256(found.folder)
    model_type = str(read_config(found.folder).get("model_type"))
    preprocessing = Preprocessing.from_config(read_preprocessor_config(found.folder), model_type=model_type)
    target = torch.device(device)
    if target.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    tower = load_tower(found.folder, device=target)
    spec = _spec(found, tower, preprocessing, digest)
    return Encoder(tower, spec=spec, preprocessing=preprocessing, folder=found.folder, device=target)


def _spec(found: EncoderSource, tower: Tower, preprocessing: Preprocessing, digest: str) -> EncoderSpec:
    size = (preprocessing.size.height, preprocessing.size.width)
    due = _pair(tower.config.image_size)
    if tower.has_fixed_size and size != due:
        raise EncoderUnsupported(
            f"the preprocessor of {found.model} makes pixels of {size[0]} x {size[1]}, the model reads "
            f"{due[0]} x {due[1]}; mend the size in its preprocessor_config.json"
        )
    patch = _pair(tower.config.patch_size)
    return EncoderSpec(
        family=tower.family,
        model=found.model,
        revision=found.revision,
        width=tower.config.hidden_size,
        block_count=len(tower.blocks),
        prefix_token_count=tower.prefix_token_count,
        has_cls=tower.prefix_token_count > 0,
        grid=(size[0] // patch[0], size[1] // patch[1]),
        embedding_width=tower.embedding_width,
        weights_sha256=digest,
    )


def _pair(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Read a size that transformers gives as one number or as height and width."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
