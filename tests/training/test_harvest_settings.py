import dataclasses
from typing import Any

import pytest

from phosphene.errors import SettingError
from training.harvest_settings import HarvestSettings, Storage


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_images": 0}, "--images-per-batch is 0"),
        ({"tokens_per_image": 0}, "--tokens-per-image is 0"),
        ({"image_limit": 0}, "--limit is 0"),
    ],
)
def test_an_impossible_harvest_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        HarvestSettings(**options).check()


def test_shards_hold_whole_batches_of_bounded_size() -> None:
    settings = HarvestSettings(batch_images=32)
    assert settings.shard_images(1, 128) == 1024
    assert settings.shard_images(196, 768) == 96
    assert settings.shard_images(10_000, 4096) == 32
    assert dataclasses.replace(settings, storage=Storage.FLOAT16).shard_images(196, 768) == 192
