"""Image folders: captions, buckets, and batches that follow from the seed alone."""

import pytest
import torch
from PIL import Image

from soarflow import ConfigError
from soarflow.engine.data import Item, TrainingSet, bucket_size, list_images, load_pixels
from soarflow.engine.job import Dataset


def folder_of(tmp_path, **captions):
    for name, caption in captions.items():
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        if caption is not None:
            (tmp_path / f"{name}.txt").write_text(caption + "\n")
    return Dataset(folder_path=str(tmp_path))


def test_captions_are_read_beside_their_pictures(tmp_path):
    dataset = folder_of(tmp_path, b="two", a="one")
    assert [(path.name, caption) for path, caption in list_images(dataset)] == [
        ("a.png", "one"),
        ("b.png", "two"),
    ]


def test_the_trigger_word_is_put_in_once(tmp_path):
    dataset = folder_of(tmp_path, a="a [trigger] here", b="plain", c="has zork")
    assert [caption for _, caption in list_images(dataset, "zork")] == [
        "a zork here",
        "zork plain",
        "has zork",
    ]


def test_a_missing_caption_is_an_error_unless_there_is_a_default(tmp_path):
    dataset = folder_of(tmp_path, a=None)
    with pytest.raises(
        ConfigError,
        match=r"a.png has no caption: write it to a.txt beside it, or set datasets.default_caption",
    ):
        list_images(dataset)
    assert list_images(Dataset(folder_path=str(tmp_path), default_caption="x"))[0][1] == "x"


def test_an_empty_folder_and_a_broken_picture(tmp_path):
    with pytest.raises(ConfigError, match="has no pictures"):
        list_images(Dataset(folder_path=str(tmp_path)))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="cannot be read as a picture"):
        load_pixels(tmp_path / "a.png", 64, 8)


def test_buckets_keep_the_aspect_and_the_area():
    assert bucket_size(100, 100, 64, 8) == (64, 64)
    assert bucket_size(400, 100, 64, 8) == (128, 32)
    assert bucket_size(10_000, 1, 64, 8)[1] == 8


def test_a_picture_is_scaled_to_cover_its_bucket(tmp_path):
    Image.new("RGB", (130, 64), (255, 0, 0)).save(tmp_path / "a.png")
    pixels = load_pixels(tmp_path / "a.png", 64, 8)
    assert pixels.shape == (3, 48, 88)
    assert torch.equal(pixels[0], torch.ones(48, 88)) and torch.equal(
        pixels[1], -torch.ones(48, 88)
    )


def make_set(batch_size, shapes=((1,),) * 12, seed=5):
    items = [
        Item(torch.full(shape, float(index)), str(index), 0.0) for index, shape in enumerate(shapes)
    ]
    return TrainingSet(items, {}, batch_size, seed)


def test_every_item_comes_once_an_epoch_in_another_order_each_time():
    training_set = make_set(4)
    epochs = [
        [draw.item.caption for n in range(e * 3, e * 3 + 3) for draw in training_set.batch(n)]
        for e in range(2)
    ]
    assert sorted(map(int, epochs[0])) == sorted(map(int, epochs[1])) == list(range(12))
    assert epochs[0] != epochs[1]


def test_samples_and_their_randomness_do_not_depend_on_the_batch_size():
    def stream(batch_size):
        draws = [
            draw
            for number in range(24 // batch_size)
            for draw in make_set(batch_size).batch(number)
        ]
        return [
            (draw.item.caption, torch.rand(1, generator=draw.generator).item()) for draw in draws
        ]

    assert stream(4) == stream(1) == stream(3)
    assert len({value for _, value in stream(4)}) == 24


def test_a_batch_holds_one_shape():
    shapes = [(1,), (2,)] * 5
    training_set = make_set(3, shapes)
    batches = [training_set.batch(number) for number in range(training_set.batches_per_epoch)]
    assert all(len({draw.item.latent.shape for draw in batch}) == 1 for batch in batches)
    assert sorted(int(draw.item.caption) for batch in batches for draw in batch) == list(range(10))
