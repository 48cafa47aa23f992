"""The tiny CLIP while it learns: first weights, a forward pass with patch outputs, and heads thrown away later.

The last block is evaluated for the class token alone, since patches are supervised one block earlier and CLIP reads
nothing else. Knows nothing of data or optimisers.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from embedded.clip_folder import TinyClipSize, build_config, build_tokenizer
from embedded.concepts import FACTORS, OBJECT_FACTORS, Factor, values_of


class ImageOutput(NamedTuple):
    """What training reads from the image tower."""

    embedding: Float[Tensor, "batch width"]
    """Unit length."""
    presence: Float[Tensor, "batch prompts"]
    """Logits of each value being shown, read linearly from the class token."""
    labels: dict[Factor, Float[Tensor, "batch patches values"]]
    silhouette: Float[Tensor, "batch patches pixels"]


class Trainee(nn.Module):
    """CLIP plus the linear heads of dense supervision."""

    def __init__(self, size: TinyClipSize) -> None:
        super().__init__()
        self.clip = CLIPModel(build_config(size, build_tokenizer()))
        _start_image_tower(self.clip, size)
        width = size.image_width
        self.presence_head = nn.Linear(width, sum(len(values_of(factor)) for factor in FACTORS))
        self.patch_norm = nn.LayerNorm(width)
        self.patch_heads = nn.ModuleDict(
            {factor: nn.Linear(width, 1 + len(values_of(factor))) for factor in OBJECT_FACTORS}
        )
        self.silhouette_head = nn.Linear(width, size.patch_px**2)

    def embed_images(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> ImageOutput:
        """Image embeddings and everything that is supervised beside them."""
        vision = self.clip.vision_model
        states = vision.pre_layrnorm(vision.embeddings(pixel_values))
        *blocks, last = vision.encoder.layers
        for block in blocks:
            states = block(states, attention_mask=None)
        patches = self.patch_norm(states[:, 1:])
        pooled = vision.post_layernorm(_class_token_block(last, states))
        return ImageOutput(
            embedding=functional.normalize(self.clip.visual_projection(pooled), dim=-1),
            presence=self.presence_head(pooled),
            labels={factor: self.patch_heads[factor](patches) for factor in OBJECT_FACTORS},
            silhouette=self.silhouette_head(patches),
        )

    def embed_text(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch width"]:
        """Unit-length text embeddings."""
        pooled = self.clip.text_model(input_ids=tokens).pooler_output
        return functional.normalize(self.clip.text_projection(pooled), dim=-1)


def _class_token_block(
    block: CLIPEncoderLayer, states: Float[Tensor, "batch tokens width"]
) -> Float[Tensor, "batch width"]:
    """One transformer block, for the first token only."""
    attention = block.self_attn
    normed = block.layer_norm1(states)
    batch, tokens, width = normed.shape
    heads, head_width = attention.num_heads, attention.head_dim
    query = attention.q_proj(normed[:, :1]).view(batch, 1, heads, head_width).transpose(1, 2)
    key = attention.k_proj(normed).view(batch, tokens, heads, head_width).transpose(1, 2)
    value = attention.v_proj(normed).view(batch, tokens, heads, head_width).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, width)
    state = states[:, 0] + attention.out_proj(mixed)
    result: Tensor = state + block.mlp(block.layer_norm2(state))
    return result


@torch.no_grad()
def _start_image_tower(clip: CLIPModel, size: TinyClipSize) -> None:
    """First weights from which a small transformer learns quickly.

    Two-dimensional sine and cosine positions, and attention that begins by looking at similar places: Trockman and
    Kolter 2023, "Mimetic initialization of self-attention layers".
    """
    vision, width = clip.vision_model, size.image_width
    nn.init.normal_(vision.embeddings.patch_embedding.weight, std=0.7 / math.sqrt(3 * size.patch_px**2))
    side = size.image_px // size.patch_px
    rates = 1.0 / 20.0 ** (torch.arange(width // 4) / (width // 4 - 1)) * (math.pi / 2)
    place = torch.arange(side).float()[:, None] * rates
    axis = torch.cat([place.sin(), place.cos()], dim=1)
    grid = torch.cat([axis[:, None, :].expand(-1, side, -1), axis[None, :, :].expand(side, -1, -1)], dim=2)
    positions = vision.embeddings.position_embedding.weight
    positions[0] = 0.02 * torch.randn(width)
    positions[1:] = 0.7 * grid.reshape(side * side, width)
    head_width = width // size.heads
    for block in vision.encoder.layers:
        attention = block.self_attn
        for head in range(size.heads):
            rows = slice(head * head_width, (head + 1) * head_width)
            product = 0.7 * torch.randn(width, width) / math.sqrt(width) + 0.7 * torch.eye(width)
            left, scale, right = torch.linalg.svd(product)
            root = scale[:head_width].sqrt()
            attention.q_proj.weight[rows] = (left[:, :head_width] * root).T
            attention.k_proj.weight[rows] = root[:, None] * right[:head_width]
        product = 0.4 * torch.randn(width, width) / math.sqrt(width) - 0.4 * torch.eye(width)
        left, scale, right = torch.linalg.svd(product)
        attention.v_proj.weight.copy_(scale.sqrt()[:, None] * right)
        attention.out_proj.weight.copy_(left * scale.sqrt())
        nn.init.normal_(block.mlp.fc1.weight, std=1.0 / math.sqrt(width))
        nn.init.normal_(block.mlp.fc2.weight, std=0.5 / math.sqrt(size.image_units))
