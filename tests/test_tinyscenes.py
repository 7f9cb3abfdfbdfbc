"""The bundled world: the caption language, the scenes, and an evaluator that reads pixels alone."""

import numpy as np
import pytest
from PIL import Image

from soarflow.bundled.pictures import comparison
from soarflow.bundled.scoring import Scores, wilson
from soarflow.tinyscenes.captions import (
    CATEGORIES,
    Caption,
    Group,
    captions_of,
    category_of,
    draw_captions,
    is_held_out,
    parse,
)
from soarflow.tinyscenes.evaluator import Verdict, evaluate_image, judge
from soarflow.tinyscenes.scenes import (
    SIZE,
    Sloppiness,
    Thing,
    draw_scenes,
    holds,
    render,
    write_folder,
)


@pytest.mark.parametrize("category", CATEGORIES)
def test_captions_are_read_back(category):
    for caption in captions_of(category):
        assert parse(str(caption)) == caption and category_of(caption) == category


def test_the_language_in_words():
    assert (
        str(Caption((Group(2, "cross", "red"), Group(1, "square", "blue"))))
        == "two red crosses and a blue square"
    )
    assert (
        str(Caption((Group(1, "circle"), Group(1, "square")), "left of"))
        == "a circle left of a square"
    )
    with pytest.raises(ValueError, match="cannot read 'a pink dog'"):
        parse("a pink dog")


def test_training_and_held_out_captions_share_none_where_there_are_many():
    rng = np.random.default_rng(0)
    trained, kept = (
        set(draw_captions(rng, 7000, held_out=False)),
        set(draw_captions(rng, 700, held_out=True)),
    )
    assert {category_of(caption) for caption in trained & kept} <= {
        "single_object",
        "two_objects",
        "counting",
        "colors",
    }
    assert any(is_held_out(caption) for caption in kept)


@pytest.fixture(scope="module")
def fresh():
    scenes = draw_scenes(901, 4000)
    return scenes, [render(scene.things) for scene in scenes]


def test_the_evaluator_agrees_with_the_ground_truth(fresh):
    scenes, images = fresh
    verdicts = [
        evaluate_image(image, scene.caption) for image, scene in zip(images, scenes, strict=True)
    ]
    assert sum(verdict.correct for verdict in verdicts) >= 0.995 * len(scenes)
    assert all(verdict.score == 1 for verdict in verdicts if verdict.correct)


def test_captions_of_other_scenes_hold_no_oftener_than_chance(fresh):
    """Chance is what the scenes' own lists of things say about the other captions."""
    scenes, images = fresh
    others = scenes[1500:] + scenes[:1500]
    read = sum(
        evaluate_image(image, other.caption).correct
        for image, other in zip(images, others, strict=True)
    )
    true = sum(
        judge(scene.things, other.caption).correct
        for scene, other in zip(scenes, others, strict=True)
    )
    assert read <= true


def test_scenes_follow_from_the_seed():
    assert draw_scenes(5, 20) == draw_scenes(5, 20) != draw_scenes(6, 20)


def test_sloppy_scenes_are_worse_and_wrong_captions_wrong():
    wrong = draw_scenes(1, 300, Sloppiness(layouts=0, captions=1))
    assert all(scene.caption != scene.truth for scene in wrong)
    assert {category_of(scene.caption) for scene in wrong} == set(CATEGORIES)
    sloppy = draw_scenes(1, 300, Sloppiness(layouts=1, captions=0))
    right = sum(evaluate_image(render(scene.things), scene.truth).correct for scene in sloppy)
    assert 0.6 * 300 < right < 0.95 * 300


RED = Thing("circle", "red", 20, 32, 8)
BLUE = Thing("square", "blue", 44, 32, 8)


@pytest.mark.parametrize(
    ("text", "correct", "score"),
    [
        ("a red circle and a blue square", True, 1.0),
        ("a red circle left of a blue square", True, 1.0),
        ("a red circle right of a blue square", False, 4 / 5),
        ("a red circle", False, 2 / 3),  # one thing too many
        ("a blue circle and a red square", False, 2 / 4),
        ("a circle and a square", True, 1.0),
        ("two circles", False, 1 / 2),
        ("three circles", False, 1 / 3),
    ],
)
def test_the_graded_score_counts_what_is_kept(text, correct, score):
    verdict = evaluate_image(render([RED, BLUE]), parse(text))
    assert verdict.correct == correct and verdict.score == pytest.approx(score)


def test_an_empty_picture_and_noise_hold_nothing():
    rng = np.random.default_rng(0)
    for image in (render([]), Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))):
        verdict = evaluate_image(image, parse("a red circle"))
        assert not verdict.correct and verdict.score == 0


def test_relations_need_a_leading_direction():
    assert holds("left of", RED, BLUE) and not holds("right of", RED, BLUE)
    assert not holds("above", RED, BLUE) and not holds("below", RED, BLUE)


def test_a_folder_is_an_ordinary_training_set(tmp_path):
    scenes = draw_scenes(3, 4)
    write_folder(tmp_path, scenes)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{n:04d}.{e}" for n in range(4) for e in ("png", "txt")
    )
    assert (tmp_path / "0001.txt").read_text().strip() == str(scenes[1].caption)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "0001.png")), np.asarray(render(scenes[1].things))
    )


def test_wilsons_interval():
    low, high = wilson(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


def test_the_comparison_marks_every_picture_right_or_wrong():
    captions = draw_captions(np.random.default_rng(0), 3, held_out=False)
    images = [Image.new("RGB", (SIZE, SIZE), "white")] * 3
    verdicts = [Verdict(True, 1.0, []), Verdict(False, 0.5, []), Verdict(True, 1.0, [])]
    results = {name: Scores({}, {}, captions, images, verdicts) for name in ("base", "SOAR")}
    picture = comparison(results, 2)
    shown = {color for _, color in picture.getcolors(maxcolors=100_000)}
    assert {(26, 127, 55), (207, 34, 46), (255, 255, 255)} <= shown
    right_alone = {color for _, color in comparison(results, 1).getcolors(maxcolors=100_000)}
    assert (207, 34, 46) not in right_alone
