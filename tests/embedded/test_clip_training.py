"""The trainer's parts: labels that agree with the scenes, losses against plain references, a run that goes on."""

import math

import numpy as np
import pytest
import torch

from embedded.captions import claim_scene
from embedded.clip_folder import TinyClipSize
from embedded.clip_losses import claims_truth, contrastive_loss, zero_shot_loss
from embedded.clip_trainee import Trainee
from embedded.concepts import FACTORS, OBJECT_FACTORS, OBJECT_LIMIT, shown_values, values_of
from embedded.muon import orthogonalise
from embedded.scene_batches import BatchMaker, BatchPlan
from embedded.scenes import render_scene
from embedded.train_clip import Run, TrainingPlan, rate_factor

PAIRS = [(factor, value) for factor in FACTORS for value in values_of(factor)]
FIRST_SEED = 500_000
SMALL = TinyClipSize(image_width=32, image_units=32, image_blocks=2, text_width=32, text_blocks=1, heads=2)


@pytest.fixture(scope="module")
def batch():
    plan = BatchPlan(first_seed=FIRST_SEED, batch_size=24, easy_images=0, larger_share=0.0)
    return BatchMaker(plan).make(0)


def test_batches_agree_with_the_scenes(batch):
    for row in range(24):
        scene = render_scene(FIRST_SEED + row)
        np.testing.assert_array_equal(batch.pixels[row], scene.pixels)
        shown = shown_values(scene.factors)
        assert {pair for pair, present in zip(PAIRS, batch.presence[row], strict=True) if present} == shown
        for patch in range(64):
            top, left = 8 * (patch // 8), 8 * (patch % 8)
            block = scene.object_map[top : top + 8, left : left + 8]
            np.testing.assert_array_equal(batch.silhouette[row, patch], (block > 0).ravel())
            if (label := int(batch.patch_objects[row, patch])) > 0:
                assert (block == label).mean() >= 0.15
            else:
                assert max((block == number).mean() for number in (1, 2, 3)) < 0.15


def test_truth_of_rows_equals_truth_of_claims(batch):
    # The claims that the batch maker drew, drawn again.
    scenes = [render_scene(FIRST_SEED + row) for row in range(24)]
    claims = []
    for row, scene in enumerate(scenes):
        generator = np.random.default_rng((FIRST_SEED + row, 1))
        generator.random()
        claims.append(claim_scene(scene.factors, generator))
    truth = claims_truth(torch.from_numpy(batch.claims), OBJECT_LIMIT, torch.from_numpy(batch.facts))
    expected = [[claim.holds(scene.factors) for claim in claims] for scene in scenes]
    assert truth.tolist() == expected
    assert truth.diagonal().all()
    assert not truth.all()


def test_contrastive_loss_against_a_plain_reference():
    torch.manual_seed(0)
    image, text, miss = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (4, 4, 2))
    truth = torch.eye(4, dtype=torch.bool)
    truth[0, 2] = True
    scale = 7.0

    def cross_entropy(own, others):
        return math.log(sum(math.exp(other) for other in [own, *others])) - own

    total = 0.0
    for i in range(4):
        cosine = [(scale * image[i] @ text[j]).item() for j in range(4)]
        others = [cosine[j] for j in range(4) if j != i and not truth[i, j]]
        others += [(scale * image[i] @ miss[i]).item()] if i < 2 else []
        total += cross_entropy(cosine[i], others) / 8
        back = [(scale * image[j] @ text[i]).item() for j in range(4) if j != i and not truth[j, i]]
        total += cross_entropy(cosine[i], back) / 8
    assert contrastive_loss(image, text, miss, torch.tensor(scale), truth).item() == pytest.approx(total, rel=1e-4)


def test_zero_shot_loss_is_zero_only_for_the_right_shares():
    torch.manual_seed(0)
    prompt = torch.nn.functional.normalize(torch.randn(len(PAIRS), 64), dim=1)
    presence = torch.zeros(2, len(PAIRS))
    start = 0
    for factor in FACTORS:
        presence[0, start] = 1
        presence[1, start + 1] = 1
        start += len(values_of(factor))
    image = torch.nn.functional.normalize(presence @ torch.linalg.pinv(prompt).T, dim=1)
    right = zero_shot_loss(image, prompt, torch.tensor(60.0), presence).item()
    wrong = zero_shot_loss(image.flip(0), prompt, torch.tensor(60.0), presence).item()
    assert 0 <= right < 0.05
    assert wrong > 1


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_the_trainee_embeds_as_the_exported_model_does(batch):
    torch.manual_seed(0)
    trainee = Trainee(SMALL).eval()
    pixels = torch.from_numpy(batch.pixels[:3]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        ours = trainee.embed_images(pixels).embedding
        theirs = trainee.clip.get_image_features(pixels).pooler_output
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=1), rtol=1e-4, atol=1e-5)
    assert set(trainee.embed_images(pixels).labels) == set(OBJECT_FACTORS)


def test_the_rate_rises_holds_and_falls_to_zero():
    plan = TrainingPlan(images=1000, time_limit_s=100, warm_up_images=100, decay_share=0.5)
    assert rate_factor(plan, 0, 0) < 0.05
    assert rate_factor(plan, 400, 0) == 1
    assert rate_factor(plan, 750, 0) == pytest.approx(0.5)
    assert rate_factor(plan, 400, 75) == pytest.approx(0.5)
    assert rate_factor(plan, 1000, 0) == 0


def test_a_run_learns_and_goes_on_where_it_was_saved(tmp_path, batch):
    plan = TrainingPlan(images=10_000, time_limit_s=1e9, batch_size=24, warm_up_images=24)
    run = Run(tmp_path, plan, SMALL)
    losses = [run.step(batch)["dense"] for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    run.save()
    again = Run(tmp_path, plan, SMALL)
    assert again.image_count == 8 * 24
    assert run.step(batch) == pytest.approx(again.step(batch), rel=1e-4)
    for ours, theirs in zip(run.averaged.parameters(), again.averaged.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
