"""Pictures, captions and their cache: what is read, what is kept, what is redone, and batches that
follow from the seed alone."""

import io
import json
import resource
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from soarflow import ConfigError
from soarflow.engine import cache, pictures
from soarflow.engine.data import Item, TrainingSet, load_training_set, redraw, seeded_generator
from soarflow.engine.job import read_job
from soarflow.engine.pictures import bucket_size, read_picture, to_pixels
from soarflow.engine.sections import Dataset
from soarflow.engine.sources import caption_of, open_source, with_trigger

CACHE = "_soarflow_cache"
ROOT = Path(__file__).parent.parent


def folder_of(folder, **captions):
    folder.mkdir(exist_ok=True)
    for number, (name, caption) in enumerate(captions.items()):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{name}.png")
        if caption is not None:
            (folder / f"{name}.txt").write_text(caption + "\n")
    return Dataset(folder_path=str(folder))


def png(colour=(255, 0, 0), size=(8, 8), mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, "PNG")
    return stream.getvalue()


class Encoders:
    """A family whose latent is the picture an eighth as large, and whose text is its letters."""

    size_multiple = 8

    def __init__(self, weight=1.0, stop_after=None):
        part = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(part.weight, weight)
        torch.nn.init.zeros_(part.bias)
        self.pipeline, self.part = SimpleNamespace(vae=part), part
        self.pictures, self.texts, self.stop_after = 0, [], stop_after

    def text_encoders(self):
        return [self.part]

    def encode_images(self, pixels):
        if self.pictures == self.stop_after:
            raise KeyboardInterrupt
        self.pictures += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def encode_text(self, texts):
        self.texts += texts
        return [{"text": torch.tensor([float(ord(letter)) for letter in text])} for text in texts]

    def too_long(self, texts):
        return [len(text) > 100 for text in texts]


@pytest.fixture
def load(tmp_path, write_job):
    """Loads the training set of data sets; returns it with its encoders and what was said."""
    writing = threading.Lock()

    def load(*datasets, encoders=None, trigger_word=None, **train):
        process = {
            "type": "SOARTrainer",
            "datasets": [{"resolution": 16, **dataset} for dataset in datasets],
            "train": {"steps": 6, **train},
            "model": {"name_or_path": "some/model"},
            "trigger_word": trigger_word,
        }
        document = {"job": "extension", "config": {"name": "run", "process": [process]}}
        said, encoders = [], encoders or Encoders()
        with writing:
            job = read_job(write_job(document))
        training_set = load_training_set(job, encoders, said.append)
        return training_set, encoders, said

    return load


def captions_of(training_set):
    return [item.caption for item in training_set.items]


# captions


def read(dataset, trigger_word=None):
    """Names of a data set's pictures with their captions."""
    return [
        (
            Path(each.name).name,
            with_trigger(caption_of(each.caption, each.name, dataset), trigger_word),
        )
        for each in open_source(dataset).pictures()
    ]


def test_captions_are_read_beside_their_pictures(tmp_path):
    dataset = folder_of(tmp_path, b="two", a="one")
    folder_of(tmp_path / "inside", c="three")
    folder_of(tmp_path / ".hidden", d="four")
    assert read(dataset) == [("a.png", "one"), ("b.png", "two"), ("c.png", "three")]


def test_the_first_ending_that_is_there_counts(tmp_path):
    folder_of(tmp_path, a="one", b="two")
    (tmp_path / "a.caption").write_text("other")
    dataset = Dataset(folder_path=str(tmp_path), caption_ext=[".caption", "txt"])
    assert [caption for _, caption in read(dataset)] == ["other", "two"]


def test_the_trigger_word_is_put_in_once(tmp_path):
    dataset = folder_of(tmp_path, a="a [trigger] here", b="plain", c="has zork", d="[name], a dog")
    assert [caption for _, caption in read(dataset, "zork")] == [
        "a zork here",
        "zork plain",
        "has zork",
        "zork, a dog",
    ]
    assert read(dataset)[0][1] == "a  here"


def test_a_data_sets_own_trigger_word_goes_before_the_jobs(load, tmp_path):
    for name in "ab":
        folder_of(tmp_path / name, **{name: "[trigger]"})
    own = {"folder_path": str(tmp_path / "a"), "trigger_word": "own"}
    training_set, *_ = load(own, {"folder_path": str(tmp_path / "b")}, trigger_word="zork")
    assert captions_of(training_set) == ["own", "zork"]


def test_a_missing_caption_is_an_error_unless_there_is_a_default(tmp_path):
    dataset = folder_of(tmp_path, a=None, b="")
    message = "a.png has no caption: write it to a.txt beside it, or set datasets.default_caption"
    with pytest.raises(ConfigError, match=message):
        open_source(dataset)
    named = read(Dataset(folder_path=str(tmp_path), default_caption="x"))
    assert [caption for _, caption in named] == ["x", "x"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_of_unicode_are_no_part_of_a_caption(tmp_path, encoding):
    dataset = folder_of(tmp_path, a=None)
    (tmp_path / "a.txt").write_bytes("ein Würfel\r\n".encode(encoding))
    assert read(dataset)[0][1] == "ein Würfel"


@pytest.mark.parametrize("content", ["ein Würfel".encode("latin-1"), b"\xff\xfea"])
def test_another_encoding_is_one_sentence(tmp_path, content):
    dataset = folder_of(tmp_path, a=None)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.txt is no UTF-8 text \(at byte \d+\)") as caught:
        read(dataset)
    assert "\n" not in str(caught.value)


# pictures


def test_grey_of_16_bits_keeps_its_greys():
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    image = read_picture(stream.getvalue(), "a.png")
    assert np.asarray(image)[0].tolist() == [[grey] * 3 for grey in (0, 1, 128, 255)]


def test_what_is_transparent_becomes_white():
    clear = Image.new("RGBA", (2, 1), (9, 9, 9, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    for image, options in ((clear, {}), (palette, {"transparency": 0})):
        stream = io.BytesIO()
        image.save(stream, "PNG", **options)
        seen = np.asarray(read_picture(stream.getvalue(), "a.png"))[0].tolist()
        assert seen == [[255, 255, 255], [10, 20, 30]]


def test_colours_of_print_are_read():
    stream = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(stream, "JPEG")
    red, green, blue = np.asarray(read_picture(stream.getvalue(), "a.jpg"))[4, 4]
    assert red > 240 and max(green, blue) < 15


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no picture", "no picture format begins like this"),
        (png(size=(200, 200))[:-40], "truncated"),
    ],
)
def test_a_broken_picture_is_one_sentence(content, reason):
    with pytest.raises(ConfigError, match=rf"a\.png cannot be read as a picture: .*{reason}"):
        read_picture(content, "a.png")


def test_large_pictures_are_read_and_larger_ones_refused(monkeypatch):
    content = png(1, (14000, 14000), "1")  # 196 megapixels
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "_rgb", lambda image: image)
        assert read_picture(content, "a.png").size == (14000, 14000)
        patched.setattr(pictures, "LARGEST", 10**8)
        with pytest.raises(ConfigError, match=r"a\.png has 14000 x 14000 pixels, and at most"):
            read_picture(content, "a.png")


def test_buckets_keep_the_aspect_and_the_area():
    assert bucket_size(100, 100, 64, 8) == (64, 64)
    assert bucket_size(400, 100, 64, 8) == (128, 32)
    assert bucket_size(10_000, 1, 64, 8)[1] == 8


def test_a_picture_is_scaled_to_cover_its_bucket():
    image = read_picture(png(size=(130, 64)), "a.png")
    pixels = to_pixels(image, bucket_size(*image.size, 64, 8))
    assert pixels.shape == (3, 48, 88)
    assert torch.equal(pixels[0], torch.ones(48, 88)) and torch.equal(
        pixels[1], -torch.ones(48, 88)
    )


# sources


def write_jsonl(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"folder_path": str(folder)}


@pytest.mark.parametrize("picture", ["file_name", "image"])
@pytest.mark.parametrize("caption", ["text", "caption", "prompt"])
def test_json_lines_name_pictures_and_captions(load, tmp_path, picture, caption):
    folder_of(tmp_path / "d", a=None, b=None)
    data = write_jsonl(
        tmp_path / "d", [{picture: f"{name}.png", caption: f"the {name}"} for name in "ba"]
    )
    training_set, _, said = load(data)
    assert captions_of(training_set) == ["the b", "the a"]
    assert said == [f"1 JSON lines file in {tmp_path / 'd'}"]


def test_hy_soars_file_is_read_as_it_is(load, tmp_path):
    """Pictures by their md5, captions in several lengths, buckets named; rows without a caption
    are left out (its soar/utils/data.py)."""
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("h1", "h2", "h3"):
        Image.new("RGB", (40, 20)).save(folder / f"{name}.jpg")
    lengths = json.dumps({"short_caption": "short", "long_caption": "long"})
    rows = [("h1", "plain", 32, 16), ("h2", lengths, 16, 32), ("h3", "", 16, 16)]
    data = write_jsonl(
        folder, [{"md5": m, "caption_en": c, "bw": w, "bh": h} for m, c, w, h in rows]
    )
    training_set, *_ = load(data)
    assert captions_of(training_set) == ["plain", "long"]
    assert [tuple(item.latent.shape) for item in training_set.items] == [(3, 2, 4), (3, 4, 2)]


def write_parquet(folder):
    table(4).to_parquet(folder / "a.parquet")


def write_arrow(folder):
    table(4).save_to_disk(folder / "saved")


def table(number):
    from datasets import Dataset, Features, Value
    from datasets import Image as Pictures

    rows = {
        "image": [{"bytes": png((index, 0, 0)), "path": None} for index in range(number)],
        "text": [f"the {index}" for index in range(number)],
    }
    return Dataset.from_dict(rows, Features({"image": Pictures(), "text": Value("string")}))


def write_shards(folder):
    for shard in range(2):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for index in (2 * shard, 2 * shard + 1):
                caption = f"the {index}".encode()
                for ending, data in (("png", png((index, 0, 0))), ("txt", caption)):
                    info = tarfile.TarInfo(f"{index}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (write_parquet, "1 parquet file in"),
        (write_arrow, "1 Arrow file in"),
        (write_shards, "2 webdataset files in"),
    ],
)
def test_tables_and_shards_are_read_once(load, tmp_path, write, found, monkeypatch):
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder)
    training_set, encoders, said = load({"folder_path": str(folder)})
    assert captions_of(training_set) == [f"the {index}" for index in range(4)]
    reds = [round((item.latent[0].mean().item() + 1) * 127.5) for item in training_set.items]
    assert reds == [0, 1, 2, 3] and encoders.pictures == 4 and said[0].startswith(found)

    def fail(builder):
        raise AssertionError("read again")

    monkeypatch.setattr("soarflow.engine.sources._stream", fail)
    again, encoders, _ = load({"folder_path": str(folder)}, seed=7)
    assert captions_of(again) == captions_of(training_set) and encoders.pictures == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file_name": "a.png"}], r"row 0 of 1 JSON lines .* has no caption: write it under one"),
        ([{"text": "x"}], r"row 0 of 1 JSON lines .* has no picture: it has text, and one of"),
        ([{"file_name": "no.png", "text": "x"}], r"cannot read .*no\.png: No such file"),
    ],
)
def test_a_row_that_lacks_something_is_named(load, tmp_path, rows, message):
    folder_of(tmp_path / "d", a=None)
    with pytest.raises(ConfigError, match=message):
        load(write_jsonl(tmp_path / "d", rows))


def test_broken_tables_are_one_sentence(load, tmp_path):
    for name, content in (("x.jsonl", "{"), ("x.parquet", "PAR1"), ("x.tar", "no tar" * 200)):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ConfigError, match="cannot be read: ") as caught:
            load({"folder_path": str(folder)})
        assert "\n" not in str(caught.value)


def test_a_name_of_the_hub_is_looked_for_there(load):
    with pytest.raises(ConfigError, match=r"data set org/name of the hub cannot be read: "):
        load({"folder_path": "org/name"})


def test_an_empty_folder(tmp_path):
    with pytest.raises(ConfigError, match="has no pictures"):
        open_source(Dataset(folder_path=str(tmp_path)))


# the cache


@pytest.fixture
def data(tmp_path):
    folder_of(tmp_path / "d", a="one", b="two", c="three", d="four")
    return {"folder_path": str(tmp_path / "d")}


def test_a_second_run_with_other_settings_encodes_nothing(load, data):
    first, encoders, _ = load(data)
    assert (encoders.pictures, sorted(encoders.texts)) == (4, ["", "four", "one", "three", "two"])
    options = {"num_repeats": 3, "caption_dropout_rate": 0.5}
    second, encoders, _ = load({**data, **options}, batch_size=3, seed=9, steps=50)
    assert (encoders.pictures, encoders.texts) == (0, [])
    assert torch.equal(first.items[1].latent, second.items[3].latent)
    assert second.features(["two"], "cpu")[0]["text"].tolist() == [116.0, 119.0, 111.0]
    *_, encoders = load(data, encoders=Encoders(weight=2.0))[:2]
    assert (encoders.pictures, len(encoders.texts)) == (4, 5)


def test_a_changed_picture_or_caption_alone_is_encoded_again(load, data, tmp_path):
    load(data)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "d" / "b.png")
    (tmp_path / "d" / "c.txt").write_text("new")
    training_set, encoders, _ = load(data)
    assert (encoders.pictures, encoders.texts) == (1, ["new"])
    assert training_set.items[1].latent.min() == 1


def test_pictures_that_json_lines_name_may_change(load, tmp_path):
    folder_of(tmp_path / "d", a=None, b=None)
    data = write_jsonl(
        tmp_path / "d", [{"file_name": f"{name}.png", "text": name} for name in "ab"]
    )
    load(data)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "d" / "b.png")
    training_set, encoders, _ = load(data)
    assert encoders.pictures == 1 and training_set.items[1].latent.min() == 1


def test_another_resolution_keeps_the_first(load, data):
    load(data)
    training_set, encoders, _ = load({**data, "resolution": [16, 8]})
    assert encoders.pictures == 4
    shapes = [tuple(item.latent.shape) for item in training_set.items]
    assert shapes == [(3, 2, 2), (3, 1, 1)] * 4


@pytest.mark.parametrize("kind", ["latents", "texts", "listing"])
@pytest.mark.parametrize("end", [0, 300, -100, -8, -1])
def test_a_file_of_the_cache_that_is_cut_short_is_made_again(load, data, tmp_path, kind, end):
    whole, _, _ = load(data)
    expected = [item.latent for item in whole.items]
    (file,) = (tmp_path / "d" / CACHE).glob(f"{kind}-*.arrow")
    file.write_bytes(file.read_bytes()[:end])
    again, encoders, _ = load(data)
    assert (encoders.pictures, len(encoders.texts)) == (
        4 if kind == "latents" else 0,
        5 if kind == "texts" else 0,
    )
    assert all(map(torch.equal, expected, [item.latent for item in again.items]))
    assert captions_of(again) == ["one", "two", "three", "four"]
    again.features(captions_of(again), "cpu")


def test_foreign_files_in_the_cache_are_no_part_of_it(load, data, tmp_path):
    folder = tmp_path / "d" / CACHE
    folder.mkdir()
    (folder / "latents-v1-0.arrow").write_text("something else")
    table(1).to_parquet(folder / "texts-v1-0.arrow")
    assert load(data)[1].pictures == 4


def test_an_interrupt_keeps_what_is_encoded(load, data):
    with pytest.raises(KeyboardInterrupt):
        load(data, encoders=Encoders(stop_after=3))
    assert load(data)[1].pictures == 1


def test_a_broken_picture_keeps_what_is_encoded(load, data, tmp_path):
    (tmp_path / "d" / "c.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"c\.png cannot be read as a picture: the file is empty"):
        load(data)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "d" / "c.png")
    assert load(data)[1].pictures == 2


def test_files_are_closed_while_encoding(load, data, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BATCH_BYTES", 1)
    monkeypatch.setattr(cache, "FILE_BYTES", 1)
    load(data)
    assert len(list((tmp_path / "d" / CACHE).glob("latents-*.arrow"))) == 4
    assert load(data)[1].pictures == 0


def test_batches_are_of_one_size_and_change_nothing(load, tmp_path, monkeypatch):
    folder = tmp_path / "d"
    captions = {f"p{number:02d}": f"the {number}" for number in range(30)}
    folder_of(folder, **captions)
    for number, name in enumerate(captions):
        size = [(16, 16), (32, 8), (8, 32)][number % 3]
        Image.new("RGB", size, (8 * number, 0, 0)).save(folder / f"{name}.png")
    options = {"folder_path": str(folder), "resolution": [16, 32]}
    one_by_one, *_ = load({**options, "cache_latents_to_disk": False})
    monkeypatch.setattr("soarflow.engine.data._together", lambda device: 4)
    together, encoders, _ = load(options)
    assert encoders.pictures == 60 and len(encoders.texts) == 0
    for one, other in zip(one_by_one.items, together.items, strict=True):
        assert torch.equal(one.latent, other.latent) and one.caption == other.caption


def test_a_read_only_folder_has_its_cache_in_the_output(load, data, tmp_path):
    folder = tmp_path / "d" / CACHE
    folder.write_text("a file where the folder would be")  # holds for root too
    _, encoders, said = load(data)
    fallback = tmp_path / "output" / "run" / "cache"
    assert said[1] == f"{tmp_path / 'd'} is read-only: what is encoded is kept in {fallback}"
    assert encoders.pictures == 4 and load(data)[1].pictures == 0


def test_a_cache_in_a_read_only_folder_is_read(load, data, monkeypatch):
    load(data)
    writable = cache.is_writable
    monkeypatch.setattr(
        "soarflow.engine.data.is_writable", lambda folder: folder.name != CACHE and writable(folder)
    )
    _, encoders, _ = load(data)
    assert (encoders.pictures, encoders.texts) == (0, [])


def test_where_nothing_can_be_written_it_is_said(load, data, monkeypatch):
    monkeypatch.setattr("soarflow.engine.data.is_writable", lambda folder: False)
    with pytest.raises(ConfigError, match=r"output.run cannot be written to. Choose another."):
        load(data)


def test_a_full_disk_is_one_sentence_and_leaves_no_part_of_a_file(load, data, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))  # as long as the job file
    try:
        with pytest.raises(ConfigError, match=r"the cache cannot be written to .*: File too large"):
            load(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.suffix for path in (tmp_path / "d" / CACHE).iterdir()} <= {".lock"}
    assert load(data)[1].pictures == 4


def test_nothing_is_kept_where_that_is_not_wanted(load, data, tmp_path):
    options = {"cache_latents_to_disk": False, "cache_text_embeddings": False}
    training_set, *_ = load({**data, **options})
    assert not (tmp_path / "d" / CACHE).exists()
    assert len({item.latent.sum().item() for item in training_set.items}) == 4
    training_set.features(["one"], "cpu")


def test_of_several_processes_one_encodes(load, data):
    """Threads here: the lock is the same."""
    encoders = [Encoders(), Encoders()]
    threads = [
        threading.Thread(target=load, args=(data,), kwargs={"encoders": e}) for e in encoders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.pictures for each in encoders) == [0, 4]


def test_captions_that_are_too_long_are_counted_each_time(load, data, tmp_path):
    (tmp_path / "d" / "a.txt").write_text("a" * 101)
    warning = "warning: 1 of 5 captions are longer than the text encoder takes, and their ends are"
    for _ in range(2):
        assert load(data)[2][1].startswith(warning)


def test_the_bundled_kind_of_model_takes_a_caption_of_any_length(pipeline_folder):
    from soarflow.engine.families import load_family

    family = load_family("zimage", str(pipeline_folder), torch.float32, "cpu")
    short, long = "a red circle", "a red circle above a blue square and " * 30
    assert family.too_long([short, long]) == [False, True]
    features = family.encode_text([short, long])
    assert len(features[1]["text"]) == family.text_limit() == 32
    state = torch.zeros(2, 4, 8, 8)
    assert family.predict(state, torch.tensor([0.5, 0.5]), features).shape == state.shape


def test_memory_does_not_grow_with_what_is_cached():
    """And the page says what was measured."""
    file = ROOT / "benchmarks" / "results" / "data_memory.json"
    measured = json.loads(file.read_text())
    few, many = measured["pictures"]["1000"], measured["pictures"]["50000"]
    page = " ".join((ROOT / "docs" / "data.md").read_text().split())
    for run, words in (("encoding", "while encoding"), ("cached", "once all is cached")):
        own = [each[run]["own_mb"] for each in (few, many)]
        assert (own[1] - own[0]) * 2**20 / 49_000 < 0.05 * measured["bytes_a_picture"]
        assert f"{own[0]:.0f} MB for 1,000 and {own[1]:.0f} MB for 50,000 {words}" in page
    assert f"{many['cache_mb']:,.0f} MB" in page


# items and draws


def test_a_mirrored_picture_comes_a_second_time(load, tmp_path):
    folder_of(tmp_path / "d", a="one")
    image = Image.new("RGB", (16, 16))
    image.putpixel((0, 0), (255, 255, 255))
    image.save(tmp_path / "d" / "a.png")
    training_set, *_ = load({"folder_path": str(tmp_path / "d"), "flip_x": True})
    plain, mirrored = training_set.items
    assert not torch.equal(plain.latent, mirrored.latent)
    assert torch.equal(plain.latent.flip(-1), mirrored.latent)


def test_repeats_and_data_sets_follow_each_other(load, tmp_path):
    folder_of(tmp_path / "a", x="one", y="two")
    folder_of(tmp_path / "b", z="three")
    first = {"folder_path": str(tmp_path / "a"), "num_repeats": 2, "caption_dropout_rate": 0.5}
    training_set, *_ = load(first, {"folder_path": str(tmp_path / "b")})
    assert captions_of(training_set) == ["one", "one", "two", "two", "three"]
    assert [item.dropout for item in training_set.items] == [0.5] * 4 + [0.0]


def test_parts_of_captions_are_shuffled_and_left_out_by_the_samples_own_draws(load, tmp_path):
    caption = "first, second, third, fourth"
    folder_of(tmp_path / "d", a=caption)
    options = {"shuffle_tokens": True, "token_dropout_rate": 0.5, "keep_tokens": 1}
    data = {"folder_path": str(tmp_path / "d"), **options}
    training_set, encoders, _ = load(data, steps=20, trigger_word="zork")
    drawn = [draw.item.caption for number in range(20) for draw in training_set.batch(number)]
    assert len(set(drawn)) > 5 and set(drawn) | {""} == set(encoders.texts)
    for each in drawn:
        assert "first" in each and each.startswith("zork ")
    again, encoders, _ = load(data, steps=10, batch_size=2, trigger_word="zork")
    samples = [draw.item.caption for draw in again.samples(range(20))]
    assert samples == drawn and encoders.texts == []


def test_parts_are_left_out_at_their_rate():
    dataset = Dataset(folder_path="x", token_dropout_rate=0.3, keep_tokens=1)
    counts = [
        len(redraw("a, b", dataset, None, seeded_generator(0, number)).split(", ")) - 1
        for number in range(2000)
    ]
    assert 0.65 < sum(counts) / 2000 < 0.75
    gone = Dataset(folder_path="x", token_dropout_rate=1.0)
    assert redraw("a, b", gone, "zork", seeded_generator(0)) == "zork"


def test_without_these_options_no_number_is_drawn(load, data):
    training_set, *_ = load(data)
    (draw,) = training_set.batch(3)
    fresh = torch.rand(3, generator=seeded_generator(42, "sample", 3))
    assert torch.equal(torch.rand(3, generator=draw.generator), fresh)


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
    def stream(draws):
        return [
            (draw.item.caption, torch.rand(1, generator=draw.generator).item()) for draw in draws
        ]

    def batches(size):
        return stream(draw for number in range(24 // size) for draw in make_set(size).batch(number))

    assert batches(4) == batches(1) == batches(3) == stream(make_set(4).samples(range(24)))
    assert len({value for _, value in batches(4)}) == 24


def test_a_batch_holds_one_shape():
    shapes = [(1,), (2,)] * 5
    training_set = make_set(3, shapes)
    batches = [training_set.batch(number) for number in range(training_set.batches_per_epoch)]
    assert all(len({draw.item.latent.shape for draw in batch}) == 1 for batch in batches)
    assert sorted(int(draw.item.caption) for batch in batches for draw in batch) == list(range(10))
    numbers = range(10, 20)  # the next epoch's
    together = [draw.item.caption for draw in training_set.samples(numbers)]
    count = training_set.batches_per_epoch
    one_by_one = [d.item.caption for n in range(count, 2 * count) for d in training_set.batch(n)]
    assert together == one_by_one
