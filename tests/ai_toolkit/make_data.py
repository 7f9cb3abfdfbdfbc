"""A small data set of pictures, videos or sounds with captions, for AI Toolkit's own interpreter,
which has what writes them.

`python make_data.py KIND FOLDER`; the kinds are those of a Tiny's `data`.
"""

import sys
import wave
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = (
    "a red circle above a blue square",
    "two green triangles",
    "a yellow square left of a red circle",
    "a circle",
)
SOUND_CAPTION = "<CAPTION>{}</CAPTION>"
SIZE, FRAMES, RATE, SAMPLE_RATE = 64, 5, 16, 16000


def picture(generator, size=SIZE):
    """Smooth random colours."""
    small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def sound(generator, seconds):
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave_form = sum(np.sin(2 * np.pi * generator.uniform(100, 2000) * time) for _ in range(3)) / 4
    return (wave_form * 32767).astype(np.int16)


def write_video(file, generator, with_sound):
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width = stream.height = SIZE
        track = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if with_sound else None
        first, last = picture(generator).astype(float), picture(generator).astype(float)
        for frame in range(FRAMES):
            mixed = first + (last - first) * frame / (FRAMES - 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(mixed.astype(np.uint8))))
        container.mux(stream.encode())
        if track is not None:
            samples = av.AudioFrame.from_ndarray(
                sound(generator, FRAMES / RATE)[None], format="s16", layout="mono"
            )
            samples.sample_rate = SAMPLE_RATE
            container.mux(track.encode(samples))
            container.mux(track.encode())


def write_sound(file, generator, seconds=12):
    with wave.open(str(file), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(SAMPLE_RATE)
        output.writeframes(sound(generator, seconds).tobytes())


def main(kind, folder):
    folder.mkdir(parents=True)
    for index, caption in enumerate(CAPTIONS):
        generator = np.random.default_rng(index)
        (folder / f"{index}.txt").write_text(
            SOUND_CAPTION.format(caption) if kind == "sounds" else caption
        )
        if kind.startswith("videos"):
            write_video(folder / f"{index}.mp4", generator, kind == "videos with sound")
        elif kind == "sounds":
            write_sound(folder / f"{index}.wav", generator)
        else:
            Image.fromarray(picture(generator)).save(folder / f"{index}.png")
            if kind == "controls":
                (folder / "controls").mkdir(exist_ok=True)
                Image.fromarray(picture(generator)).save(folder / "controls" / f"{index}.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
