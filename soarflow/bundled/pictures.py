"""Pictures of several models beside each other, with what they were to show and whether they do."""

import textwrap

from PIL import Image, ImageDraw, ImageFont

from .scoring import Scores

SIDE, GAP, LABEL, LINE = 128, 8, 64, 15
RIGHT, WRONG = "#1a7f37", "#cf222e"


def comparison(results: dict[str, Scores], number: int) -> Image.Image:
    """The first pictures: a column for each caption, a row for each model, right or wrong."""
    font = ImageFont.load_default(12)
    captions = [textwrap.wrap(str(each), 20) for each in next(iter(results.values())).captions]
    captions = captions[:number]
    head = LINE * max(map(len, captions)) + GAP
    row_height = SIDE + LINE + GAP
    size = LABEL + len(captions) * (SIDE + GAP), head + len(results) * row_height
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, lines in enumerate(captions):
        left = LABEL + column * (SIDE + GAP)
        draw.multiline_text((left, 2), "\n".join(lines), "black", font, spacing=2)
        for row, scores in enumerate(results.values()):
            top, correct = head + row * row_height, scores.verdicts[column].correct
            picture = scores.images[column].resize((SIDE, SIDE), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, top))
            word, color = ("right", RIGHT) if correct else ("wrong", WRONG)
            draw.text((left, top + SIDE + 1), word, color, font)
    for row, name in enumerate(results):
        draw.text((GAP, head + row * row_height + SIDE // 2), name, "black", font)
    return canvas
