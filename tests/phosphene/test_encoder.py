"""Every family against the whole Hugging Face model: what is read, what is resumed, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from phosphene.encoder import Encoder, EncoderSpec, Family, Site, Tokens, encoder_files, load_encoder
from phosphene.encoder_source import find_encoder
from phosphene.errors import (
    ArtefactDamaged,
    ArtefactRefused,
    DeviceOutOfMemory,
    EncoderMissing,
    EncoderUnsupported,
    SchemaUnknown,
    SettingError,
    SiteError,
)
from tests.families import (
    BLOCK_COUNT,
    CLASS_NAMES,
    IMAGE_PX,
    MLP_UNIT_COUNT,
    PROJECTION_WIDTH,
    WIDTH,
    save_model,
    write_encoder,
)

FAMILIES = list(Family)
PATCH_COUNT = 16
PREFIX_TOKEN_COUNTS = {
    Family.CLIP: 1,
    Family.SIGLIP: 0,
    Family.DINOV2: 1,
    Family.DINOV2_REGISTERS: 5,
    Family.VIT: 1,
    Family.DEIT: 2,
}
MODEL_CLASSES: dict[Family, Any] = {
    Family.CLIP: transformers.CLIPModel,
    Family.SIGLIP: transformers.SiglipModel,
    Family.DINOV2: transformers.Dinov2ForImageClassification,
    Family.DINOV2_REGISTERS: transformers.Dinov2WithRegistersForImageClassification,
    Family.VIT: transformers.ViTForImageClassification,
    Family.DEIT: transformers.DeiTForImageClassificationWithTeacher,
}
BASES = {
    Family.DINOV2: "dinov2",
    Family.DINOV2_REGISTERS: "dinov2_with_registers",
    Family.VIT: "vit",
    Family.DEIT: "deit",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: write_encoder(root / f"{family.value}-tiny", family) for family in FAMILIES}


@pytest.fixture(scope="module")
def encoders(folders: dict[Family, Path]) -> dict[Family, Encoder]:
    return {family: load_encoder(folder) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def wholes(folders: dict[Family, Path]) -> dict[Family, Any]:
    return {family: whole_model(folder, family) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (7, 3, IMAGE_PX, IMAGE_PX), generator=generator, dtype=torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    """The formula of preprocessor_config.json, as Hugging Face applies it: rescale, then subtract and divide."""
    mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.27, 0.26, 0.28])
    return (pixels / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def whole_model(folder: Path, family: Family) -> Any:
    return MODEL_CLASSES[family].from_pretrained(folder, dtype=torch.float32).eval()


def vision_part(model: Any, family: Family) -> Any:
    return getattr(model, BASES.get(family, "vision_model"))


def blocks_of(part: Any, family: Family) -> Any:
    match family:
        case Family.CLIP | Family.SIGLIP:
            return part.encoder.layers
        case Family.DINOV2 | Family.DINOV2_REGISTERS:
            return part.encoder.layer
        case _:
            return part.layers


@torch.no_grad()
def reference(model: Any, family: Family, pixels: Tensor) -> dict[str, Any]:
    """Run the Hugging Face model from end to end with its own forward."""
    inputs = normalised(pixels)
    part = vision_part(model, family)(inputs, output_hidden_states=True)
    found: dict[str, Any] = {
        "hidden_states": part.hidden_states,
        "last_hidden": part.last_hidden_state,
        "pooled": part.pooler_output,
    }
    if family in (Family.CLIP, Family.SIGLIP):
        found["embedding"] = model.get_image_features(inputs).pooler_output
    else:
        found["logits"] = model(inputs).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_equals_the_hidden_states_of_the_whole_model(
    family: Family, wholes: dict[Family, Any], encoders: dict[Family, Encoder], pixels: Tensor
) -> None:
    due = reference(wholes[family], family, pixels)["hidden_states"]
    assert len(due) == BLOCK_COUNT + 1
    for block in range(BLOCK_COUNT):
        torch.testing.assert_close(encoders[family].hidden(pixels, block), due[block + 1], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(due[block], due[block + 1], atol=1e-2), "blocks change nothing: the test is blind"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", range(BLOCK_COUNT))
def test_resume_equals_the_whole_forward(
    family: Family, block: int, wholes: dict[Family, Any], encoders: dict[Family, Encoder], pixels: Tensor
) -> None:
    encoder = encoders[family]
    due = reference(wholes[family], family, pixels)
    output = encoder.resume(encoder.hidden(pixels, block), block)
    torch.testing.assert_close(output.last_hidden, due["last_hidden"], rtol=1e-5, atol=1e-5)
    if due["pooled"] is None:
        assert output.pooled is None
    else:
        torch.testing.assert_close(output.pooled, due["pooled"], rtol=1e-5, atol=1e-5)
    if "embedding" in due:
        torch.testing.assert_close(output.embedding, due["embedding"], rtol=1e-5, atol=1e-5)
        assert encoder.head is None
    else:
        assert output.embedding is None
        assert encoder.head is not None
        assert encoder.head.names == CLASS_NAMES
        torch.testing.assert_close(encoder.head.classify(output), due["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_residual_does_what_a_forward_hook_does(
    family: Family, wholes: dict[Family, Any], encoders: dict[Family, Encoder], pixels: Tensor
) -> None:
    encoder, block, prefix = encoders[family], 1, PREFIX_TOKEN_COUNTS[family]
    hidden = encoder.hidden(pixels, block)
    changes = {Tokens.PATCHES: slice(prefix, None), Tokens.ALL: slice(None)}
    if encoder.spec.has_cls:
        changes[Tokens.CLS] = slice(0, 1)
    plain = encoder.resume(hidden, block).last_hidden
    for tokens, places in changes.items():
        residuals = encoder.select(hidden, tokens)
        changed = encoder.replace(hidden, tokens, 0.5 * residuals - 0.3)
        output = encoder.resume(changed, block)

        def halve(_: Any, inputs: Any, result: Tensor, places: slice = places) -> Tensor:
            result = result.clone()
            result[:, places] = 0.5 * result[:, places] - 0.3
            return result

        with blocks_of(vision_part(wholes[family], family), family)[block].register_forward_hook(halve):
            due = reference(wholes[family], family, pixels)
        torch.testing.assert_close(output.last_hidden, due["last_hidden"], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(output.last_hidden, plain, atol=1e-2), "the change changed nothing"
        if "logits" in due and encoder.head is not None:
            torch.testing.assert_close(encoder.head.classify(output), due["logits"], rtol=1e-5, atol=1e-5)
        if "embedding" in due:
            torch.testing.assert_close(output.embedding, due["embedding"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_has_the_same_residuals_alone_and_in_a_batch(
    family: Family, encoders: dict[Family, Encoder], pixels: Tensor
) -> None:
    encoder = encoders[family]
    together = encoder.hidden(pixels, BLOCK_COUNT - 1)
    limit = 1e-5 * together.abs().max()
    for image in range(len(pixels)):
        alone = encoder.hidden(pixels[image : image + 1], BLOCK_COUNT - 1)
        assert (alone[0] - together[image]).abs().max() <= limit


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_pick_their_tokens(family: Family, encoders: dict[Family, Encoder], pixels: Tensor) -> None:
    encoder, prefix = encoders[family], PREFIX_TOKEN_COUNTS[family]
    hidden = encoder.hidden(pixels, 0)
    assert encoder.spec.prefix_token_count == prefix
    assert encoder.spec.grid == (4, 4)
    due = {
        Tokens.PATCHES: hidden[:, prefix:],
        Tokens.ALL: hidden,
        Tokens.MEAN: hidden[:, prefix:].sum(dim=1, keepdim=True) / PATCH_COUNT,
    }
    if prefix:
        due[Tokens.CLS] = hidden[:, :1]
    for tokens, residuals in due.items():
        site = Site(block=0, tokens=tokens)
        torch.testing.assert_close(encoder.residuals(pixels, site), residuals)
        assert encoder.site_token_count(site) == residuals.shape[1]
        assert encoder.site_width(site) == WIDTH
    assert hidden.shape[1] == encoder.spec.token_count == prefix + PATCH_COUNT


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_behind_the_site_are_not_run(family: Family, folders: dict[Family, Path], pixels: Tensor) -> None:
    encoder = load_encoder(folders[family])
    calls: list[int] = []
    for block, module in enumerate(encoder._tower.blocks):
        module.register_forward_hook(lambda *_, block=block: calls.append(block))
    encoder.residuals(pixels, Site(block=1, tokens=Tokens.PATCHES))
    assert calls == [0, 1]
    encoder.resume(encoder.hidden(pixels, 1), 1)
    assert calls == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_several_sites_are_read_in_one_pass_as_each_is_alone(
    family: Family, folders: dict[Family, Path], pixels: Tensor
) -> None:
    encoder = load_encoder(folders[family])
    sites = [
        Site(block=1, tokens=Tokens.PATCHES),
        Site(block=0, tokens=Tokens.ALL),
        Site(block=1, tokens=Tokens.MEAN),
        Site(block=1, tokens=Tokens.PATCHES),
    ]
    if encoder.spec.has_cls:
        sites.append(Site(block=1, tokens=Tokens.CLS))
    if encoder.spec.embedding_width is not None:
        sites.append(Site(block=None, tokens=Tokens.EMBEDDING))
    alone = [encoder.residuals(pixels, site) for site in sites]
    calls: list[int] = []
    for block, module in enumerate(encoder._tower.blocks):
        module.register_forward_hook(lambda *_, block=block: calls.append(block))
    together = encoder.residuals_at(pixels, sites)
    assert calls == list(range(BLOCK_COUNT if encoder.spec.embedding_width is not None else 2))
    assert len(together) == len(sites)
    for found, due in zip(together, alone, strict=True):
        assert torch.equal(found, due)
    assert encoder.residuals_at(pixels, []) == ()
    with pytest.raises(SiteError, match="block 3 does not exist"):
        encoder.residuals_at(pixels, [*sites, Site(block=3, tokens=Tokens.ALL)])


@pytest.mark.parametrize("family", [Family.CLIP, Family.SIGLIP])
def test_the_embedding_is_a_site(family: Family, encoders: dict[Family, Encoder], pixels: Tensor) -> None:
    encoder = encoders[family]
    site = Site(block=None, tokens=Tokens.EMBEDDING)
    residuals = encoder.residuals(pixels, site)
    assert residuals.shape == (7, 1, encoder.site_width(site))
    assert encoder.site_width(site) == (PROJECTION_WIDTH if family is Family.CLIP else WIDTH)
    assert encoder.site_token_count(site) == 1
    torch.testing.assert_close(residuals[:, 0], encoder.output(pixels).embedding)


@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_what_the_second_linear_map_of_the_mlp_reads(
    family: Family, wholes: dict[Family, Any], encoders: dict[Family, Encoder], pixels: Tensor
) -> None:
    heard: list[Tensor] = []
    mlp = blocks_of(vision_part(wholes[family], family), family)[1].mlp
    with mlp.activation_fn.register_forward_hook(lambda _, inputs, result: heard.append(result)):
        reference(wholes[family], family, pixels)
    units = encoders[family].units(pixels, 1)
    assert units.shape == (7, encoders[family].spec.token_count, MLP_UNIT_COUNT)
    torch.testing.assert_close(units, heard[0], rtol=1e-5, atol=1e-5)


def test_gated_mlps_have_units_too(tmp_path: Path, pixels: Tensor) -> None:
    config = transformers.Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=8,
        mlp_ratio=2,
        use_swiglu_ffn=True,
    )
    save_model(tmp_path, transformers.Dinov2Model(config))
    encoder = load_encoder(tmp_path)
    mlp = encoder._tower.blocks[0].mlp
    before: list[Tensor] = []
    mlp.register_forward_hook(lambda _, inputs, result: before.append(inputs[0]))
    units = encoder.units(pixels, 0)
    torch.testing.assert_close(
        units, torch.nn.functional.silu(mlp.gate_proj(before[0])) * mlp.up_proj(before[0]), rtol=1e-5, atol=1e-5
    )


def test_gradients_flow_through_resume(encoders: dict[Family, Encoder], pixels: Tensor) -> None:
    encoder = encoders[Family.VIT]
    hidden = encoder.hidden(pixels, 1).clone().requires_grad_()
    assert encoder.head is not None
    encoder.head.classify(encoder.resume(hidden, 1))[:, 0].sum().backward()
    assert hidden.grad is not None
    step = 1e-2 * torch.nn.functional.normalize(hidden.grad.flatten(), dim=0).view_as(hidden)
    with torch.no_grad():
        up, down = (
            encoder.head.classify(encoder.resume(hidden.detach() + sign * step, 1))[:, 0].sum() for sign in (1, -1)
        )
    assert float(up - down) == pytest.approx(2e-2 * float(hidden.grad.norm()), rel=1e-2)


def test_the_encoder_is_frozen(encoders: dict[Family, Encoder], pixels: Tensor) -> None:
    for encoder in encoders.values():
        assert not encoder.hidden(pixels, 0).requires_grad
        assert all(
            not weight.requires_grad and weight.dtype == torch.float32
            for block in encoder._tower.blocks
            for weight in block.parameters()
        )
        assert not any(block.training for block in encoder._tower.blocks)


def test_dinov2_reads_pixels_of_another_size_than_it_was_configured_for(tmp_path: Path) -> None:
    write_encoder(tmp_path, Family.DINOV2)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 48, "width": 48}}))
    encoder = load_encoder(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 48, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert encoder.spec.grid == (6, 6)
    due = reference(whole_model(tmp_path, Family.DINOV2), Family.DINOV2, pixels)["hidden_states"][1]
    torch.testing.assert_close(encoder.hidden(pixels, 0), due, rtol=1e-5, atol=1e-5)


def test_other_families_refuse_pixels_of_another_size(tmp_path: Path) -> None:
    write_encoder(tmp_path, Family.SIGLIP)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 48, "width": 48}}))
    with pytest.raises(EncoderUnsupported, match=r"48 x 48.*32 x 32"):
        load_encoder(tmp_path)


def test_pixels_of_the_wrong_size_are_refused(encoders: dict[Family, Encoder]) -> None:
    with pytest.raises(ValueError, match="40"):
        encoders[Family.DINOV2].hidden(torch.zeros(1, 3, 40, 40, dtype=torch.uint8), 0)


# Other shapes of the same families


@pytest.mark.parametrize("with_projection", [True, False])
def test_a_bare_clip_vision_tower_loads(tmp_path: Path, pixels: Tensor, with_projection: bool) -> None:
    config = transformers.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=IMAGE_PX, patch_size=8, projection_dim=12,
    )  # fmt: skip
    kind: Any = transformers.CLIPVisionModelWithProjection if with_projection else transformers.CLIPVisionModel
    save_model(tmp_path, kind(config))
    encoder = load_encoder(tmp_path)
    model = kind.from_pretrained(tmp_path).eval()
    output = encoder.output(pixels)
    with torch.no_grad():
        due = model(normalised(pixels))
    assert encoder.spec.embedding_width == (12 if with_projection else None)
    if with_projection:
        torch.testing.assert_close(output.embedding, due.image_embeds, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(output.pooled, due.pooler_output, rtol=1e-5, atol=1e-5)
        with pytest.raises(SiteError, match="no embedding; it has cls, patches, all, mean"):
            encoder.check_site(Site(block=None, tokens=Tokens.EMBEDDING))


@pytest.mark.parametrize("kind", [transformers.ViTModel, transformers.DeiTModel])
@pytest.mark.parametrize("has_pooler", [True, False])
def test_plain_vits_load_with_and_without_a_pooler(tmp_path: Path, pixels: Tensor, kind: Any, has_pooler: bool) -> None:
    config = kind.config_class(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=IMAGE_PX, patch_size=8,
    )  # fmt: skip
    save_model(tmp_path, kind(config, add_pooling_layer=has_pooler))
    encoder = load_encoder(tmp_path)
    model = kind.from_pretrained(tmp_path, add_pooling_layer=has_pooler).eval()
    with torch.no_grad():
        due = model(normalised(pixels))
    output = encoder.output(pixels)
    assert encoder.head is None
    torch.testing.assert_close(output.last_hidden, due.last_hidden_state, rtol=1e-5, atol=1e-5)
    if has_pooler:
        torch.testing.assert_close(output.pooled, due.pooler_output, rtol=1e-5, atol=1e-5)
    else:
        assert output.pooled is None


@pytest.mark.parametrize("family", [Family.CLIP, Family.SIGLIP])
def test_classifiers_on_clip_and_siglip_give_their_logits(tmp_path: Path, pixels: Tensor, family: Family) -> None:
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = tower | {"image_size": IMAGE_PX, "patch_size": 8}
    names: dict[str, Any] = {"id2label": {0: "hen", 1: "cock", 2: "tench"}}
    model: Any
    if family is Family.CLIP:
        model = transformers.CLIPForImageClassification(
            transformers.CLIPConfig(vision_config=vision, text_config=tower, **names)
        )
    else:
        model = transformers.SiglipForImageClassification(
            transformers.SiglipConfig(vision_config=vision, text_config=tower, **names)
        )
    save_model(tmp_path, model)
    encoder = load_encoder(tmp_path)
    assert encoder.head is not None
    assert encoder.head.names == ("hen", "cock", "tench")
    with torch.no_grad():
        due = model.eval()(pixel_values=normalised(pixels)).logits
    torch.testing.assert_close(encoder.head.classify(encoder.output(pixels)), due, rtol=1e-5, atol=1e-5)


def test_classes_that_do_not_count_from_0_are_refused(tmp_path: Path) -> None:
    labels = {"id2label": {1: "hen", 2: "cock", 3: "tench"}, "label2id": {"hen": 1, "cock": 2, "tench": 3}}
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ViTConfig(**tower, image_size=IMAGE_PX, patch_size=8, **labels)
    save_model(tmp_path, transformers.ViTForImageClassification(config))
    with pytest.raises(ArtefactDamaged, match=r"\[1, 2, 3\], and none for \[0\] of its 3 outputs: number .* from 0"):
        load_encoder(tmp_path)


def test_sharded_weights_load_and_digest_like_themselves(tmp_path: Path, pixels: Tensor) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    write_encoder(whole, Family.VIT)
    shutil.copytree(whole, sharded)
    (sharded / "model.safetensors").unlink()
    whole_model(whole, Family.VIT).save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(load_encoder(sharded).hidden(pixels, 2), load_encoder(whole).hidden(pixels, 2))
    next(iter(sorted(sharded.glob("model-*.safetensors")))).unlink()
    with pytest.raises(EncoderMissing, match="lacks model-00001-of"):
        load_encoder(sharded)


def test_half_precision_weights_are_read_in_float32(tmp_path: Path, pixels: Tensor) -> None:
    write_encoder(tmp_path, Family.VIT)
    whole_model(tmp_path, Family.VIT).half().save_pretrained(tmp_path)
    assert load_encoder(tmp_path).hidden(pixels, 0).dtype == torch.float32


# Identity


def test_the_spec_goes_through_its_configuration(encoders: dict[Family, Encoder]) -> None:
    for encoder in encoders.values():
        config = json.loads(json.dumps(encoder.spec.to_config()))
        assert EncoderSpec.from_config(config) == encoder.spec
        with pytest.raises(SchemaUnknown, match="surplus"):
            EncoderSpec.from_config(config | {"surplus": 1})


def test_the_digest_follows_weights_configuration_and_preprocessor_alone(tmp_path: Path) -> None:
    original = write_encoder(tmp_path / "original", Family.CLIP)
    due = load_encoder(original).spec
    assert due.model == "original"
    assert str(tmp_path) not in json.dumps(due.to_config())

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in encoder_files(original):
        shutil.copy(file, copy)
    assert {file.name for file in encoder_files(original)} == {file.name for file in original.iterdir()}
    (copy / "tokenizer_config.json").write_text("{}")
    assert load_encoder(copy).spec.weights_sha256 == due.weights_sha256

    for name in ("config.json", "preprocessor_config.json"):
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(before + b"\n")
        assert load_encoder(copy).spec.weights_sha256 != due.weights_sha256
        (copy / name).write_bytes(before)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert load_encoder(copy).spec.weights_sha256 != due.weights_sha256


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (Site(block=10, tokens=Tokens.CLS), "block 10, cls"),
        (Site(block=None, tokens=Tokens.EMBEDDING), "embedding"),
        (Site(block=2, tokens=Tokens.ALL, prompt="a cat"), "block 2, all, prompt 'a cat'"),
    ],
)
def test_sites_read_as_text_and_go_through_their_configuration(site: Site, text: str) -> None:
    assert str(site) == text
    assert Site.from_config(json.loads(json.dumps(site.to_config()))) == site


@pytest.mark.parametrize("change", [{"block": 1, "tokens": "some"}, {"surplus": 1}])
def test_unknown_site_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaUnknown):
        Site.from_config(Site(block=1, tokens=Tokens.CLS).to_config() | change)


# Refusals


@pytest.mark.parametrize(("block", "tokens"), [(None, Tokens.CLS), (1, Tokens.EMBEDDING)])
def test_only_the_embedding_has_no_block(block: int | None, tokens: Tokens) -> None:
    with pytest.raises(SiteError, match="the embedding has no block"):
        Site(block=block, tokens=tokens)


def test_sites_that_an_encoder_lacks_are_named(encoders: dict[Family, Encoder], pixels: Tensor) -> None:
    siglip, vit = encoders[Family.SIGLIP], encoders[Family.VIT]
    with pytest.raises(SiteError, match="has no cls; it has patches, all, mean, embedding") as caught:
        siglip.check_site(Site(block=0, tokens=Tokens.CLS))
    assert caught.value.field == "site.tokens"
    with pytest.raises(SiteError, match="has no cls"):
        siglip.select(siglip.hidden(pixels, 0), Tokens.CLS)
    with pytest.raises(SiteError, match="block 3 does not exist; .* has 3 blocks, 0 to 2"):
        vit.residuals(pixels, Site(block=3, tokens=Tokens.CLS))
    with pytest.raises(SiteError, match="block -1 does not exist"):
        vit.hidden(pixels, -1)
    with pytest.raises(SiteError, match="takes none"):
        vit.check_site(Site(block=0, tokens=Tokens.CLS, prompt="a cat"))
    with pytest.raises(SiteError, match="mean cannot be written back"):
        vit.replace(vit.hidden(pixels, 0), Tokens.MEAN, torch.zeros(7, 1, WIDTH))


def test_a_missing_folder_and_an_empty_one_are_missing(tmp_path: Path) -> None:
    with pytest.raises(EncoderMissing, match="there is no encoder folder"):
        load_encoder(tmp_path / "absent")
    with pytest.raises(EncoderMissing, match="there is no encoder folder"):
        load_encoder(str(tmp_path / "absent"))
    with pytest.raises(EncoderMissing, match=r"has no config.json; give a folder in the Hugging Face layout"):
        load_encoder(tmp_path)


def test_a_local_folder_has_no_revision(folders: dict[Family, Path]) -> None:
    with pytest.raises(SettingError, match="'v1' .* leave the revision out"):
        load_encoder(folders[Family.VIT], revision="v1")


def test_an_unreachable_hub_says_what_to_do() -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("name or service not known")

    with pytest.raises(EncoderMissing, match=r"owner/model.*download the model elsewhere.*HF_HOME"):
        find_encoder("owner/model", revision="v1", download=unreachable)


def test_a_hub_encoder_is_known_by_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked: list[Any] = []

    def fetch(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model, revision))
        assert not any(pattern.endswith(".bin") for pattern in allow_patterns)
        return str(write_encoder(tmp_path / "snapshots" / commit, Family.VIT))

    found = find_encoder("owner/model", revision="main", download=fetch)
    assert asked == [("owner/model", "main")]
    assert (found.model, found.revision) == ("owner/model", commit)
    assert find_encoder(found.folder).model == commit


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_refused_unread(tmp_path: Path, name: str) -> None:
    write_encoder(tmp_path, Family.VIT)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"\x80\x04not to be opened")
    with pytest.raises(ArtefactRefused, match=rf"{name}.*never read"):
        load_encoder(tmp_path)


def test_a_shard_index_names_no_file_outside_the_folder(tmp_path: Path) -> None:
    write_encoder(tmp_path, Family.VIT)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtefactRefused, match="elsewhere"):
        load_encoder(tmp_path)


def test_a_folder_without_weights_or_preprocessor_is_missing_them(tmp_path: Path) -> None:
    write_encoder(tmp_path, Family.VIT)
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "aside")
    with pytest.raises(EncoderMissing, match=r"has no preprocessor_config.json"):
        load_encoder(tmp_path)
    (tmp_path / "aside").rename(tmp_path / "preprocessor_config.json")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EncoderMissing, match="has no weights"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "resnet"}, "'resnet', which is not read; read are clip"),
        ({"model_type": ["vit"]}, "which is not read; read are clip"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "a ViTForMaskedImageModeling, which is not read"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)
def test_other_models_are_unsupported(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    write_encoder(tmp_path, Family.VIT)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(EncoderUnsupported, match=named):
        load_encoder(tmp_path)


def test_files_that_do_not_belong_together_are_damaged(tmp_path: Path) -> None:
    write_encoder(tmp_path, Family.VIT)
    whole = (tmp_path / "config.json").read_text()
    for change in ({"num_hidden_layers": 5}, {"intermediate_size": 128}):
        (tmp_path / "config.json").write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(ArtefactDamaged, match="fetch"):
            load_encoder(tmp_path)
    for broken in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(ArtefactDamaged, match=r"config.json cannot be read as JSON"):
            load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(whole)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ArtefactDamaged, match="does not load as ViTForImageClassification"):
        load_encoder(tmp_path)


def test_loading_says_nothing_on_the_terminal(folders: dict[Family, Path], capfd: pytest.CaptureFixture[str]) -> None:
    load_encoder(folders[Family.CLIP])
    assert capfd.readouterr() == ("", "")


def test_an_encoder_that_does_not_fit_into_the_device_is_told_so(
    folders: dict[Family, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: torch.nn.Module, *_: Any) -> torch.nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(
        DeviceOutOfMemory,
        match=r"the encoder .* does not fit into the memory of cpu: CUDA out of memory.*; free some there, or choose",
    ):
        load_encoder(folders[Family.VIT])
